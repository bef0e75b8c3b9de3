//! A start with a log that is long enough to be replayed in a hurry.

use openraft::EntryPayload;
use openraft::storage::{RaftLogStorage as _, RaftLogStorageExt as _};
use test_lives::{Lives, Population, TERM};

use super::rig::{Running, Site, cluster, eventually, fill_log};
use crate::raft::types::{EntryData, LogEntry, LogId};
use crate::storage::describe;
use crate::storage::log::{LogOptions, LogStore};

/// More than are left to openraft, and more than a piece has.
const ENTRIES: u64 = 12_000;

async fn node_that_is_down() -> Site {
    let (mut sites, mut nodes) = cluster(1, |_| {}).await;
    nodes.remove(0).stop().await;
    sites.remove(0)
}

async fn start_and_compare(site: &Site, lives: &Lives) -> Running {
    let expected = lives.state();
    let expected = (expected.revision(), expected.history_digest(), expected.state_digest());
    let node = site.start().await;
    node.reaches(expected.0).await;
    assert_eq!(node.digests(), expected);
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_log_gives_the_state_that_it_was_written_from() {
    let site = node_that_is_down().await;
    let mut lives = Lives::new(Population::default());
    fill_log(&site, &mut lives, ENTRIES).await;
    let node = start_and_compare(&site, &lives).await;

    // The oldest history is found, as if each entry had been applied alone.
    let history = node.node.history();
    let mut next = 1;
    while next <= lives.state().revision() {
        let entries = history.read_here(next, 1 << 20).await.unwrap();
        assert_eq!(entries[0].first_revision, next);
        next = entries.last().unwrap().last_revision() + 1;
    }

    // And again, behind a snapshot that is in the middle of the log.
    node.node.trigger_snapshot().await.unwrap();
    eventually("a snapshot", || async { node.node.status().snapshot }).await;
    node.stop().await;
    fill_log(&site, &mut lives, 2 * ENTRIES).await;
    start_and_compare(&site, &lives).await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_cannot_be_applied_ends_the_start_and_is_named() {
    let site = node_that_is_down().await;
    fill_log(&site, &mut Lives::new(Population::default()), 200).await;
    let mut store = LogStore::open(&site.data_dir().join("log"), LogOptions::default()).unwrap();
    let entry = |index, bytes: &'static [u8]| {
        let data = EntryData::from_bytes(bytes.into());
        LogEntry { log_id: LogId::new(TERM.into(), index), payload: EntryPayload::Normal(data) }
    };
    let blank = |index| LogEntry { log_id: LogId::new(TERM.into(), index), payload: EntryPayload::Blank };
    let mut entries = vec![entry(200, b"not an entry")];
    entries.extend((201..ENTRIES).map(blank));
    store.blocking_append(entries).await.unwrap();
    store.save_committed(Some(LogId::new(TERM.into(), ENTRIES - 1))).await.unwrap();
    store.shutdown().await.unwrap();
    let Err(fault) = site.try_start().await else { panic!("it has started") };
    let text = describe(&fault);
    assert!(text.contains("log entry 200 (term 1) can't be applied"), "{text}");
}
