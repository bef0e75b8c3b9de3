//! The reader for watchers, audit and time travel.

use futures::TryStreamExt as _;

use super::super::HistoryError;
use super::*;

#[tokio::test]
async fn reads_are_bounded_by_bytes_and_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for index in 0..50 {
        append(&mut store, [entry(1, index, 300)]).await;
    }
    let reader = store.reader();
    let mut next = 0;
    let mut reads = 0;
    loop {
        let entries = reader.entries_from(next, 1_000).await.unwrap();
        let Some(last) = entries.last() else { break };
        assert_eq!(indexes(&entries), (next..=last.log_id.index).collect::<Vec<_>>());
        assert!(entries.len() <= 4, "{} entries", entries.len());
        next = last.log_id.index + 1;
        reads += 1;
    }
    assert_eq!(next, 50);
    assert!(reads >= 13, "{reads} reads");
    assert_eq!(reader.entries_from(10, 0).await.unwrap(), [entry(1, 10, 300)], "one at least");
    assert_eq!(reader.entries_from(1_000, 10).await.unwrap(), []);
}

#[tokio::test]
async fn what_is_purged_is_told_with_the_oldest_that_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for index in 0..50 {
        append(&mut store, [entry(1, index, 300)]).await;
    }
    purge_all(&mut store, log_id(1, 19)).await;
    let mut reader = store.reader();
    let refused = reader.entries_from(19, 100).await.unwrap_err();
    assert!(matches!(refused, HistoryError::Purged { oldest: 20 }), "{refused}");
    assert_eq!(reader.entries_from(20, 1).await.unwrap(), [entry(1, 20, 300)]);
    // openraft must not take entry 20 for entry 10.
    assert_eq!(reader.limited_get_log_entries(10, 30).await.unwrap(), []);
}

#[tokio::test]
async fn what_fits_into_so_many_bytes_is_told_by_whole_databases() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for index in 0..50 {
        append(&mut store, [entry(1, index, 900)]).await;
    }
    let reader = store.reader();
    let names = databases(dir.path());
    let first = |name: &String| name.trim_start_matches("log-").parse::<u64>().unwrap();
    let bytes = |name: &String| fs::metadata(dir.path().join(name).join("db")).unwrap().len();
    let holding_40 = names.iter().rposition(|name| first(name) <= 40).unwrap();
    let up_to_40 = &names[..=holding_40];
    let all = up_to_40.iter().map(bytes).sum::<u64>();
    assert_eq!(reader.first_within(all, 40).await.unwrap(), None, "what stands behind it does not count");
    assert_eq!(reader.first_within(all - 1, 40).await.unwrap(), Some(first(&names[1])));
    let two = up_to_40[holding_40 - 1..].iter().map(bytes).sum::<u64>();
    assert_eq!(reader.first_within(two, 40).await.unwrap(), Some(first(&names[holding_40 - 1])));
    assert_eq!(reader.first_within(0, 40).await.unwrap(), Some(first(&names[holding_40])), "one at least");
    store.truncate_after(Some(log_id(1, 30))).await.unwrap();
    append(&mut store, (31..90).map(|index| entry(2, index, 900))).await;
    assert_eq!(reader.first_within(0, 89).await.unwrap(), Some(first(databases(dir.path()).last().unwrap())));
    let none = tempfile::tempdir().unwrap();
    assert_eq!(open(none.path()).reader().first_within(0, 40).await.unwrap(), None);
}

#[tokio::test]
async fn a_stream_reads_piece_by_piece() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let entries: Vec<_> = (0..8).map(|index| entry(1, index, 400_000)).collect();
    append(&mut store, entries.clone()).await;
    let mut reader = store.reader();
    let read: Vec<_> = reader.entries_stream(1..7).await.try_collect().await.unwrap();
    assert!(read == entries[1..7], "the same entries");
    let limited = reader.limited_get_log_entries(0, 8).await.unwrap();
    assert_eq!(indexes(&limited), [0, 1, 2], "about a megabyte");
    store.shutdown().await.unwrap();
    let failed: io::Result<Vec<_>> = reader.entries_stream(1..7).await.try_collect().await;
    failed.unwrap_err();
}

