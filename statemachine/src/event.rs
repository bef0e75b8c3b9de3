//! Events: the facts that are replicated and stored. Never refused, only folded.
//!
//! Persisted: variants and fields are append-only (bincode is positional); a new kind of event is proposed only when
//! the cluster version allows it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{AgentId, Generation, Label, RequestId, Revision, SandboxId, SandboxName, Timestamp};
use crate::spec::{Actor, AgentSpec, FailurePolicy, Labels, SandboxSpec};
use crate::state::StreamKey;

/// The newest version of the events that a cluster may hold: a new cluster has it from its first event. An older one keeps
/// to its own, so that a node of an older program, which can't read newer kinds, is never sent any.
pub const CLUSTER_VERSION: u32 = 2;

/// The version of the cluster from which on agents are drained.
pub(crate) const DRAINS_SINCE: u32 = 2;

/// One fact. Its revision and time follow from its place in the entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Who, why, about what.
    pub header: Header,
    /// What.
    pub kind: EventKind,
}

/// What every event says, whatever its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Who caused it.
    pub actor: Actor,
    /// Why, for people. May be empty.
    pub reason: String,
    /// The request that caused it, if one did.
    pub request: Option<RequestRef>,
    /// What it is about.
    pub subject: Subject,
    /// The revision of the event before this one about the same sandbox (or agent, if it is about no sandbox).
    pub previous: Revision,
}

/// The request behind an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRef {
    /// Its id.
    pub id: RequestId,
    /// On the request's first event: how it is to be remembered.
    pub memory: Option<RequestMemory>,
}

/// How a request is remembered, so that its retry gets the first answer again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestMemory {
    /// Where the id is known: the namespace that the caller worked in; None for agents and the cluster.
    pub namespace: Option<Label>,
    /// A digest of the canonical form of the command.
    pub digest: [u8; 16],
    /// For how long, nanoseconds: after its sandbox is gone, if it made one; else from now on.
    pub retention: i64,
    /// Of a create in a stream: its client has the answers of all sequences below. 0 for all others.
    pub acknowledged_below: u64,
}

/// What an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The sandbox, with its name: the history is read by people, long after both are gone from the state.
    pub sandbox: Option<(SandboxId, SandboxName)>,
    /// The agent.
    pub agent: Option<AgentId>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// The first event of every history.
    ClusterCreated {
        /// Drawn once; agents and peers of another cluster are refused by it.
        cluster_id: Uuid,
        /// Gates new kinds of event.
        cluster_version: u32,
    },
    /// An agent's first hello, or one that says something new.
    AgentRegistered(Box<AgentSpec>),
    /// It was not heard of for too long.
    AgentLost,
    /// A lost agent is heard of again, the same incarnation, unchanged.
    AgentReturned,
    /// No new sandboxes for it.
    AgentCordoned,
    /// New sandboxes again.
    AgentUncordoned,
    /// It is out of the state. It holds nothing any more.
    AgentRemoved {
        /// How many allocations were released with it, in this entry, because the operator vouched that it is off.
        released: u64,
    },
    /// A sandbox is there, PENDING.
    SandboxCreated(Box<SandboxCreated>),
    /// The subject's agent holds this generation from now on.
    SandboxAllocated {
        /// The generation.
        generation: Generation,
    },
    /// The agent says that it runs.
    SandboxRunning {
        /// The current generation.
        generation: Generation,
        /// Where its ports are reached, `host:port`.
        endpoints: Vec<String>,
    },
    /// Its current generation is no longer there, or it never got one; its allocation is released.
    SandboxFailed {
        /// The generation whose allocation is released; none was held if it is None.
        released: Option<Generation>,
        /// If the workload exited.
        exit_code: Option<i32>,
    },
    /// Its agent is gone; the allocation is kept.
    SandboxLost,
    /// Some of what may change has changed.
    SandboxUpdated(SandboxUpdate),
    /// The next generation is wanted. What is held stays held until it is known to be gone.
    SandboxReset,
    /// It is to end. Its name is free.
    SandboxTerminating,
    /// A generation that nobody wants any more is no longer there.
    AllocationReleased {
        /// The generation.
        generation: Generation,
    },
    /// It is out of the state.
    SandboxRemoved {
        /// The last generation that was held, released by this event; None if nothing was held.
        released: Option<Generation>,
    },
    /// Remembered requests whose time is over are forgotten: those that end by `until`, oldest first; then clients of
    /// streams, with their answers.
    RequestsPruned {
        /// Up to this end of retention.
        until: Timestamp,
        /// No more once so many are forgotten. A client of a stream is forgotten with all its answers.
        limit: u32,
    },
    /// The agent confirms that this generation is kept under the lease that the policy asks for now.
    SandboxLeaseConfirmed {
        /// The current generation.
        generation: Generation,
    },
    /// This state was taken from a backup, and goes on as another cluster: agents and peers of the old one are not its
    /// own.
    ClusterRestored {
        /// Drawn by the restore.
        cluster_id: Uuid,
    },
    /// An operator has said that a restored state holds.
    RestoreConfirmed,
    /// An operator has said that the agents of another cluster are this one's from now on.
    AgentsRehomed {
        /// The other cluster.
        from: Uuid,
    },
    /// An operator says that what this LOST agent ran may be recovered although many agents were lost with it.
    AgentRecoveryResumed,
    /// These sandboxes, made by the events before this one, are the answer to one request.
    BatchCreated {
        /// In the order of the request.
        sandboxes: Vec<SandboxId>,
    },
    /// A client has opened a stream of creates. Those that it opened before are void.
    StreamOpened {
        /// Whose.
        stream: StreamKey,
        /// The client has the answers of all sequences below.
        acknowledged_below: u64,
        /// The client is forgotten then, unless its stream is opened again or kept.
        ends: Timestamp,
    },
    /// A stream of creates is still open.
    StreamKept {
        /// Whose.
        stream: StreamKey,
        /// The client has the answers of all sequences below.
        acknowledged_below: u64,
        /// See [`EventKind::StreamOpened`].
        ends: Timestamp,
    },
    /// No new sandboxes for it, and what it runs is to leave (see [`crate::Drain`]). Since version 2.
    AgentDraining {
        /// Until when that is waited for; None: without end.
        deadline: Option<Timestamp>,
        /// What is left then is ended.
        terminate: bool,
    },
}

/// What is known of a sandbox when it is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxCreated {
    /// What was asked for.
    pub spec: Arc<SandboxSpec>,
    /// May change later.
    pub labels: Labels,
    /// When it ends by itself. May change later.
    pub expire_time: Option<Timestamp>,
    /// May change later.
    pub failure_policy: FailurePolicy,
    /// May change later.
    pub recovery_timeout_seconds: u32,
    /// If it has to wait for room: until when.
    pub wait_until: Option<Timestamp>,
}

/// A change of what may change; None: stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxUpdate {
    /// `Some(None)`: never.
    pub expire_time: Option<Option<Timestamp>>,
    /// Replaces all labels.
    pub labels: Option<Labels>,
    /// See [`FailurePolicy`].
    pub failure_policy: Option<FailurePolicy>,
    /// Seconds.
    pub recovery_timeout_seconds: Option<u32>,
}
