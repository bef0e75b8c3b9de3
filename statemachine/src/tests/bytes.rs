//! Bytes from a disk or a peer: whatever they are, they are read or refused, and nothing panics.

use std::sync::LazyLock;

use bytes::Bytes;
use proptest::prelude::*;

use super::golden;
use super::world::*;
use crate::*;

/// The golden state, made once.
static STATE: LazyLock<State> = LazyLock::new(golden::some_state);

fn read_state(chunks: Vec<Vec<u8>>) -> Result<State, SnapshotError<std::io::Error>> {
    State::from_snapshot_chunks(chunks.into_iter().map(Ok))
}

fn damage_all(bytes: &mut Vec<u8>, damages: Vec<Damage>) {
    for what in damages {
        damage(bytes, what);
    }
}

/// What is done to bytes, where, and with which byte.
type Damage = (u8, prop::sample::Index, u8);

/// Damages bytes: overwrites one, cuts, inserts, doubles a part.
fn damage(bytes: &mut Vec<u8>, (kind, at, value): Damage) {
    if bytes.is_empty() {
        return;
    }
    let at = at.index(bytes.len());
    match kind {
        0 => bytes[at] = value,
        1 => bytes[at] ^= 1 << (value % 8),
        2 => bytes.truncate(at),
        3 => bytes.insert(at, value),
        _ => bytes.extend_from_within(at..),
    }
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    prop::collection::vec((0u8..5, any::<prop::sample::Index>(), any::<u8>()), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_no_entry_or_one(mut bytes in prop::collection::vec(any::<u8>(), 0..200), format: bool) {
        if format && !bytes.is_empty() {
            bytes[0] = ENTRY_FORMAT;
        }
        let _ = Entry::peek(&bytes);
        let bytes = Bytes::from(bytes);
        if let Ok(entry) = Entry::decode(&bytes) {
            prop_assert_eq!(entry.encoded(), &bytes);
        }
    }

    #[test]
    fn damaged_entries_are_refused_or_read(damages in damages()) {
        let mut bytes = golden::every_kind().encoded().to_vec();
        damage_all(&mut bytes, damages);
        let bytes = Bytes::from(bytes);
        if let Ok(entry) = Entry::decode(&bytes) {
            let again = Entry::new(entry.base_revision, entry.decided_term, entry.time, entry.events.to_vec());
            prop_assert_eq!(&Entry::decode(again.encoded()).unwrap().events, &entry.events);
        }
    }

    #[test]
    fn damaged_snapshots_are_refused_or_true(damages in damages(), chunk: prop::sample::Index) {
        let state = STATE.clone();
        let mut chunks: Vec<_> = state.snapshot_chunks().collect();
        let chunk = chunk.index(chunks.len());
        damage_all(&mut chunks[chunk], damages);
        if let Ok(read) = read_state(chunks) {
            prop_assert_eq!(read.state_digest(), state.state_digest(), "the head's own fields are not of the state");
            prop_assert!(read.sandboxes().eq(state.sandboxes()));
            prop_assert!(read.agents().eq(state.agents()));
        }
    }

    #[test]
    fn snapshots_with_chunks_missing_doubled_or_moved_are_refused(
        from: prop::sample::Index, to: prop::sample::Index, kind in 0u8..3,
    ) {
        let mut chunks: Vec<_> = STATE.snapshot_chunks().collect();
        let original = chunks.clone();
        let (from, to) = (from.index(chunks.len()), to.index(chunks.len()));
        match kind {
            0 => drop(chunks.remove(from)),
            1 => chunks.insert(to, original[from].clone()),
            _ => chunks.swap(from, to),
        }
        let same = chunks == original;
        prop_assert_eq!(read_state(chunks).is_ok(), same);
    }

    #[test]
    fn arbitrary_chunks_are_no_state(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..5)) {
        prop_assert!(read_state(chunks).is_err());
    }
}

#[test]
fn bytes_that_are_no_entry_are_refused_with_a_reason() {
    let good = golden::every_kind().encoded().to_vec();
    let decode = |bytes: Vec<u8>| Entry::decode(&bytes.into()).unwrap_err();
    assert_eq!(decode(good[..28].to_vec()), DecodeError::TooShort(28));
    assert_eq!(decode(vec![0; MAX_ENTRY_BYTES + 1]), DecodeError::TooLong(MAX_ENTRY_BYTES + 1));
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(decode(with(0, 2)), DecodeError::NewerFormat(2));
    assert!(matches!(decode(with(28, 1)), DecodeError::Events(_)), "2^24 more events are announced");
    assert!(matches!(decode(good[..good.len() - 1].to_vec()), DecodeError::Events(_)));
    assert_eq!(decode([&good[..], &[0]].concat()), DecodeError::Trailing(1));
    let entry = golden::every_kind();
    let head = Entry::peek(&good).unwrap();
    assert_eq!((head.base_revision, head.decided_term), (entry.base_revision, entry.decided_term));
    assert_eq!(head.events as usize, entry.events.len());
    assert_eq!(Entry::peek(&good[..28]), None);
}

#[test]
fn a_snapshot_does_not_believe_what_no_digest_covers() {
    // What an agent has given away follows from the sandboxes, whatever its record says.
    let state = STATE.clone();
    let mut lying = state.clone();
    let agents = lying.agents.clone();
    for (id, mut agent) in agents {
        agent.allocated = Capacity { slots: 7, cpu_millis: u64::MAX, memory_bytes: u64::MAX };
        agent.ports.insert(1);
        agent.live = 9;
        lying.agents.insert(id, agent);
    }
    assert!(read_state(lying.snapshot_chunks().collect()).unwrap() == state);

    // A spec that is not the one that was hashed.
    let mut lying = state.clone();
    let mut sandbox = lying.sandboxes().next().unwrap().clone();
    std::sync::Arc::make_mut(&mut sandbox.spec).image = "another".into();
    lying.sandboxes.insert(sandbox.id.clone(), sandbox);
    let refused = read_state(lying.snapshot_chunks().collect());
    assert!(matches!(refused, Err(SnapshotError::OutOfPlace(_))), "{refused:?}");

    // An allocation of an agent that is not there; two live sandboxes of one name; sums that overflow.
    for change in [
        |sandbox: &mut Sandbox| {
            std::sync::Arc::make_mut(&mut sandbox.status).held[0].agent = agent_id("ghost");
        },
        |sandbox: &mut Sandbox| sandbox.id = "another".parse().unwrap(),
        |sandbox: &mut Sandbox| {
            std::sync::Arc::make_mut(&mut sandbox.spec).resources.memory_bytes = u64::MAX;
            sandbox.spec_digest = state::digest::digest_of(&sandbox.spec);
        },
    ] {
        let mut lying = state.clone();
        let mut sandbox =
            state.sandboxes().find(|sandbox| sandbox.status.phase == Phase::Running).unwrap().clone();
        change(&mut sandbox);
        lying.sandboxes.insert(sandbox.id.clone(), sandbox);
        assert!(read_state(lying.snapshot_chunks().collect()).is_err());
    }
}
