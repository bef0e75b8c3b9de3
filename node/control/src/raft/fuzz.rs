//! What peers send, and what snapshots hold. See `crate::fuzz`.

use std::convert::Infallible;
use std::fmt::Debug;
use std::fs;

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest, VoteResponse,
};
use openraft::{EntryPayload, Membership, Vote};
use sandkeeper_statemachine::{Actor, Command, Entry, Outcome, Rejection, ReportedState, Request, State};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec;
use super::replica::View;
use super::snapshots::write;
use super::transfer::{Announcement, TransferHead};
use super::types::{EntryData, LogEntry, LogId, Member, SnapshotMeta, StoredMembership, TypeConfig};
use crate::api::testing::World;
use crate::fuzz::fuzz;
use crate::history::checkpoints::Checkpoints;
use crate::storage::snapshot::SnapshotStore;

fn id(term: u64, index: u64) -> LogId {
    LogId::new(term.into(), index)
}

fn membership() -> Membership<u64, Member> {
    let member =
        Member { name: "a".to_owned(), peer_address: "a:7601".to_owned(), api_address: "a:7600".to_owned() };
    Membership::new(vec![[1].into()], std::collections::BTreeMap::from([(1, member)])).unwrap()
}

fn world() -> World {
    let mut world = World::with_agent();
    for round in 0..6 {
        let (id, _) = world.create_strong(&format!("web-{round}"));
        let endpoints = vec!["host.example:1".to_owned()];
        world.report(&id, ReportedState::Running { endpoints, lease_revision: 0 });
        if round % 2 == 0 {
            world.terminate(&id);
        }
    }
    world
}

fn log_entries() -> Vec<LogEntry> {
    let mut payloads = vec![EntryPayload::Blank, EntryPayload::Membership(membership())];
    payloads.extend(
        world().applied.iter().map(|one| EntryPayload::Normal(EntryData::new(Entry::clone(&one.entry)))),
    );
    (3..).zip(payloads).map(|(index, payload)| LogEntry { log_id: id(2, index), payload }).collect()
}

/// Whether the bytes are a message; if they are, it comes back from its own bytes.
fn whole<T: Serialize + DeserializeOwned + Debug>(bytes: &[u8]) -> bool {
    let Ok(value) = codec::decode::<T>(bytes) else { return false };
    let again = codec::decode::<T>(&codec::encode(&value)).unwrap();
    assert_eq!(format!("{again:?}"), format!("{value:?}"));
    true
}

#[test]
fn fuzz_peer_append() {
    let append = |entries: &[LogEntry]| {
        codec::encode_append(&AppendEntriesRequest {
            vote: Vote::new_committed(2, 7),
            prev_log_id: Some(id(2, 2)),
            entries: entries.to_vec(),
            leader_commit: Some(id(1, 1)),
        })
    };
    let entries = log_entries();
    let samples = vec![append(&entries).to_vec(), append(&entries[..2]).to_vec(), append(&[]).to_vec()];
    fuzz!("peer: append", samples, |bytes: &[u8]| {
        let Ok(request) = codec::decode_append(Bytes::copy_from_slice(bytes)) else { return false };
        let again = codec::decode_append(codec::encode_append(&request)).unwrap();
        assert_eq!((again.entries, again.vote), (request.entries, request.vote));
        true
    });
}

#[test]
fn fuzz_peer_entries() {
    let entries = log_entries();
    let samples =
        vec![codec::encode_entries(&entries).to_vec(), codec::encode_entries(&entries[1..3]).to_vec()];
    fuzz!("peer: history entries", samples, |bytes: &[u8]| {
        let Ok(entries) = codec::decode_entries(Bytes::copy_from_slice(bytes)) else { return false };
        assert_eq!(codec::decode_entries(codec::encode_entries(&entries)).unwrap(), entries);
        true
    });
}

