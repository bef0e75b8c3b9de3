use std::fs;

use super::*;

fn record(index: u64) -> EndRecord {
    EndRecord {
        durable: Some(log_id(3, index)),
        committed: Some(log_id(2, index / 2)),
        vote: Some(Vote::new_committed(4, u64::MAX)),
    }
}

fn reopen(dir: &Path) -> EndFile {
    EndFile::open(dir, Hooks::default()).unwrap().unwrap()
}

#[test]
fn the_last_record_counts() {
    let dir = tempfile::tempdir().unwrap();
    assert!(EndFile::open(dir.path(), Hooks::default()).unwrap().is_none());
    let mut end = EndFile::create(dir.path(), EndRecord::default(), Hooks::default()).unwrap();
    assert_eq!(reopen(dir.path()).record(), EndRecord::default());
    for index in 0..7 {
        end.note(record(index)).unwrap();
        assert_eq!(reopen(dir.path()).record(), record(index));
    }
    let mut end = reopen(dir.path());
    let uncommitted = EndRecord { vote: Some(Vote::new(9, 1)), ..EndRecord::default() };
    end.save(uncommitted).unwrap();
    assert_eq!(reopen(dir.path()).record(), uncommitted);
    assert_eq!(fs::metadata(dir.path().join(NAME)).unwrap().len(), 1024);
}

#[test]
fn a_slot_that_is_lost_leaves_the_record_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut end = EndFile::create(dir.path(), EndRecord::default(), Hooks::default()).unwrap();
    end.note(record(7)).unwrap();
    end.note(record(8)).unwrap();
    let sound = fs::read(dir.path().join(NAME)).unwrap();
    let mut seen = [0, 0];
    for bit in 0..sound.len() * 8 {
        let mut bytes = sound.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let in_version = (bit / 8) % 512 == 4;
        match decode_file(&bytes) {
            Err(SlotError::Newer(_)) => assert!(in_version, "bit {bit}"),
            Err(error) => panic!("bit {bit}: {error:?}"),
            Ok(found) => {
                let (at, _) = found.damaged.unwrap();
                assert_eq!(at as usize, bit / 8 / 512 * 512);
                let lost_newest = at == 0;
                assert_eq!(found.record, record(if lost_newest { 7 } else { 8 }), "bit {bit}");
                seen[usize::from(lost_newest)] += 1;
            }
        }
    }
    assert!(seen.iter().all(|seen| *seen > 4_000), "{seen:?}");
    // What `save` says stands in both: then a lost slot brings nothing back.
    end.save(record(3)).unwrap();
    let sound = fs::read(dir.path().join(NAME)).unwrap();
    for at in [0, 512] {
        let mut bytes = sound.clone();
        bytes[at + 20] ^= 1;
        assert_eq!(decode_file(&bytes).ok().unwrap().record, record(3));
    }
}

#[test]
fn a_file_without_a_record_is_corrupt_and_a_newer_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = |bytes: &[u8]| {
        fs::write(dir.path().join(NAME), bytes).unwrap();
        EndFile::open(dir.path(), Hooks::default()).map(drop).unwrap_err().to_string()
    };
    let sound = [encode(&record(1), 1), encode(&record(2), 2)].concat();
    for length in 0..512 {
        assert!(error(&sound[..length]).contains("end is corrupt at byte 0: neither slot"), "{length} bytes");
    }
    let mut newer = sound.clone();
    newer[512 + 4] = 2;
    assert!(error(&newer).contains("end has format version 2, but this version of sandkeeper reads"));
    // One slot is enough.
    fs::write(dir.path().join(NAME), &sound[..700]).unwrap();
    assert_eq!(reopen(dir.path()).record(), record(1));
}

#[test]
fn a_file_of_format_version_1_can_be_read() {
    let golden = include_bytes!("../../golden/end-v1.bin");
    let found = decode_file(golden).ok().unwrap();
    assert_eq!((found.record, found.damaged), (record(6), None));
    assert_eq!(golden[..], [encode(&record(6), 4), encode(&record(5), 3)].concat());
}
