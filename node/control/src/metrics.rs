//! All metrics of a control node: every name stands in this file.
//!
//! Counters and histograms are typed handles that others take by `Arc<Metrics>`. Gauges that follow from the state, from
//! Raft or from the log are computed when they are scraped, so that nobody has to keep them.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use sandkeeper_statemachine::{AgentStatus, Capacity, Phase, State};

use crate::disk::Room;
use crate::raft::node::{NodeStatus, Role};
use crate::storage::log::LogStats;

/// The prefix of every name.
const PREFIX: &str = "sandkeeper";

/// A command of a caller, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CommandLabels {
    /// What was asked for, such as `create_sandbox`.
    pub kind: &'static str,
    /// `OK`, or the reason of the refusal, such as `NAME_TAKEN`.
    pub result: &'static str,
}

/// A call of the applier to an agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CallLabels {
    /// What was asked for, such as `create`.
    pub call: &'static str,
}

/// One label with one of a few values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OneLabel {
    name: &'static str,
    value: &'static str,
}

impl EncodeLabelSet for CommandLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        label(encoder, "kind", self.kind)?;
        label(encoder, "result", self.result)
    }
}

impl EncodeLabelSet for CallLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        label(encoder, "call", self.call)
    }
}

impl EncodeLabelSet for OneLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        label(encoder, self.name, self.value)
    }
}

fn label(encoder: &mut LabelSetEncoder<'_>, name: &str, value: &str) -> fmt::Result {
    let mut label = encoder.encode_label();
    let mut key = label.encode_label_key()?;
    key.write_str(name)?;
    let mut encoded = key.encode_label_value()?;
    encoded.write_str(value)?;
    encoded.finish()
}

/// A gauge that is never negative.
pub type Number = Gauge<u64, AtomicU64>;
type Numbers = Family<OneLabel, Number>;

/// What is counted as it happens.
pub struct Metrics {
    /// Commands of callers that this node has answered, by kind and result.
    pub commands: Family<CommandLabels, Counter>,
    /// From a command's arrival at this node to its answer, seconds.
    pub command_seconds: Histogram,
    /// The decider: deciding one batch, seconds.
    pub decide_seconds: Histogram,
    /// The decider: from the proposal of an entry until it is applied here, seconds.
    pub commit_seconds: Histogram,
    /// The decider: commands of one batch.
    pub batch_commands: Histogram,
    /// Watchers of this node right now.
    pub watchers: Gauge,
    /// Watchers that were cut off because they were slow.
    pub watchers_cut_off: Counter,
    /// Calls of the applier to agents, by call.
    pub applier_calls: Family<CallLabels, Counter>,
    /// On the leader: of so many agents nothing is started elsewhere because they were lost together.
    pub recovery_paused: Gauge,
    /// The newest revision at which a majority had the digests that this node has.
    pub digest_confirmed_revision: Number,
    /// Digests of other nodes, one for each revision and node, that are not this node's.
    pub digest_disagreements: Counter,
    /// How far this node's clock was ahead of the agreed time when it led last and asked last, seconds.
    pub clock_skew_seconds: Gauge<f64, AtomicU64>,
    registry: Registry,
    scraped: Scraped,
    /// One scrape at a time, so that none sees the numbers of another.
    scrape: Mutex<()>,
}

/// What is computed when it is scraped.
#[derive(Default)]
struct Scraped {
    term: Number,
    is_leader: Number,
    has_leader: Number,
    revision: Number,
    oldest_revision: Number,
    history_missing: Number,
    history_fetched: Counter,
    history_thrown_away: Counter,
    last_log_index: Number,
    applied_index: Number,
    snapshot_index: Number,
    purged_index: Number,
    members: Number,
    sandboxes: Numbers,
    agents: Numbers,
    agents_cordoned: Number,
    capacity_total: Numbers,
    capacity_allocated: Numbers,
    capacity_free: Numbers,
    requests: Number,
    sessions: Number,
    queue: Number,
    log_fsyncs: Counter,
    log_fsync_seconds: Counter<f64, AtomicU64>,
    log_groups: Counter,
    log_entries: Counter,
    log_bytes: Counter,
    log_unfinished: Gauge<f64, AtomicU64>,
    disk_free: Number,
    disk_mark: Number,
    disk_low: Number,
}

