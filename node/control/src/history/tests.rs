use std::future::ready;
use std::sync::Mutex;
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::EntryPayload;
use proptest::prelude::*;
use sandkeeper_statemachine::State;

use super::testing::filler;
use super::*;
use crate::raft::replica::Publisher;
use crate::raft::types::{EntryData, LogEntry, LogId, StoredMembership};

/// A log in memory whose front can be purged.
#[derive(Default)]
struct FakeLog {
    entries: Mutex<Vec<LogEntry>>,
}

impl LogSource for FakeLog {
    fn entries_from(
        &self,
        index: u64,
        _max_bytes: usize,
    ) -> BoxFuture<'_, Result<Vec<LogEntry>, SourceError>> {
        if index < self.first_index() {
            return Box::pin(ready(Err(SourceError::Purged)));
        }
        let entries = self.entries.lock().unwrap();
        let found = entries.iter().filter(|entry| entry.log_id.index() >= index).take(7).cloned().collect();
        Box::pin(ready(Ok(found)))
    }

    fn first_index(&self) -> u64 {
        self.entries.lock().unwrap().first().map_or(0, |entry| entry.log_id.index())
    }
}

/// A state machine in small: applies what it is given, as `raft::state_machine` does.
struct Rig {
    log: Arc<FakeLog>,
    recorder: Recorder,
    publisher: Publisher,
    history: History,
    state: State,
    next_index: u64,
}

impl Rig {
    fn new(feed_bytes: usize) -> Self {
        let (publisher, replica) = Publisher::new();
        let (log, recorder) = (Arc::new(FakeLog::default()), Recorder::new(feed_bytes));
        let history = History::new(recorder.clone(), replica, Arc::clone(&log) as Arc<dyn LogSource>);
        Self { log, recorder, publisher, history, state: State::new(), next_index: 0 }
    }

    /// Appends and applies an entry; false if it was skipped.
    fn append(&mut self, base_revision: Revision, decided_term: u64, term: u64, count: usize) -> bool {
        let data = EntryData::new(filler(base_revision, decided_term, count));
        let entry = data.entry().unwrap();
        let log_id = LogId::new(term.into(), self.next_index);
        self.log.entries.lock().unwrap().push(LogEntry { log_id, payload: EntryPayload::Normal(data) });
        let (revision, digest) = (self.state.revision(), self.state.history_digest());
        self.recorder.pass(Checkpoint { index: self.next_index, revision, digest });
        let before = self.state.revision();
        self.state.apply(&entry, term);
        let counted = self.state.revision() > before;
        if counted {
            let applied = AppliedEntry { first_revision: before + 1, term, index: self.next_index, entry };
            self.recorder.applied(applied, digests_of(&self.state));
        }
        self.next_index += 1;
        let membership = StoredMembership::default();
        self.publisher.publish(View { state: self.state.clone(), applied: Some(log_id), membership });
        counted
    }

    fn follow(&mut self, count: usize) -> bool {
        self.append(self.state.revision(), 1, 1, count)
    }

    fn purge(&self, below: u64) {
        self.log.entries.lock().unwrap().retain(|entry| entry.log_id.index() >= below);
    }
}

/// What a watcher gets that reads from `from` to the end.
async fn watch(history: &History, from: Revision, max_bytes: usize) -> Result<Vec<Revision>, HistoryError> {
    let mut seen = Vec::new();
    let mut next = from;
    loop {
        let entries = history.read(next, max_bytes).await?;
        let Some(last) = entries.last() else { return Ok(seen) };
        for entry in &entries {
            seen.extend((entry.first_revision..=entry.last_revision()).filter(|revision| *revision >= next));
        }
        next = last.last_revision() + 1;
    }
}

#[tokio::test]
async fn entries_that_were_skipped_are_in_no_history() {
    let mut rig = Rig::new(1);
    assert!(rig.append(0, 1, 1, 2));
    assert!(!rig.append(0, 1, 1, 5), "decided on an old state");
    assert!(!rig.append(2, 1, 2, 5), "decided by the leader of another term");
    assert!(rig.append(2, 2, 2, 1));
    assert_eq!(watch(&rig.history, 1, 1).await.unwrap(), [1, 2, 3]);
    let last = rig.history.read(3, 1).await.unwrap();
    assert_eq!((last[0].index, last[0].term), (3, 2));
}

