//! The state as a sequence of chunks, and back.
//!
//! A chunk is bincode 2 `standard()` of [`Chunk`]. The first is the head, the last the end. Indexes are not written:
//! they follow from the records. Persisted: variants and fields are append-only.

use imbl::OrdSet;
use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Revision, Timestamp};
use crate::spec::Capacity;
use crate::state::digest::{RecordSum, digest_of};
use crate::state::{Agent, Cluster, Held, Phase, RequestKey, RequestRecord, Sandbox, State};

/// Records in one chunk: some hundred kilobytes of usual ones, some megabytes at worst (64 KiB of env each).
const RECORDS_A_CHUNK: usize = 256;

/// The largest chunk that is read, bytes: [`RECORDS_A_CHUNK`] of the largest records.
pub const MAX_CHUNK_BYTES: usize = 64 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
enum Chunk {
    Head(Head),
    Agents(Vec<Agent>),
    Sandboxes(Vec<Sandbox>),
    Requests(Vec<(RequestKey, RequestRecord)>),
    End { sandboxes: u64, agents: u64, requests: u64 },
}

#[derive(Serialize, Deserialize)]
struct Head {
    revision: Revision,
    last_time: Timestamp,
    history: Digest,
    sum: RecordSum,
    cluster: Option<Cluster>,
}

/// Why chunks are not a state. `E`: why the next chunk could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError<E: std::error::Error + 'static> {
    /// The chunk could not be read.
    #[error("chunk {0} could not be read")]
    Source(usize, #[source] E),
    /// The chunk does not decode.
    #[error("chunk {0} does not decode: {1}")]
    Decode(usize, String),
    /// Chunks are missing, or out of place.
    #[error("chunk {0} is not what has to stand there")]
    OutOfPlace(usize),
    /// The records do not add up to the digest that the head names.
    #[error("the records' digest is {found}, the snapshot's head says {expected}")]
    Digest {
        /// What the records give.
        found: Digest,
        /// What the head says.
        expected: Digest,
    },
}

impl State {
    /// The state as chunks.
    ///
    /// # Panics
    /// Never: a record always encodes.
    pub fn snapshot_chunks(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let head = Head {
            revision: self.revision,
            last_time: self.last_time,
            history: self.history,
            sum: self.sum,
            cluster: self.cluster,
        };
        let end = Chunk::End {
            sandboxes: self.sandboxes.len() as u64,
            agents: self.agents.len() as u64,
            requests: self.requests.len() as u64,
        };
        let agents = self.agents.values().cloned().map(unburdened);
        let requests = self.requests.iter().map(|(key, record)| (key.clone(), record.clone()));
        std::iter::once(Chunk::Head(head))
            .chain(Batches(agents).map(Chunk::Agents))
            .chain(Batches(self.sandboxes.values().cloned()).map(Chunk::Sandboxes))
            .chain(Batches(requests).map(Chunk::Requests))
            .chain(std::iter::once(end))
            .map(|chunk| {
                bincode::serde::encode_to_vec(&chunk, bincode::config::standard())
                    .expect("records are plain data, and a Vec never refuses bytes")
            })
    }

