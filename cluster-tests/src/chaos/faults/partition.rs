//! Partitions of the control nodes. Clients reach all of them; agents share a side, or not, by the dice.

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use rand::RngExt;

use super::Fault;
use crate::chaos::rig::Rig;
use crate::{Party, Quality};

/// Which links are cut.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// The leader is alone.
    LeaderAlone,
    /// A minority, which may have the leader, is on its own.
    Majority,
    /// Two sides reach one node each in the middle, and not each other.
    Bridge,
    /// One node is not heard, or does not hear.
    OneWay,
}

/// Cuts, and mends.
pub(super) struct Partition {
    shape: Shape,
    held_before: u64,
    cuts: Vec<(Party, Party)>,
}

impl Partition {
    pub(super) fn of(shape: Shape) -> Self {
        Self { shape, held_before: 0, cuts: Vec::new() }
    }
}

/// All pairs, both ways.
fn between(one: &[Party], other: &[Party]) -> Vec<(Party, Party)> {
    one.iter().flat_map(|one| other.iter().flat_map(|other| [(*one, *other), (*other, *one)])).collect()
}

impl Partition {
    async fn cuts(&self, rig: &mut Rig) -> Vec<(Party, Party)> {
        let nodes = rig.shuffled_nodes();
        let parties = |nodes: &[usize]| nodes.iter().map(|node| Party::Node(*node)).collect::<Vec<_>>();
        let half = nodes.len() / 2;
        match self.shape {
            Shape::LeaderAlone => {
                let leader = rig.leader().await;
                let others: Vec<_> = nodes.into_iter().filter(|node| *node != leader).collect();
                between(&parties(&[leader]), &parties(&others))
            }
            Shape::Majority => between(&parties(&nodes[..half]), &parties(&nodes[half..])),
            Shape::Bridge => between(&parties(&nodes[1..=half]), &parties(&nodes[half + 1..])),
            Shape::OneWay => {
                let one = if rig.dice.random_bool(0.5) { rig.leader().await } else { nodes[0] };
                let others = nodes.into_iter().filter(|node| *node != one).map(Party::Node);
                let unheard = rig.dice.random_bool(0.5);
                let way = |other| if unheard { (Party::Node(one), other) } else { (other, Party::Node(one)) };
                others.map(way).collect()
            }
        }
    }
}

impl Fault for Partition {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            self.held_before = rig.held();
            let mut cuts = self.cuts(rig).await;
            if rig.dice.random_bool(0.5) {
                // Some agents are on one node's side only.
                let lonely = rig.some_agent();
                let away = rig.some_node();
                cuts.extend(between(&[Party::Agent(lonely)], &[Party::Node(away)]));
            }
            let cut = Quality { cut: true, ..Quality::default() };
            let links = rig.links();
            links.change(|weather| weather.extend(cuts.iter().map(|way| (*way, cut))));
            self.cuts = cuts;
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        let proved = rig.held() > self.held_before;
        mend(rig, &self.cuts);
        futures::future::ready(Ok(proved)).boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        1_500..6_000
    }
}

/// These links are as good as new.
pub(super) fn mend(rig: &Rig, links: &[(Party, Party)]) {
    rig.links().change(|weather| {
        weather.retain(|link, _| !links.contains(link));
    });
}
