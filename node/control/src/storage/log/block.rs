//! The form in which entries stand in a database: blocks of at most [`MAX_VALUE_BYTES`].
//!
//! A block's key is the index of its first entry, 8 bytes big-endian. An entry that does not fit into one block is
//! cut into parts: part 0 under the entry's index, part n under the index and n (2 bytes big-endian), so that
//! parts sort behind their head and before the next entry. The value, all numbers little-endian:
//!
//! ```text
//!  0  4  "SKLB"
//!  4  1  format version: 1
//!  5  1  kind: 0 whole entries, 1 a part of one entry
//!  6  2  how many entries it holds; of a part: how many parts the entry has
//!  8  4  CRC-32 of all the rest of the value
//! 12  8  index of the first entry (the key repeats it)
//! 20  2  number of this part, from 0
//! 22  1  flags: 1 committed is present, 2 base revision is present
//! 23  1  0
//! 24 16  term and index of the last log id that was known to be committed when the block was written
//! 40  8  base revision of the first entry here that has one
//! 48  …  whole: for each entry 4 bytes length and the encoded entry; part: a piece of the encoded entry
//! ```
//!
//! An encoded entry: its term (8 bytes), its kind (0 blank, 1 normal, 2 membership), its payload: the bytes of
//! [`EntryData`], or the membership in bincode.

mod build;

use bytes::Bytes;
use openraft::alias::CommittedLeaderIdOf;
use openraft::{EntryPayload, Membership};

pub(super) use self::build::{BlockBuilder, EncodedBlock};
use crate::raft::types::{EntryData, LogEntry, LogId, Member, NodeId, TypeConfig};

/// The format version that is written, and the newest that can be read.
pub(super) const FORMAT_VERSION: u8 = 1;

/// The largest value. sled puts a page of more than a quarter of its segment (2 MiB) into a file of its own under
/// `blobs/`, which it never fsyncs. A leaf holds up to 16 values, 20 for a moment when leaves merge: 20 x 24,000
/// stays under 512 KiB.
pub(super) const MAX_VALUE_BYTES: usize = 24_000;

/// The largest encoded entry: the state machine makes no larger one.
pub(super) const MAX_ENTRY_BYTES: usize = sandkeeper_statemachine::MAX_ENTRY_BYTES;

pub(super) const MAGIC: [u8; 4] = *b"SKLB";
const HEADER_BYTES: usize = 48;
const MAX_BODY_BYTES: usize = MAX_VALUE_BYTES - HEADER_BYTES;
const CRC: std::ops::Range<usize> = 8..12;
const ENTRY_HEADER_BYTES: usize = 9;
const HAS_COMMITTED: u8 = 1;
const HAS_BASE_REVISION: u8 = 2;
/// More than any membership; bincode must not allocate what a corrupt length asks for.
const MEMBERSHIP_LIMIT: usize = 1 << 20;

/// Whether a block holds whole entries or a piece of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `count` entries, from `first` on.
    Whole,
    /// Part `part` of `count` of the entry `first`.
    Part,
}

/// What a block says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub kind: Kind,
    pub count: u16,
    pub first: u64,
    pub part: u16,
    pub committed: Option<LogId>,
    pub base_revision: Option<u64>,
}

/// Why bytes are not a block.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BlockError {
    /// A later version of this program wrote it.
    Newer(u8),
    /// It is not what was written.
    Corrupt(String),
}

impl From<String> for BlockError {
    fn from(what: String) -> Self {
        Self::Corrupt(what)
    }
}

impl From<&str> for BlockError {
    fn from(what: &str) -> Self {
        Self::Corrupt(what.to_owned())
    }
}

/// The key of the block that begins with `index`.
pub(super) fn head_key(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

/// The key of a part.
pub(super) fn key_of(index: u64, part: u16) -> Vec<u8> {
    let mut key = head_key(index).to_vec();
    if part > 0 {
        key.extend_from_slice(&part.to_be_bytes());
    }
    key
}

/// The key of the block that may begin here; nothing of it is verified.
pub(super) fn key_in(bytes: &[u8]) -> Option<Vec<u8>> {
    let header = bytes.first_chunk::<HEADER_BYTES>()?;
    let first = header[12..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes))?;
    (header[..4] == MAGIC).then(|| key_of(first, u16::from_le_bytes([header[20], header[21]])))
}

/// The checksum that a block carries; not verified.
pub(super) fn recorded_checksum(value: &[u8]) -> u32 {
    value.get(CRC).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// A key for messages.
pub(super) fn display_key(key: &[u8]) -> String {
    match parse_key(key) {
        Some((index, 0)) => index.to_string(),
        Some((index, part)) => format!("{index} part {part}"),
        None => format!("{key:02x?}"),
    }
}

/// Index and part number of a key.
pub(super) fn parse_key(key: &[u8]) -> Option<(u64, u16)> {
    let (head, rest) = key.split_first_chunk::<8>()?;
    match rest {
        [] => Some((u64::from_be_bytes(*head), 0)),
        [a, b] => Some((u64::from_be_bytes(*head), u16::from_be_bytes([*a, *b]))),
        _ => None,
    }
}

/// Makes a log id.
pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: CommittedLeaderIdOf::<TypeConfig>::new(term), index }
}

/// About how many bytes an entry holds in memory and on the wire.
pub(super) fn weight(entry: &LogEntry) -> usize {
    let payload = match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(data) => data.bytes().len(),
        EntryPayload::Membership(members) => 128 * members.nodes().count(),
    };
    payload + 64
}

