//! Data directories are made by the real log store and snapshots, and closed, as a node leaves them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use openraft::RaftSnapshotBuilder as _;
use openraft::storage::RaftLogStorageExt as _;
use openraft::{EntryPayload, Membership};
use sandkeeper_proto::v1;
use sandkeeper_statemachine::{Entry, ReportedState};

use super::*;
use crate::api::testing::World;
use crate::history::checkpoints::Checkpoints;
use crate::raft::replica::View;
use crate::raft::snapshots::{SnapshotBuilder, SnapshotState};
use crate::raft::types::{EntryData, LogEntry, LogId, Member, StoredMembership};
use crate::storage::describe;
use crate::storage::lock::DataDirLock;
use crate::storage::log::HistoryStart;
use crate::storage::snapshot::SnapshotStore;

/// The node that left the data directory, and what it had applied.
struct Left {
    dir: tempfile::TempDir,
    log: Vec<LogEntry>,
    /// The state after each log entry, with the entry's id.
    states: Vec<(State, LogId)>,
}

fn identity() -> NodeIdentity {
    NodeIdentity { node_id: 7, cluster_id: None, name: "node-1".to_owned() }
}

fn id(index: u64) -> LogId {
    LogId::new(1.into(), index)
}

fn membership() -> Membership<u64, Member> {
    let member = |name: &str| Member {
        name: name.to_owned(),
        peer_address: format!("{name}:7601"),
        api_address: format!("{name}:7600"),
    };
    Membership::new(vec![[7].into()], BTreeMap::from([(7, member("node-1")), (8, member("node-2"))])).unwrap()
}

/// Sandboxes come, run and go: the membership, then entries of one or more events each, with a blank one and one that
/// was decided on another state among them.
fn entries() -> Vec<LogEntry> {
    let mut world = World::with_agent();
    for round in 0..12 {
        let (id, _) = world.create_strong(&format!("web-{round}"));
        let endpoints = Vec::new();
        world.report(&id, ReportedState::Running { endpoints, lease_revision: 0 });
        if round % 3 == 0 {
            world.terminate(&id);
        }
    }
    let mut payloads = vec![EntryPayload::Membership(membership())];
    for (number, applied) in world.applied.iter().enumerate() {
        if number == 3 {
            let events = applied.entry.events.clone();
            let stale = Entry::new(0, 1, applied.entry.time, events.into_vec());
            payloads.extend([EntryPayload::Blank, EntryPayload::Normal(EntryData::new(stale))]);
        }
        payloads.push(EntryPayload::Normal(EntryData::new(Entry::clone(&applied.entry))));
    }
    (0..).zip(payloads).map(|(index, payload)| LogEntry { log_id: id(index), payload }).collect()
}

fn states(log: &[LogEntry]) -> Vec<(State, LogId)> {
    let mut state = State::new();
    let after = |entry: &LogEntry| {
        if let EntryPayload::Normal(data) = &entry.payload {
            state.apply(&data.entry().unwrap(), 1);
        }
        (state.clone(), entry.log_id)
    };
    log.iter().map(after).collect()
}

/// Databases of some entries each.
fn options() -> LogOptions {
    LogOptions { database_bytes: 1_500, ..LogOptions::default() }
}

impl Left {
    /// Behind a whole log of which all but the last `open_end` entries are known to be committed.
    async fn behind(open_end: usize) -> Self {
        let left = Self::nothing();
        let mut store = left.store();
        let known = left.log.len() - open_end;
        for entry in &left.log[..known] {
            store.blocking_append([entry.clone()]).await.unwrap();
        }
        store.save_committed(Some(left.log[known - 1].log_id)).await.unwrap();
        for entry in &left.log[known..] {
            store.blocking_append([entry.clone()]).await.unwrap();
        }
        store.shutdown().await.unwrap();
        left
    }

    fn nothing() -> Self {
        let dir = tempfile::tempdir().unwrap();
        identity().save(dir.path()).unwrap();
        drop(DataDirLock::acquire(dir.path()).unwrap());
        let log = entries();
        Self { states: states(&log), log, dir }
    }

    fn store(&self) -> LogStore {
        LogStore::open(&self.dir.path().join("log"), options()).unwrap()
    }

    /// A snapshot of the state after an entry.
    async fn snapshot(&self, index: u64) -> Revision {
        let store = SnapshotStore::open(&self.dir.path().join("snapshots")).unwrap();
        let (state, applied) = self.states[index as usize].clone();
        let revision = state.revision();
        let membership = StoredMembership::new(Some(id(0)), membership());
        let view = View { state, applied: Some(applied), membership };
        let known = SnapshotState::default();
        SnapshotBuilder::new(view, Checkpoints::default(), store, known).build_snapshot().await.unwrap();
        revision
    }