    /// Reads a state from its chunks, and verifies its digest.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn from_snapshot_chunks<E: std::error::Error + 'static>(
        chunks: impl Iterator<Item = Result<Vec<u8>, E>>,
    ) -> Result<Self, SnapshotError<E>> {
        let mut state = Self::new();
        let mut head = None;
        let mut ended = false;
        let mut count = 0;
        for (index, chunk) in chunks.enumerate() {
            let bytes = chunk.map_err(|error| SnapshotError::Source(index, error))?;
            let chunk = decode(&bytes).map_err(|text| SnapshotError::Decode(index, text))?;
            if ended || (index == 0) != matches!(chunk, Chunk::Head(_)) {
                return Err(SnapshotError::OutOfPlace(index));
            }
            match chunk {
                Chunk::Head(found) => head = Some(found),
                Chunk::End { sandboxes, agents, requests } => {
                    let counts = (state.sandboxes.len(), state.agents.len(), state.requests.len());
                    ended =
                        (sandboxes, agents, requests) == (counts.0 as u64, counts.1 as u64, counts.2 as u64);
                    if !ended {
                        return Err(SnapshotError::OutOfPlace(index));
                    }
                }
                records => state.take_in(records).ok_or(SnapshotError::OutOfPlace(index))?,
            }
            count = index + 1;
        }
        let Some(head) = head.filter(|_| ended) else { return Err(SnapshotError::OutOfPlace(count)) };
        if let Some(cluster) = &head.cluster {
            state.sum.add(digest_of(&("cluster", cluster)));
        }
        state.revision = head.revision;
        state.last_time = head.last_time;
        state.history = head.history;
        state.cluster = head.cluster;
        if state.sum != head.sum {
            let (found, expected) = (state.state_digest(), head.sum.digest());
            return Err(SnapshotError::Digest { found, expected });
        }
        Ok(state)
    }

    /// Takes in the records of a chunk. None if one is not what has to stand there: agents come before sandboxes, from
    /// which follows what each has given away; requests come last; none comes twice.
    fn take_in(&mut self, chunk: Chunk) -> Option<()> {
        match chunk {
            Chunk::Agents(agents) => {
                for agent in agents {
                    let first = self.sandboxes.is_empty() && !self.agents.contains_key(&agent.spec.agent_id);
                    first.then(|| self.put_agent(unburdened(agent)))?;
                }
            }
            Chunk::Sandboxes(sandboxes) => {
                for sandbox in sandboxes {
                    let fits = self.requests.is_empty() && self.can_hold(&sandbox);
                    fits.then(|| self.put_sandbox(sandbox))?;
                }
            }
            Chunk::Requests(requests) => {
                for (key, record) in requests {
                    let first = !self.requests.contains_key(&key);
                    first.then(|| self.put_request(key, record))?;
                }
            }
            Chunk::Head(_) | Chunk::End { .. } => return None,
        }
        Some(())
    }

    /// Whether a sandbox is new, and its digest true (the digest of the state rests on it); and whether the agents that
    /// its allocations name are there, and can have given so much.
    fn can_hold(&self, sandbox: &Sandbox) -> bool {
        let status = &sandbox.status;
        let amount = Capacity::of(sandbox.spec.resources);
        let sums = |agent: &Agent| {
            let held = status.held.iter().filter(|held| held.agent == agent.spec.agent_id);
            held.into_iter().try_fold(agent.allocated, |sum, _| sum.checked_plus(amount)).is_some()
        };
        let given = |held: &Held| self.agents.get(&held.agent).is_some_and(sums);
        sandbox.spec_digest == digest_of(&sandbox.spec)
            && !self.sandboxes.contains_key(&sandbox.id)
            && (status.phase == Phase::Terminating || self.sandbox_named(&sandbox.spec.name).is_none())
            && sandbox.live_on().is_none_or(|agent| sandbox.holder() == Some(agent))
            && status.held.iter().all(given)
    }
}

/// An agent's record without what follows from the sandboxes.
fn unburdened(agent: Agent) -> Agent {
    Agent { allocated: Capacity::default(), ports: OrdSet::new(), live: 0, ..agent }
}

fn decode(bytes: &[u8]) -> Result<Chunk, String> {
    let config = bincode::config::standard().with_limit::<MAX_CHUNK_BYTES>();
    let (chunk, read) =
        bincode::serde::decode_from_slice(bytes, config).map_err(|error| error.to_string())?;
    if read == bytes.len() { Ok(chunk) } else { Err(format!("{} bytes follow it", bytes.len() - read)) }
}

/// Gathers what an iterator yields into vectors of [`RECORDS_A_CHUNK`].
struct Batches<I>(I);

impl<I: Iterator> Iterator for Batches<I> {
    type Item = Vec<I::Item>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch: Vec<_> = self.0.by_ref().take(RECORDS_A_CHUNK).collect();
        (!batch.is_empty()).then_some(batch)
    }
}
