//! How long a node takes to start with a million entries in its log, what they take on the disk, and what it costs to
//! make snapshots, or to give most of them up, while others are written. The entries are those of sandboxes' lives: one
//! for each create, report, terminate and report of absence.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use openraft::EntryPayload;
use openraft::storage::{RaftLogStorage as _, RaftLogStorageExt as _};
use sandkeeper_statemachine::Revision;
use test_lives::{Lives, Population, TERM};

use super::rig::{Running, Site, cluster, eventually, fill_log, leader};
use crate::history::testing::bytes_in;
use crate::raft::types::{EntryData, LogEntry, LogId};
use crate::storage::log::{HistoryStart, LogOptions, LogStore};

const SNAPSHOTS: usize = 5;

/// A million, or what `SANDKEEPER_ENTRIES` says.
fn wanted_entries() -> u64 {
    std::env::var("SANDKEEPER_ENTRIES").map_or(1_000_000, |number| number.parse().unwrap())
}

fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").unwrap();
}

/// Fills the log of a node that is down, and says what that takes on the disk. Returns the newest revision.
async fn fill(site: &Site) -> Revision {
    let folder = site.data_dir().join("log");
    let before = bytes_in(&folder);
    let mut lives = Lives::new(Population::default());
    fill_log(site, &mut lives, wanted_entries()).await;
    let (number, events) = (lives.begun(), lives.state().revision());
    let each = (bytes_in(&folder) - before) / number;
    say(&format!("{events} events; on disk {each} bytes for each of {number} sandboxes"));
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