#[tokio::test]
async fn what_is_purged_is_refused_with_the_oldest_that_is_kept() {
    let mut rig = Rig::new(1);
    for _ in 0..600 {
        rig.follow(1);
    }
    assert_eq!(rig.history.oldest_revision(), 1);
    rig.purge(10);
    // The next position that is kept is at log entry 256, and event 257 is the first after it.
    assert_eq!(rig.history.oldest_revision(), 257);
    assert_eq!(rig.history.read(256, 1).await.unwrap_err(), HistoryError::Compacted { oldest: 257 });
    assert_eq!(watch(&rig.history, 257, 200).await.unwrap(), (257..=600).collect::<Vec<_>>());
}

#[tokio::test]
async fn after_a_snapshot_the_history_begins_behind_it() {
    let mut rig = Rig::new(1 << 20);
    for _ in 0..5 {
        rig.follow(1);
    }
    rig.recorder.restart(Checkpoints::default(), Checkpoint { index: 5, revision: 5, ..Checkpoint::ORIGIN });
    assert_eq!(rig.history.oldest_revision(), 6);
    assert_eq!(rig.history.read(5, 1).await.unwrap_err(), HistoryError::Compacted { oldest: 6 });
    assert!(rig.history.read(6, 1).await.unwrap().is_empty());
    rig.follow(2);
    assert_eq!(watch(&rig.history, 6, 1).await.unwrap(), [6, 7]);
}

#[tokio::test]
async fn a_hole_in_the_log_is_a_fault_and_not_a_shorter_history() {
    let mut rig = Rig::new(1);
    for _ in 0..5 {
        rig.follow(1);
    }
    rig.log.entries.lock().unwrap().remove(2);
    let error = rig.history.read(2, 10_000).await.unwrap_err();
    assert_eq!(error, HistoryError::Fault("the log holds entry 3 where entry 2 belongs".to_owned()));
}

#[tokio::test]
async fn an_event_is_found_by_its_revision() {
    let mut rig = Rig::new(1);
    rig.follow(3);
    rig.follow(3);
    for (index, revision) in [(0, 1), (1, 5)] {
        let applied = rig.history.entry_at(index, revision).await.unwrap();
        assert_eq!((applied.index, applied.entry), (index, Arc::new(filler(index * 3, 1, 3))));
    }
    let error = rig.history.entry_at(0, 5).await.unwrap_err();
    assert_eq!(error, HistoryError::Fault("log entry 0 is not the one with revision 5".to_owned()));
}

#[tokio::test]
async fn a_watcher_is_told_of_the_next_event() {
    let mut rig = Rig::new(1);
    rig.follow(1);
    let history = rig.history.clone();
    let deadline = Instant::now() + Duration::from_mins(1);
    let waiting = tokio::spawn(async move { history.wait_newer(1, deadline).await });
    rig.follow(1);
    waiting.await.unwrap().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Any log, any ring, any purge: a watcher sees every event once and in order, or is told where to begin.
    #[test]
    fn a_watcher_misses_nothing(
        steps in proptest::collection::vec((0_u8..5, 1_usize..4), 1..700),
        feed_bytes in 1_usize..60_000,
        max_bytes in 1_usize..2_000,
        purge in 0_u64..400,
    ) {
        let mut rig = Rig::new(feed_bytes);
        for (kind, count) in steps {
            let revision = rig.state.revision();
            match kind {
                0 if revision > 0 => { rig.append(revision - 1, 1, 1, count); }
                1 => { rig.append(revision, 2, 1, count); }
                _ => { rig.follow(count); }
            }
        }
        rig.purge(purge.min(rig.next_index - 1));
        let last = rig.state.revision();
        let oldest = rig.history.oldest_revision();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let seen = runtime.block_on(watch(&rig.history, oldest, max_bytes)).unwrap();
        prop_assert_eq!(seen, (oldest..=last).collect::<Vec<_>>());
        if oldest > 1 {
            let refused = runtime.block_on(rig.history.read(oldest - 1, max_bytes));
            prop_assert_eq!(refused.unwrap_err(), HistoryError::Compacted { oldest });
        }
    }
}
