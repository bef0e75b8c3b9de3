//! Remembered requests: exactly once for callers.

use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, Digest, Label, RequestId, Revision, SandboxId, SandboxName, Timestamp};
use crate::state::digest::digest_of;

/// Where a request id is known: within the namespace of its sandbox, or among the requests about agents.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestKey {
    /// None: requests about agents and the cluster.
    pub namespace: Option<Label>,
    /// The id.
    pub id: RequestId,
}

/// What is remembered of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// A digest of the command's canonical form.
    pub digest: [u8; 16],
    /// How long it is kept after `ends` is known, nanoseconds.
    pub retention: i64,
    /// When it may be forgotten; None: not while its sandbox is in the state.
    pub ends: Option<Timestamp>,
    /// What came of it.
    pub result: RequestResult,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestResult {
    /// It made, changed or ended this sandbox.
    Sandbox {
        /// Its id.
        id: SandboxId,
        /// Its name.
        name: SandboxName,
        /// Its create timestamp.
        created: Timestamp,
        /// The revision of the request's first event.
        revision: Revision,
    },
    /// It made this sandbox, which failed to start and was rolled back.
    RolledBack {
        /// Why.
        reason: String,
    },
    /// It was about this agent.
    Agent(AgentId),
    /// It removed this agent, and so many allocations were released with it.
    AgentRemoved {
        /// Which.
        agent: AgentId,
        /// How many.
        released: u64,
    },
}

impl RequestRecord {
    pub(crate) fn digest(&self, key: &RequestKey) -> Digest {
        digest_of(&("request", key, self))
    }
}
