//! The applier: makes the agents do what the state says. On the leader only.
//!
//! Each session has a [`Worker`] that compares the state with what its agent has. The [`dispatch`] task wakes workers
//! when applied events concern their agents, [`losses`] tells the decider of agents that are not heard of, and
//! of what they ran that may be started elsewhere.
//!
//! Architecture invariant: nothing here decides by a message alone. A worker knows nothing before it has an inventory
//! that its agent gave to this leader's term, and forgets everything when the term ends.

pub mod dispatch;
pub mod losses;
mod pause;
mod reconcile;
mod recovery;
mod silence;
#[cfg(test)]
mod tests;
mod worker;

pub(crate) use reconcile::{Actual, Heard, Stranger};
pub use reconcile::{AgentView, Sent, SentKind, Step, reconcile};
pub(crate) use worker::{Verdict, Worker};
