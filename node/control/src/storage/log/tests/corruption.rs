//! What is on the disk is not what was written. Blocks are damaged through sled, which then vouches for them.

use super::super::block::{BlockBuilder, EncodedBlock, head_key};
use super::*;

/// A closed log of some databases; the first block has entries 0 to 9.
async fn closed_log() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, (0..10).map(|index| entry(1, index, 100))).await;
    for index in 10..30 {
        append(&mut store, [entry(1, index, 500)]).await;
    }
    append(&mut store, [entry(1, 30, 50_000)]).await;
    store.shutdown().await.unwrap();
    dir
}

/// Works on a database of a closed log.
fn with_sled<T>(dir: &Path, name: &str, work: impl FnOnce(&sled::Db) -> T) -> T {
    let config = sled::Config::new().path(dir.join(name)).segment_size(2 << 20).flush_every_ms(None);
    let db = config.open().unwrap();
    let result = work(&db);
    db.flush().unwrap();
    result
}

fn first_database(dir: &Path) -> String {
    databases(dir)[0].clone()
}

fn last_database(dir: &Path) -> String {
    databases(dir).pop().unwrap()
}

fn open_error(dir: &Path) -> String {
    crate::storage::describe(&LogStore::open(dir, small()).err().unwrap())
}

async fn read_error(dir: &Path) -> String {
    let store = open(dir);
    let error = store.reader().try_get_log_entries(..).await.unwrap_err().to_string();
    store.shutdown().await.unwrap();
    error
}

fn flip(db: &sled::Db, key: &[u8], at: usize) {
    let mut value = db.get(key).unwrap().unwrap().to_vec();
    value[at] ^= 0x10;
    db.insert(key, value).unwrap();
}

#[tokio::test]
async fn a_flipped_bit_is_found_wherever_it_is() {
    let dir = closed_log().await;
    let name = first_database(dir.path());
    let length = with_sled(dir.path(), &name, |db| db.get(head_key(0)).unwrap().unwrap().len());
    for at in (0..length).filter(|at| *at < 60 || at % 97 == 0) {
        let damaged = tempfile::tempdir().unwrap();
        copy(&dir.path().join(&name), &damaged.path().join(&name));
        copy(&dir.path().join("meta"), &damaged.path().join("meta"));
        let next = &databases(dir.path())[1];
        copy(&dir.path().join(next), &damaged.path().join(next));
        with_sled(damaged.path(), &name, |db| flip(db, &head_key(0), at));
        let folder = damaged.path();
        let databases = super::super::databases::Databases::scan(folder, Hooks::default(), Arc::default());
        let error = databases.unwrap().databases.read(0, 5, usize::MAX).unwrap_err().to_string();
        assert!(error.contains(&name), "byte {at}: {error}");
        assert!(error.contains("key 0") || error.contains("format version"), "byte {at}: {error}");
    }
}

#[tokio::test]
async fn a_corrupt_block_is_an_error_that_says_where() {
    let dir = closed_log().await;
    let name = first_database(dir.path());
    with_sled(dir.path(), &name, |db| flip(db, &head_key(0), 100));
    let error = read_error(dir.path()).await;
    assert!(error.contains(&name) && error.contains("key 0") && error.contains("checksum"), "{error}");
}

#[tokio::test]
async fn a_corrupt_last_block_is_found_at_open() {
    let dir = closed_log().await;
    let name = last_database(dir.path());
    let key = with_sled(dir.path(), &name, |db| {
        let key = db.last().unwrap().unwrap().0;
        flip(db, &key, 300);
        key
    });
    assert_eq!(key.len(), 10, "it is a part");
    let error = open_error(dir.path());
    assert!(
        error.contains(&name) && error.contains("key 30 part 2") && error.contains("checksum"),
        "{error}"
    );
}

#[tokio::test]
async fn a_missing_block_is_a_hole() {
    let dir = closed_log().await;
    // In the middle of a database.
    let name = databases(dir.path())[1].clone();
    let first: u64 = name.trim_start_matches("log-").parse().unwrap();
    with_sled(dir.path(), &name, |db| db.remove(head_key(first + 1)).unwrap().unwrap());
    let error = read_error(dir.path()).await;
    assert!(error.contains(&name) && error.contains("a hole"), "{error}");
    // A whole database.
    fs::remove_dir_all(dir.path().join(&name)).unwrap();
    let error = read_error(dir.path()).await;
    assert!(error.contains("a hole"), "{error}");
    // The oldest one, and what is known of the purge says that it must be there.
    let mut store = open(dir.path());
    store.purge(log_id(1, 3)).await.unwrap();
    store.shutdown().await.unwrap();
    fs::remove_dir_all(dir.path().join(first_database(dir.path()))).unwrap();
    let error = open_error(dir.path());
    assert!(error.contains("a hole: the log is kept from 0 on"), "{error}");
}

