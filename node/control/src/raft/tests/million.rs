//! How long a node takes to start with a million entries in its log, what they take on the disk, and what it costs to
//! make snapshots, or to give most of them up, while others are written. The entries are those of sandboxes' lives: one
//! for each create, report, terminate and report of absence.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use openraft::EntryPayload;
use openraft::storage::{RaftLogStorage as _, RaftLogStorageExt as _};
use sandkeeper_statemachine::{
    Actor, AgentSpec, CallerId, Capacity, Command, CreateSandbox, Draft, FailurePolicy, Incarnation, Label,
    Mode, Report, ReportedState, Request, Resources, Revision, SandboxId, SandboxName, SandboxRef,
    SandboxSpec, State, Target,
};
use uuid::Uuid;

use super::rig::{Running, Site, cluster, eventually, leader};
use crate::decider::LeaderKnowledge;
use crate::history::testing::bytes_in;
use crate::raft::types::{EntryData, LogEntry, LogId};
use crate::storage::log::{HistoryStart, LogOptions, LogStore};

/// So many sandboxes live at a time.
const LIVE: u64 = 10_000;
const AGENTS: u64 = 100;
const TERM: u64 = 1;
const SNAPSHOTS: usize = 5;
/// Between two commands; with it a request is remembered for 60,000 of them.
const STEP: i64 = 1_000_000;
const REMEMBERED: i64 = 60_000 * STEP;

/// Writes the log of a cluster whose leader decides one command at a time.
struct Writer {
    store: LogStore,
    state: State,
    knowledge: LeaderKnowledge,
    next: u64,
    batch: Vec<LogEntry>,
}

impl Writer {
    async fn decide(&mut self, actor: Actor, id: Option<CallerId>, command: Command) {
        let now = self.state.last_time().plus(STEP);
        let mut draft = Draft::new(self.state.clone(), now);
        let mut around = self.knowledge.surroundings();
        draft.decide(&Request { actor, id, command }, &mut around).unwrap();
        let (entry, state) = draft.seal(TERM);
        self.state = state;
        let payload = EntryPayload::Normal(EntryData::new(entry));
        self.batch.push(LogEntry { log_id: LogId::new(TERM.into(), self.next), payload });
        self.next += 1;
        if self.batch.len() == 1_000 {
            self.flush().await;
        }
    }

    async fn flush(&mut self) {
        self.store.blocking_append(std::mem::take(&mut self.batch)).await.unwrap();
    }

    async fn begin(&mut self) {
        let cluster = Command::CreateCluster { cluster_id: Uuid::from_u128(7), cluster_version: 1 };
        self.decide(Actor::Leader, None, cluster).await;
        for number in 0..AGENTS {
            let agent = AgentSpec {
                agent_id: format!("agent-{number}").parse().unwrap(),
                incarnation: Incarnation { ledger: Uuid::from_u128(number.into()), start: 1 },
                capacity: Capacity { slots: 1_000, cpu_millis: 64_000, memory_bytes: 1 << 38 },
                labels: BTreeMap::new(),
                pool: Label::default_name(),
                runtime: "simulated".into(),
                version: "test".into(),
                host: "127.0.0.1".into(),
            };
            self.decide(Actor::Leader, None, Command::RegisterAgent(Box::new(agent))).await;
        }
    }

    /// Begins the sandbox of this number, and ends the one so many before it.
    async fn step(&mut self, number: u64) {
        if self.state.next_deadline().is_some_and(|deadline| deadline <= self.state.last_time()) {
            self.decide(Actor::Leader, None, Command::Housekeeping).await;
        }
        let request = caller(number, "create");
        self.decide(client(), Some(request), Command::CreateSandbox(Box::new(create(number)))).await;
        let id = self.state.sandbox_named(&name(number)).unwrap().id.clone();
        let running = ReportedState::Running { endpoints: Vec::new(), lease_revision: 0 };
        self.report(id, running).await;
        let Some(ended) = number.checked_sub(LIVE) else { return };
        let id = self.state.sandbox_named(&name(ended)).unwrap().id.clone();
        let target = Target { sandbox: SandboxRef::Name(name(ended)), expected_revision: None };
        let request = caller(ended, "terminate");
        self.decide(client(), Some(request), Command::TerminateSandbox(target)).await;
        self.report(id, ReportedState::Absent).await;
    }

