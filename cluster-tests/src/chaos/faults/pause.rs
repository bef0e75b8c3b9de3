//! SIGSTOP and SIGCONT of control nodes.

use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::time::sleep;

use super::{Fault, sleep_of};
use crate::chaos::rig::Rig;

/// Who sleeps.
#[derive(Clone, Copy, Debug)]
pub(super) enum Whom {
    Leader,
    AnyNode,
}

/// Puts to sleep, and wakes.
pub(super) struct Pause {
    whom: Whom,
    node: Option<usize>,
    slept: bool,
}

impl Pause {
    pub(super) fn of(whom: Whom) -> Self {
        Self { whom, node: None, slept: false }
    }
}

impl Fault for Pause {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            let node = match self.whom {
                Whom::Leader => rig.leader().await,
                Whom::AnyNode => rig.some_node(),
            };
            self.node = Some(node);
            rig.cluster.pause_node(node);
            let asleep = sleep_of(rig);
            sleep(asleep.saturating_sub(Duration::from_millis(500))).await;
            self.slept = rig.pid(node).is_some_and(is_stopped);
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        if let Some(node) = self.node {
            rig.cluster.resume_node(node);
        }
        futures::future::ready(Ok(self.slept)).boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        100..500
    }
}

/// Whether the kernel says that a process is stopped.
pub(super) fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}
