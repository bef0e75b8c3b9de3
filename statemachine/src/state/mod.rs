//! The state that every replica folds from the history.
//!
//! Determinism contract: the state is a function of the entries applied, in order, and of nothing else. No clock,
//! no randomness, no order of a hash table, no address. Two replicas at one revision are equal, record by record.
//!
//! Records (sandboxes, agents, requests, streams) are the truth. Everything else here is an index that follows from
//! them; each `put_*` keeps its indexes, so that none can be forgotten. Cloning is O(1): all maps are persistent (`imbl`).

mod agent;
mod cluster;
#[cfg(debug_assertions)]
mod corrupt;
pub(crate) mod digest;
mod drain;
mod index;
mod mass_loss;
mod request;
mod sandbox;
mod stream;

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

pub use agent::{Agent, AgentStatus};
pub use cluster::{Cluster, Restored};
pub use drain::Drain;
pub(crate) use drain::Leave;
use imbl::{OrdMap, OrdSet};
pub use mass_loss::TOGETHER_NANOS;
pub use request::{BatchSandbox, RememberedBatch, RequestKey, RequestRecord, RequestResult};
pub use sandbox::{Held, Phase, Sandbox, Status};
pub(crate) use stream::Stream;
pub use stream::{StreamAnswer, StreamClient, StreamKey};

use crate::ids::{AgentId, Digest, Generation, Label, Revision, SandboxId, SandboxName, Timestamp};
use crate::spec::{Capacity, Shape};
use digest::{KeptSum, RecordSum};
use sandbox::PHASES;

/// See the module.
#[derive(Clone, Debug, Default)]
#[cfg_attr(test, derive(PartialEq))]
pub struct State {
    pub(crate) revision: Revision,
    pub(crate) last_time: Timestamp,
    pub(crate) history: Digest,
    pub(crate) sum: KeptSum,
    pub(crate) cluster: Option<Cluster>,
    pub(crate) sandboxes: OrdMap<SandboxId, Sandbox>,
    pub(crate) agents: OrdMap<AgentId, Agent>,
    // Behind an Arc: the map's nodes are half empty, and are copied when they change.
    pub(crate) requests: OrdMap<RequestKey, Arc<RequestRecord>>,
    pub(crate) streams: OrdMap<StreamKey, Stream>,
    pub(crate) drains: OrdMap<AgentId, Drain>,
    // Indexes, kept by index.rs.
    names: OrdMap<SandboxName, SandboxId>,
    held: OrdSet<(AgentId, SandboxId, Generation)>,
    expiries: OrdSet<(Timestamp, SandboxId)>,
    queues: OrdMap<Shape, OrdSet<(Revision, SandboxId)>>,
    wait_ends: OrdSet<(Timestamp, SandboxId)>,
    request_ends: OrdSet<(Timestamp, RequestKey)>,
    stream_ends: OrdSet<(Timestamp, StreamKey)>,
    /// What [`Self::request_count`] counts beyond the records of requests.
    remembered_more: usize,
    ready: OrdMap<Label, OrdSet<(u32, AgentId)>>,
    pools: OrdMap<Label, Pool>,
    unsettled: OrdSet<AgentId>,
    recoverable: OrdSet<SandboxId>,
    phases: [u64; PHASES],
}

/// What is counted of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pool {
    /// Its agents.
    pub agents: usize,
    /// Those that are lost or cordoned.
    pub unavailable: usize,
}

impl State {
    /// The state before the first event.
    pub fn new() -> Self {
        Self::default()
    }

    /// The revision of the last event; 0: none yet.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The time of the last event.
    pub fn last_time(&self) -> Timestamp {
        self.last_time
    }

    /// The chain over all entries.
    pub fn history_digest(&self) -> Digest {
        self.history
    }

    /// The digest over all records. Of a state [without](Self::without_digest) one it is found by going through them all.
    pub fn state_digest(&self) -> Digest {
        self.record_sum().digest()
    }

    /// The same state, which does not keep its digest as it changes. What is folded into it costs half as much.
    #[must_use]
    pub fn without_digest(self) -> Self {
        Self { sum: KeptSum::NONE, ..self }
    }

    /// The same state, which keeps its digest again. Goes through all records if it did not.
    #[must_use]
    pub fn with_digest(self) -> Self {
        Self { sum: KeptSum::of(self.record_sum()), ..self }
    }