    async fn report(&mut self, sandbox_id: SandboxId, state: ReportedState) {
        let sandbox = self.state.sandbox(&sandbox_id).unwrap();
        let agent = sandbox.status.agent.clone().unwrap();
        let incarnation = self.state.agent(&agent).unwrap().spec.incarnation;
        let generation = sandbox.status.generation;
        let report = Report { agent, incarnation, sandbox_id, generation, state };
        self.decide(Actor::Leader, None, Command::Report(report)).await;
    }
}

/// A million, or what `SANDKEEPER_ENTRIES` says.
fn wanted_entries() -> u64 {
    std::env::var("SANDKEEPER_ENTRIES").map_or(1_000_000, |number| number.parse().unwrap())
}

fn client() -> Actor {
    Actor::Client("somebody".into())
}

fn caller(number: u64, what: &str) -> CallerId {
    CallerId { id: format!("{what}-{number}").parse().unwrap(), retention: REMEMBERED }
}

fn name(number: u64) -> SandboxName {
    let name = format!("sandbox-{number}").parse().unwrap();
    SandboxName { namespace: Label::default_name(), name }
}

fn create(number: u64) -> CreateSandbox {
    let spec = SandboxSpec {
        name: name(number),
        image: String::new(),
        command: vec!["python3".into(), "-m".into(), "http.server".into()],
        args: vec!["8080".into()],
        envs: BTreeMap::from([("USER_ID".into(), number.to_string())]),
        working_dir: "/home/user".into(),
        ports: Vec::new(),
        resources: Resources { cpu_millis: 100, memory_bytes: 64 << 20 },
        pool: Label::default_name(),
        agent_selector: BTreeMap::new(),
        mode: Mode::Fast,
        request_id: format!("create-{number}").parse().unwrap(),
    };
    CreateSandbox {
        spec,
        labels: BTreeMap::new(),
        expiry: None,
        failure_policy: FailurePolicy::Manual,
        recovery_timeout_seconds: 60,
        wait: None,
    }
}

fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").unwrap();
}

/// Fills the log of a node that is down behind the entries that it has. Returns the newest revision.
async fn fill(site: &Site) -> Revision {
    let folder = site.data_dir().join("log");
    let before = bytes_in(&folder);
    let mut store = LogStore::open(&folder, LogOptions::default()).unwrap();
    let next = store.get_log_state().await.unwrap().last_log_id.unwrap().index + 1;
    let (state, knowledge) = (State::new(), LeaderKnowledge::default());
    let mut writer = Writer { store, state, knowledge, next, batch: Vec::new() };
    writer.begin().await;
    let (mut number, wanted) = (0, wanted_entries());
    while writer.next < wanted {
        writer.step(number).await;
        number += 1;
    }
    writer.flush().await;
    writer.store.save_committed(Some(LogId::new(TERM.into(), writer.next - 1))).await.unwrap();
    writer.store.shutdown().await.unwrap();
    let each = (bytes_in(&folder) - before) / number;
    let events = writer.state.revision();
    say(&format!(
        "{} entries, {events} events; on disk {each} bytes for each of {number} sandboxes",
        writer.next
    ));
    events
}

async fn start_and_reach(site: &Site, revision: Revision, how: &str) -> Running {
    let began = Instant::now();
    let node = site.start().await;
    node.reaches(revision).await;
    say(&format!("started {how} in {:?}", began.elapsed()));
    node
}

/// Appends one entry after the other until it is told to stop. Returns how long each took to be durable.
async fn append_alone(mut store: LogStore, next: u64, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let (mut took, bytes) = (Vec::new(), vec![7; 256]);
    let mut next = next..;
    while !stop.load(Ordering::Relaxed) {
        let payload = EntryPayload::Normal(EntryData::from_bytes(bytes.clone().into()));
        let log_id = LogId::new(TERM.into(), next.next().unwrap());
        let began = Instant::now();
        store.blocking_append([LogEntry { log_id, payload }]).await.unwrap();
        took.push(began.elapsed());
    }
    took
}