    /// As after a while: Raft does not need the entries, nor are they kept as history.
    async fn purge(&self, upto: u64) {
        let mut store = self.store();
        store.purge(id(upto)).await.unwrap();
        store.trim_history(HistoryStart { index: upto + 1, before: Some((0, [0; 32])) }).await.unwrap();
        store.shutdown().await.unwrap();
    }

    async fn inspect(&self, at: Option<Revision>) -> Result<Inspection, InspectError> {
        inspect(self.dir.path(), at, CancellationToken::new()).await
    }

    /// Why not, with `DATA` for the data directory.
    async fn refusal(&self, at: Option<Revision>) -> String {
        let error = describe(&self.inspect(at).await.unwrap_err());
        assert!(!error.contains("sandkeeper-inspect-"), "a place in the copy is named: {error}");
        error.replace(&self.dir.path().display().to_string(), "DATA")
    }

    /// The state after the entry that first reached a revision, if it ends there.
    fn state_at(&self, revision: Revision) -> Option<&State> {
        self.states.iter().map(|(state, _)| state).find(|state| state.revision() == revision)
    }

    fn last(&self) -> &State {
        &self.states.last().unwrap().0
    }

    async fn check(&self, at: Revision) {
        let found = self.inspect(Some(at)).await.unwrap();
        assert_eq!(found.state.revision(), at);
        if let Some(expected) = self.state_at(at) {
            assert_eq!(found.history_digest, Some(expected.history_digest()), "revision {at}");
            assert_eq!(found.state.state_digest(), expected.state_digest(), "revision {at}");
        } else {
            assert_eq!(found.history_digest, None, "revision {at} lies within an entry");
        }
    }

    /// Every file with its bytes and its time.
    fn files(&self) -> BTreeMap<String, (Vec<u8>, std::time::SystemTime)> {
        let mut files = BTreeMap::new();
        collect(self.dir.path(), &mut files);
        files
    }
}

fn collect(dir: &Path, files: &mut BTreeMap<String, (Vec<u8>, std::time::SystemTime)>) {
    for item in fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        let bytes = if path.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
        files.insert(path.display().to_string(), (bytes, changed));
        if path.is_dir() {
            collect(&path, files);
        }
    }
}

#[tokio::test]
async fn a_revision_equals_the_fold_and_nothing_is_written() {
    let left = Left::behind(0).await;
    let before = left.files();
    let newest = left.inspect(None).await.unwrap();
    let last = left.last();
    assert_eq!(newest.state.revision(), last.revision());
    assert_eq!(newest.history_digest, Some(last.history_digest()));
    assert_eq!(newest.state.state_digest(), last.state_digest());
    let end = left.log.len() as u64 - 1;
    let log = InspectedLog {
        first_index: Some(0),
        last_index: Some(end),
        purged_index: None,
        committed_index: Some(end),
        not_known_committed: 0,
        term: 0,
    };
    assert_eq!((newest.log, newest.applied_index, newest.oldest), (log, Some(end), Some(0)));
    assert_eq!(newest.identity.cluster_id, Some(uuid::Uuid::nil().to_string()), "from the state");
    assert_eq!(newest.problems, Vec::<String>::new());
    // Whole entries and revisions within one alternate irregularly.
    let mut within = 0;
    for revision in (0..=last.revision()).step_by(3) {
        left.check(revision).await;
        within += u64::from(left.state_at(revision).is_none());
    }
    assert!(within > 2, "{within} revisions lie within an entry");
    assert!(left.files() == before, "nothing has changed");
}

#[tokio::test]
async fn the_members_and_the_answers_of_the_api() {
    let left = Left::behind(0).await;
    let found = left.inspect(None).await.unwrap();
    let members: Vec<_> = found.members.iter().map(|member| (member.name.as_str(), member.role())).collect();
    assert_eq!(members, [("node-1", v1::MemberRole::Voter), ("node-2", v1::MemberRole::Learner)]);
    let capacity = found.get_capacity();
    assert_eq!(capacity.agents.len(), 1);
    assert_eq!(capacity.state_digest, left.last().state_digest().to_string());
    assert_eq!(capacity.header.unwrap().revision, left.last().revision());
    let all = found.list_sandboxes(None).sandboxes;
    assert_eq!(all.len(), left.last().sandbox_count());
    assert!(all.is_sorted_by_key(|sandbox| &sandbox.name), "by name");
    assert!(all.iter().any(|sandbox| sandbox.name == "web-1" && sandbox.phase() == v1::Phase::Running));
    assert_eq!(found.list_sandboxes(Some("default")).sandboxes.len(), all.len());
    assert_eq!(found.list_sandboxes(Some("prod")).sandboxes, []);
}

