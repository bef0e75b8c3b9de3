//! What a leader says to the agents comes late, and leadership moves on meanwhile: agents hear of the new leader first.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::time::sleep;

use super::Fault;
use super::partition::mend;
use crate::chaos::rig::Rig;
use crate::{Party, Quality};

/// Another one leads within this time.
const MOVES: Duration = Duration::from_secs(5);

/// One leader's words are slow, and then it leads no more.
#[derive(Default)]
pub(super) struct LateLeader {
    slow: Vec<(Party, Party)>,
    before: u64,
    moved: bool,
}

fn delayed(rig: &Rig) -> u64 {
    rig.links().tally().delayed.load(Ordering::Relaxed)
}

impl Fault for LateLeader {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            self.before = delayed(rig);
            let leader = rig.leader().await;
            let to = rig.follower().await;
            let quality = Quality { delay: rig.some_time(2_000..3_500), ..Quality::default() };
            self.slow = (0..rig.cluster.agents.len())
                .map(|agent| (Party::Node(leader), Party::Agent(agent)))
                .collect();
            let links = rig.links();
            links.change(|weather| weather.extend(self.slow.iter().map(|link| (*link, quality))));
            let meanwhile = rig.some_time(800..1_500);
            sleep(meanwhile).await;
            let name = rig.cluster.nodes[to].name.clone();
            rig.ask_all(MOVES).transfer_leadership(name).await?;
            self.moved = rig.wait(MOVES, async |rig: &mut Rig| rig.leader().await != leader).await;
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        let proved = self.moved && delayed(rig) > self.before;
        mend(rig, &self.slow);
        futures::future::ready(Ok(proved)).boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        3_000..4_500
    }
}
