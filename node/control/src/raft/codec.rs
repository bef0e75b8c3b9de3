//! The bytes of Raft's messages between peers.
//!
//! Most messages (votes, answers, log ids, forwarded commands) are bincode, read with a limit. An append has a format of
//! its own, so that the entries' bytes pass from the leader's log into its followers' logs as they are:
//!
//! ```text
//! version u8 | head length u32 | head (bincode) | entry …      (numbers little-endian)
//! entry: kind u8 | term u64 | index u64 | length u32 | bytes
//! ```
//!
//! Whatever the bytes are, reading them ends with a message or a [`CodecError`], never with a panic, and never
//! allocates more than the message is long.

use std::mem;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::raft::AppendEntriesRequest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::types::{EntryData, LogEntry, LogId, TypeConfig, Vote};

/// The version of the format, in the first byte of every append.
const VERSION: u8 = 1;
/// An append is cut into several when its entries have more bytes than this. Small enough that a follower's
/// first answer comes early and heartbeats on the same connection are not held up for long.
pub const APPEND_TARGET_BYTES: usize = 1024 * 1024;
/// The largest message that a peer accepts, bytes: an entry (1.25 MiB) on top of a full target, and heads.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of an entry beside its payload.
const ENTRY_HEAD_BYTES: usize = 1 + 8 + 8 + 4;

const KIND_BLANK: u8 = 0;
const KIND_NORMAL: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

/// Bytes from a peer that are no message of this version.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The message ends in the middle of a field.
    #[error("the message is cut off")]
    CutOff,
    /// There are bytes after the message's end.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// Another version of the format.
    #[error("message format {0}, and this version reads format {VERSION}")]
    Version(u8),
    /// A kind of entry that this version does not know.
    #[error("an entry of kind {0}, which this version does not know")]
    Kind(u8),
    /// Entries that do not follow each other.
    #[error("entry {found} stands where entry {expected} belongs")]
    NotConsecutive {
        /// The index after the previous entry.
        expected: u64,
        /// The index that came.
        found: u64,
    },
    /// A message that bincode can't read.
    #[error("bincode: {0}")]
    Bincode(String),
}

/// What precedes the entries of an append.
#[derive(Serialize, Deserialize)]
struct AppendHead {
    vote: Vote,
    prev_log_id: Option<LogId>,
    leader_commit: Option<LogId>,
    entries: u32,
}

/// Encodes a message.
pub fn encode<T: Serialize>(message: &T) -> Bytes {
    bincode::serde::encode_to_vec(message, bincode::config::standard())
        .expect("Raft's messages consist of types that bincode can write")
        .into()
}

/// Decodes a message that [`encode`] made.
///
/// # Errors
/// If the bytes are not exactly one message, or it is larger than [`MAX_MESSAGE_BYTES`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let config = bincode::config::standard().with_limit::<MAX_MESSAGE_BYTES>();
    let (message, read) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|error| CodecError::Bincode(error.to_string()))?;
    match bytes.len() - read {
        0 => Ok(message),
        trailing => Err(CodecError::Trailing(trailing)),
    }
}

/// Encodes an append. Its entries' bytes are copied once, into the message.
pub fn encode_append(request: &AppendEntriesRequest<TypeConfig>) -> Bytes {
    let count = u32::try_from(request.entries.len()).expect("an append is bounded far below 2^32 entries");
    let head = encode(&AppendHead {
        vote: request.vote,
        prev_log_id: request.prev_log_id,
        leader_commit: request.leader_commit,
        entries: count,
    });
    let payloads = entries_bytes(&request.entries);
    let mut out = BytesMut::with_capacity(1 + 4 + head.len() + payloads);
    out.put_u8(VERSION);
    put_bytes(&mut out, &head);
    put_entries(&mut out, &request.entries);
    out.freeze()
}

/// Decodes an append. Each entry gets memory of its own: it is kept for long, and would keep the whole buffer that the
/// message came in.
///
/// # Errors
/// If the bytes are not exactly one append of this version.
pub fn decode_append(mut bytes: Bytes) -> Result<AppendEntriesRequest<TypeConfig>, CodecError> {
    let version = bytes.try_get_u8().map_err(|_| CodecError::CutOff)?;
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    let head: AppendHead = decode(&take_bytes(&mut bytes)?)?;
    let possible = bytes.len() / ENTRY_HEAD_BYTES;
    let mut entries = Vec::with_capacity(possible.min(head.entries as usize));
    let mut expected = head.prev_log_id.map_or(Some(0), |id| id.index().checked_add(1));
    for _ in 0..head.entries {
        let entry = take_entry(&mut bytes)?;
        let found = entry.log_id.index();
        if expected != Some(found) {
            return Err(CodecError::NotConsecutive { expected: expected.unwrap_or(u64::MAX), found });
        }
        expected = found.checked_add(1);
        entries.push(entry);
    }
    if !bytes.is_empty() {
        return Err(CodecError::Trailing(bytes.len()));
    }
    Ok(AppendEntriesRequest {
        vote: head.vote,
        prev_log_id: head.prev_log_id,
        entries,
        leader_commit: head.leader_commit,
    })
}

