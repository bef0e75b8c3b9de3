//! The data directory, and what it must lead to.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use openraft::storage::{RaftLogStorage as _, RaftLogStorageExt as _};
use openraft::{EntryPayload, Membership, RaftSnapshotBuilder as _, Vote};
use sandkeeper_statemachine::{Entry, ReportedState, State};

use super::{Outcome, copy};
use crate::api::testing::World;
use crate::history::checkpoints::{Checkpoint, Checkpoints};
use crate::history::feed::AppliedEntry;
use crate::history::index::SubjectIndex;
use crate::raft::replica::View;
use crate::raft::snapshots::{SnapshotBuilder, SnapshotState};
use crate::raft::types::{EntryData, LogEntry, LogId, Member, StoredMembership};
use crate::storage::identity::NodeIdentity;
use crate::storage::lock::DataDirLock;
use crate::storage::log::{LogOptions, LogStore};
use crate::storage::snapshot::SnapshotStore;

/// Of a database: one of them is longer than sled's segments.
const DATABASE_BYTES: u64 = 2_600_000;
const SANDBOXES: usize = 260;

fn id(index: u64) -> LogId {
    LogId::new(1.into(), index)
}

fn membership() -> Membership<u64, Member> {
    let member = Member {
        name: "node-1".to_owned(),
        peer_address: "node-1:7601".to_owned(),
        api_address: "node-1:7600".to_owned(),
    };
    Membership::new(vec![[7].into()], BTreeMap::from([(7, member)])).unwrap()
}

/// What everything must be: by log index, revision and digests of the state after it.
pub(super) struct Truth {
    digests: Vec<(u64, String)>,
    log: String,
    least_committed: u64,
}

impl Truth {
    /// How a reading ended, by what was said of it.
    pub(super) fn judge(&self, said: &str) -> (Outcome, String) {
        let value = |name: &str| {
            let line = said
                .lines()
                .find_map(|line| line.split_once(&format!("{name} ")).filter(|(a, _)| a.is_empty()));
            line.map(|(_, value)| value.to_owned())
        };
        if let Some(error) = value("error") {
            let names_a_place =
                ["log", "snapshot", "node.toml", "index"].iter().any(|name| error.contains(name));
            return (if names_a_place { Outcome::Detected } else { Outcome::Wrong }, error);
        }
        if let Some(wrong) = value("wrong") {
            return (Outcome::Wrong, wrong);
        }
        let (Some(log), Some(committed), Some(state)) = (value("log"), value("committed"), value("state"))
        else {
            return (Outcome::Wrong, format!("it said too little: {said}"));
        };
        let committed: u64 = committed.parse().unwrap();
        let expected = &self.digests[committed as usize].1;
        let same = log == self.log && state == *expected && committed >= self.least_committed;
        if same {
            (Outcome::Harmless, String::new())
        } else {
            let what =
                format!("committed {committed}, state {state} for {expected}, log {log} for {}", self.log);
            (Outcome::Wrong, what)
        }
    }
}

