//! The disk fails, or the machine crashes in the middle of something.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::super::sled_folder::SledFolder;
use super::*;
use crate::storage::describe;

#[tokio::test]
async fn appends_that_wait_share_an_fsync_and_are_readable_at_once() {
    let dir = tempfile::tempdir().unwrap();
    // Holds each fsync back until it is let go, once `closed` is set.
    let closed = Arc::new(AtomicBool::new(false));
    let (let_go, held) = mpsc::channel::<()>();
    let (closed_too, held) = (Arc::clone(&closed), Mutex::new(held));
    let options = with_sync(move |file| {
        if closed_too.load(Ordering::SeqCst) {
            let _ = held.lock().unwrap().recv();
        }
        file.sync_data()
    });
    let mut store = LogStore::open(dir.path(), LogOptions { database_bytes: 1 << 20, ..options }).unwrap();
    append(&mut store, [entry(1, 0, 10)]).await;
    let before = store.stats();
    closed.store(true, Ordering::SeqCst);
    let mut told = Vec::new();
    for index in 1..=100 {
        told.push(start_append(&mut store, [entry(1, index, 10)]).await);
    }
    assert_eq!(
        indexes(&all(&store).await),
        (0..=100).collect::<Vec<_>>(),
        "readable, though nothing is durable"
    );
    closed.store(false, Ordering::SeqCst);
    drop(let_go);
    for told in told {
        told.await.unwrap();
    }
    let after = store.stats();
    assert_eq!(after.appended_entries - before.appended_entries, 100);
    assert!(after.appended_bytes > before.appended_bytes);
    assert!(after.fsync_nanos > before.fsync_nanos);
    // One for what was first, one for all that came while it was held back; a little room for a slow start.
    let fsyncs = after.fsyncs - before.fsyncs;
    assert!(fsyncs <= 5, "{fsyncs} fsyncs for 100 appends");
    store.shutdown().await.unwrap();
    assert_eq!(all(&open(dir.path())).await.len(), 101);
}

#[tokio::test]
async fn a_disk_that_hangs_is_noticed_and_one_that_only_takes_long_gets_further() {
    let dir = tempfile::tempdir().unwrap();
    let (let_go, held) = mpsc::channel::<()>();
    let (closed, held) = (Arc::new(AtomicBool::new(false)), Mutex::new(held));
    let closed_too = Arc::clone(&closed);
    let options = with_sync(move |file| {
        if closed_too.load(Ordering::SeqCst) {
            let _ = held.lock().unwrap().recv();
        }
        file.sync_data()
    });
    let mut store = LogStore::open(dir.path(), options).unwrap();
    append(&mut store, [entry(1, 0, 10)]).await;
    let until = async |wanted: &dyn Fn(Option<Duration>) -> bool| {
        while !wanted(store.unfinished_for()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    until(&|unfinished| unfinished.is_none()).await;
    closed.store(true, Ordering::SeqCst);
    let told = start_append(&mut store.clone(), [entry(1, 1, 10)]).await;
    let long = Duration::from_millis(100);
    until(&|unfinished| unfinished.is_some_and(|unfinished| unfinished > long)).await;
    drop(let_go);
    told.await.unwrap();
    until(&|unfinished| unfinished.is_none()).await;
}

#[test]
fn an_error_that_somebody_can_mend_says_how() {
    let said = |errno: i32| {
        let error = io::Error::from_raw_os_error(errno);
        describe(&crate::storage::files::failed("write", Path::new("/data/log/db"))(error))
    };
    let full = said(28);
    assert!(full.starts_with("cannot write /data/log/db (make room there"), "{full}");
    assert!(full.ends_with("): No space left on device (os error 28)"), "{full}");
    assert!(said(30).contains("repair the disk"), "{}", said(30));
    assert_eq!(said(5), "cannot write /data/log/db: Input/output error (os error 5)");
}

#[tokio::test]
async fn after_a_failed_fsync_nothing_is_told_to_be_stored_and_nothing_is_retried() {
    let dir = tempfile::tempdir().unwrap();
    let broken = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(Mutex::new(0));
    let (broken_too, calls_too) = (Arc::clone(&broken), Arc::clone(&calls));
    let options = with_sync(move |file| {
        if broken_too.load(Ordering::SeqCst) {
            *calls_too.lock().unwrap() += 1;
            return Err(io::Error::other("the disk is on fire"));
        }
        file.sync_data()
    });
    let mut store = LogStore::open(dir.path(), options).unwrap();
    append(&mut store, [entry(1, 0, 10)]).await;
    broken.store(true, Ordering::SeqCst);
    let told = start_append(&mut store, [entry(1, 1, 10)]).await.await.unwrap_err().to_string();
    assert!(told.contains("cannot fdatasync") && told.contains("/db: the disk is on fire"), "{told}");
    assert!(told.contains("log-00000000000000000000"), "{told}");
    let later = start_append(&mut store, [entry(1, 2, 10)]).await.await.unwrap_err().to_string();
    assert!(later.contains("the disk is on fire"), "{later}");
    assert!(store.save_vote(&vote(2)).await.unwrap_err().to_string().contains("the disk is on fire"));
    assert!(store.truncate_after(None).await.is_err());
    assert!(store.purge(log_id(1, 0)).await.is_err());
    assert!(store.save_committed(None).await.is_err());
    assert!(store.reader().entries_from(0, 100).await.is_err());
    assert!(store.shutdown().await.unwrap_err().to_string().contains("the disk is on fire"));
    drop(store);
    assert_eq!(*calls.lock().unwrap(), 1, "one fsync failed, and there was no other");
    // What was acknowledged is there after a restart.
    let crashed = tempfile::tempdir().unwrap();
    let mut store = open(&copy(dir.path(), crashed.path()));
    assert_eq!(all(&store).await[0], entry(1, 0, 10));
    assert_eq!(store.reader().read_vote().await.unwrap(), None);
    store.get_log_state().await.unwrap();
}

#[tokio::test]
async fn a_vote_that_is_not_durable_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let broken = Arc::new(AtomicBool::new(false));
    let broken_too = Arc::clone(&broken);
    let options = with_sync(move |file| {
        if broken_too.load(Ordering::SeqCst) { Err(io::Error::other("no")) } else { file.sync_data() }
    });
    let mut store = LogStore::open(dir.path(), options).unwrap();
    broken.store(true, Ordering::SeqCst);
    let error = store.save_vote(&vote(9)).await.unwrap_err().to_string();
    assert!(error.contains("/meta/db: no"), "{error}");
    assert!(store.reader().read_vote().await.is_err());
}

#[tokio::test]
async fn a_panic_of_the_writer_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let broken = Arc::new(AtomicBool::new(false));
    let broken_too = Arc::clone(&broken);
    let options = with_sync(move |file| {
        assert!(!broken_too.load(Ordering::SeqCst), "as sled might");
        file.sync_data()
    });
    let mut store = LogStore::open(dir.path(), options).unwrap();
    broken.store(true, Ordering::SeqCst);
    let told = start_append(&mut store, [entry(1, 0, 10)]).await.await.unwrap_err().to_string();
    assert!(told.contains("the log writer panicked: as sled might"), "{told}");
}