/// Encodes entries, in the form that they have in an append.
pub fn encode_entries(entries: &[LogEntry]) -> Bytes {
    let mut out = BytesMut::with_capacity(entries_bytes(entries));
    put_entries(&mut out, entries);
    out.freeze()
}

/// How long entries are in that form, bytes; memberships are not counted.
pub fn entries_bytes(entries: &[LogEntry]) -> usize {
    entries.iter().map(|entry| ENTRY_HEAD_BYTES + payload_bytes(entry)).sum()
}

/// Decodes what [`encode_entries`] made. They need not be consecutive.
///
/// # Errors
/// If the bytes are not whole entries.
pub fn decode_entries(mut bytes: Bytes) -> Result<Vec<LogEntry>, CodecError> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        entries.push(take_entry(&mut bytes)?);
    }
    Ok(entries)
}

/// Cuts an append into several that follow each other, each of at most [`APPEND_TARGET_BYTES`] (or one entry).
/// The follower answers each, which Raft takes as progress.
pub fn split_append(mut request: AppendEntriesRequest<TypeConfig>) -> Vec<AppendEntriesRequest<TypeConfig>> {
    let total: usize = request.entries.iter().map(payload_bytes).sum();
    if total <= APPEND_TARGET_BYTES {
        return vec![request];
    }
    let (vote, leader_commit) = (request.vote, request.leader_commit);
    let mut parts = Vec::new();
    let mut prev_log_id = request.prev_log_id;
    let mut entries: Vec<LogEntry> = Vec::new();
    let mut size = 0;
    for entry in request.entries.drain(..) {
        let bytes = payload_bytes(&entry);
        if size + bytes > APPEND_TARGET_BYTES && !entries.is_empty() {
            let last = entries.last().map(|entry| entry.log_id);
            parts.push(AppendEntriesRequest {
                vote,
                prev_log_id,
                entries: mem::take(&mut entries),
                leader_commit,
            });
            prev_log_id = last;
            size = 0;
        }
        size += bytes;
        entries.push(entry);
    }
    parts.push(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit });
    parts
}

fn payload_bytes(entry: &LogEntry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(data) => data.bytes().len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("a message is bounded far below 4 GiB");
    out.put_u32_le(length);
    out.put_slice(bytes);
}

fn put_entries(out: &mut BytesMut, entries: &[LogEntry]) {
    for entry in entries {
        match &entry.payload {
            EntryPayload::Blank => put_entry(out, KIND_BLANK, entry, &[]),
            EntryPayload::Normal(data) => put_entry(out, KIND_NORMAL, entry, data.bytes()),
            EntryPayload::Membership(membership) => {
                put_entry(out, KIND_MEMBERSHIP, entry, &encode(membership));
            }
        }
    }
}

fn put_entry(out: &mut BytesMut, kind: u8, entry: &LogEntry, payload: &[u8]) {
    out.put_u8(kind);
    out.put_u64_le(entry.log_id.committed_leader_id().term);
    out.put_u64_le(entry.log_id.index());
    put_bytes(out, payload);
}

fn take_bytes(bytes: &mut Bytes) -> Result<Bytes, CodecError> {
    let length = bytes.try_get_u32_le().map_err(|_| CodecError::CutOff)? as usize;
    if bytes.len() < length {
        return Err(CodecError::CutOff);
    }
    Ok(bytes.split_to(length))
}

fn take_entry(bytes: &mut Bytes) -> Result<LogEntry, CodecError> {
    let kind = bytes.try_get_u8().map_err(|_| CodecError::CutOff)?;
    let term = bytes.try_get_u64_le().map_err(|_| CodecError::CutOff)?;
    let index = bytes.try_get_u64_le().map_err(|_| CodecError::CutOff)?;
    let payload = take_bytes(bytes)?;
    let payload = match kind {
        KIND_BLANK if payload.is_empty() => EntryPayload::Blank,
        KIND_BLANK => return Err(CodecError::Trailing(payload.len())),
        KIND_NORMAL => EntryPayload::Normal(EntryData::from_bytes(Bytes::copy_from_slice(&payload))),
        KIND_MEMBERSHIP => EntryPayload::Membership(decode(&payload)?),
        kind => return Err(CodecError::Kind(kind)),
    };
    Ok(LogEntry { log_id: LogId::new(term.into(), index), payload })
}

#[cfg(test)]
mod tests;
