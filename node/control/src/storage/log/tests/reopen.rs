//! What was done is there after the store was closed and opened again.

use super::*;

async fn reopen(store: LogStore, dir: &Path) -> LogStore {
    store.shutdown().await.unwrap();
    open(dir)
}

#[tokio::test]
async fn a_new_log_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = reopen(open(dir.path()), dir.path()).await;
    assert_eq!(state(&mut store).await, (None, None));
    assert_eq!(store.reader().read_vote().await.unwrap(), None);
    assert_eq!(store.read_committed().await.unwrap(), None);
    assert_eq!(store.reader().last_index(), None);
    assert_eq!(all(&store).await, []);
}

#[tokio::test]
async fn entries_of_every_kind_and_the_vote_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let entries = vec![membership(0, 0), blank(1, 1), entry(1, 2, 10), entry(1, 3, 0)];
    store.save_vote(&vote(3)).await.unwrap();
    append(&mut store, entries.clone()).await;
    let mut store = reopen(store, dir.path()).await;
    assert_eq!(all(&store).await, entries);
    assert_eq!(state(&mut store).await, (None, Some(3)));
    assert_eq!(store.reader().read_vote().await.unwrap(), Some(vote(3)));
    append(&mut store, [entry(2, 4, 10)]).await;
    let mut store = reopen(store, dir.path()).await;
    assert_eq!(indexes(&all(&store).await), [0, 1, 2, 3, 4]);
    assert_eq!(store.get_log_state().await.unwrap().last_log_id, Some(log_id(2, 4)));
}

#[tokio::test]
async fn many_databases_are_one_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for index in 0..60 {
        append(&mut store, [entry(1, index, 500)]).await;
    }
    let count = databases(dir.path()).len();
    assert!((8..=30).contains(&count), "{count} databases");
    assert_eq!(store.stats().databases_created, count as u64);
    let store = reopen(store, dir.path()).await;
    let entries = all(&store).await;
    assert_eq!(entries, (0..60).map(|index| entry(1, index, 500)).collect::<Vec<_>>());
    let some = store.reader().try_get_log_entries(17..=42).await.unwrap();
    assert_eq!(indexes(&some), (17..=42).collect::<Vec<_>>());
}

#[tokio::test]
async fn entries_larger_than_a_block_are_kept_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let sizes = [100, 23_939, 23_940, 23_941, 24_000, 100_000, 10, super::super::block::MAX_ENTRY_BYTES];
    let entries: Vec<_> = (0..).zip(sizes).map(|(index, size)| entry(1, index, size)).collect();
    append(&mut store, entries.clone()).await;
    let store = reopen(store, dir.path()).await;
    assert!(all(&store).await == entries, "the same entries");
    for index in 0..entries.len() as u64 {
        let one = store.reader().try_get_log_entries(index..=index).await.unwrap();
        assert!(one == entries[index as usize..=index as usize], "entry {index}");
    }
    // Cutting one off takes all of its parts along.
    let mut store = store;
    store.truncate_after(Some(log_id(1, 6))).await.unwrap();
    append(&mut store, [entry(2, 7, 30_000)]).await;
    let store = reopen(store, dir.path()).await;
    let entries = all(&store).await;
    assert!(entries[7] == entry(2, 7, 30_000), "the new entry, without old parts");
}

#[tokio::test]
async fn an_entry_above_the_limit_is_refused_before_it_is_stored_in_part() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let size = super::super::block::MAX_ENTRY_BYTES + 1;
    let error = store.blocking_append([entry(1, 0, size)]).await.unwrap_err().to_string();
    assert!(error.contains("and the log takes 1310720 at most"), "{error}");
    store.shutdown().await.unwrap_err();
    drop(store);
    let crashed = tempfile::tempdir().unwrap();
    let mut store = open(&copy(dir.path(), crashed.path()));
    assert_eq!(state(&mut store).await, (None, None));
}

#[tokio::test]
async fn a_truncation_holds_and_what_follows_it_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, (0..10).map(|index| entry(1, index, 100))).await;
    for index in 10..40 {
        append(&mut store, [entry(1, index, 500)]).await;
    }
    // Across databases, to the middle of a block.
    store.truncate_after(Some(log_id(1, 4))).await.unwrap();
    assert_eq!(indexes(&all(&store).await), [0, 1, 2, 3, 4]);
    let mut store = reopen(store, dir.path()).await;
    assert_eq!(state(&mut store).await, (None, Some(4)));
    append(&mut store, [entry(2, 5, 100)]).await;
    let mut store = reopen(store, dir.path()).await;
    let entries = all(&store).await;
    assert_eq!(entries[4..], [entry(1, 4, 100), entry(2, 5, 100)]);
    // All of it.
    store.truncate_after(None).await.unwrap();
    let mut store = reopen(store, dir.path()).await;
    assert_eq!(state(&mut store).await, (None, None));
    append(&mut store, [entry(3, 0, 100)]).await;
    let store = reopen(store, dir.path()).await;
    assert_eq!(all(&store).await, [entry(3, 0, 100)]);
}

