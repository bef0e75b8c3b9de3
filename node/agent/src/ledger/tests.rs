use proptest::prelude::*;

use super::*;

/// A ledger as format 1 wrote it: it has to stay readable for ever.
const GOLDEN: &[u8] = include_bytes!("golden-1.bin");

fn golden_record() -> Record {
    Record {
        agent_id: "worker-1".to_owned(),
        ledger_id: "6f1c9a52-0b1e-4ad5-9d7e-5b3d8a1c2e4f".to_owned(),
        start: 7,
        cluster_id: Some("blue".to_owned()),
        terms: BTreeMap::from([("blue".to_owned(), 42), ("green".to_owned(), 3)]),
    }
}

#[test]
fn format_1_is_still_read_and_written() {
    assert_eq!(decode(GOLDEN, Path::new("golden")).unwrap(), golden_record());
    assert_eq!(encode(&golden_record()), GOLDEN);
}

#[test]
fn each_start_counts_and_terms_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let first = {
        let mut ledger = Ledger::open(folder.path(), "a").unwrap();
        assert_eq!((ledger.incarnation().start, ledger.term(), ledger.cluster_id()), (1, 0, None));
        ledger.join("blue").unwrap();
        ledger.raise_term(5).unwrap();
        ledger.raise_term(4).unwrap();
        ledger.incarnation()
    };
    let ledger = Ledger::open(folder.path(), "a").unwrap();
    assert_eq!(ledger.incarnation(), Incarnation { ledger_id: first.ledger_id, start: 2 });
    assert_eq!((ledger.term(), ledger.cluster_id()), (5, Some("blue")));
}

#[test]
fn a_cluster_that_was_left_is_not_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path(), "a").unwrap();
    ledger.join("blue").unwrap();
    ledger.raise_term(5).unwrap();
    assert_eq!(ledger.former(), BTreeMap::new());
    ledger.rehome("green").unwrap();
    assert_eq!((ledger.cluster_id(), ledger.term()), (Some("green"), 0));
    drop(ledger);
    let mut ledger = Ledger::open(folder.path(), "a").unwrap();
    assert_eq!(ledger.former(), BTreeMap::from([("blue".to_owned(), 5)]));
    // One that never saw a term there, and one that comes back.
    ledger.rehome("blue").unwrap();
    assert_eq!((ledger.term(), ledger.former()), (5, BTreeMap::from([("green".to_owned(), 0)])));
}

#[test]
fn a_second_process_and_another_agent_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path(), "a").unwrap();
    let error = Ledger::open(folder.path(), "a").unwrap_err();
    assert!(error.to_string().contains(&format!("(process {})", std::process::id())), "{error}");
    drop(ledger);
    let error = Ledger::open(folder.path(), "b").unwrap_err();
    assert!(matches!(&error, LedgerError::OtherAgent { theirs, .. } if theirs == "a"), "{error}");
}

#[test]
fn a_newer_format_is_refused() {
    let mut content = encode(&golden_record());
    content[9] = 2;
    assert!(matches!(decode(&content, Path::new("x")), Err(LedgerError::Newer { found: 2, .. })));
}

#[test]
fn what_can_not_be_written_is_not_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(folder.path(), "a").unwrap();
    ledger.join("blue").unwrap();
    ledger.path = folder.path().join("missing").join("ledger");
    assert!(matches!(ledger.raise_term(9), Err(LedgerError::Fault(_))));
    assert_eq!(ledger.term(), 0);
}

proptest! {
    #[test]
    fn any_flipped_byte_is_found(at in 0..GOLDEN.len(), with in 1u8..=255) {
        let mut content = GOLDEN.to_vec();
        content[at] ^= with;
        prop_assert!(decode(&content, Path::new("x")).is_err());
    }

    #[test]
    fn garbage_never_panics(content in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&content, Path::new("x"));
    }

    #[test]
    fn a_record_round_trips(start: u64, agent_id in "[a-z]{1,20}", term: u64) {
        let record = Record { start, agent_id, terms: BTreeMap::from([("c".to_owned(), term)]), ..golden_record() };
        prop_assert_eq!(decode(&encode(&record), Path::new("x")).unwrap(), record);
    }
}