fn told(mut took: Vec<Duration>) -> String {
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    format!("{} appends, p50 {:?}, p99 {:?}, max {:?}", took.len(), at(0.5), at(0.99), at(1.0))
}

/// Writes one entry after the other, without and with snapshots being made beside it.
async fn snapshots_beside_writes(node: &Running) {
    let began = Instant::now();
    let mut took = Vec::new();
    while began.elapsed() < Duration::from_secs(5) {
        took.push(write_one(node).await);
    }
    say(&format!("without snapshots: {}", told(took)));
    let (mut took, mut each) = (Vec::new(), Vec::new());
    for _ in 0..SNAPSHOTS {
        let began = Instant::now();
        let applied = node.node.status().applied;
        node.node.trigger_snapshot().await.unwrap();
        while node.node.status().snapshot < applied {
            took.push(write_one(node).await);
        }
        each.push(began.elapsed());
    }
    say(&format!("while snapshots are made, in {each:?}: {}", told(took)));
}

async fn write_one(node: &Running) -> Duration {
    let began = Instant::now();
    node.write(1).await.unwrap();
    began.elapsed()
}

/// Databases that are no longer part of the log have another name until they are deleted.
fn is_removing(folder: &Path) -> bool {
    let mut names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.any(|name| name.to_string_lossy().starts_with("removed-"))
}

async fn purge(folder: &Path) {
    let mut store = LogStore::open(folder, LogOptions::default()).unwrap();
    let last = store.get_log_state().await.unwrap().last_log_id.unwrap().index;
    let stop = Arc::new(AtomicBool::new(false));
    let appending = tokio::spawn(append_alone(store.clone(), last + 1, Arc::clone(&stop)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    stop.store(true, Ordering::Relaxed);
    say(&format!("before the purge: {}", told(appending.await.unwrap())));

    let (before, removed) = (bytes_in(folder), store.stats().databases_removed);
    let next = store.get_log_state().await.unwrap().last_log_id.unwrap().index + 1;
    stop.store(false, Ordering::Relaxed);
    let appending = tokio::spawn(append_alone(store.clone(), next, Arc::clone(&stop)));
    let upto = last / 10 * 9;
    let began = Instant::now();
    store.purge(LogId::new(TERM.into(), upto)).await.unwrap();
    store.trim_history(HistoryStart { index: upto, before: Some((0, [0; 32])) }).await.unwrap();
    let recorded = began.elapsed();
    eventually("what is removed is deleted", || async { (!is_removing(folder)).then_some(()) }).await;
    let took = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    let during = told(appending.await.unwrap());
    let removed = store.stats().databases_removed - removed;
    let mib = |bytes: u64| bytes >> 20;
    say(&format!("purge of 90%: {recorded:?}, and {took:?} until {removed} databases are gone"));
    say(&format!(
        "on disk: {} MiB before, {} MiB after; meanwhile: {during}",
        mib(before),
        mib(bytes_in(folder))
    ));
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, and takes minutes"]
async fn a_start_with_a_million_entries() {
    let (sites, mut nodes) = cluster(1, |_| {}).await;
    let site = &sites[0];
    nodes.remove(0).stop().await;
    let revision = fill(site).await;
    start_and_reach(site, revision, "without a snapshot").await.stop().await;
    let node = start_and_reach(site, revision, "without a snapshot, once more").await;
    leader(std::slice::from_ref(&node)).await;
    snapshots_beside_writes(&node).await;
    let bytes = bytes_in(&site.data_dir().join("snapshots"));
    say(&format!("{SNAPSHOTS} snapshots were made; the two that are kept take {bytes} bytes"));
    let revision = node.revision();
    node.stop().await;
    start_and_reach(site, revision, "with a snapshot").await.stop().await;
    start_and_reach(site, revision, "with a snapshot, once more").await.stop().await;
    purge(&site.data_dir().join("log")).await;
}
