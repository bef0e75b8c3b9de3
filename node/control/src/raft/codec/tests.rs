use std::collections::{BTreeMap, BTreeSet};

use openraft::Membership;
use openraft::raft::{StreamAppendError, StreamAppendResult, VoteRequest};
use proptest::prelude::*;

use super::*;
use crate::raft::types::Member;

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(term.into(), index)
}

fn membership() -> Membership<u64, Member> {
    let member = |name: &str| Member {
        name: name.to_owned(),
        peer_address: format!("{name}:7601"),
        api_address: format!("{name}:7600"),
    };
    let nodes = BTreeMap::from([(1, member("a")), (u64::MAX, member("b"))]);
    Membership::new(vec![BTreeSet::from([1, u64::MAX])], nodes).unwrap()
}

fn payload() -> impl Strategy<Value = EntryPayload<EntryData, u64, Member>> {
    prop_oneof![
        Just(EntryPayload::Blank),
        proptest::collection::vec(any::<u8>(), 0..300)
            .prop_map(|bytes| EntryPayload::Normal(EntryData::from_bytes(bytes.into()))),
        Just(EntryPayload::Membership(membership())),
    ]
}

fn request() -> impl Strategy<Value = AppendEntriesRequest<TypeConfig>> {
    let prev = proptest::option::of((1..u64::MAX, 0..u64::MAX / 2).prop_map(|(t, i)| log_id(t, i)));
    let payloads = proptest::collection::vec((any::<u64>(), payload()), 0..20);
    (any::<(u64, u64, bool)>(), prev.clone(), prev, payloads).prop_map(|(vote, prev, commit, payloads)| {
        let first = prev.map_or(0, |id: LogId| id.index() + 1);
        let entries = (first..)
            .zip(payloads)
            .map(|(index, (term, payload))| LogEntry { log_id: log_id(term, index), payload })
            .collect();
        let mut committed = Vote::new(vote.0, vote.1);
        committed.committed = vote.2;
        AppendEntriesRequest { vote: committed, prev_log_id: prev, entries, leader_commit: commit }
    })
}

fn same(a: &AppendEntriesRequest<TypeConfig>, b: &AppendEntriesRequest<TypeConfig>) {
    assert_eq!(a.vote, b.vote);
    assert_eq!(a.prev_log_id, b.prev_log_id);
    assert_eq!(a.leader_commit, b.leader_commit);
    assert_eq!(a.entries, b.entries);
}

proptest! {
    #[test]
    fn an_append_comes_back_as_it_was_sent(request in request()) {
        same(&request, &decode_append(encode_append(&request)).unwrap());
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_append(bytes.clone().into());
        let _ = decode::<VoteRequest<TypeConfig>>(&bytes);
        let _ = decode::<StreamAppendResult<TypeConfig>>(&bytes);
    }

    #[test]
    fn a_damaged_append_never_panics(request in request(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = encode_append(&request).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = to;
        let _ = decode_append(bytes.into());
    }

    #[test]
    fn an_append_that_is_cut_off_is_refused(request in request(), at in any::<prop::sample::Index>()) {
        let bytes = encode_append(&request);
        let cut = bytes.slice(..at.index(bytes.len()));
        prop_assert!(decode_append(cut).is_err());
    }

    #[test]
    fn the_parts_of_a_large_append_are_the_append(sizes in proptest::collection::vec(0_usize..700_000, 0..12)) {
        let entries: Vec<_> = (8..)
            .zip(&sizes)
            .map(|(index, size)| LogEntry {
                log_id: log_id(3, index),
                payload: EntryPayload::Normal(EntryData::from_bytes(vec![7; *size].into())),
            })
            .collect();
        let whole = AppendEntriesRequest::<TypeConfig> {
            vote: Vote::new_committed(3, 1),
            prev_log_id: Some(log_id(2, 7)),
            entries: entries.clone(),
            leader_commit: Some(log_id(2, 7)),
        };
        let mut prev = whole.prev_log_id;
        let mut together = Vec::new();
        for part in split_append(whole) {
            prop_assert_eq!(part.prev_log_id, prev);
            let bytes: usize = part.entries.iter().map(payload_bytes).sum();
            prop_assert!(bytes <= APPEND_TARGET_BYTES || part.entries.len() == 1);
            prev = part.entries.last().map(|entry| entry.log_id).or(prev);
            together.extend(part.entries);
        }
        prop_assert_eq!(together, entries);
    }
}

#[test]
fn small_messages_come_back() {
    let vote = VoteRequest::<TypeConfig>::new(Vote::new(3, 9), Some(log_id(2, 7)));
    assert_eq!(decode::<VoteRequest<TypeConfig>>(&encode(&vote)).unwrap(), vote);
    let answers: [StreamAppendResult<TypeConfig>; 3] =
        [Ok(Some(log_id(1, 2))), Err(StreamAppendError::Conflict(log_id(4, 5))), Ok(None)];
    for answer in answers {
        assert_eq!(decode::<StreamAppendResult<TypeConfig>>(&encode(&answer)).unwrap(), answer);
    }
}

#[test]
fn a_message_has_a_limit() {
    let bytes = encode(&vec![7_u8; MAX_MESSAGE_BYTES / 2]);
    assert_eq!(decode::<Vec<u8>>(&bytes).unwrap().len(), MAX_MESSAGE_BYTES / 2);
    let bytes = encode(&vec![7_u8; MAX_MESSAGE_BYTES]);
    assert!(matches!(decode::<Vec<u8>>(&bytes), Err(CodecError::Bincode(_))));
}

#[test]
fn what_does_not_belong_is_named() {
    let vote = encode(&VoteRequest::<TypeConfig>::new(Vote::new(3, 9), None));
    let long = [&vote[..], &[0, 0]].concat();
    assert_eq!(decode::<VoteRequest<TypeConfig>>(&long), Err(CodecError::Trailing(2)));
    assert_eq!(decode_append(Bytes::from_static(&[9])).unwrap_err(), CodecError::Version(9));
    assert_eq!(decode_append(Bytes::new()).unwrap_err(), CodecError::CutOff);
    let skipping = AppendEntriesRequest::<TypeConfig> {
        vote: Vote::new_committed(1, 1),
        prev_log_id: Some(log_id(1, 1)),
        entries: vec![LogEntry { log_id: log_id(1, 3), payload: EntryPayload::Blank }],
        leader_commit: None,
    };
    let refused = decode_append(encode_append(&skipping)).unwrap_err();
    assert_eq!(refused, CodecError::NotConsecutive { expected: 2, found: 3 });
}

#[test]
fn a_message_that_claims_to_be_huge_is_refused_before_it_is_read() {
    // A membership whose first list claims 2^60 members.
    let claim = [1, 253, 0, 0, 0, 0, 0, 0, 0, 16];
    assert!(decode::<Membership<u64, Member>>(&claim).is_err());
}