/// 40 entries in a dozen databases, the first ten of them in one block.
async fn fill(store: &mut LogStore) {
    append(store, (0..10).map(|index| entry(1, index, 100))).await;
    for index in 10..40 {
        append(store, [entry(1, index, 500)]).await;
    }
}

/// Truncates to `after` with a crash at `step`; the log that is found must be whole up to some entry from there on.
async fn crash_in_truncation(step: Step, countdown: u32, after: u64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let mut store = LogStore::open(dir.path(), failing_at(step, countdown)).unwrap();
    fill(&mut store).await;
    store.save_vote(&vote(1)).await.unwrap();
    let error = store.truncate_after(Some(log_id(1, after))).await.unwrap_err().to_string();
    assert!(error.contains("crash"), "{error}");
    let crashed = tempfile::tempdir().unwrap();
    let mut store = open(&copy(dir.path(), crashed.path()));
    let (_, last) = state(&mut store).await;
    let last = last.unwrap();
    assert!((after..40).contains(&last), "{last}");
    assert_eq!(indexes(&all(&store).await), (0..=last).collect::<Vec<_>>(), "no hole");
    // Raft truncates again, and goes on. The old suffix must not come back.
    store.truncate_after(Some(log_id(1, after))).await.unwrap();
    append(&mut store, [entry(2, after + 1, 100)]).await;
    store.shutdown().await.unwrap();
    let store = open(crashed.path());
    let entries = all(&store).await;
    assert_eq!(indexes(&entries), (0..=after + 1).collect::<Vec<_>>());
    assert_eq!(entries.last(), Some(&entry(2, after + 1, 100)));
    last
}

#[tokio::test]
async fn a_crash_in_a_truncation_leaves_no_hole() {
    let early = crash_in_truncation(Step::TruncatedDatabase, 1, 4).await;
    let late = crash_in_truncation(Step::TruncatedDatabase, 4, 4).await;
    assert!(late < early, "the newest databases go first: {late} < {early}");
    crash_in_truncation(Step::TruncatedBlocks, 1, 4).await;
    crash_in_truncation(Step::TruncatedBlocks, 1, 11).await;
}

