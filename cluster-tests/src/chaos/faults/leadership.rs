//! Leadership is handed over.

use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::Fault;
use crate::chaos::rig::Rig;

/// Another one leads.
#[derive(Default)]
pub(super) struct Transfer {
    moved: bool,
}

impl Fault for Transfer {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            let before = rig.leader().await;
            let to = rig.follower().await;
            let name = rig.cluster.nodes[to].name.clone();
            rig.ask_all(Duration::from_secs(5)).transfer_leadership(name).await?;
            self.moved =
                rig.wait(Duration::from_secs(5), async |rig: &mut Rig| rig.leader().await != before).await;
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, _: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        futures::future::ready(Ok(self.moved)).boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        0..500
    }
}
