//! Disks that are full, hang, or lose power: each node has a file system of its own.

use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use rand::RngExt;
use test_disks::Frozen;
use tokio::task::block_in_place;

use super::Fault;
use crate::chaos::rig::Rig;

/// A node that is about to end has ended.
const STOPS: Duration = Duration::from_secs(3);
/// A node on a full disk ends within this time: it writes all the time.
const ENDS: Duration = Duration::from_secs(8);

/// A node's disk has no room left.
#[derive(Default)]
pub(super) struct Full {
    node: Option<usize>,
    full: bool,
}

impl Fault for Full {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            let node = rig.some_node();
            self.node = Some(node);
            block_in_place(|| rig.disks[node].fill(0));
            self.full = rig.disks[node].free() < 1 << 20;
            // Or it takes no new work, if it leads, and what is written until it is emptied is little.
            rig.wait(ENDS, async |rig: &mut Rig| rig.has_ended(node)).await;
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        async move {
            if let Some(node) = self.node {
                block_in_place(|| rig.disks[node].empty());
                // It may end of what it met a moment before, and takes a while for that where many want the processor.
                rig.wait(STOPS, async |rig: &mut Rig| rig.has_ended(node)).await;
            }
            rig.start_missing();
            Ok(self.full)
        }
        .boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        100..1_000
    }
}

/// A node's disk takes no writes for a while.
#[derive(Default)]
pub(super) struct Hung {
    frozen: Option<Frozen>,
}

impl Fault for Hung {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            let node = if rig.dice.random_bool(0.5) { rig.leader().await } else { rig.some_node() };
            self.frozen = Some(block_in_place(|| rig.disks[node].freeze()));
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, _: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        // `fsfreeze` has said that it is done, or there were no guard.
        let proved = self.frozen.is_some();
        block_in_place(|| self.frozen = None);
        futures::future::ready(Ok(proved)).boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        1_000..6_000
    }
}

/// All nodes lose power at one time: what was not made durable is gone.
#[derive(Default)]
pub(super) struct PowerCut {
    cut: bool,
}

impl Fault for PowerCut {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            // At one time as near as can be: by threads.
            block_in_place(|| {
                std::thread::scope(|scope| {
                    for disk in &rig.disks {
                        scope.spawn(|| disk.cut_power());
                    }
                });
            });
            let nodes: Vec<_> = (0..rig.nodes).collect();
            self.cut = rig.kill(&nodes);
            let probe = rig.disks.iter().map(|disk| std::fs::write(disk.path().join("probe"), "x"));
            self.cut &= probe.into_iter().all(|written| written.is_err());
            block_in_place(|| rig.disks.iter().for_each(test_disks::LoopDisk::remount));
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        rig.start_missing();
        futures::future::ready(Ok(self.cut)).boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        0..500
    }
}
