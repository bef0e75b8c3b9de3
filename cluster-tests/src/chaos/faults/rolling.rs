//! A rolling restart: one node after the other is asked to stop, and starts again when it has.

use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Fault;
use crate::chaos::rig::Rig;

/// A node that is asked to stop has stopped within this time.
const STOPS: Duration = Duration::from_secs(15);
/// A node that starts follows a leader within this time.
const FOLLOWS: Duration = Duration::from_secs(10);

/// All nodes, one after the other.
#[derive(Default)]
pub(super) struct Rolling {
    restarted: usize,
    asked: usize,
}

impl Fault for Rolling {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            for node in rig.shuffled_nodes() {
                let Some(mut process) = rig.cluster.nodes[node].process.take() else { continue };
                self.asked += 1;
                let stopped = timeout(STOPS, spawn_blocking(move || process.terminate())).await;
                self.restarted += usize::from(matches!(stopped, Ok(Ok(Some(0)))));
                rig.cluster.start_node(node);
                rig.wait(FOLLOWS, async |rig: &mut Rig| {
                    let status = rig.ask(node).status().await;
                    status.is_ok_and(|status| !status.leader.is_empty() && status.state != "starting")
                })
                .await;
            }
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        rig.start_missing();
        futures::future::ready(Ok(self.asked > 0 && self.restarted == self.asked)).boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        0..200
    }
}
