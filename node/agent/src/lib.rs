//! A node agent: it keeps a session with every control node, obeys the newest leader, and runs sandboxes.
//!
//! The way of a command: [`session`] receives it and puts it into the one mailbox; [`agent`]'s loop hands it to
//! [`plan`], which is pure and says what has to happen; [`execute`] does that, thinly; runtimes answer through the same
//! loop. Only the loop changes the table, so every decision is made on a view that nothing else moves.
//!
//! Architecture invariants:
//! - Nothing here knows the state machine, Raft or sled: the wire is the only thing shared with control nodes.
//! - `plan` has no clock and does no IO; what it needs to know comes in with the input.
//! - [`shim`] has no async runtime: it stays small, because one runs beside every process sandbox.

mod agent;
mod boottime;
pub mod config;
mod error;
mod execute;
mod files;
mod lease;
mod ledger;
mod mailbox;
mod plan;
mod runtime;
mod session;
pub mod shim;
pub mod simulated;
mod spec;
mod table;
mod tunnel;
mod wire;

pub use agent::run;
pub use config::{AgentConfig, Capacity, ProcessConfig, RuntimeConfig, SimulatedConfig};
pub use error::AgentError;
pub use files::FileFault;
pub use ledger::LedgerError;
pub use runtime::RuntimeFault;