#[tokio::test]
async fn a_missing_end_of_a_sealed_database_is_a_hole() {
    let dir = closed_log().await;
    let name = databases(dir.path())[1].clone();
    with_sled(dir.path(), &name, |db| {
        let last = db.last().unwrap().unwrap().0;
        db.remove(last).unwrap()
    });
    let error = read_error(dir.path()).await;
    assert!(error.contains(&name) && error.contains("and the next database begins with"), "{error}");
}

/// sled takes the first unreadable message for a torn end. What is behind it was acknowledged.
#[tokio::test]
async fn an_end_that_was_durable_and_is_gone_is_an_error() {
    let dir = closed_log().await;
    let name = last_database(dir.path());
    with_sled(dir.path(), &name, |db| {
        while let Some((key, _)) = db.last().unwrap().filter(|(key, _)| key[..8] >= head_key(30)[..]) {
            db.remove(key).unwrap();
        }
    });
    let error = open_error(dir.path());
    assert!(error.contains("entries up to 30 were durable"), "{error}");
    fs::remove_dir_all(dir.path().join(&name)).unwrap();
    assert!(open_error(dir.path()).contains("were durable"));
}

#[tokio::test]
async fn an_entry_that_was_cut_off_in_its_write_is_removed_and_one_that_lost_a_part_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, [entry(1, 0, 10), entry(1, 1, 10)]).await;
    store.shutdown().await.unwrap();
    let mut builder = BlockBuilder::new(None);
    builder.push(&entry(1, 2, 90_000)).unwrap();
    let parts = builder.finish();
    assert_eq!(parts.len(), 4);
    let insert = |db: &sled::Db, part: &EncodedBlock| db.insert(part.key(), part.value.clone()).unwrap();
    let name = first_database(dir.path());
    // Cut off: only the first two parts.
    with_sled(dir.path(), &name, |db| parts[..2].iter().for_each(|part| drop(insert(db, part))));
    let mut store = open(dir.path());
    assert_eq!(state(&mut store).await, (None, Some(1)));
    append(&mut store, [entry(1, 2, 90_000), entry(1, 3, 10)]).await;
    assert_eq!(indexes(&all(&store).await), [0, 1, 2, 3]);
    store.shutdown().await.unwrap();
    // Lost: an entry follows it.
    let name = databases(dir.path())[1].clone();
    assert_eq!(name, "log-00000000000000000002");
    for part in &parts {
        let lost = tempfile::tempdir().unwrap();
        copy(dir.path(), lost.path());
        with_sled(lost.path(), &name, |db| db.remove(part.key()).unwrap().unwrap());
        let error = read_error(lost.path()).await;
        assert!(error.contains(&name), "{error}");
        assert!(
            error.contains("missing") || error.contains("it begins here") || error.contains("a hole"),
            "part {}: {error}",
            part.part
        );
    }
}

#[tokio::test]
async fn a_database_by_a_wrong_name_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, [entry(1, 0, 10)]).await;
    store.shutdown().await.unwrap();
    let name = first_database(dir.path());
    fs::rename(dir.path().join(name), dir.path().join("log-00000000000000000007")).unwrap();
    let error = open_error(dir.path());
    assert!(error.contains("its name says 7"), "{error}");
}

#[tokio::test]
async fn newer_formats_are_refused() {
    // The whole folder.
    let dir = closed_log().await;
    let newer = |key: &str, payload: &[u8]| {
        let mut crc = crc32fast::Hasher::new();
        crc.update(key.as_bytes());
        crc.update(payload);
        [b"SKLM\x01", &crc.finalize().to_le_bytes()[..], payload].concat()
    };
    let damaged = tempfile::tempdir().unwrap();
    copy(dir.path(), damaged.path());
    with_sled(damaged.path(), "meta", |db| db.insert("format", newer("format", &[3])).unwrap());
    let error = open_error(damaged.path());
    assert!(error.contains("meta has format version 3, but this version of sandkeeper reads"), "{error}");
    // A record.
    let damaged = tempfile::tempdir().unwrap();
    copy(dir.path(), damaged.path());
    with_sled(damaged.path(), "meta", |db| flip(db, b"format", 4));
    assert!(open_error(damaged.path()).contains("has format version 17"));
    // A block.
    with_sled(dir.path(), &first_database(dir.path()), |db| flip(db, &head_key(0), 4));
    let error = read_error(dir.path()).await;
    assert!(error.contains("has format version 17"), "{error}");
}

#[tokio::test]
async fn a_damaged_vote_and_a_lost_meta_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.save_vote(&vote(5)).await.unwrap();
    append(&mut store, [entry(1, 0, 10)]).await;
    store.shutdown().await.unwrap();
    let damaged = tempfile::tempdir().unwrap();
    copy(dir.path(), damaged.path());
    with_sled(damaged.path(), "meta", |db| flip(db, b"vote", 10));
    let error = open_error(damaged.path());
    assert!(error.contains("key vote: its checksum is wrong"), "{error}");
    fs::remove_dir_all(dir.path().join("meta")).unwrap();
    let error = open_error(dir.path());
    assert!(error.contains("key format: the record is missing, and the log is not new"), "{error}");
}

