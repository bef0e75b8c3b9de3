//! One more node joins under load, and leaves again.

use anyhow::ensure;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use rand::RngExt;

use super::Fault;
use super::empty_disk::{remove, votes};
use crate::chaos::rig::Rig;

/// A node more, for a while.
#[derive(Default)]
pub(super) struct Membership {
    joined: bool,
}

impl Fault for Membership {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            // The same place each time, with an empty folder, so with an id of its own.
            if rig.cluster.nodes.len() == rig.nodes {
                rig.cluster.add_node().await;
            } else {
                rig.cluster.join_node(rig.nodes);
            }
            let name = rig.cluster.nodes[rig.nodes].name.clone();
            self.joined = votes(rig, &name, "").await;
            if rig.dice.random_bool(0.3) {
                // If that fails another one leads.
                let _ = rig.ask_all(std::time::Duration::from_secs(3)).transfer_leadership(name).await;
            }
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        async move {
            let name = rig.cluster.nodes[rig.nodes].name.clone();
            ensure!(remove(rig, &name).await, "{name} was not removed");
            let node = rig.nodes;
            rig.kill(&[node]);
            rig.wipe(node)?;
            ensure!(self.joined, "{name} did not become a voter");
            Ok(self.joined)
        }
        .boxed_local()
    }
}
