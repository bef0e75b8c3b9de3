//! The pure core of Sandkeeper: commands are decided into events, events are folded into the state.
//!
//! - [`Command`]s come from callers, agents and the leader's reconcilers. [`Draft::decide`] turns them into [`Event`]s,
//!   or a [`Rejection`]. Only the leader does this.
//! - [`Entry`]s carry events through Raft. [`State::apply`] folds them, on every replica alike.
//!
//! Architecture invariant: nothing here reads a clock, does IO, draws a random number, starts a thread, or depends on
//! the order of a hash table. `clippy.toml` beside this crate bans what would.

mod apply;
mod command;
mod decide;
mod draft;
mod entry;
mod event;
mod ids;
pub mod limits;
mod placement;
mod rejection;
mod snapshot;
mod spec;
mod state;
#[cfg(test)]
mod tests;
mod unknown;

pub use apply::Applied;
pub use command::{
    CallerId, Command, CreateSandbox, Expiry, Report, ReportedState, Request, SandboxRef, StreamPosition,
    Target,
};
pub use decide::{Adoption, Outcome, Surroundings, decide};
pub use draft::Draft;
pub use entry::{DecodeError, ENTRY_FORMAT, Entry, EntryHead, MAX_ENTRY_BYTES};
pub use event::{
    CLUSTER_VERSION, Event, EventKind, Header, RequestMemory, RequestRef, SandboxCreated, SandboxUpdate,
    Subject,
};
pub use ids::{
    AgentId, Digest, Generation, Incarnation, InvalidName, Label, MAX_LABEL_BYTES, MAX_REQUEST_ID_BYTES,
    RequestId, Revision, SandboxId, SandboxName, Term, Timestamp,
};
pub use placement::Shortage;
pub use rejection::Rejection;
pub use snapshot::{MAX_CHUNK_BYTES, SnapshotError};
pub use spec::{Actor, AgentSpec, Capacity, FailurePolicy, Labels, Mode, Resources, SandboxSpec, Shape};
pub use state::digest::{DIGEST_FORM, chain};
pub use state::{
    Agent, AgentStatus, BatchSandbox, Cluster, Drain, FleetCapacity, Held, Phase, RememberedBatch,
    RequestKey, RequestRecord, RequestResult, Restored, Sandbox, State, Status, StreamAnswer, StreamClient,
    StreamKey, TOGETHER_NANOS,
};
pub use unknown::{Adoptable, Origin, UnknownByAgent, UnknownSandbox};
