//! Refusals: the caller's fault, the same on every node that decides on the same state. (Faults of a node's disk or
//! network are other types, in other crates.)

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{AgentId, RequestId, Revision, SandboxId, SandboxName};
use crate::limits::{
    MAX_AGENTS, MAX_REQUESTS, MAX_STREAM_CLIENTS, MAX_WAITING, MAX_WAITING_SHAPES, STREAM_WINDOW, Violation,
};
use crate::placement::Shortage;

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    /// Fields break rules.
    #[error("{}", Violations(.0))]
    Invalid(Vec<Violation>),
    /// There is no such sandbox.
    #[error("there is no sandbox {0}")]
    SandboxNotFound(String),
    /// There is no such agent.
    #[error("there is no agent {0}")]
    AgentNotFound(AgentId),
    /// The name is taken.
    #[error("{name} exists already, as sandbox {holder}: terminate it first, or choose another name")]
    NameTaken {
        /// The name.
        name: SandboxName,
        /// Who holds it.
        holder: SandboxId,
    },
    /// The request id was used for something else.
    #[error("request id {0} was used for another request: choose a new one")]
    RequestIdReused(RequestId),
    /// The request was carried out, and failed later (STRONG).
    #[error("{reason}")]
    RolledBack {
        /// Why.
        reason: String,
    },
    /// No agent has room.
    #[error("no agent has room: {0}")]
    NoCapacity(Shortage),
    /// Too many wait already.
    #[error(
        "too many sandboxes wait for capacity already (at most {MAX_WAITING}, of {MAX_WAITING_SHAPES} shapes): try \
         again later"
    )]
    QueueFull,
    /// Too many requests are remembered.
    #[error("{MAX_REQUESTS} requests are remembered already: try again when some are forgotten")]
    TooManyRequests,
    /// Too many agents.
    #[error("{MAX_AGENTS} agents are registered already: remove some")]
    TooManyAgents,
    /// The record has changed.
    #[error("sandbox {sandbox_id} is at revision {actual}, not {expected}: read it again")]
    RevisionMoved {
        /// Which.
        sandbox_id: SandboxId,
        /// What the caller expected.
        expected: Revision,
        /// What it is.
        actual: Revision,
    },
    /// Not in this state of things.
    #[error("{0}")]
    FailedPrecondition(String),
    /// One create of a batch is refused, and so nothing is made.
    #[error("create {index} of the batch ({name}): {why}; nothing was made")]
    InBatch {
        /// Which of the request, from 0.
        index: usize,
        /// Its name.
        name: SandboxName,
        /// Why.
        why: Box<Rejection>,
    },
    /// Nothing is known of a client that wants to go on with its stream.
    #[error(
        "stream client {0} is not known, or was idle for so long that it was forgotten: look which sandboxes there \
         are, and begin a stream with a new client id"
    )]
    StreamForgotten(Uuid),
    /// The client has opened another stream since.
    #[error("stream client {0} has opened another stream since: this one is void")]
    StreamSuperseded(Uuid),
    /// A new client has the id of one that has made something.
    #[error("stream client {0} has made sandboxes before: say `resume` to go on, or draw a new client id")]
    StreamClientExists(Uuid),
    /// The client has said that it has the answer.
    #[error(
        "sequence {sequence} was acknowledged by acknowledged_below {acknowledged_below}, and its answer is \
         forgotten: send a new create with the next sequence"
    )]
    Acknowledged {
        /// The sequence.
        sequence: u64,
        /// What the client has acknowledged.
        acknowledged_below: u64,
    },
    /// Too far ahead of what is acknowledged.
    #[error(
        "sequence {sequence} is {STREAM_WINDOW} or more ahead of acknowledged_below {acknowledged_below}: read \
         answers, and raise acknowledged_below with the next create"
    )]
    StreamWindowFull {
        /// The sequence.
        sequence: u64,
        /// What the client has acknowledged.
        acknowledged_below: u64,
    },
    /// Too many clients of streams are remembered.
    #[error(
        "{MAX_STREAM_CLIENTS} clients of streams are remembered already: use fewer for longer, or try again when some \
         are forgotten"
    )]
    TooManyStreamClients,
}

impl Rejection {
    /// One violated field.
    pub fn invalid(field: &str, description: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation::new(field, description)])
    }

    /// A stable, upper-case name: the `reason` of `google.rpc.ErrorInfo`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID",
            Self::SandboxNotFound(_) => "SANDBOX_NOT_FOUND",
            Self::AgentNotFound(_) => "AGENT_NOT_FOUND",
            Self::NameTaken { .. } => "NAME_TAKEN",
            Self::RequestIdReused(_) => "REQUEST_ID_REUSED",
            Self::RolledBack { .. } => "ROLLED_BACK",
            Self::NoCapacity(_) => "NO_CAPACITY",
            Self::QueueFull => "QUEUE_FULL",
            Self::TooManyRequests => "TOO_MANY_REQUESTS",
            Self::TooManyAgents => "TOO_MANY_AGENTS",
            Self::RevisionMoved { .. } => "REVISION_MOVED",
            Self::FailedPrecondition(_) => "FAILED_PRECONDITION",
            Self::InBatch { why, .. } => why.code(),
            Self::StreamForgotten(_) => "STREAM_FORGOTTEN",
            Self::StreamSuperseded(_) => "STREAM_SUPERSEDED",
            Self::StreamClientExists(_) => "STREAM_CLIENT_EXISTS",
            Self::Acknowledged { .. } => "ACKNOWLEDGED",
            Self::StreamWindowFull { .. } => "STREAM_WINDOW_FULL",
            Self::TooManyStreamClients => "TOO_MANY_STREAM_CLIENTS",
        }
    }
}

struct Violations<'a>(&'a [Violation]);

impl fmt::Display for Violations<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, violation) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", violation.field, violation.description)?;
        }
        Ok(())
    }
}
