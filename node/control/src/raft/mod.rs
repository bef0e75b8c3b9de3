//! Consensus: openraft and everything that it needs of us.
//!
//! | file | what |
//! | --- | --- |
//! | `types` | what an entry of the log carries, who a member is |
//! | `node` | one member of the group: start, propose, read, status, shutdown |
//! | `state_machine`, `snapshots`, `replica` | applying, snapshots, and what readers see |
//! | `reads`, `leadership` | read indexes, and since when this node may decide |
//! | `network`, `peers`, `codec` | how Raft speaks to its peers |
//! | `peer_service`, `transfer` | how it is spoken to |
//! | `digests` | what a peer says of its state |
//! | `history` | history that only peers have: fetched and verified, and read from them until then |
//! | `bootstrap`, `membership`, `removal` | forming a cluster, joining one, leaving it, noticing that one was taken out |
//!
//! Architecture invariants: nobody outside of this folder calls openraft. No read trusts a clock (lease reads are
//! absent). Whatever waits, waits until a deadline of ours: openraft does not wake everyone whom it forgets (#1761).

pub mod bootstrap;
pub(crate) mod codec;
#[cfg(debug_assertions)]
mod corruption;
pub mod digests;
#[cfg(test)]
mod fuzz;
pub(crate) mod history;
mod leadership;
mod local_node;
mod membership;
mod network;
pub mod node;
pub mod peer_service;
pub mod peers;
mod reads;
mod removal;
mod replay;
pub mod replica;
pub(crate) mod snapshots;
mod state_machine;
mod transfer;
pub mod types;

#[cfg(test)]
mod tests;

pub use leadership::LeaderTerm;
pub use local_node::{LocalNode, OtherCluster};
pub use membership::MembershipError;
pub use node::RaftNode;
pub use reads::ReadError;
pub use removal::REMOVED;
