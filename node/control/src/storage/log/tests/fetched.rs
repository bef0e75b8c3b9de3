//! History that comes from elsewhere takes its place before the log, all of it or nothing.

use super::super::FetchedLog;
use super::*;

/// A store that came by snapshot at 29: its log begins with 30.
async fn jumped(dir: &Path, options: LogOptions, own: u64) -> LogStore {
    let mut store = LogStore::open(dir, options).unwrap();
    append(&mut store, (0..3).map(|index| entry(1, index, 100))).await;
    store.purge(log_id(2, 29)).await.unwrap();
    append(&mut store, (30..30 + own).map(|index| entry(2, index, 500))).await;
    store
}

/// Fetches the entries from `from` up to 29.
fn fetch(store: &LogStore, from: u64) -> FetchedLog {
    let mut fetched = store.begin_fetch(start(from)).unwrap();
    let large = |index| if index == 17 { 60_000 } else { 500 };
    for part in [from..from + 9, from + 9..25, 25..30] {
        let entries: Vec<_> = part.map(|index| entry(1, index, large(index))).collect();
        fetched.append(&entries).unwrap();
    }
    fetched.finish().unwrap();
    fetched
}

async fn history_from(store: &LogStore, from: u64) -> Vec<u64> {
    assert_eq!(store.reader().first_index(), from);
    indexes(&history(store).await)
}

#[tokio::test]
async fn it_is_history_and_not_rafts() {
    for own in [0, 20] {
        let dir = tempfile::tempdir().unwrap();
        let store = jumped(dir.path(), small(), own).await;
        assert_eq!(store.reader().history_start(), Some(HistoryStart { index: 30, before: None }));
        let fetched = fetch(&store, 4);
        assert_eq!(store.reader().first_index(), 30, "nothing counts yet");
        assert!(store.adopt(fetched).await.unwrap().is_none());
        let (raft, kept) = ((30..30 + own).collect::<Vec<_>>(), (4..30 + own).collect::<Vec<_>>());
        assert_eq!(history_from(&store, 4).await, kept);
        assert_eq!(indexes(&all(&store).await), raft);
        store.shutdown().await.unwrap();
        assert!(!dir.path().join("fetching").exists());

        let mut store = open(dir.path());
        assert_eq!(state(&mut store).await, (Some(29), Some(29 + own)));
        assert_eq!(store.reader().history_start(), Some(start(4)));
        assert_eq!(history_from(&store, 4).await, kept);
        append(&mut store, [entry(3, 30 + own, 500)]).await;
        assert_eq!(history_from(&store, 4).await.last(), Some(&(30 + own)));
        // The retention takes it like any other.
        store.trim_history(start(20)).await.unwrap();
        store.shutdown().await.unwrap();
        let store = open(dir.path());
        assert_eq!(history_from(&store, 20).await, (20..=30 + own).collect::<Vec<_>>());
        assert!(databases(dir.path())[0].as_str() > "log-00000000000000000010");
    }
}

#[tokio::test]
async fn what_does_not_lead_up_to_the_log_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = jumped(dir.path(), small(), 5).await;
    let mut short = store.begin_fetch(start(4)).unwrap();
    short.append(&[entry(1, 4, 10)]).unwrap();
    assert!(short.append(&[entry(1, 6, 10)]).is_err(), "a hole");
    short.finish().unwrap();
    let back = store.adopt(short).await.unwrap().unwrap();
    drop(back);
    assert!(!dir.path().join("fetching").exists());
    // Another snapshot came meanwhile.
    let fetched = fetch(&store, 4);
    store.purge(log_id(3, 99)).await.unwrap();
    assert!(store.adopt(fetched).await.unwrap().is_some());
    assert_eq!(store.reader().first_index(), 100);
}

#[tokio::test]
async fn a_crash_before_it_counts_leaves_the_log_as_it_was() {
    for own in [0, 20] {
        let dir = tempfile::tempdir().unwrap();
        let store = jumped(dir.path(), failing_at(Step::FetchedMoved, 1), own).await;
        let fetched = fetch(&store, 4);
        let (early, late) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        copy(dir.path(), early.path());
        store.adopt(fetched).await.unwrap_err();
        copy(dir.path(), late.path());
        assert!(databases(late.path())[0] == "log-00000000000000000004", "the databases have their places");
        for crashed in [early, late] {
            let mut store = open(crashed.path());
            assert_eq!(state(&mut store).await, (Some(29), Some(29 + own)));
            assert_eq!(store.reader().first_index(), 30);
            append(&mut store, [entry(3, 30 + own, 10)]).await;
            store.shutdown().await.unwrap();
            assert!(databases(crashed.path()).iter().all(|name| name.as_str() >= "log-00000000000000000030"));
            assert!(!crashed.path().join("fetching").exists());
            let store = open(crashed.path());
            assert_eq!(indexes(&all(&store).await), (30..=30 + own).collect::<Vec<_>>());
        }
    }
}

#[tokio::test]
async fn a_history_that_lost_its_beginning_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = jumped(dir.path(), small(), 5).await;
    assert!(store.adopt(fetch(&store, 4)).await.unwrap().is_none());
    store.shutdown().await.unwrap();
    fs::remove_dir_all(dir.path().join("log-00000000000000000004")).unwrap();
    let error = LogStore::open(dir.path(), small()).map(drop).unwrap_err().to_string();
    assert!(error.contains("a hole: the log is kept from 4 on"), "{error}");
}