#[tokio::test]
async fn what_is_not_known_to_be_committed_is_counted_and_not_applied() {
    let left = Left::behind(2).await;
    // Blocks carry what was known before them. A clean shutdown records the same.
    let found = left.inspect(None).await.unwrap();
    let known = &left.states[left.log.len() - 3];
    assert_eq!(found.state.revision(), known.0.revision());
    assert_eq!(found.state.state_digest(), known.0.state_digest());
    assert_eq!((found.applied_index, found.log.not_known_committed), (Some(known.1.index()), 2));
    let refused = left.refusal(Some(left.last().revision())).await;
    let expected = format!(
        "revision {} is not there: the newest revision that this disk knows to be committed is {}; 2 log entries \
         behind it are not known to be committed",
        left.last().revision(),
        known.0.revision()
    );
    assert_eq!(refused, expected);
}

#[tokio::test]
async fn a_snapshot_shows_that_the_log_up_to_it_is_committed() {
    let left = Left::behind(6).await;
    let snapshot = left.log.len() as u64 - 3;
    let revision = left.snapshot(4).await;
    left.snapshot(snapshot).await;
    let found = left.inspect(None).await.unwrap();
    assert_eq!((found.applied_index, found.log.not_known_committed), (Some(snapshot), 2));
    // From the older one, through what the log alone did not know to be committed.
    for at in revision..=found.state.revision() {
        left.check(at).await;
    }
}

#[tokio::test]
async fn behind_snapshots_and_a_purge_the_state_is_shown_from_the_oldest_that_leads_on() {
    let left = Left::behind(0).await;
    let (first, second) = (left.snapshot(8).await, left.snapshot(20).await);
    let files = left.files().len();
    left.purge(8).await;
    assert!(left.files().len() < files, "a database is gone");
    let found = left.inspect(None).await.unwrap();
    assert_eq!(found.state.state_digest(), left.last().state_digest());
    assert_eq!((found.oldest, found.log.purged_index), (Some(first), Some(8)));
    let revisions: Vec<_> = found.snapshots.iter().map(|snapshot| snapshot.revision).collect();
    assert_eq!(revisions, [Some(second), Some(first)]);
    for at in (first..=left.last().revision()).step_by(4) {
        left.check(at).await;
    }
    let refused = left.refusal(Some(first - 1)).await;
    let expected = format!(
        "revision {} is not kept any more: the oldest revision that can be shown is {first}",
        first - 1
    );
    assert_eq!(refused, expected);

    // The log no longer leads on from the older one.
    left.purge(15).await;
    left.check(first).await;
    left.check(second).await;
    let refused = left.refusal(Some(first + 1)).await;
    assert!(refused.ends_with(&format!("can be shown is {second}")), "{refused}");
}

#[tokio::test]
async fn a_snapshot_without_a_log_behind_it_is_shown() {
    let left = Left::nothing();
    let revision = left.snapshot(20).await;
    let found = left.inspect(None).await.unwrap();
    assert_eq!((found.state.revision(), found.log), (revision, InspectedLog::default()));
    // As a follower that received it has it: the log that it had before is purged.
    left.purge(20).await;
    let found = left.inspect(None).await.unwrap();
    assert_eq!((found.state.revision(), found.oldest), (revision, Some(revision)));
}

#[tokio::test]
async fn a_new_data_directory_is_empty() {
    let left = Left::nothing();
    let found = left.inspect(None).await.unwrap();
    assert_eq!((found.state.revision(), found.applied_index, found.oldest), (0, None, Some(0)));
    assert_eq!(left.refusal(Some(1)).await.lines().count(), 1);
}

#[tokio::test]
async fn a_corrupt_snapshot_is_reported_and_the_one_before_it_taken() {
    let left = Left::behind(0).await;
    left.snapshot(8).await;
    left.snapshot(20).await;
    let snapshots = left.dir.path().join("snapshots");
    let newest = snapshots.join("snapshot-00000000000000000020-1.sk");
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() * 3 / 4;
    bytes[middle] ^= 1;
    fs::write(&newest, bytes).unwrap();
    let found = left.inspect(None).await.unwrap();
    assert_eq!(found.state.state_digest(), left.last().state_digest());
    let [problem] = &found.problems[..] else { panic!("{:?}", found.problems) };
    assert!(problem.contains(&newest.display().to_string()) && problem.contains("corrupt"), "{problem}");
    assert_eq!(found.snapshots[0].problem.as_ref(), Some(problem));
    // Where the log does not lead on, nothing takes its place.
    left.purge(15).await;
    let refused = left.refusal(None).await;
    assert!(refused.starts_with("log entries 9 to 15 are neither in the log nor in a snapshot"), "{refused}");
    assert!(refused.contains("DATA/snapshots/snapshot-00000000000000000020-1.sk is corrupt"), "{refused}");
    // Nor where there is no log at all.
    fs::remove_dir_all(left.dir.path().join("log")).unwrap();
    let refused = left.refusal(None).await;
    assert!(refused.starts_with("log entries 9 to 20 are neither"), "{refused}");
}

