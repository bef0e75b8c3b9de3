//! A control node: Raft log, state, gRPC API, decider, applier.
//!
//! | folder | what |
//! | --- | --- |
//! | `raft`, `storage`, `history` | the replicated log, on disk, and read back as history |
//! | `commands`, `decider` | commands on their way to the leader, and into entries |
//! | `agents`, `applier` | the agents' sessions, and making them do what the state says |
//! | `api`, `http`, `metrics` | what clients and operators see |
//! | `inspect` | the state in a data directory, of a node that does not run |
//! | `disk` | how much room the disks have, and what follows from that |
//! | `backup` | a backup file, and the data directory that is made from one |
//! | `verification` | comparing digests with the other nodes |
//! | `server` | a whole node: starts every part in order, and stops it |

pub mod agents;
pub mod api;
pub mod applier;
pub mod backup;
pub mod clock;
pub mod commands;
pub mod config;
pub mod decider;
pub mod disk;
mod front;
#[cfg(test)]
mod fuzz;
pub mod history;
pub mod http;
pub mod inspect;
pub mod metrics;
pub mod raft;
pub mod server;
pub mod storage;
mod verification;
