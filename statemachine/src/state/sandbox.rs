//! A sandbox's record: what was asked for never changes, the status does.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, Digest, Generation, Revision, SandboxId, Timestamp};
use crate::spec::{FailurePolicy, Labels, SandboxSpec};
use crate::state::digest::digest_of;

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// Waits for capacity.
    Pending,
    /// Has an agent, and is not yet known to run.
    Allocated,
    /// Runs, says its agent.
    Running,
    /// Is being ended; its name is free.
    Terminating,
    /// Exited, could not start, or vanished from a live agent.
    Failed,
    /// Its agent is gone; the allocation is kept.
    Lost,
}

/// How many phases there are.
pub(crate) const PHASES: usize = 6;

impl Phase {
    /// The name that people and the API use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Allocated => "ALLOCATED",
            Self::Running => "RUNNING",
            Self::Terminating => "TERMINATING",
            Self::Failed => "FAILED",
            Self::Lost => "LOST",
        }
    }
}

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// The time of the event that created it.
    pub created: Timestamp,
    /// What was asked for.
    pub spec: Arc<SandboxSpec>,
    /// The digest of `spec`, so that it is hashed once.
    pub spec_digest: Digest,
    /// What became of it.
    pub status: Arc<Status>,
}

/// An allocation of a sandbox that no event has released yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Which generation holds it.
    pub generation: Generation,
    /// Of which agent.
    pub agent: AgentId,
}

/// The part of a sandbox that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Where it is in its life.
    pub phase: Phase,
    /// The last generation that was given; 0: none yet.
    pub generation: Generation,
    /// The agent of that generation: it may hold the allocation, or the log of what has failed.
    pub agent: Option<AgentId>,
    /// Unreleased allocations: of the current generation, and of older ones that are not known to be gone.
    pub held: Vec<Held>,
    /// Where its ports are reached, `host:port`.
    pub endpoints: Vec<String>,
    /// Labels.
    pub labels: Labels,
    /// When it ends by itself.
    pub expire_time: Option<Timestamp>,
    /// What happens when its agent is gone.
    pub failure_policy: FailurePolicy,
    /// Seconds.
    pub recovery_timeout_seconds: u32,
    /// While it waits for capacity: until when; None: without end.
    pub wait_until: Option<Timestamp>,
    /// While it waits for capacity: its place in the queue.
    pub queued: Revision,
    /// Why it is in its phase, for people.
    pub reason: String,
    /// If the workload of the current generation has exited.
    pub exit_code: Option<i32>,
    /// When the current generation was first reported running.
    pub running_since: Option<Timestamp>,
    /// Whether any generation was ever reported running: a STRONG create that never ran is rolled back.
    pub ever_ran: bool,
    /// The current generation is dead at the latest so many seconds after the last heartbeat of its agent that was
    /// acknowledged; None: it may run on, whatever happens. A weaker policy counts at once, a stronger one when the
    /// agent has confirmed it.
    pub lease: Option<u32>,
    /// The revision of the event that brought about the lease that is wanted.
    pub lease_revision: Revision,
    /// Agents that refused it since it last ran, or was reset.
    pub refusals: u64,
    /// The revision of the last change.
    pub revision: Revision,
}

impl Status {
    /// The lease that the policy asks for, seconds.
    pub fn wanted_lease(&self) -> Option<u32> {
        (self.failure_policy == FailurePolicy::AutoRecreate).then_some(self.recovery_timeout_seconds)
    }

    /// Whether the leader has to find another place for it, once it may. (A workload that has ended well is done.)
    pub(crate) fn is_recoverable(&self) -> bool {
        let down = match self.phase {
            Phase::Lost => true,
            Phase::Failed => self.exit_code != Some(0),
            _ => false,
        };
        down && self.failure_policy == FailurePolicy::AutoRecreate
    }
}

impl Sandbox {
    /// The agent that holds the current generation.
    pub fn holder(&self) -> Option<&AgentId> {
        self.holder_of(self.status.generation)
    }

    /// The agent that is to run it: ALLOCATED or RUNNING.
    pub(crate) fn live_on(&self) -> Option<&AgentId> {
        let live = matches!(self.status.phase, Phase::Allocated | Phase::Running);
        if live { self.status.agent.as_ref() } else { None }
    }

    /// The agent that holds this generation; None: it is not held.
    pub(crate) fn holder_of(&self, generation: Generation) -> Option<&AgentId> {
        self.status.held.iter().find(|held| held.generation == generation).map(|held| &held.agent)
    }

    /// Whether an older generation is not known to be gone.
    pub fn holds_older_generation(&self) -> bool {
        self.status.held.iter().any(|held| held.generation < self.status.generation)
    }

    pub(crate) fn digest(&self) -> Digest {
        digest_of(&("sandbox", &self.id, self.created, self.spec_digest, &self.status))
    }
}