#[tokio::test]
async fn a_crash_in_a_purge_is_made_good_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = LogStore::open(dir.path(), failing_at(Step::TrimRecorded, 1)).unwrap();
    fill(&mut store).await;
    store.purge(log_id(1, 30)).await.unwrap();
    store.trim_history(start(31)).await.unwrap_err();
    let crashed = tempfile::tempdir().unwrap();
    copy(dir.path(), crashed.path());
    let before = databases(crashed.path());
    let mut store = open(crashed.path());
    assert_eq!(state(&mut store).await, (Some(30), Some(39)));
    assert_eq!(indexes(&all(&store).await), (31..40).collect::<Vec<_>>());
    let after = databases(crashed.path());
    assert!(before.ends_with(&after) && after.len() + 3 <= before.len(), "{after:?} of {before:?}");
    assert!(after[1..].iter().all(|name| name.as_str() > "log-00000000000000000031"), "{after:?}");
    // One that goes beyond the end: nothing of the log is left.
    let dir = tempfile::tempdir().unwrap();
    let mut store = LogStore::open(dir.path(), failing_at(Step::PurgeRecorded, 1)).unwrap();
    fill(&mut store).await;
    store.purge(log_id(2, 90)).await.unwrap_err();
    let crashed = tempfile::tempdir().unwrap();
    let mut store = open(&copy(dir.path(), crashed.path()));
    assert_eq!(state(&mut store).await, (Some(90), Some(90)));
    assert_eq!(databases(crashed.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_database_without_entries_is_removed_at_the_next_start() {
    for countdown in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = LogStore::open(dir.path(), failing_at(Step::DatabaseCreated, countdown)).unwrap();
        let mut stored = 0;
        while start_append(&mut store, [entry(1, stored, 900)]).await.await.is_ok() {
            stored += 1;
        }
        let crashed = tempfile::tempdir().unwrap();
        copy(dir.path(), crashed.path());
        let before = databases(crashed.path()).len();
        let mut store = open(crashed.path());
        assert_eq!(all(&store).await.len() as u64, stored);
        assert_eq!(databases(crashed.path()).len(), before - 1);
        append(&mut store, [entry(1, stored, 900)]).await;
        assert_eq!(all(&store).await.len() as u64, stored + 1);
    }
}

#[tokio::test]
async fn what_a_crash_left_of_a_removed_database_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let leftover = dir.path().join("removed-00000000000000000000-0/blobs");
    fs::create_dir_all(&leftover).unwrap();
    let mut store = open(dir.path());
    assert_eq!(state(&mut store).await, (None, None));
    store.shutdown().await.unwrap();
    assert!(!leftover.exists());
}

/// A kill or a power cut while sled is opened leaves a part of a snapshot, or an empty one.
#[tokio::test]
async fn what_is_left_of_an_unfinished_snapshot_of_sleds_blocks_no_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, [entry(1, 0, 10)]).await;
    store.save_vote(&vote(3)).await.unwrap();
    store.shutdown().await.unwrap();
    for database in [dir.path().join(&databases(dir.path())[0]), dir.path().join("meta")] {
        fs::write(database.join("snap.0000000000001F89.generating"), [0x8a, 0x1f]).unwrap();
        fs::write(database.join("snap.0000000000001F90.generating"), []).unwrap();
    }
    let mut store = open(dir.path());
    assert_eq!(all(&store).await, [entry(1, 0, 10)]);
    assert_eq!(store.reader().read_vote().await.unwrap(), Some(vote(3)));
    append(&mut store, [entry(1, 1, 10)]).await;
}

/// A kill or a power cut while a database is created leaves a part of sled's settings.
#[tokio::test]
async fn unfinished_settings_of_a_new_database_block_no_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, [entry(1, 0, 10)]).await;
    store.shutdown().await.unwrap();
    let whole = fs::read(dir.path().join("meta/conf")).unwrap();
    // What sled writes into a data file before anything is inserted.
    let created = tempfile::tempdir().unwrap();
    drop(SledFolder::open(created.path(), Hooks::default(), Arc::default()).unwrap());
    let begun = fs::read(created.path().join("db")).unwrap();
    // As far as the first of sled's two writes, and around it.
    for length in [0, 9, whole.len() - 4, whole.len() - 1] {
        for data in [None, Some(&begun[..0]), Some(&begun[..])] {
            let crashed = tempfile::tempdir().unwrap();
            copy(dir.path(), crashed.path());
            let next = crashed.path().join("log-00000000000000000001");
            fs::create_dir(&next).unwrap();
            fs::write(next.join("conf"), &whole[..length]).unwrap();
            if let Some(data) = data {
                fs::write(next.join("db"), data).unwrap();
            }
            let mut store = LogStore::open(crashed.path(), small())
                .unwrap_or_else(|error| panic!("{length} bytes, {data:?}: {}", describe(&error)));
            append(&mut store, [entry(1, 1, 10)]).await;
            assert_eq!(indexes(&all(&store).await), [0, 1]);
        }
    }
    // With data it is no unfinished creation.
    let conf = dir.path().join("meta/conf");
    fs::write(&conf, &whole[..whole.len() - 4]).unwrap();
    LogStore::open(dir.path(), small()).err().unwrap();
    assert_eq!(fs::read(&conf).unwrap().len(), whole.len() - 4, "it is left as it is");
}