    pub(crate) fn record_sum(&self) -> RecordSum {
        self.sum.get().unwrap_or_else(|| {
            let mut sum = RecordSum::default();
            self.cluster.iter().for_each(|cluster| sum.add(cluster.digest()));
            self.agents.values().for_each(|agent| sum.add(agent.digest()));
            self.sandboxes.values().for_each(|sandbox| sum.add(sandbox.digest()));
            self.requests.iter().for_each(|(key, record)| sum.add(record.digest(key)));
            self.streams.iter().for_each(|(key, stream)| stream.add_to(&mut sum, key));
            self.drains.iter().for_each(|(agent, drain)| sum.add(drain.digest(agent)));
            sum
        })
    }

    /// The cluster; None before the first event.
    pub fn cluster(&self) -> Option<Cluster> {
        self.cluster
    }

    /// A sandbox by its id.
    pub fn sandbox(&self, id: &SandboxId) -> Option<&Sandbox> {
        self.sandboxes.get(id)
    }

    /// The live sandbox of a name: neither TERMINATING nor gone.
    pub fn sandbox_named(&self, name: &SandboxName) -> Option<&Sandbox> {
        self.names.get(name).map(|id| self.indexed_sandbox(id))
    }

    /// All sandboxes, by id.
    pub fn sandboxes(&self) -> impl Iterator<Item = &Sandbox> {
        self.sandboxes.values()
    }