/// What the computed metrics are computed from.
pub struct Sources<'a> {
    /// Raft.
    pub status: &'a NodeStatus,
    /// The state.
    pub state: &'a State,
    /// Agents that have a session with this node.
    pub sessions: usize,
    /// Commands that wait for the decider.
    pub queue: usize,
    /// The log.
    pub log: LogStats,
    /// How long the log's disk has not got further with what it is to write.
    pub log_unfinished: Duration,
    /// The disk.
    pub room: Room,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// 0.1 ms to 13 s: from a read in memory to a deadline.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 18))
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            commands: Family::default(),
            command_seconds: seconds(),
            decide_seconds: seconds(),
            commit_seconds: seconds(),
            batch_commands: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            watchers: Gauge::default(),
            watchers_cut_off: Counter::default(),
            applier_calls: Family::default(),
            recovery_paused: Gauge::default(),
            digest_confirmed_revision: Number::default(),
            digest_disagreements: Counter::default(),
            clock_skew_seconds: Gauge::default(),
            registry: Registry::with_prefix(PREFIX),
            scraped: Scraped::default(),
            scrape: Mutex::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let to = &mut self.registry;
        to.register("commands", "Commands of callers that were answered", self.commands.clone());
        to.register(
            "command_seconds",
            "From a command's arrival to its answer",
            self.command_seconds.clone(),
        );
        to.register("decide_seconds", "Deciding one batch of commands", self.decide_seconds.clone());
        to.register(
            "commit_seconds",
            "From the proposal of an entry until it is applied",
            self.commit_seconds.clone(),
        );
        to.register("batch_commands", "Commands of one batch of the decider", self.batch_commands.clone());
        to.register("watchers", "Watchers of this node", self.watchers.clone());
        to.register(
            "watchers_cut_off",
            "Watchers that were cut off as too slow",
            self.watchers_cut_off.clone(),
        );
        to.register("applier_calls", "Calls of the applier to agents", self.applier_calls.clone());
        to.register(
            "recovery_paused",
            "On the leader: agents whose sandboxes are not recovered, as most agents were lost together",
            self.recovery_paused.clone(),
        );
        to.register(
            "digest_confirmed_revision",
            "The newest revision at which a majority had this node's digests",
            self.digest_confirmed_revision.clone(),
        );
        to.register(
            "digest_disagreements",
            "Digests of other nodes that are not this node's",
            self.digest_disagreements.clone(),
        );
        to.register(
            "clock_skew_seconds",
            "How far this node's clock is ahead of the agreed time, as the leader found it last",
            self.clock_skew_seconds.clone(),
        );
        self.scraped.register(to);
    }

    /// The text of a scrape (OpenMetrics).
    ///
    /// # Errors
    /// Never for a `String`; what a formatter may say.
    pub fn scrape(&self, sources: &Sources<'_>) -> Result<String, fmt::Error> {
        let _one = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        self.scraped.compute(sources);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Scraped {
    fn register(&self, to: &mut Registry) {
        to.register("raft_term", "The Raft term", self.term.clone());
        to.register("raft_is_leader", "1 if this node leads", self.is_leader.clone());
        to.register("raft_has_leader", "1 if this node knows of a leader", self.has_leader.clone());
        to.register("raft_last_log_index", "The last entry of the log", self.last_log_index.clone());
        to.register("raft_applied_index", "The last entry that is applied", self.applied_index.clone());
        to.register(
            "raft_snapshot_index",
            "The last entry of the newest snapshot",
            self.snapshot_index.clone(),
        );
        to.register("raft_purged_index", "The last entry that is purged", self.purged_index.clone());
        to.register("raft_members", "Members of the cluster", self.members.clone());
        to.register("revision", "The revision of the state", self.revision.clone());
        to.register("oldest_revision", "The oldest revision of the history", self.oldest_revision.clone());
        to.register(
            "history_missing_entries",
            "Log entries of the history that are still fetched from peers",
            self.history_missing.clone(),
        );
        to.register(
            "history_fetched_entries",
            "Log entries of the history that came from peers",
            self.history_fetched.clone(),
        );
        to.register(
            "history_thrown_away",
            "How often what came from peers was not this node's history",
            self.history_thrown_away.clone(),
        );
        to.register("sandboxes", "Sandboxes in the state, by phase", self.sandboxes.clone());
        to.register("agents", "Agents in the state, by status", self.agents.clone());
        to.register("agents_cordoned", "Agents that get no new sandboxes", self.agents_cordoned.clone());
        to.register("capacity_total", "What all agents have, by resource", self.capacity_total.clone());
        to.register("capacity_allocated", "What is allocated, by resource", self.capacity_allocated.clone());
        to.register("capacity_free", "What new sandboxes can get, by resource", self.capacity_free.clone());
        to.register("requests_remembered", "Requests that are remembered", self.requests.clone());
        to.register("agent_sessions", "Agents that have a session with this node", self.sessions.clone());
        to.register("decider_queue_commands", "Commands that wait for the decider", self.queue.clone());
        to.register("log_fsyncs", "How often the log was made durable", self.log_fsyncs.clone());
        to.register("log_fsync_seconds", "How long that took in all", self.log_fsync_seconds.clone());
        to.register("log_groups", "Groups of appends made durable together", self.log_groups.clone());
        to.register("log_appended_entries", "Entries appended to the log", self.log_entries.clone());
        to.register("log_appended_bytes", "Bytes appended to the log", self.log_bytes.clone());
        to.register(
            "log_unfinished_seconds",
            "How long the log's disk has not got further with what it is to write",
            self.log_unfinished.clone(),
        );
        to.register("disk_free_bytes", "Free for the data directory", self.disk_free.clone());
        to.register("disk_low_water_bytes", "Below this the disk is low", self.disk_mark.clone());
        to.register("disk_low", "1 if the disk is low", self.disk_low.clone());
    }

    fn compute(&self, sources: &Sources<'_>) {
        self.compute_raft(sources.status);
        self.compute_state(sources.state);
        self.sessions.set(sources.sessions as u64);
        self.queue.set(sources.queue as u64);
        let log = sources.log;
        self.log_fsyncs.inner().store(log.fsyncs, Ordering::Relaxed);
        self.log_groups.inner().store(log.groups, Ordering::Relaxed);
        self.log_entries.inner().store(log.appended_entries, Ordering::Relaxed);
        self.log_bytes.inner().store(log.appended_bytes, Ordering::Relaxed);
        let seconds = log.fsync_nanos as f64 / 1e9;
        self.log_fsync_seconds.inner().store(seconds.to_bits(), Ordering::Relaxed);
        self.log_unfinished.set(sources.log_unfinished.as_secs_f64());
        self.disk_free.set(sources.room.free);
        self.disk_mark.set(sources.room.mark);
        self.disk_low.set(u64::from(sources.room.low));
    }

    fn compute_raft(&self, status: &NodeStatus) {
        let index = |id: Option<crate::raft::types::LogId>| id.map_or(0, |id| id.index());
        self.term.set(status.term);
        self.is_leader.set(u64::from(status.role == Role::Leader));
        self.has_leader.set(u64::from(status.leader.is_some()));
        self.last_log_index.set(status.last_log_index.unwrap_or(0));
        self.applied_index.set(index(status.applied));
        self.snapshot_index.set(index(status.snapshot));
        self.purged_index.set(index(status.purged));
        self.members.set(status.members.len() as u64);
        self.oldest_revision.set(status.oldest_revision);
        self.history_missing.set(status.fetching.missing_entries);
        self.history_fetched.inner().store(status.fetching.fetched_entries, Ordering::Relaxed);
        self.history_thrown_away.inner().store(status.fetching.thrown_away, Ordering::Relaxed);
    }

    fn compute_state(&self, state: &State) {
        self.revision.set(state.revision());
        for phase in
            [Phase::Pending, Phase::Allocated, Phase::Running, Phase::Terminating, Phase::Failed, Phase::Lost]
        {
            set(&self.sandboxes, "phase", phase.as_str(), state.count_in(phase));
        }
        let lost = state.agents().filter(|agent| agent.status == AgentStatus::Lost).count() as u64;
        set(&self.agents, "status", "READY", state.agent_count() as u64 - lost);
        set(&self.agents, "status", "LOST", lost);
        self.agents_cordoned.set(state.agents().filter(|agent| agent.cordoned).count() as u64);
        let capacity = state.capacity();
        set_capacity(&self.capacity_total, capacity.total);
        set_capacity(&self.capacity_allocated, capacity.allocated);
        set_capacity(&self.capacity_free, capacity.free);
        self.requests.set(state.request_count() as u64);
    }
}

fn set(family: &Numbers, name: &'static str, value: &'static str, number: u64) {
    family.get_or_create(&OneLabel { name, value }).set(number);
}

fn set_capacity(family: &Numbers, capacity: Capacity) {
    set(family, "resource", "slots", capacity.slots);
    set(family, "resource", "cpu_millis", capacity.cpu_millis);
    set(family, "resource", "memory_bytes", capacity.memory_bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::World;
    use crate::history::digests_of;
    use crate::raft::history::Fetching;
    use crate::raft::types::Member;

    fn status(state: &State) -> NodeStatus {
        NodeStatus {
            node_id: 1,
            member: Member::default(),
            cluster_id: None,
            role: Role::Leader,
            term: 7,
            leader: Some(1),
            last_log_index: Some(12),
            applied: None,
            snapshot: None,
            purged: None,
            digests: digests_of(state),
            oldest_revision: 1,
            fetching: Fetching { missing_entries: 5, fetched_entries: 7, thrown_away: 1 },
            quorum_heard: None,
            members: Vec::new(),
            removed: false,
        }
    }

    #[test]
    fn a_scrape_says_what_is_so_now() {
        let metrics = Metrics::new();
        metrics.commands.get_or_create(&CommandLabels { kind: "create_sandbox", result: "NAME_TAKEN" }).inc();
        metrics.applier_calls.get_or_create(&CallLabels { call: "create" }).inc();
        let mut world = World::with_agent();
        world.create_strong("web");
        let log = LogStats { fsyncs: 3, fsync_nanos: 1_500_000_000, ..LogStats::default() };
        let status = status(&world.state);
        let sources = Sources {
            status: &status,
            state: &world.state,
            sessions: 2,
            queue: 5,
            log,
            log_unfinished: Duration::from_millis(250),
            room: Room { free: 70, mark: 80, low: true },
        };
        let text = metrics.scrape(&sources).unwrap();
        let expected = [
            "sandkeeper_commands_total{kind=\"create_sandbox\",result=\"NAME_TAKEN\"} 1",
            "sandkeeper_applier_calls_total{call=\"create\"} 1",
            "sandkeeper_digest_disagreements_total 0",
            "sandkeeper_raft_term 7",
            "sandkeeper_raft_is_leader 1",
            "sandkeeper_sandboxes{phase=\"ALLOCATED\"} 1",
            "sandkeeper_sandboxes{phase=\"RUNNING\"} 0",
            "sandkeeper_agents{status=\"READY\"} 1",
            "sandkeeper_capacity_total{resource=\"slots\"} 100",
            "sandkeeper_capacity_allocated{resource=\"slots\"} 1",
            "sandkeeper_requests_remembered 1",
            "sandkeeper_agent_sessions 2",
            "sandkeeper_decider_queue_commands 5",
            "sandkeeper_log_fsyncs_total 3",
            "sandkeeper_log_fsync_seconds_total 1.5",
            "sandkeeper_log_unfinished_seconds 0.25",
            "sandkeeper_disk_free_bytes 70",
            "sandkeeper_disk_low_water_bytes 80",
            "sandkeeper_disk_low 1",
        ];
        for line in expected {
            assert!(text.lines().any(|found| found == line), "{line} is missing in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