/// The CRC of everything but the CRC itself.
fn checksum(value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&value[..CRC.start]);
    hasher.update(&value[CRC.end..]);
    hasher.finalize()
}

/// A block from the disk, verified.
#[derive(Debug)]
pub(super) struct Block {
    pub header: Header,
    body: Bytes,
}

impl Block {
    /// Verifies a value against its checksum and its key.
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Self, BlockError> {
        let header = decode_header(key, value)?;
        Ok(Self { header, body: Bytes::copy_from_slice(&value[HEADER_BYTES..]) })
    }

    /// The index of the last entry in it, or of the one that it is a part of.
    pub(super) fn last(&self) -> u64 {
        self.header.last()
    }

    /// The piece that a part holds.
    pub(super) fn body(&self) -> &Bytes {
        &self.body
    }

    /// The entries of a block of whole ones. They share the block's memory.
    pub(super) fn entries(&self) -> Result<Vec<LogEntry>, BlockError> {
        let mut entries = Vec::with_capacity(usize::from(self.header.count));
        let mut rest = self.body.clone();
        for offset in 0..u64::from(self.header.count) {
            let length = rest.first_chunk::<4>().ok_or("an entry's length is cut off")?;
            let length = u32::from_le_bytes(*length) as usize;
            if rest.len() - 4 < length {
                return Err("an entry is cut off".into());
            }
            let mut entry = rest.split_to(4 + length);
            entries.push(decode_entry(self.header.first + offset, entry.split_off(4))?);
        }
        if rest.is_empty() { Ok(entries) } else { Err("bytes are left behind the last entry".into()) }
    }

    /// The same block with only the entries before `end`; for truncation.
    pub(super) fn cut(&self, end: u64) -> Result<EncodedBlock, BlockError> {
        let mut builder = BlockBuilder::new(self.header.committed);
        for entry in self.entries()?.iter().filter(|entry| entry.log_id.index < end) {
            builder.push(entry).map_err(|error| error.to_string())?;
        }
        let mut blocks = builder.finish();
        match (blocks.pop(), blocks.is_empty()) {
            (Some(block), true) => Ok(block),
            _ => Err("a shortened block does not make exactly one block".into()),
        }
    }
}

impl Header {
    /// The index of the last entry of the block.
    pub(super) fn last(&self) -> u64 {
        match self.kind {
            Kind::Whole => self.first + u64::from(self.count) - 1,
            Kind::Part => self.first,
        }
    }
}

/// Verifies a value and reads what it says of itself.
pub(super) fn decode_header(key: &[u8], value: &[u8]) -> Result<Header, BlockError> {
    let header = value.first_chunk::<HEADER_BYTES>().ok_or("shorter than a block's header")?;
    if header[..4] != MAGIC {
        return Err("it does not begin with the magic bytes of a block".into());
    }
    // The version comes before the checksum: a newer version may compute it differently.
    if header[4] > FORMAT_VERSION {
        return Err(BlockError::Newer(header[4]));
    }
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let u64_at = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let stored = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    let actual = checksum(value);
    if stored != actual {
        return Err(format!("its checksum is {actual:08x}, and {stored:08x} is recorded").into());
    }
    let kind = match header[5] {
        0 => Kind::Whole,
        1 => Kind::Part,
        kind => return Err(format!("it is of an unknown kind, {kind}").into()),
    };
    let (count, first, part, flags) = (u16_at(6), u64_at(12), u16_at(20), header[22]);
    if parse_key(key) != Some((first, part)) {
        return Err(format!("it is the block of {first} part {part}").into());
    }
    let numbered = match kind {
        Kind::Whole => count > 0 && part == 0,
        Kind::Part => part < count,
    };
    if !numbered || first.checked_add(u64::from(count)).is_none() {
        return Err(format!("it can't be number {part} of {count}").into());
    }
    let committed = (flags & HAS_COMMITTED != 0).then(|| log_id(u64_at(24), u64_at(32)));
    let base_revision = (flags & HAS_BASE_REVISION != 0).then(|| u64_at(40));
    Ok(Header { kind, count, first, part, committed, base_revision })
}

/// Reads an encoded entry. What is inside a normal one is not looked at.
pub(super) fn decode_entry(index: u64, mut bytes: Bytes) -> Result<LogEntry, BlockError> {
    let head = bytes.first_chunk::<ENTRY_HEADER_BYTES>().ok_or("an entry is shorter than its header")?;
    let kind = head[8];
    let term = head.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let payload = bytes.split_off(ENTRY_HEADER_BYTES);
    let payload = match kind {
        0 if payload.is_empty() => EntryPayload::Blank,
        1 => EntryPayload::Normal(EntryData::from_bytes(payload)),
        2 => EntryPayload::Membership(decode_membership(&payload)?),
        _ => return Err(format!("entry {index} is of kind {kind} with {} bytes", payload.len()).into()),
    };
    Ok(LogEntry { log_id: log_id(term, index), payload })
}

fn decode_membership(bytes: &[u8]) -> Result<Membership<NodeId, Member>, BlockError> {
    let config = bincode::config::standard().with_limit::<MEMBERSHIP_LIMIT>();
    let (membership, used) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|error| format!("a membership can't be decoded: {error}"))?;
    if used == bytes.len() { Ok(membership) } else { Err("bytes are left behind a membership".into()) }
}

#[cfg(test)]
mod tests;
