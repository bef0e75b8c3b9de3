//! Remembered requests: exactly once for callers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Sandbox, State, StreamKey};
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
    /// It made all of these.
    Batch(Box<RememberedBatch>),
}

/// What is remembered of a batch of creates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedBatch {
    /// The revision of its first event.
    pub revision: Revision,
    /// In the order of the request, and of their create timestamps.
    pub sandboxes: Arc<[BatchSandbox]>,
    /// The digest of `sandboxes`, so that they are hashed once.
    pub digest: Digest,
    /// How many of them are in the state.
    pub live: u32,
}

/// A sandbox of a batch. Its namespace is that of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSandbox {
    /// Its id.
    pub id: SandboxId,
    /// Its name.
    pub name: Label,
    /// Its create timestamp.
    pub created: Timestamp,
}

impl RememberedBatch {
    /// Of sandboxes that are all in the state.
    pub(crate) fn new(revision: Revision, sandboxes: Arc<[BatchSandbox]>) -> Self {
        let live = u32::try_from(sandboxes.len()).expect("limits keep batches small");
        let digest = digest_of(&sandboxes);
        Self { revision, sandboxes, digest, live }
    }

    /// Whether the digest is that of its sandboxes, and as many live as can.
    pub(crate) fn is_sound(&self) -> bool {
        self.digest == digest_of(&self.sandboxes) && self.live as usize <= self.sandboxes.len()
    }
}

impl RequestResult {
    /// Whether the request made this sandbox.
    pub(crate) fn made(&self, sandbox: &Sandbox) -> bool {
        match self {
            Self::Sandbox { id, .. } => *id == sandbox.id,
            Self::Batch(batch) => {
                let found = batch.sandboxes.binary_search_by_key(&sandbox.created, |one| one.created);
                found.is_ok_and(|at| batch.sandboxes[at].id == sandbox.id)
            }
            Self::RolledBack { .. } | Self::Agent(_) | Self::AgentRemoved { .. } => false,
        }
    }

    /// How many answers it counts for.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.sandboxes.len(),
            _ => 1,
        }
    }
}

impl State {
    /// What came of a request that is remembered, also of a create in a stream.
    pub fn result_of(&self, key: &RequestKey) -> Option<&RequestResult> {
        match (&key.id, &key.namespace) {
            (RequestId::Stream { client, sequence }, Some(namespace)) => {
                let stream = StreamKey { namespace: namespace.clone(), client: *client };
                self.stream_answer(&stream, *sequence).map(|answer| &answer.result)
            }
            _ => self.request(key).map(|record| &record.result),
        }
    }
}

impl RequestRecord {
    pub(crate) fn digest(&self, key: &RequestKey) -> Digest {
        let RememberedBatch { revision, digest, live, .. } = match &self.result {
            RequestResult::Batch(batch) => &**batch,
            _ => return digest_of(&("request", key, self)),
        };
        digest_of(&("batch", key, self.digest, self.retention, self.ends, (revision, digest, live)))
    }
}
