//! How long the history of one subject takes, of a million events: straight from the log, without a cluster around it.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::EntryPayload;
use openraft::storage::{RaftLogStorage as _, RaftLogStorageExt as _};
use rand::RngExt as _;
use sandkeeper_statemachine::{
    Actor, AgentId, Entry, Event, EventKind, Header, Revision, SandboxId, SandboxName, State, Subject,
    Timestamp,
};

use crate::api::Searcher;
use crate::api::convert::event::Filter;
use crate::history::checkpoints::Checkpoint;
use crate::history::index::{self, SubjectIndex};
use crate::history::testing::{bytes_in, filler};
use crate::history::{AppliedEntry, FEED_BYTES, History, Recorder, digests_of};
use crate::raft::replica::{Publisher, View};
use crate::raft::types::{EntryData, LogEntry, LogId, StoredMembership};
use crate::storage::log::{LogOptions, LogStore};

const EVENTS: u64 = 1_000_000;
const EVENTS_OF_ONE: u64 = 5;
/// So many sandboxes come between two events of one.
const APART: u64 = 1_000;
const NAMES: u64 = 40_000;
const AGENTS: u64 = 100;
const SAMPLES: u32 = 1_000;

fn sandbox(number: u64) -> (SandboxId, SandboxName) {
    let name = format!("sandbox-{}", number % NAMES).parse().unwrap();
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    (SandboxId::Fast(id), SandboxName { namespace: "default".parse().unwrap(), name })
}

fn agent(number: u64) -> AgentId {
    format!("agent-{}", number % AGENTS).parse().unwrap()
}

/// An event about a sandbox that changes nothing but the revision.
fn event(number: u64, previous: Revision) -> Event {
    let subject = Subject { sandbox: Some(sandbox(number)), agent: Some(agent(number)) };
    let reason = "terminated by the caller".to_owned();
    let header = Header { actor: Actor::Client("somebody".into()), reason, request: None, subject, previous };
    Event { header, kind: EventKind::RequestsPruned { until: Timestamp(0), limit: 1 } }
}

/// Later than all before.
fn time_after(revision: Revision) -> Timestamp {
    Timestamp(1_700_000_000_000_000_000 + revision.cast_signed() * 1_000)
}

/// The log and what notes it, as the state machine fills them; an entry for each event.
struct Filled {
    store: LogStore,
    recorder: Recorder,
    publisher: Publisher,
    state: State,
    next: u64,
}

impl Filled {
    fn entry(&mut self, entry: Entry) -> LogEntry {
        let (index, term) = (self.next, 1);
        let digest = self.state.history_digest();
        self.recorder.pass(Checkpoint { index, revision: self.state.revision(), digest });
        self.state.apply(&entry, term);
        let data = EntryData::from_bytes(entry.encoded().clone());
        let first_revision = entry.base_revision + 1;
        let applied = AppliedEntry { first_revision, term, index, entry: Arc::new(entry) };
        self.recorder.applied(applied, digests_of(&self.state));
        self.next += 1;
        LogEntry { log_id: LogId::new(term.into(), index), payload: EntryPayload::Normal(data) }
    }

    async fn fill(&mut self) {
        let sandboxes = EVENTS / EVENTS_OF_ONE;
        let mut newest = vec![0; sandboxes as usize];
        let mut batch = vec![self.entry(filler(0, 1, 1))];
        for step in 0..sandboxes + APART * EVENTS_OF_ONE {
            for number in (0..EVENTS_OF_ONE).filter_map(|turn| step.checked_sub(turn * APART)) {
                if number < sandboxes {
                    let base = self.state.revision();
                    let entry =
                        Entry::new(base, 1, time_after(base), vec![event(number, newest[number as usize])]);
                    newest[number as usize] = base + 1;
                    batch.push(self.entry(entry));
                }
            }
            if batch.len() >= 1_000 {
                self.store.blocking_append(std::mem::take(&mut batch)).await.unwrap();
            }
        }
        self.store.blocking_append(batch).await.unwrap();
        let applied = Some(LogId::new(1.into(), self.next - 1));
        self.store.save_committed(applied).await.unwrap();
        let (state, membership) = (self.state.clone(), StoredMembership::default());
        self.publisher.publish(View { state, applied, membership });
    }
}

/// Asks for random histories; prints how long they took.
async fn measure(
    searcher: &Searcher,
    newest: Revision,
    whose: &str,
    wanted: usize,
    filter: impl Fn(u64) -> Filter,
) {
    let (mut took, mut first) = (Vec::new(), Duration::ZERO);
    for sample in 0..SAMPLES {
        let filter = filter(rand::rng().random_range(0..EVENTS / EVENTS_OF_ONE));
        let began = Instant::now();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        let found = searcher.events(newest, &filter, 1_000, deadline).await.unwrap();
        took.push(began.elapsed());
        assert_eq!(found.events.len(), wanted, "{whose}");
        if sample == 0 {
            first = took[0];
        }
        if sample == 99 && took[50] > Duration::from_millis(200) {
            break;
        }
    }
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
    let line =
        format!("{whose:30} {wanted:5} events: p50 {p50:?}, p99 {p99:?}, max {max:?}, the first {first:?}");
    writeln!(std::io::stdout(), "{line}").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, and takes minutes"]
async fn the_history_of_one_in_a_million_events() {
    let dir = tempfile::tempdir().unwrap();
    let (log, sections) = (dir.path().join("log"), dir.path().join("index"));
    let store = LogStore::open(&log, LogOptions::default()).unwrap();
    let (publisher, replica) = Publisher::new();
    let recorder = Recorder::new(FEED_BYTES);
    let history = History::new(recorder.clone(), replica, Arc::new(store.reader()));
    let mut filled = Filled { store, recorder, publisher, state: State::new(), next: 0 };
    filled.fill().await;
    let newest = filled.state.revision();
    let subjects = SubjectIndex::open(&sections).unwrap();
    let began = Instant::now();
    let builder = tokio::spawn(index::run(history.clone(), subjects.clone()));
    while subjects.covered_before(newest + 1) < newest {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let built = began.elapsed();
    while filled.store.reader().find_places().await.unwrap() {}
    let per_event = |folder: &std::path::Path| bytes_in(folder) as f64 / newest as f64;
    let line = format!(
        "{newest} events; on disk, bytes for each: log {:.0}, index {:.1}; the index was built in {built:?}",
        per_event(&log),
        per_event(&sections)
    );
    writeln!(std::io::stdout(), "{line}").unwrap();
    let searcher = Searcher::over(history, subjects, None, tokio::runtime::Handle::current());
    let of = |filter: Filter| Filter { namespace: Some("default".parse().unwrap()), ..filter };
    let by_id = |number| of(Filter { sandbox: Some(sandbox(number).0), ..Filter::default() });
    let by_name = |number| of(Filter { name: Some(sandbox(number).1.name), ..Filter::default() });
    let of_agent = |number| Filter { agent: Some(agent(number)), ..Filter::default() };
    measure(&searcher, newest, "a sandbox, by id", EVENTS_OF_ONE as usize, by_id).await;
    let lives = (EVENTS / NAMES) as usize;
    measure(&searcher, newest, "a name with five lives", lives, by_name).await;
    measure(&searcher, newest, "the last 1,000 of an agent", 1_000, of_agent).await;
    let nobody = |_| of(Filter { name: Some("nobody".parse().unwrap()), ..Filter::default() });
    measure(&searcher, newest, "a name that nobody had", 0, nobody).await;
    builder.abort();
}
