//! Links between control nodes that lose, delay, or carry little. By the links' proxies: a lost packet holds up what is
//! behind it, as TCP has it; it is not lost for good.

use std::sync::atomic::Ordering;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use rand::RngExt;

use super::Fault;
use super::partition::mend;
use crate::chaos::rig::Rig;
use crate::{Party, Quality};

/// What links do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Loss,
    Delay,
    Bandwidth,
}

/// Bad links, and good ones again.
pub(super) struct Weather {
    kind: Kind,
    before: u64,
    bad: Vec<(Party, Party)>,
}

impl Weather {
    pub(super) fn of(kind: Kind) -> Self {
        Self { kind, before: 0, bad: Vec::new() }
    }

    fn count(&self, rig: &Rig) -> u64 {
        let tally = rig.links().tally();
        let count = match self.kind {
            Kind::Loss => &tally.lost,
            Kind::Delay => &tally.delayed,
            Kind::Bandwidth => &tally.throttled,
        };
        count.load(Ordering::Relaxed)
    }
}

impl Fault for Weather {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        self.before = self.count(rig);
        let quality = match self.kind {
            Kind::Loss => Quality { loss: rig.dice.random_range(0.02..0.3), ..Quality::default() },
            Kind::Delay => Quality { delay: rig.some_time(5..200), ..Quality::default() },
            Kind::Bandwidth => {
                Quality { rate: Some(rig.dice.random_range(20_000..1_000_000)), ..Quality::default() }
            }
        };
        // All of one node's, or all.
        let nodes = rig.shuffled_nodes();
        let whole = rig.dice.random_bool(0.5);
        let pairs = nodes.iter().flat_map(|from| nodes.iter().map(move |to| (*from, *to)));
        let bad = pairs.filter(|(from, to)| from != to && (whole || *from == nodes[0] || *to == nodes[0]));
        self.bad = bad.map(|(from, to)| (Party::Node(from), Party::Node(to))).collect();
        let links = rig.links();
        links.change(|weather| weather.extend(self.bad.iter().map(|link| (*link, quality))));
        futures::future::ready(Ok(())).boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        let proved = self.count(rig) > self.before;
        mend(rig, &self.bad);
        futures::future::ready(Ok(proved)).boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        1_000..4_000
    }
}
