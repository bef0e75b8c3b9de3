//! Disks whose fsyncs take long, or fail: by strace.

use std::path::PathBuf;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use rand::RngExt;
use tokio::task::block_in_place;

use super::Fault;
use crate::Strace;
use crate::chaos::rig::Rig;

/// A node whose fsync fails ends within this time: it writes all the time.
const ENDS: Duration = Duration::from_secs(10);

/// A new file for what strace says of a node.
fn log(rig: &mut Rig, node: usize) -> PathBuf {
    let number: u32 = rig.dice.random();
    rig.cluster.folder().join(format!("n{node}.strace-{number:08x}"))
}

/// fsync takes long on one node, or on all.
#[derive(Default)]
pub(super) struct Slow {
    everywhere: bool,
    traced: Vec<(Strace, PathBuf)>,
}

impl Slow {
    /// On all nodes for sure.
    pub(super) fn everywhere() -> Self {
        Self { everywhere: true, ..Self::default() }
    }
}

impl Fault for Slow {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            let mut nodes = rig.shuffled_nodes();
            if !self.everywhere && rig.dice.random_bool(0.7) {
                nodes.truncate(1);
            }
            let micros = rig.dice.random_range(20_000..400_000);
            for node in nodes {
                let Some(pid) = rig.pid(node) else { continue };
                let log = log(rig, node);
                let inject = format!("fsync,fdatasync:delay_enter={micros}");
                self.traced.push((Strace::inject(pid, &inject, &log).await, log));
            }
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, _: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        let mut proved = !self.traced.is_empty();
        for (strace, log) in self.traced.drain(..) {
            block_in_place(|| drop(strace));
            let said = std::fs::read_to_string(log).unwrap_or_default();
            // One that was killed meanwhile has begun a call that did not end.
            proved &= said.contains("(DELAYED)") || said.contains("sync(");
        }
        futures::future::ready(Ok(proved)).boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        1_000..4_000
    }
}

/// fsync fails on one node, which ends.
#[derive(Default)]
pub(super) struct Failing {
    ended: bool,
}

impl Fault for Failing {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            let node = if rig.dice.random_bool(0.5) { rig.leader().await } else { rig.some_node() };
            let Some(pid) = rig.pid(node) else { return Ok(()) };
            let log = log(rig, node);
            let strace = Strace::inject(pid, "fsync,fdatasync:error=EIO", &log).await;
            self.ended = rig.wait(ENDS, async |rig: &mut Rig| rig.has_ended(node)).await;
            block_in_place(|| drop(strace));
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        rig.start_missing();
        futures::future::ready(Ok(self.ended)).boxed_local()
    }
}
