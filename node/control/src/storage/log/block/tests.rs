use std::collections::BTreeMap;

use super::*;

fn normal(term: u64, index: u64, bytes: Vec<u8>) -> LogEntry {
    let payload = EntryPayload::Normal(EntryData::from_bytes(bytes.into()));
    LogEntry { log_id: log_id(term, index), payload }
}

fn membership() -> Membership<NodeId, Member> {
    let member = |name: &str| Member {
        name: name.to_owned(),
        peer_address: format!("{name}:7601"),
        api_address: format!("{name}:7600"),
    };
    let nodes = BTreeMap::from([(1, member("a")), (2, member("b")), (300, member("c"))]);
    Membership::new(vec![[1, 2].into(), [2, 300].into()], nodes).unwrap()
}

/// One of each kind. The normal one looks like an entry of the state machine with base revision 77.
fn entries() -> Vec<LogEntry> {
    let mut bytes = vec![0; 29];
    bytes[0] = 1;
    bytes[1] = 77;
    vec![
        LogEntry { log_id: log_id(3, 4_000_000_000), payload: EntryPayload::Blank },
        normal(3, 4_000_000_001, bytes),
        LogEntry { log_id: log_id(4, 4_000_000_002), payload: EntryPayload::Membership(membership()) },
    ]
}

fn build(entries: &[LogEntry], committed: Option<LogId>) -> Vec<EncodedBlock> {
    let mut builder = BlockBuilder::new(committed);
    for entry in entries {
        builder.push(entry).unwrap();
    }
    builder.finish()
}

fn decode(block: &EncodedBlock) -> Result<Block, BlockError> {
    Block::decode(&block.key(), &block.value)
}

fn golden_block() -> EncodedBlock {
    build(&entries(), Some(log_id(3, 3_999_999_999))).pop().unwrap()
}

/// What version 1 wrote must be readable for ever, so this file never changes; a new version gets one of its own.
const GOLDEN: &[u8] = include_bytes!("../../golden/block-v1.bin");

#[test]
fn the_golden_block_of_version_1_can_be_read() {
    let block = Block::decode(&head_key(4_000_000_000), GOLDEN).unwrap();
    let expected = Header {
        kind: Kind::Whole,
        count: 3,
        first: 4_000_000_000,
        part: 0,
        committed: Some(log_id(3, 3_999_999_999)),
        base_revision: Some(77),
    };
    assert_eq!(block.header, expected);
    assert_eq!(block.entries().unwrap(), entries());
    assert_eq!(golden_block().value, GOLDEN, "and version 1 is still what is written");
}

#[test]
#[ignore = "writes the golden file; only for a new format version"]
fn write_golden() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/storage/golden/block-v1.bin");
    std::fs::write(path, golden_block().value).unwrap();
}

#[test]
fn blocks_are_filled_and_never_larger_than_the_limit() {
    let entries: Vec<_> = (0..500).map(|index| normal(1, index, vec![7; index as usize])).collect();
    let blocks = build(&entries, None);
    let mut read = Vec::new();
    for block in &blocks {
        assert!(block.value.len() <= MAX_VALUE_BYTES);
        read.extend(decode(block).unwrap().entries().unwrap());
    }
    assert_eq!(read, entries);
    let total: usize = blocks.iter().map(|block| block.value.len()).sum();
    assert_eq!(blocks.len(), total.div_ceil(MAX_VALUE_BYTES - 600), "few, as they are full");
}

#[test]
fn a_large_entry_is_cut_and_a_small_one_behind_it_begins_a_block() {
    let entries = [normal(1, 5, vec![1; 10]), normal(1, 6, vec![2; 60_000]), normal(1, 7, vec![3; 10])];
    let blocks = build(&entries, None);
    let keys: Vec<_> = blocks.iter().map(|block| display_key(&block.key())).collect();
    assert_eq!(keys, ["5", "6", "6 part 1", "6 part 2", "7"]);
    assert!(blocks.is_sorted_by_key(EncodedBlock::key), "they are inserted in the order of their keys");
    let parts: Vec<_> =
        blocks[1..4].iter().flat_map(|block| decode(block).unwrap().body().to_vec()).collect();
    assert_eq!(decode_entry(6, parts.into()).unwrap(), entries[1]);
}

#[test]
fn every_flipped_bit_is_found() {
    let block = golden_block();
    for at in 0..block.value.len() * 8 {
        let mut value = block.value.clone();
        value[at / 8] ^= 1 << (at % 8);
        Block::decode(&block.key(), &value).unwrap_err();
    }
    for length in 0..block.value.len() {
        Block::decode(&block.key(), &block.value[..length]).unwrap_err();
    }
}

#[test]
fn a_block_under_another_key_and_one_of_a_newer_version_are_refused() {
    let block = golden_block();
    let error = Block::decode(&head_key(5), &block.value).unwrap_err();
    assert_eq!(error, BlockError::Corrupt("it is the block of 4000000000 part 0".to_owned()));
    let mut value = block.value.clone();
    value[4] = FORMAT_VERSION + 1;
    assert_eq!(Block::decode(&block.key(), &value).unwrap_err(), BlockError::Newer(FORMAT_VERSION + 1));
}

#[test]
fn a_shortened_block_has_only_the_first_entries() {
    let block = decode(&golden_block()).unwrap();
    let cut = decode(&block.cut(4_000_000_002).unwrap()).unwrap();
    assert_eq!(cut.entries().unwrap(), entries()[..2]);
    assert_eq!(cut.header.committed, block.header.committed);
    assert!(block.cut(4_000_000_000).is_err());
}

#[test]
fn whatever_stands_in_an_entry_decoding_ends_with_an_answer() {
    for kind in 0..=255 {
        for length in 0..40 {
            let mut bytes = vec![0xff; 9 + length];
            bytes[8] = kind;
            let decoded = decode_entry(1, bytes.into());
            assert_eq!(
                decoded.is_ok(),
                kind == 1 || (kind == 0 && length == 0),
                "kind {kind}, {length} bytes"
            );
        }
    }
    assert!(decode_entry(1, Bytes::from_static(&[0; 8])).is_err());
}