#[tokio::test]
async fn a_corrupt_log_is_reported_with_its_place() {
    let left = Left::behind(0).await;
    let log = left.dir.path().join("log");
    let mut databases: Vec<_> = fs::read_dir(&log).unwrap().map(|item| item.unwrap().path()).collect();
    databases.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with("log-"));
    databases.sort();
    assert!(databases.len() > 3, "{} databases", databases.len());
    // Everything behind the middle of the second one is lost.
    let damaged = &databases[1];
    let mut bytes = fs::read(damaged.join("db")).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end / 2..].fill(0);
    fs::write(damaged.join("db"), bytes).unwrap();
    for item in fs::read_dir(damaged).unwrap().map(Result::unwrap) {
        if item.file_name().to_string_lossy().starts_with("snap.") {
            fs::remove_file(item.path()).unwrap();
        }
    }
    let refused = left.refusal(None).await;
    let name = damaged.file_name().unwrap().to_string_lossy();
    assert!(refused.contains(&format!("DATA/log/{name}")), "{refused}");
    assert!(refused.starts_with("the log can't be read (up to revision "), "{refused}");
    // A snapshot behind it makes it needless; what is not needed is not read.
    left.snapshot(left.log.len() as u64 - 4).await;
    let found = left.inspect(None).await.unwrap();
    assert_eq!(found.state.state_digest(), left.last().state_digest());
}

#[tokio::test]
async fn an_entry_that_can_not_be_applied_is_reported() {
    let left = Left::nothing();
    let mut store = left.store();
    let term = |data| LogEntry { log_id: id(1), payload: EntryPayload::Normal(data) };
    let bad = term(EntryData::from_bytes(vec![9; 64].into()));
    store.blocking_append([left.log[0].clone(), bad]).await.unwrap();
    store.save_committed(Some(id(1))).await.unwrap();
    store.shutdown().await.unwrap();
    let refused = left.refusal(None).await;
    assert!(
        refused.starts_with("log entry 1 (term 1) can't be applied: the entry has format 9"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_running_node_is_left_alone() {
    let left = Left::behind(0).await;
    let lock = DataDirLock::acquire(left.dir.path()).unwrap();
    let refused = left.refusal(None).await;
    let pid = std::process::id();
    let expected = format!(
        "data directory DATA is in use by another process (pid {pid}): stop the node first, or inspect a copy of the \
         directory"
    );
    assert_eq!(refused, expected);
    drop(lock);
    // Two may read at once, and no node starts meanwhile.
    let reading = ReadLock::acquire(left.dir.path()).unwrap();
    left.inspect(None).await.unwrap();
    DataDirLock::acquire(left.dir.path()).unwrap_err();
    drop(reading);
    DataDirLock::acquire(left.dir.path()).unwrap();
}

#[tokio::test]
async fn a_node_that_comes_where_there_was_no_lock_file_is_noticed() {
    let left = Left::behind(0).await;
    fs::remove_file(left.dir.path().join("LOCK")).unwrap();
    let reading = ReadLock::acquire(left.dir.path()).unwrap();
    reading.still_alone().unwrap();
    let _node = DataDirLock::acquire(left.dir.path()).unwrap();
    assert!(matches!(reading.still_alone(), Err(InspectError::InUse { .. })));
}

#[tokio::test]
async fn other_folders_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = async |path: &Path| {
        let error = inspect(path, None, CancellationToken::new()).await.unwrap_err();
        describe(&error).replace(&dir.path().display().to_string(), "DIR")
    };
    let not_one = "DIR is not the data directory of a control node: it has no node.toml";
    assert_eq!(refusal(dir.path()).await, not_one);
    identity().save(&dir.path().join("node-1")).unwrap();
    assert_eq!(refusal(dir.path()).await, format!("{not_one}; below it are such: DIR/node-1"));
    assert!(refusal(&dir.path().join("nothing")).await.starts_with("cannot read DIR/nothing: "));
    assert!(!dir.path().join("nothing").exists());
}

#[tokio::test]
async fn it_ends_when_it_is_cancelled() {
    let left = Left::behind(0).await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    let ended = inspect(left.dir.path(), None, cancel).await;
    assert!(matches!(ended, Err(InspectError::Cancelled)), "{ended:?}");
}

#[tokio::test]
async fn another_clusters_identity_is_a_problem() {
    let left = Left::behind(0).await;
    NodeIdentity { cluster_id: Some("other".to_owned()), ..identity() }.save(left.dir.path()).unwrap();
    let found = left.inspect(None).await.unwrap();
    assert!(found.problems[0].contains("belongs to cluster other"), "{:?}", found.problems);
}
