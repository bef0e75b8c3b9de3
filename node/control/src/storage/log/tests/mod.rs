//! Tests of the log store as a whole. `block` has its own.

mod conformance;
mod corruption;
mod faults;
mod fetched;
mod fuzz;
mod history;
mod model;
mod power_cut;
mod reopen;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::{IOFlushed, RaftLogStorage, RaftLogStorageExt as _};
use openraft::type_config::TypeConfigExt as _;
use openraft::{EntryPayload, Membership, RaftLogReader as _, Vote};

use super::block::log_id;
use super::options::{Hooks, Step};
use super::{HistoryStart, LogOptions, LogStore};
use crate::raft::types::{EntryData, LogEntry, LogId, Member, TypeConfig};

/// Databases of a few entries, and hardly anything in memory.
fn small() -> LogOptions {
    LogOptions { database_bytes: 3_000, tail_cache_bytes: 2_000, ..LogOptions::default() }
}

fn with_sync(sync_data: impl Fn(&File) -> io::Result<()> + Send + Sync + 'static) -> LogOptions {
    LogOptions { hooks: Hooks { sync_data: Some(Arc::new(sync_data)), at_step: None }, ..small() }
}

/// A store that fails at a step, for the `countdown`th time that it comes there.
fn failing_at(step: Step, countdown: u32) -> LogOptions {
    let left = std::sync::atomic::AtomicU32::new(countdown);
    let at_step = move |now: Step| {
        let due = now == step && left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) == 1;
        if due { Err(io::Error::other("crash")) } else { Ok(()) }
    };
    LogOptions { hooks: Hooks { sync_data: None, at_step: Some(Arc::new(at_step)) }, ..small() }
}

fn open(dir: &Path) -> LogStore {
    LogStore::open(dir, small()).unwrap()
}

/// An entry whose bytes say which one it is, of about `size` bytes.
fn entry(term: u64, index: u64, size: usize) -> LogEntry {
    let mut bytes = format!("{term}:{index}:").into_bytes();
    let pattern = (index % 251) as u8;
    bytes.resize(size.max(bytes.len()), pattern);
    LogEntry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(EntryData::from_bytes(Bytes::from(bytes))),
    }
}

fn blank(term: u64, index: u64) -> LogEntry {
    LogEntry { log_id: log_id(term, index), payload: EntryPayload::Blank }
}

fn membership(term: u64, index: u64) -> LogEntry {
    let member = Member {
        name: "a".to_owned(),
        peer_address: "10.0.0.1:7601".to_owned(),
        api_address: "10.0.0.1:7600".to_owned(),
    };
    let voters = vec![[7].into()];
    let membership = Membership::new(voters, std::collections::BTreeMap::from([(7, member)])).unwrap();
    LogEntry { log_id: log_id(term, index), payload: EntryPayload::Membership(membership) }
}

async fn append(store: &mut LogStore, entries: impl IntoIterator<Item = LogEntry>) {
    let entries: Vec<_> = entries.into_iter().collect();
    store.blocking_append(entries).await.unwrap();
}

/// Appends and does not wait; returns what is told when it is durable.
async fn start_append<T: IntoIterator<Item = LogEntry>>(
    store: &mut LogStore,
    entries: T,
) -> impl Future<Output = io::Result<()>> + use<T> {
    let (sender, receiver) = TypeConfig::oneshot();
    let entries: Vec<_> = entries.into_iter().collect();
    let refused = store.append(entries, IOFlushed::signal(sender)).await.err();
    async move {
        match refused {
            Some(error) => Err(error),
            None => receiver.await.unwrap(),
        }
    }
}

/// Where a history begins of which nothing before `index` is kept.
fn start(index: u64) -> HistoryStart {
    HistoryStart { index, before: Some((index, [7; 32])) }
}

/// Purges, and keeps nothing of it as history.
async fn purge_all(store: &mut LogStore, upto: LogId) {
    store.purge(upto).await.unwrap();
    store.trim_history(start(upto.index + 1)).await.unwrap();
}

async fn all(store: &LogStore) -> Vec<LogEntry> {
    store.reader().try_get_log_entries(..).await.unwrap()
}

/// All that is kept for readers of the history.
async fn history(store: &LogStore) -> Vec<LogEntry> {
    let (reader, mut kept) = (store.reader(), Vec::new());
    let mut next = reader.first_index();
    loop {
        let entries = reader.entries_from(next, 5_000).await.unwrap();
        let Some(last) = entries.last() else { return kept };
        next = last.log_id.index + 1;
        kept.extend(entries);
    }
}

fn indexes(entries: &[LogEntry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.log_id.index).collect()
}

/// The names of the databases in a log folder.
fn databases(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("log-")).collect();
    names.sort();
    names
}

/// What a machine that crashes now would find when it starts again: sled keeps its files locked until the process
/// ends, so the next store opens a copy. What is being deleted meanwhile may be missing.
fn copy(dir: &Path, to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    let Ok(items) = fs::read_dir(dir) else { return to.to_owned() };
    for item in items {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy(&item.path(), &target);
        } else if let Err(error) = fs::copy(item.path(), &target) {
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{}", item.path().display());
        }
    }
    to.to_owned()
}

async fn state(store: &mut LogStore) -> (Option<u64>, Option<u64>) {
    let state = store.get_log_state().await.unwrap();
    (state.last_purged_log_id.map(|id| id.index), state.last_log_id.map(|id| id.index))
}

fn vote(term: u64) -> Vote<openraft::alias::LeaderIdOf<TypeConfig>> {
    Vote::new_committed(term, 7)
}