/// What all log entries are, as one digest.
pub(super) fn digest_of_log<'a>(entries: impl IntoIterator<Item = &'a LogEntry>) -> String {
    let mut hasher = blake3::Hasher::new();
    for entry in entries {
        hasher.update(format!("{:?} {:?}", entry.log_id, entry.payload).as_bytes());
        if let EntryPayload::Normal(data) = &entry.payload {
            hasher.update(data.bytes());
        }
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// Whose it is, and the vote: with the log, what is not in the state.
pub(super) fn whose(identity: &NodeIdentity, vote: &str) -> String {
    format!("{} {} {:?} {vote}", identity.name, identity.node_id, identity.cluster_id)
}

fn vote() -> Vote<openraft::alias::LeaderIdOf<crate::raft::types::TypeConfig>> {
    Vote::new_committed(1, 7)
}

/// Entries of all sizes, parts of one among them.
fn entries() -> (Vec<LogEntry>, Vec<AppliedEntry>) {
    let mut world = World::with_agent();
    for round in 0..SANDBOXES {
        let size = [10, 900, 5_000, 30_000, 60_000][round % 5];
        let id = world.create_large(&format!("s{round}"), size);
        let endpoints = Vec::new();
        world.report(&id, ReportedState::Running { endpoints, lease_revision: 0 });
        if round >= 90 || round % 2 == 0 {
            let exited = ReportedState::Exited {
                exit_code: Some(0),
                reason: String::new(),
                expired: false,
                lease_over: false,
            };
            world.report(&id, exited);
        }
    }
    let mut payloads = vec![EntryPayload::Membership(membership()), EntryPayload::Blank];
    let mut applied = Vec::new();
    for (number, entry) in world.applied.iter().enumerate() {
        if number % 40 == 7 {
            let events = entry.entry.events.clone();
            payloads.push(EntryPayload::Normal(EntryData::new(Entry::new(
                0,
                1,
                entry.entry.time,
                events.into_vec(),
            ))));
        }
        applied.push(AppliedEntry { index: payloads.len() as u64, ..entry.clone() });
        payloads.push(EntryPayload::Normal(EntryData::new(Entry::clone(&entry.entry))));
    }
    let log = (0..).zip(payloads).map(|(index, payload)| LogEntry { log_id: id(index), payload }).collect();
    (log, applied)
}

/// Two data directories, of a node that was killed and of one that ended, and what they must lead to.
pub(super) fn make(folder: &Path) -> (Vec<PathBuf>, Truth) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(fill(folder))
}

async fn fill(folder: &Path) -> (Vec<PathBuf>, Truth) {
    let (killed, ended, data) = (folder.join("killed"), folder.join("ended"), folder.join("living"));
    let identity = NodeIdentity {
        node_id: 7_877_223_900,
        cluster_id: Some("c-1".to_owned()),
        name: "node-1".to_owned(),
    };
    drop(DataDirLock::acquire(&data).unwrap());
    identity.save(&data).unwrap();
    let (log, applied) = entries();
    let (mut state, mut digests, mut checkpoints) = (State::new(), Vec::new(), Checkpoints::default());
    let snapshots = SnapshotStore::open(&data.join("snapshots")).unwrap();
    let options = LogOptions { database_bytes: DATABASE_BYTES, ..LogOptions::default() };
    let mut store = LogStore::open(&data.join("log"), options).unwrap();
    store.save_vote(&Vote::new(1, 7)).await.unwrap();
    store.save_vote(&vote()).await.unwrap();
    let count = log.len();
    for (at, entry) in log.iter().enumerate() {
        // Now and then something else stood there first.
        if at % 100 == 50 {
            let other =
                (0..3).map(|more| LogEntry { log_id: id((at + more) as u64), payload: EntryPayload::Blank });
            store.blocking_append(other.collect::<Vec<_>>()).await.unwrap();
            store.truncate_after(Some(id(at as u64 - 1))).await.unwrap();
        }
        store.blocking_append([entry.clone()]).await.unwrap();
        store.save_committed(Some(entry.log_id)).await.unwrap();
        let index = at as u64;
        let position = Checkpoint { index, revision: state.revision(), digest: state.history_digest() };
        if at % 64 == 0 {
            checkpoints.keep(position);
        }
        if let EntryPayload::Normal(data) = &entry.payload {
            state.apply(&data.entry().unwrap(), 1);
        }
        digests.push((state.revision(), state.state_digest().to_string()));
        if at == count / 3 || at == count * 3 / 4 {
            let membership = StoredMembership::new(Some(id(0)), membership());
            let view = View { state: state.clone(), applied: Some(entry.log_id), membership };
            let (store, known) = (snapshots.clone(), SnapshotState::default());
            let mut builder = SnapshotBuilder::new(view, checkpoints.clone(), store, known);
            builder.build_snapshot().await.unwrap();
        }
    }
    store.purge(id(count as u64 / 4)).await.unwrap();
    while store.reader().find_places().await.unwrap() {}
    SubjectIndex::open(&data.join("index")).unwrap().fill_for_test(&applied, 150);
    copy(&data, &killed);
    store.shutdown().await.unwrap();
    copy(&data, &ended);
    for base in [&killed, &ended] {
        let left_over = base.join("log/fetching/log-00000000000000000003");
        fs::create_dir_all(&left_over).unwrap();
        fs::write(left_over.join("db"), vec![7; 10_000]).unwrap();
    }
    let truth = Truth {
        digests,
        log: format!("{} {}", digest_of_log(&log), whose(&identity, &vote().to_string())),
        least_committed: count as u64 * 3 / 4,
    };
    (vec![killed, ended], truth)
}