/// Flips a bit in the last place of a file that holds these bytes: sled takes that message for a torn end.
fn flip_last(path: &Path, bytes: &[u8]) {
    let mut file = fs::read(path).unwrap();
    let at = file.windows(bytes.len()).rposition(|window| window == bytes).unwrap();
    file[at] ^= 1;
    fs::write(path, file).unwrap();
}

#[tokio::test]
async fn what_was_acknowledged_since_the_last_vote_is_missed_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for index in 0..4 {
        append(&mut store, [entry(1, index, 100)]).await;
    }
    store.save_vote(&vote(1)).await.unwrap();
    for index in 4..20 {
        append(&mut store, [entry(1, index, 20)]).await;
    }
    assert_eq!(databases(dir.path()).len(), 1);
    for lost in [5, 19] {
        // The process was killed; sled would not write what the store left in memory.
        let killed = tempfile::tempdir().unwrap();
        copy(dir.path(), killed.path());
        flip_last(
            &killed.path().join(first_database(dir.path())).join("db"),
            format!("1:{lost}:").as_bytes(),
        );
        let error = open_error(killed.path());
        assert!(error.contains("entries up to 19 were durable: acknowledged entries are lost"), "{error}");
        assert!(error.contains("log-00000000000000000000, key 19"), "{error}");
    }
}

#[tokio::test]
async fn a_vote_that_was_given_is_missed() {
    for entries in [0, 3] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        append(&mut store, (0..entries).map(|index| entry(1, index, 10))).await;
        store.save_vote(&vote(5)).await.unwrap();
        store.save_vote(&vote(6)).await.unwrap();
        let killed = tempfile::tempdir().unwrap();
        copy(dir.path(), killed.path());
        flip_last(&killed.path().join("meta").join("db"), b"SKLM\x01");
        let error = open_error(killed.path());
        assert!(error.contains("meta, key vote") && error.contains("was given"), "{error}");
    }
}

/// Entries of term 1 were truncated, and others took their place; sled forgets both, and the old ones are there again.
#[tokio::test]
async fn an_end_that_a_truncation_took_away_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    append(&mut store, (0..20).map(|index| entry(1, index, 20))).await;
    let before = tempfile::tempdir().unwrap();
    copy(dir.path(), before.path());
    store.truncate_after(Some(log_id(1, 4))).await.unwrap();
    // Until something follows, nobody was told more than that they are no longer needed.
    let database = first_database(dir.path());
    let with_old_database = |folder: &Path| {
        copy(dir.path(), folder);
        fs::remove_dir_all(folder.join(&database)).unwrap();
        copy(&before.path().join(&database), &folder.join(&database));
    };
    let forgotten = tempfile::tempdir().unwrap();
    with_old_database(forgotten.path());
    assert_eq!(state(&mut open(forgotten.path())).await, (None, Some(19)));
    append(&mut store, (5..15).map(|index| entry(2, index, 20))).await;
    let forgotten = tempfile::tempdir().unwrap();
    with_old_database(forgotten.path());
    let error = open_error(forgotten.path());
    assert!(error.contains("entry 14 is of term 1 and was of term 2"), "{error}");
}

/// The folder that a version wrote that knew nothing of `end`: its records are in `meta/`.
fn as_version_1(dir: &Path, durable: u8) {
    let record = |key: &str, payload: &[u8]| {
        let mut crc = crc32fast::Hasher::new();
        crc.update(key.as_bytes());
        crc.update(payload);
        [b"SKLM\x01", &crc.finalize().to_le_bytes()[..], payload].concat()
    };
    with_sled(dir, "meta", |db| {
        db.insert("format", record("format", &[1])).unwrap();
        // An index; term and index of what was committed.
        db.insert("tail", record("tail", &[1, durable, 1, 1, 7])).unwrap();
    });
    fs::remove_file(dir.join("end")).unwrap();
}

#[tokio::test]
async fn a_folder_of_version_1_becomes_one_of_version_2() {
    let dir = closed_log().await;
    as_version_1(dir.path(), 30);
    // A start of this version was cut off before it made the folder its own.
    fs::write(dir.path().join("end"), "half").unwrap();
    fs::write(dir.path().join("end.tmp"), "half").unwrap();
    let mut store = open(dir.path());
    assert_eq!(state(&mut store).await, (None, Some(30)));
    assert_eq!(store.read_committed().await.unwrap(), Some(log_id(1, 7)));
    assert!(!dir.path().join("end.tmp").exists());
    assert_eq!(indexes(&all(&store).await), (0..=30).collect::<Vec<_>>());
    store.shutdown().await.unwrap();
    with_sled(dir.path(), "meta", |db| assert_eq!(db.get("tail").unwrap(), None));
    // From now on it must be there.
    fs::remove_file(dir.path().join("end")).unwrap();
    let error = open_error(dir.path());
    assert!(error.contains("/end: it is missing, and the log is not new"), "{error}");
    // What the old version had recorded counts.
    let dir = closed_log().await;
    as_version_1(dir.path(), 31);
    let error = open_error(dir.path());
    assert!(error.contains("the log ends with 30, and entries up to 31 were durable"), "{error}");
}
