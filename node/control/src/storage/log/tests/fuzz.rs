//! See `crate::fuzz`.

use super::super::block::{self, Block, BlockBuilder, Kind};
use super::super::end;
use super::super::meta::fuzz_record;
use super::super::places::Places;
use super::*;
use crate::fuzz::fuzz;

/// Blocks with their keys in front: 2 bytes length and the key.
fn blocks() -> Vec<Vec<u8>> {
    let mut builder = BlockBuilder::new(Some(log_id(2, 3)));
    for entry in [membership(1, 4), blank(2, 5), entry(2, 6, 100), entry(3, 7, 30_000), entry(3, 8, 7)] {
        builder.push(&entry).unwrap();
    }
    builder.finish().into_iter().map(|block| block.value).collect()
}

/// With the checksum that belongs to it, so that what is behind the checksum is reached.
fn with_checksum(mut value: Vec<u8>, at: usize) -> Vec<u8> {
    if value.len() >= at + 4 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&value[..at]);
        crc.update(&value[at + 4..]);
        value[at..at + 4].copy_from_slice(&crc.finalize().to_le_bytes());
    }
    value
}

fn again(entries: &[LogEntry]) {
    let mut builder = BlockBuilder::new(None);
    for entry in entries {
        if builder.push(entry).is_err() {
            return;
        }
    }
    let mut found = Vec::new();
    for block in builder.finish() {
        let block = Block::decode(&block.key(), &block.value).unwrap();
        if block.header.kind == Kind::Part {
            return;
        }
        found.extend(block.entries().unwrap());
    }
    assert_eq!(found, entries);
}

#[test]
fn fuzz_log_block() {
    fuzz!("log block", blocks(), |bytes: &[u8]| {
        let _ = block::recorded_checksum(bytes);
        let Some(key) = block::key_in(bytes) else { return false };
        let _ = Block::decode(&key, bytes);
        let _ = block::display_key(&bytes[..bytes.len().min(12)]);
        let Ok(block) = Block::decode(&key, &with_checksum(bytes.to_vec(), 8)) else { return false };
        let _ = block.cut(block.last());
        if block.header.kind == Kind::Whole
            && let Ok(entries) = block.entries()
        {
            again(&entries);
        }
        true
    });
}

#[test]
fn fuzz_stored_entry() {
    let bodies = |value: Vec<u8>| Block::decode(&block::key_in(&value).unwrap(), &value).unwrap();
    let samples: Vec<_> = blocks().into_iter().map(|value| bodies(value).body()[4..].to_vec()).collect();
    fuzz!("stored entry", samples, |bytes: &[u8]| {
        let Ok(entry) = block::decode_entry(9, Bytes::copy_from_slice(bytes)) else { return false };
        again(&[entry]);
        true
    });
}

#[test]
fn fuzz_meta_record() {
    fuzz!("meta record", fuzz_record::samples(), |bytes: &[u8]| {
        let mut fixed = bytes.to_vec();
        fuzz_record::fix_checksum(&mut fixed);
        fuzz_record::decode_all(bytes) | fuzz_record::decode_all(&fixed)
    });
}

#[test]
fn fuzz_end_record() {
    let sample = include_bytes!("../../golden/end-v1.bin").to_vec();
    fuzz!("end record", [sample], |bytes: &[u8]| {
        let _ = end::decode_file(bytes);
        let mut fixed = bytes.to_vec();
        for slot in fixed.chunks_exact_mut(512) {
            let crc = crc32fast::hash(&slot[..508]);
            slot[508..].copy_from_slice(&crc.to_le_bytes());
        }
        end::decode_file(&fixed).is_ok()
    });
}

#[test]
fn fuzz_places() {
    let dir = tempfile::tempdir().unwrap();
    let data = blocks();
    fs::write(dir.path().join("db"), data.concat()).unwrap();
    let (mut sample, mut offset) = (b"SKLP\x01\0\0\0".to_vec(), 0_u64);
    for value in &data {
        let (first, part) = block::parse_key(&block::key_in(value).unwrap()).unwrap();
        sample.extend_from_slice(&first.to_le_bytes());
        sample.extend_from_slice(&[part.to_le_bytes(), [0, 0]].concat());
        sample.extend_from_slice(&offset.to_le_bytes());
        sample.extend_from_slice(&(value.len() as u32).to_le_bytes());
        offset += value.len() as u64;
    }
    fs::write(dir.path().join("places"), &sample).unwrap();
    assert_eq!(Places::check(dir.path()), Ok(data.len() as u64));
    fuzz!("places", [sample], |bytes: &[u8]| {
        fs::write(dir.path().join("places"), bytes).unwrap();
        let Some(places) = Places::open(dir.path()) else { return false };
        for from in 3..10 {
            let (mut want, mut found) = (super::super::database::Want::new(from..9, usize::MAX), Vec::new());
            let _ = places.read(&mut want, &mut found);
            assert_eq!(indexes(&found), (from..).take(found.len()).collect::<Vec<_>>());
        }
        Places::check(dir.path()).is_ok()
    });
}