#[tokio::test]
async fn a_truncation_behind_the_end_moves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, [entry(1, 0, 10), entry(1, 1, 10)]).await;
    store.truncate_after(Some(log_id(1, 9))).await.unwrap();
    store.truncate_after(Some(log_id(1, 1))).await.unwrap();
    assert_eq!(state(&mut store).await, (None, Some(1)));
    append(&mut store, [entry(1, 2, 10)]).await;
    let store = reopen(store, dir.path()).await;
    assert_eq!(indexes(&all(&store).await), [0, 1, 2]);
}

#[tokio::test]
async fn a_purge_removes_whole_databases_and_hides_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for index in 0..60 {
        append(&mut store, [entry(1, index, 500)]).await;
    }
    let before = databases(dir.path()).len();
    store.purge(log_id(1, 49)).await.unwrap();
    assert_eq!(databases(dir.path()).len(), before, "what Raft does not need stays as history");
    assert_eq!(indexes(&history(&store).await), (0..60).collect::<Vec<_>>());
    assert_eq!(indexes(&all(&store).await), (50..60).collect::<Vec<_>>());
    store.trim_history(start(50)).await.unwrap();
    assert_eq!(indexes(&all(&store).await), (50..60).collect::<Vec<_>>());
    let after = databases(dir.path()).len();
    assert!(after <= before / 4, "{after} of {before} databases are left");
    let reader = store.reader();
    assert_eq!((reader.first_index(), reader.last_index()), (50, Some(59)));
    store.shutdown().await.unwrap();
    assert_eq!(store.stats().databases_removed, (before - after) as u64);
    let left = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, after + 2, "nothing but the databases, meta/ and end");
    let mut store = open(dir.path());
    assert_eq!(state(&mut store).await, (Some(49), Some(59)));
    assert_eq!(indexes(&all(&store).await), (50..60).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_purge_may_go_beyond_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, (0..10).map(|index| entry(1, index, 100))).await;
    store.purge(log_id(4, 100)).await.unwrap();
    assert_eq!(state(&mut store).await, (Some(100), Some(100)));
    let mut store = reopen(store, dir.path()).await;
    assert_eq!(state(&mut store).await, (Some(100), Some(100)));
    assert_eq!(databases(dir.path()), Vec::<String>::new());
    append(&mut store, [entry(4, 101, 100)]).await;
    assert_eq!(databases(dir.path()), ["log-00000000000000000101"]);
    let mut store = reopen(store, dir.path()).await;
    assert_eq!(state(&mut store).await, (Some(100), Some(101)));
    assert_eq!(all(&store).await, [entry(4, 101, 100)]);
}

#[tokio::test]
async fn the_committed_id_is_kept_and_never_beyond_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, (0..5).map(|index| entry(1, index, 10))).await;
    store.save_committed(Some(log_id(1, 3))).await.unwrap();
    append(&mut store, [entry(1, 5, 10)]).await;
    // It rides in the block: a crash right now keeps it.
    let crashed = tempfile::tempdir().unwrap();
    let mut other = open(&copy(dir.path(), crashed.path()));
    assert_eq!(other.read_committed().await.unwrap(), Some(log_id(1, 3)));
    store.save_committed(Some(log_id(1, 9))).await.unwrap();
    let mut store = reopen(store, dir.path()).await;
    assert_eq!(store.read_committed().await.unwrap(), Some(log_id(1, 5)));
}

#[tokio::test]
async fn entries_that_do_not_follow_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, [entry(1, 0, 10)]).await;
    for wrong in [vec![entry(1, 2, 10)], vec![entry(1, 0, 10)], vec![entry(1, 1, 10), entry(1, 3, 10)]] {
        let error = store.blocking_append(wrong).await.unwrap_err().to_string();
        assert!(error.contains("comes next"), "{error}");
    }
    assert_eq!(indexes(&all(&store).await), [0]);
    append(&mut store, [entry(1, 1, 10)]).await;
}

#[tokio::test]
async fn dropping_the_store_lets_go_of_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, [entry(1, 0, 10)]).await;
    let threads = std::mem::take(&mut *store.threads().lock().unwrap());
    let reader = store.reader();
    drop(store);
    for thread in threads {
        thread.join().unwrap();
    }
    reader.entries_from(0, 10).await.unwrap_err();
    assert_eq!(indexes(&all(&open(dir.path())).await), [0]);
}

#[tokio::test]
async fn after_shutdown_every_call_fails() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, [entry(1, 0, 10)]).await;
    store.shutdown().await.unwrap();
    let message = "the log store stopped: it was shut down";
    assert_eq!(store.save_vote(&vote(1)).await.unwrap_err().to_string(), message);
    assert_eq!(store.purge(log_id(1, 0)).await.unwrap_err().to_string(), message);
    assert_eq!(store.truncate_after(None).await.unwrap_err().to_string(), message);
    assert_eq!(store.get_log_state().await.unwrap_err().to_string(), message);
    assert_eq!(store.reader().try_get_log_entries(..).await.unwrap_err().to_string(), message);
    let told = start_append(&mut store, [entry(1, 1, 10)]).await;
    assert_eq!(told.await.unwrap_err().to_string(), message);
}
