//! Wall clocks that jump, by libfaketime.

use std::time::Duration;

use anyhow::anyhow;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use rand::RngExt;

use super::Fault;
use crate::chaos::rig::Rig;
use crate::faketime;

/// The library looks at its file once a second.
const NOTICED: Duration = Duration::from_millis(1_100);

/// One clock jumps, and jumps back.
pub(super) struct Jump {
    direction: i64,
    node: Option<usize>,
    seen: bool,
}

impl Jump {
    pub(super) fn of(direction: i64) -> Self {
        Self { direction, node: None, seen: false }
    }
}

fn true_seconds() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs().cast_signed())
}

impl Fault for Jump {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            let node = if rig.dice.random_bool(0.5) { rig.leader().await } else { rig.some_node() };
            self.node = Some(node);
            let by = self.direction * rig.dice.random_range(5..7_200);
            rig.cluster.set_clock(node, by);
            tokio::time::sleep(NOTICED).await;
            let shown = faketime::shown(&rig.cluster.clock_of(node)).map_err(|error| anyhow!(error))?;
            self.seen = (shown - true_seconds() - by).abs() <= 2;
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        if let Some(node) = self.node {
            rig.cluster.set_clock(node, 0);
        }
        futures::future::ready(Ok(self.seen)).boxed_local()
    }
}
