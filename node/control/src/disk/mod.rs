//! How much room the disks have: this node's own, and, on the leader, those of the other voters.
//!
//! Everything that is decided is written to the disks of a majority. While these are nearly full the leader takes no new
//! work, so that there is room for what has to go on whatever happens: terminates, what agents report, the leader's own
//! upkeep, changes of the membership, snapshots. See `docs/decisions/018-full-and-hung-disks.md`.

mod space;
mod survey;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use space::{DiskSpace, LOW_WATER, Room};
pub use survey::keep;

/// A node whose disk is low.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LowNode {
    /// Its name.
    pub node: String,
    /// What is free, bytes.
    pub free: u64,
    /// Its low-water mark, bytes.
    pub mark: u64,
}

/// Why the leader takes no new work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error(
    "no new work is taken, because a disk is nearly full: {}. Make room there (docs/operations.md, \"A full disk\"); \
     sandboxes can still be terminated",
    Nodes(.0)
)]
pub struct LowDisks(pub Vec<LowNode>);

struct Nodes<'a>(&'a [LowNode]);

impl fmt::Display for Nodes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, LowNode { node, free, mark }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}node {node} has {} free, and its mark is {}", Size(*free), Size(*mark))?;
        }
        Ok(())
    }
}

/// Bytes, as people read them.
pub(crate) struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..1024 => write!(f, "{} B", self.0),
            1024..1_048_576 => write!(f, "{} KiB", self.0 >> 10),
            _ => write!(f, "{} MiB", self.0 >> 20),
        }
    }
}
