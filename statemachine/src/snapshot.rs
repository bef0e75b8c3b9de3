//! The state as a sequence of chunks, and back.
//!
//! A chunk is bincode 2 `standard()` of [`Chunk`]. The first is the head, the last the end. Indexes are not written:
//! they follow from the records. Persisted: variants and fields are append-only.

use imbl::OrdSet;
use planted_bugs::{Bug, planted};
use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, Digest, Revision, Timestamp};
use crate::spec::Capacity;
use crate::state::digest::{RecordSum, digest_of};
use crate::state::{
    Agent, Cluster, Drain, Held, Phase, RequestKey, RequestRecord, RequestResult, Sandbox, State,
    StreamAnswer, StreamClient, StreamKey,
};

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
    End(Counts),
    Streams(Vec<(StreamKey, StreamClient)>),
    StreamAnswers(Vec<(StreamKey, u64, StreamAnswer)>),
    /// Not written if there are none: see `state/drain.rs`.
    Drains(Vec<(AgentId, Drain)>),
}

impl Chunk {
    /// Chunks stand in this order: what agents have given away follows from the sandboxes, and answers belong to streams.
    fn place(&self) -> u8 {
        match self {
            Self::Head(_) => 0,
            Self::Agents(_) => 1,
            Self::Sandboxes(_) => 2,
            Self::Requests(_) => 3,
            Self::Streams(_) => 4,
            Self::StreamAnswers(_) => 5,
            Self::Drains(_) => 6,
            Self::End(_) => 7,
        }
    }
}

/// How many records of each kind there are.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    sandboxes: u64,
    agents: u64,
    requests: u64,
    streams: u64,
    stream_answers: u64,
}

impl Counts {
    fn of(state: &State) -> Self {
        Self {
            sandboxes: state.sandboxes.len() as u64,
            agents: state.agents.len() as u64,
            requests: state.requests.len() as u64,
            streams: state.streams.len() as u64,
            stream_answers: state.streams.values().map(|stream| stream.answers.len() as u64).sum(),
        }
    }
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
            sum: self.record_sum(),
            cluster: self.cluster,
        };
        let end = Chunk::End(Counts::of(self));
        let agents = self.agents.values().cloned().map(unburdened);
        let requests = self.requests.iter().map(|(key, record)| (key.clone(), (**record).clone()));
        let streams = self.streams.iter().map(|(key, stream)| (key.clone(), stream.client));
        let answers = self.streams.iter().flat_map(|(key, stream)| {
            let one = |(sequence, answer): (&u64, &StreamAnswer)| (key.clone(), *sequence, answer.clone());
            stream.answers.iter().map(one)
        });
        let drains = self.drains.iter().map(|(agent, drain)| (agent.clone(), *drain));
        std::iter::once(Chunk::Head(head))
            .chain(Batches(agents).map(Chunk::Agents))
            .chain(Batches(self.sandboxes.values().cloned()).map(Chunk::Sandboxes))
            .chain(Batches(requests).map(Chunk::Requests))
            .chain(Batches(streams).map(Chunk::Streams))
            .chain(Batches(answers).map(Chunk::StreamAnswers))
            .chain(Batches(drains).map(Chunk::Drains))
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
        let mut place = 0;
        let mut count = 0;
        for (index, chunk) in chunks.enumerate() {
            let bytes = chunk.map_err(|error| SnapshotError::Source(index, error))?;
            let chunk = decode(&bytes).map_err(|text| SnapshotError::Decode(index, text))?;
            if ended || (index == 0) != matches!(chunk, Chunk::Head(_)) || chunk.place() < place {
                return Err(SnapshotError::OutOfPlace(index));
            }
            place = chunk.place();
            match chunk {
                Chunk::Head(found) => head = Some(found),
                Chunk::End(counts) => {
                    ended = counts == Counts::of(&state);
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
            state.sum.add(|| cluster.digest());
        }
        state.revision = head.revision;
        state.last_time = head.last_time;
        state.history = head.history;
        state.cluster = head.cluster;
        if planted(Bug::SnapshotWithoutRequests) {
            let (sum, keys) = (state.sum, state.requests.keys().cloned().collect::<Vec<_>>());
            for key in &keys {
                state.remove_request(key);
            }
            state.sum = sum;
        }
        if state.record_sum() != head.sum {
            let (found, expected) = (state.state_digest(), head.sum.digest());
            return Err(SnapshotError::Digest { found, expected });
        }
        Ok(state)
    }

    /// Takes in the records of a chunk. None if one is not what has to stand there, or comes twice.
    fn take_in(&mut self, chunk: Chunk) -> Option<()> {
        match chunk {
            Chunk::Agents(agents) => {
                for agent in agents {
                    let first = !self.agents.contains_key(&agent.spec.agent_id);
                    first.then(|| self.put_agent(unburdened(agent)))?;
                }
            }
            Chunk::Sandboxes(sandboxes) => {
                for sandbox in sandboxes {
                    self.can_hold(&sandbox).then(|| self.put_sandbox(sandbox))?;
                }
            }
            Chunk::Requests(requests) => {
                for (key, record) in requests {
                    let sound = match &record.result {
                        RequestResult::Batch(batch) => batch.is_sound(),
                        _ => true,
                    };
                    let first = sound && !self.requests.contains_key(&key);
                    first.then(|| self.put_request(key, record))?;
                }
            }
            Chunk::Streams(streams) => {
                for (key, client) in streams {
                    let first = self.stream_client(&key).is_none();
                    first.then(|| self.put_stream_client(key, client))?;
                }
            }
            Chunk::StreamAnswers(answers) => {
                for (key, sequence, answer) in answers {
                    let first = self.stream_answer(&key, sequence).is_none();
                    first.then(|| self.put_stream_answer(&key, sequence, answer)).flatten()?;
                }
            }
            Chunk::Drains(drains) => {
                for (agent, drain) in drains {
                    let first = self.agent(&agent).is_some() && self.drain(&agent).is_none();
                    first.then(|| self.put_drain(&agent, drain))?;
                }
            }
            Chunk::Head(_) | Chunk::End(_) => return None,
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