    /// Sandboxes whose id is greater than `after`, by id.
    pub fn sandboxes_after(&self, after: Option<&SandboxId>) -> impl Iterator<Item = &Sandbox> {
        let start = after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.clone()));
        self.sandboxes.range((start, Bound::Unbounded)).map(|(_, sandbox)| sandbox)
    }

    /// Sandboxes that the leader has to find another place for, once it may: AUTO_RECREATE, and LOST or FAILED.
    pub fn recoverable(&self) -> impl Iterator<Item = &Sandbox> {
        self.recoverable.iter().map(|id| self.indexed_sandbox(id))
    }

    /// How many sandboxes there are.
    pub fn sandbox_count(&self) -> usize {
        self.sandboxes.len()
    }

    /// How many sandboxes are in a phase.
    pub fn count_in(&self, phase: Phase) -> u64 {
        self.phases[phase as usize]
    }

    /// An agent by its name.
    pub fn agent(&self, id: &AgentId) -> Option<&Agent> {
        self.agents.get(id)
    }

    /// All agents, by name.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.agents.values()
    }

    /// How many agents there are.
    pub fn agent_count(&self) -> usize {
        self.agents.len()
    }

    /// What an agent holds: each unreleased allocation's sandbox and generation, by sandbox id.
    pub fn held_by<'a>(&'a self, agent: &'a AgentId) -> impl Iterator<Item = (&'a Sandbox, Generation)> {
        let start = (agent.clone(), SandboxId::Fast([0; 16]), 0);
        let of_agent = move |(holder, _, _): &&(AgentId, SandboxId, Generation)| holder == agent;
        let record = |(_, id, generation): &'a (AgentId, SandboxId, Generation)| {
            (self.indexed_sandbox(id), *generation)
        };
        self.held.range(start..).take_while(of_agent).map(record)
    }

    /// A remembered request.
    pub fn request(&self, key: &RequestKey) -> Option<&RequestRecord> {
        self.requests.get(key).map(|record| &**record)
    }

    /// How many requests are remembered: a batch counts as many as it made, and answers in streams count too.
    pub fn request_count(&self) -> usize {
        self.requests.len() + self.remembered_more
    }

    /// Agents of a pool that have a free slot and may get new sandboxes, least loaded first, ties by name.
    pub(crate) fn ready_agents(&self, pool: &Label) -> impl Iterator<Item = &Agent> {
        self.ready
            .get(pool)
            .into_iter()
            .flatten()
            .map(|(_, id)| self.agents.get(id).expect("the ready index names agents of the state"))
    }

    /// How many [`Self::ready_agents`] a pool has.
    pub(crate) fn ready_count(&self, pool: &Label) -> usize {
        self.ready.get(pool).map_or(0, OrdSet::len)
    }

    /// What is counted of a pool.
    pub(crate) fn pool(&self, pool: &Label) -> Pool {
        self.pools.get(pool).copied().unwrap_or_default()
    }

    /// Agents that are LOST and have sandboxes that are not called so yet.
    pub(crate) fn unsettled(&self) -> impl Iterator<Item = &AgentId> {
        self.unsettled.iter()
    }

    /// The pools in which somebody waits.
    pub(crate) fn waiting_pools(&self) -> BTreeSet<Label> {
        self.queues.keys().map(|shape| shape.pool.clone()).collect()
    }

    /// The heads of a pool's queues: those that have waited longest of their shape.
    pub(crate) fn queue_heads(&self, pool: &Label) -> impl Iterator<Item = &(Revision, SandboxId)> {
        let of_pool = move |(shape, _): &(&Shape, &OrdSet<_>)| shape.pool == *pool;
        let queues = self.queues.range(Shape::first_of(pool.clone())..).take_while(of_pool);
        queues.filter_map(|(_, queue)| queue.get_min())
    }

    /// The head of a shape's queue.
    pub(crate) fn queue_head(&self, shape: &Shape) -> Option<&(Revision, SandboxId)> {
        self.queues.get(shape).and_then(OrdSet::get_min)
    }

    /// How many shapes somebody waits with.
    pub(crate) fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// How many sandboxes of a shape wait.
    pub(crate) fn queue_length(&self, shape: &Shape) -> usize {
        self.queues.get(shape).map_or(0, OrdSet::len)
    }

    /// Sandboxes whose time is over at `now`, oldest first.
    pub(crate) fn expired(&self, now: Timestamp) -> impl Iterator<Item = &Sandbox> {
        due(&self.expiries, now).map(|id| self.indexed_sandbox(id))
    }

    /// Sandboxes that have waited for capacity for too long at `now`.
    pub(crate) fn waited_too_long(&self, now: Timestamp) -> impl Iterator<Item = &Sandbox> {
        due(&self.wait_ends, now).map(|id| self.indexed_sandbox(id))
    }

    /// Requests that may be forgotten at `now`, oldest first.
    pub(crate) fn forgettable(&self, now: Timestamp) -> impl Iterator<Item = &RequestKey> {
        due(&self.request_ends, now)
    }

    /// The client of a stream that may be forgotten at `now` before all others.
    pub(crate) fn first_stream_over(&self, now: Timestamp) -> Option<StreamKey> {
        due(&self.stream_ends, now).next().cloned()
    }

    /// The earliest time at which [`crate::Command::Housekeeping`] may have something to do: the time of the last event
    /// if something is left over that one command was too small for, or somebody waits where an agent has a free slot.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let may_fit = || self.queues.keys().any(|shape| self.ready.contains_key(&shape.pool));
        if !self.unsettled.is_empty() || may_fit() {
            return Some(self.last_time);
        }
        let firsts = [
            self.expiries.get_min().map(|(time, _)| *time),
            self.wait_ends.get_min().map(|(time, _)| *time),
            self.request_ends.get_min().map(|(time, _)| *time),
            self.stream_ends.get_min().map(|(time, _)| *time),
            self.next_drain(),
        ];
        firsts.into_iter().flatten().min()
    }

    /// Whether nobody waits for capacity.
    pub fn nobody_waits(&self) -> bool {
        self.queues.is_empty()
    }

    /// What all agents have, have given away, and have left for new sandboxes.
    pub fn capacity(&self) -> FleetCapacity {
        let mut fleet = FleetCapacity::default();
        for agent in self.agents.values() {
            fleet.total = fleet.total.plus(agent.spec.capacity);
            fleet.allocated = fleet.allocated.plus(agent.allocated);
            if agent.schedulable() {
                fleet.free = fleet.free.plus(agent.free());
            }
        }
        fleet
    }

    fn indexed_sandbox(&self, id: &SandboxId) -> &Sandbox {
        self.sandboxes.get(id).expect("indexes name sandboxes of the state")
    }
}

/// The capacity of all agents together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FleetCapacity {
    /// Of all agents.
    pub total: Capacity,
    /// The sum of unreleased allocations.
    pub allocated: Capacity,
    /// What new sandboxes can get: of the agents that are READY and not cordoned.
    pub free: Capacity,
}

fn due<T: Ord + Clone>(index: &OrdSet<(Timestamp, T)>, now: Timestamp) -> impl Iterator<Item = &T> {
    index.iter().take_while(move |(time, _)| *time <= now).map(|(_, what)| what)
}
