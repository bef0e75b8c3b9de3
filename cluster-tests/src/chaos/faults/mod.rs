//! What is done to the cluster, one file each. A fault counts only if it is proved that it happened.

mod agents;
mod clock;
mod disk;
mod empty_disk;
mod fsync;
mod kill;
mod late_leader;
mod leadership;
mod membership;
mod partition;
mod pause;
mod rolling;
mod snapshot;
mod weather;

use std::time::Duration;

use futures::future::LocalBoxFuture;

use super::rig::{Means, Rig};

/// What a fault needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// To be root: for file systems, and to trace processes.
    Root,
    /// libfaketime.
    Faketime,
}

impl Needs {
    /// Whether the machine has it.
    pub fn are_met(self, means: &Means) -> bool {
        match self {
            Self::Nothing => true,
            Self::Root => means.root,
            Self::Faketime => means.faketime,
        }
    }
}

/// Which part of the cluster a fault is about: one of each part can be at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Control nodes.
    Nodes,
    /// Agents.
    Agents,
}

/// Something that is done to the cluster, and undone.
pub trait Fault {
    /// Does it.
    ///
    /// # Errors
    /// If it can't be done. It is undone all the same.
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>>;

    /// Undoes it. Whether it is proved that it had happened.
    ///
    /// # Errors
    /// If it can't be undone: the campaign ends.
    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>>;

    /// How long it lasts, milliseconds.
    fn lasts(&self) -> std::ops::Range<u64> {
        500..3_000
    }
}

/// A kind of fault.
#[derive(Clone, Copy)]
pub struct Kind {
    /// As `--faults` and the report call it.
    pub name: &'static str,
    /// What it is about.
    pub part: Part,
    /// What it needs.
    pub needs: Needs,
    /// Makes one.
    pub make: fn() -> Box<dyn Fault>,
}

macro_rules! kind {
    ($name:literal, $part:ident, $needs:ident, $fault:expr) => {
        Kind { name: $name, part: Part::$part, needs: Needs::$needs, make: || Box::new($fault) }
    };
}

/// All kinds.
pub const KINDS: &[Kind] = &[
    kind!("kill-leader", Nodes, Nothing, kill::Kill::of(kill::Whom::Leader)),
    kind!("kill-follower", Nodes, Nothing, kill::Kill::of(kill::Whom::Follower)),
    kind!("kill-all", Nodes, Nothing, kill::Kill::of(kill::Whom::All)),
    kind!("kill-all-slow", Nodes, Root, kill::Kill::all_with_slow_disks()),
    kind!("pause-leader", Nodes, Nothing, pause::Pause::of(pause::Whom::Leader)),
    kind!("pause-node", Nodes, Nothing, pause::Pause::of(pause::Whom::AnyNode)),
    kind!("partition-leader", Nodes, Nothing, partition::Partition::of(partition::Shape::LeaderAlone)),
    kind!("partition-majority", Nodes, Nothing, partition::Partition::of(partition::Shape::Majority)),
    kind!("partition-bridge", Nodes, Nothing, partition::Partition::of(partition::Shape::Bridge)),
    kind!("partition-one-way", Nodes, Nothing, partition::Partition::of(partition::Shape::OneWay)),
    kind!("loss", Nodes, Nothing, weather::Weather::of(weather::Kind::Loss)),
    kind!("delay", Nodes, Nothing, weather::Weather::of(weather::Kind::Delay)),
    kind!("bandwidth", Nodes, Nothing, weather::Weather::of(weather::Kind::Bandwidth)),
    kind!("clock-forward", Nodes, Faketime, clock::Jump::of(1)),
    kind!("clock-back", Nodes, Faketime, clock::Jump::of(-1)),
    kind!("slow-fsync", Nodes, Root, fsync::Slow::default()),
    kind!("failing-fsync", Nodes, Root, fsync::Failing::default()),
    kind!("full-disk", Nodes, Root, disk::Full::default()),
    kind!("hung-disk", Nodes, Root, disk::Hung::default()),
    kind!("power-cut", Nodes, Root, disk::PowerCut::default()),
    kind!("empty-disk", Nodes, Nothing, empty_disk::EmptyDisk::default()),
    kind!("membership", Nodes, Nothing, membership::Membership::default()),
    kind!("transfer", Nodes, Nothing, leadership::Transfer::default()),
    kind!("late-leader", Nodes, Nothing, late_leader::LateLeader::default()),
    kind!("snapshot", Nodes, Nothing, snapshot::SnapshotAndKill::default()),
    kind!("rolling-restart", Nodes, Nothing, rolling::Rolling::default()),
    kind!("kill-agent", Agents, Nothing, agents::Kill::default()),
    kind!("pause-agent", Agents, Nothing, agents::Pause::default()),
    kind!("cut-agent", Agents, Nothing, agents::Cut::of(agents::Way::Both)),
    kind!("unheard-agent", Agents, Nothing, agents::Cut::of(agents::Way::FromAgent)),
    kind!("deaf-agent", Agents, Nothing, agents::Cut::of(agents::Way::ToAgent)),
    kind!("late-agent", Agents, Nothing, agents::Late::default()),
    kind!("agent-storm", Agents, Nothing, agents::Storm),
];

/// How long a process is asleep: mostly for a moment, at times for half a minute.
fn sleep_of(rig: &mut Rig) -> Duration {
    use rand::RngExt;
    let most = if rig.dice.random_bool(0.1) { 30_000 } else { 5_000 };
    rig.some_time(1_000..most)
}