#[test]
fn fuzz_peer_messages() {
    let vote = Vote::new(3, 9);
    let meta = SnapshotMeta {
        last_log_id: Some(id(2, 9)),
        last_membership: StoredMembership::new(Some(id(1, 1)), membership()),
    };
    let announcement = Announcement { meta, length: 70_000, digest: [7; 32] };
    let answers: [StreamAppendResult<TypeConfig>; 2] =
        [Ok(Some(id(1, 2))), Err(StreamAppendError::Conflict(id(4, 5)))];
    let samples: Vec<Vec<u8>> = vec![
        codec::encode(&VoteRequest::<TypeConfig>::new(vote, Some(id(2, 7)))).to_vec(),
        codec::encode(&VoteResponse::<TypeConfig>::new(vote, Some(id(2, 7)), true)).to_vec(),
        codec::encode(&answers[0]).to_vec(),
        codec::encode(&answers[1]).to_vec(),
        codec::encode(&Some(id(3, 3))).to_vec(),
        codec::encode(&announcement).to_vec(),
        codec::encode(&TransferHead { vote, announcement }).to_vec(),
    ];
    fuzz!("peer: bincode messages", samples, |bytes: &[u8]| {
        whole::<VoteRequest<TypeConfig>>(bytes)
            | whole::<VoteResponse<TypeConfig>>(bytes)
            | whole::<StreamAppendResult<TypeConfig>>(bytes)
            | whole::<Option<LogId>>(bytes)
            | whole::<Announcement>(bytes)
            | whole::<TransferHead>(bytes)
    });
}

#[test]
fn fuzz_forwarded_commands() {
    let command = Command::CreateCluster { cluster_id: uuid::Uuid::from_u128(7), cluster_version: 1 };
    let request = Request { actor: Actor::Client("a".to_owned()), id: None, command };
    let samples = vec![codec::encode(&request).to_vec(), vec![0; 40], (0..120).collect()];
    fuzz!("forwarded commands", samples, |bytes: &[u8]| {
        whole::<Request>(bytes) | whole::<Result<Outcome, Rejection>>(bytes)
    });
}

#[test]
fn fuzz_entry() {
    let samples: Vec<_> = world().applied.iter().map(|one| one.entry.encoded().to_vec()).collect();
    fuzz!("entry and events", samples, |bytes: &[u8]| {
        let _ = Entry::peek(bytes);
        let Ok(entry) = Entry::decode(&Bytes::copy_from_slice(bytes)) else { return false };
        let events = entry.events.clone().into_vec();
        let again = Entry::new(entry.base_revision, entry.decided_term, entry.time, events);
        assert_eq!(Entry::decode(again.encoded()).unwrap(), again);
        assert_eq!(again.events, entry.events);
        true
    });
}

/// Chunks one behind the other, each with its length (2 bytes).
fn chunks_of(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut chunks, mut rest) = (Vec::new(), bytes);
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let (chunk, behind) = behind.split_at(usize::from(u16::from_le_bytes(*length)).min(behind.len()));
        chunks.push(chunk.to_vec());
        rest = behind;
    }
    chunks
}

#[test]
fn fuzz_state_chunks() {
    let framed = |chunk: Vec<u8>| [&(chunk.len() as u16).to_le_bytes()[..], &chunk].concat();
    let sample: Vec<u8> = world().state.snapshot_chunks().flat_map(framed).collect();
    fuzz!("state chunks", [sample], |bytes: &[u8]| {
        let chunks = chunks_of(bytes).into_iter().map(Ok::<_, Infallible>);
        let Ok(state) = State::from_snapshot_chunks(chunks) else { return false };
        let again = state.snapshot_chunks().map(Ok::<_, Infallible>);
        assert_eq!(State::from_snapshot_chunks(again).unwrap().state_digest(), state.state_digest());
        true
    });
}

/// A backup is a snapshot file.
#[test]
fn fuzz_snapshot_and_backup() {
    let dir = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(dir.path()).unwrap();
    let membership = StoredMembership::new(Some(id(1, 0)), membership());
    let view = View { state: world().state, applied: Some(id(2, 9)), membership };
    let file = write(&store, &view, &Checkpoints::default()).unwrap();
    let sample = fs::read(file.path()).unwrap();
    let header = 32 + u32::from_le_bytes(sample[24..28].try_into().unwrap()) as usize;
    let path = dir.path().join("backup");
    fuzz!("snapshot and backup", [sample], |bytes: &[u8]| {
        let mut fixed = bytes.to_vec();
        if fixed.len() > header {
            let mut crc = crc32fast::Hasher::new();
            crc.update(&fixed[..28]);
            crc.update(&fixed[32..header]);
            fixed[28..32].copy_from_slice(&crc.finalize().to_le_bytes());
        }
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            crate::backup::verify(&path).is_ok()
        };
        read(bytes) | read(&fixed)
    });
}