/// Readers run while the log is truncated, purged and appended to: each read is of one moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_never_of_two_moments() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, (0..30).map(|index| entry(1, index, 300))).await;
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let mut reader = store.reader();
            tokio::spawn(async move {
                let mut reads = 0_u32;
                while let Ok(entries) = reader.try_get_log_entries(..).await {
                    let first = reader.first_index();
                    let found = indexes(&entries);
                    let begin = found.first().copied().unwrap_or(first);
                    assert_eq!(found, (begin..begin + found.len() as u64).collect::<Vec<_>>());
                    let terms: Vec<_> = entries.iter().map(|entry| entry.log_id.leader_id.term).collect();
                    assert!(terms.is_sorted(), "an old suffix behind a new entry: {terms:?}");
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    let mut last = 29;
    for round in 2..40_u64 {
        let keep = last - 7;
        let term = all(&store).await.iter().find(|entry| entry.log_id.index == keep).unwrap().log_id;
        store.truncate_after(Some(term)).await.unwrap();
        append(&mut store, (keep + 1..keep + 12).map(|index| entry(round, index, 300))).await;
        last = keep + 11;
        if round % 5 == 0 {
            let entries = all(&store).await;
            purge_all(&mut store, entries[4].log_id).await;
        }
    }
    store.shutdown().await.unwrap();
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
}

/// Which databases this process has open, by its file handles.
fn open_databases(dir: &Path) -> Vec<String> {
    let open: Vec<_> = fs::read_dir("/proc/self/fd").unwrap().flatten().collect();
    let open: Vec<_> = open.iter().filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
    let is_open = |name: &String| open.iter().any(|file| file.starts_with(dir.join(name)));
    databases(dir).into_iter().filter(is_open).collect()
}

#[tokio::test]
async fn a_sealed_database_is_closed_until_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for index in 0..50 {
        append(&mut store, [entry(1, index, 300)]).await;
    }
    let sealed = databases(dir.path());
    let newest = sealed.last().cloned().unwrap();
    assert!(sealed.len() > 3, "{sealed:?}");
    // sled lets go of its file a moment after it was dropped.
    while open_databases(dir.path()) != [newest.clone()] {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(store.reader().entries_from(0, 1).await.unwrap(), [entry(1, 0, 300)]);
    assert_eq!(open_databases(dir.path()), [sealed[0].clone(), newest]);
}

/// Finds the places of all sealed databases.
async fn find_places(store: &LogStore) {
    while store.reader().find_places().await.unwrap() {}
}

fn has_places(dir: &Path) -> Vec<String> {
    databases(dir).into_iter().filter(|name| dir.join(name).join("places").exists()).collect()
}

#[tokio::test]
async fn a_sealed_database_with_places_is_read_without_opening_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let size = |index: u64| if index == 23 { 70_000 } else { 300 };
    for index in 0..50 {
        append(&mut store, [entry(1, index, size(index))]).await;
    }
    find_places(&store).await;
    assert_eq!(has_places(dir.path()), Vec::<String>::new(), "nothing is committed");
    store.save_committed(Some(log_id(1, 35))).await.unwrap();
    find_places(&store).await;
    let sealed = databases(dir.path());
    let found = has_places(dir.path());
    assert!(found.len() > 3 && sealed.starts_with(&found), "{found:?} of {sealed:?}");
    store.shutdown().await.unwrap();

    let mut store = open(dir.path());
    let newest = sealed.last().cloned().unwrap();
    let end = sealed[found.len()].trim_start_matches("log-").parse::<u64>().unwrap();
    assert!(end <= 36, "only what is committed whole: up to {end}");
    for index in 0..end {
        assert!(store.reader().entries_from(index, 1).await.unwrap() == [entry(1, index, size(index))]);
    }
    assert_eq!(open_databases(dir.path()), [newest]);
    assert!(all(&store).await == (0..50).map(|index| entry(1, index, size(index))).collect::<Vec<_>>());
    // What is cut off is not found where it was.
    store.truncate_after(Some(log_id(1, 2))).await.unwrap();
    append(&mut store, (3..30).map(|index| entry(2, index, 200))).await;
    assert_eq!(has_places(dir.path()), Vec::<String>::new());
    assert_eq!(store.reader().entries_from(3, 1).await.unwrap(), [entry(2, 3, 200)]);
}

/// Wherever the places are wrong, the blocks are read all the same, and the places found again.
#[tokio::test]
async fn wrong_places_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for index in 0..30 {
        append(&mut store, [entry(1, index, 300)]).await;
    }
    store.save_committed(Some(log_id(1, 29))).await.unwrap();
    find_places(&store).await;
    let places = dir.path().join(&databases(dir.path())[0]).join("places");
    let sound = fs::read(&places).unwrap();
    for at in 0..sound.len() {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        fs::write(&places, bytes).unwrap();
        for index in 0..5 {
            let read = store.reader().entries_from(index, 1).await.unwrap();
            assert!(read == [entry(1, index, 300)], "entry {index} with byte {at} changed");
        }
    }
    fs::write(&places, &sound[..sound.len() / 2]).unwrap();
    assert_eq!(indexes(&history(&store).await), (0..30).collect::<Vec<_>>());
    find_places(&store).await;
    assert!(places.exists());
}
