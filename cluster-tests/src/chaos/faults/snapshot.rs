//! A snapshot, and the purge behind it, while a node is away; and a kill in the middle of it.

use std::time::Duration;

use futures::FutureExt;
use futures::future::{LocalBoxFuture, join_all};
use rand::RngExt;
use tokio::time::{sleep, timeout};

use super::Fault;
use crate::chaos::rig::Rig;

/// A snapshot is made within this time.
const MADE: Duration = Duration::from_secs(10);

/// One node is away; the others make snapshots, and one of them is killed about then.
#[derive(Default)]
pub(super) struct SnapshotAndKill {
    made: bool,
}

async fn indexes(rig: &Rig) -> Vec<u64> {
    let asked = rig.running().into_iter().map(|node| async move { rig.ask(node).status().await });
    join_all(asked).await.into_iter().flatten().map(|status| status.snapshot_index).collect()
}

impl Fault for SnapshotAndKill {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            let nodes = rig.shuffled_nodes();
            let before = indexes(rig).await.into_iter().max().unwrap_or(0);
            // It is behind when it comes back, and gets a snapshot if the others have purged so far.
            rig.kill(&nodes[..1]);
            let meanwhile = rig.some_time(200..1_500);
            sleep(meanwhile).await;
            let clients: Vec<_> = nodes[1..].iter().map(|node| rig.cluster.client_of(&[*node])).collect();
            let asked = join_all(clients.iter().map(sandkeeper_client::Client::trigger_snapshot));
            let in_the_middle = rig.dice.random_bool(0.5);
            let most = if in_the_middle { rig.some_time(1..150) } else { MADE };
            let done = timeout(most, asked).await;
            self.made = done.is_ok_and(|answers| answers.iter().any(Result::is_ok));
            if in_the_middle {
                rig.kill(&nodes[1..2]);
            }
            self.made |= rig
                .wait(MADE, async |rig: &mut Rig| {
                    rig.start_missing();
                    indexes(rig).await.into_iter().max().unwrap_or(0) > before
                })
                .await;
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        rig.start_missing();
        futures::future::ready(Ok(self.made)).boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        0..500
    }
}
