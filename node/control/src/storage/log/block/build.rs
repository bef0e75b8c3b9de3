//! Cutting entries into blocks, and writing these.

use bytes::BufMut as _;
use openraft::EntryPayload;
use sandkeeper_statemachine::Entry as CoreEntry;

use super::{
    CRC, ENTRY_HEADER_BYTES, FORMAT_VERSION, HAS_BASE_REVISION, HAS_COMMITTED, HEADER_BYTES, Header, Kind,
    MAGIC, MAX_BODY_BYTES, MAX_ENTRY_BYTES, checksum, key_of,
};
use crate::raft::types::{LogEntry, LogId};
use crate::storage::StorageError;

/// A block on its way to the disk.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct EncodedBlock {
    pub first: u64,
    pub part: u16,
    pub value: Vec<u8>,
}

impl EncodedBlock {
    pub(in super::super) fn key(&self) -> Vec<u8> {
        key_of(self.first, self.part)
    }
}

/// Cuts a run of entries into blocks.
pub(in super::super) struct BlockBuilder {
    committed: Option<LogId>,
    blocks: Vec<EncodedBlock>,
    first: u64,
    count: u16,
    base_revision: Option<u64>,
    body: Vec<u8>,
    scratch: Vec<u8>,
}

impl BlockBuilder {
    pub(in super::super) fn new(committed: Option<LogId>) -> Self {
        Self {
            committed,
            blocks: Vec::new(),
            first: 0,
            count: 0,
            base_revision: None,
            body: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Adds the entry that follows the last one.
    pub(in super::super) fn push(&mut self, entry: &LogEntry) -> Result<(), StorageError> {
        let index = entry.log_id.index;
        self.scratch.clear();
        let base_revision = encode_entry(entry, &mut self.scratch);
        let bytes = self.scratch.len();
        if bytes > MAX_ENTRY_BYTES + ENTRY_HEADER_BYTES {
            return Err(StorageError::EntryTooLarge { index, bytes, limit: MAX_ENTRY_BYTES });
        }
        if self.body.len() + 4 + bytes > MAX_BODY_BYTES || self.count == u16::MAX {
            self.close();
        }
        if 4 + bytes > MAX_BODY_BYTES {
            self.push_parts(index, base_revision);
            return Ok(());
        }
        if self.count == 0 {
            self.first = index;
        }
        self.count += 1;
        self.base_revision = self.base_revision.or(base_revision);
        self.body.put_u32_le(bytes as u32);
        self.body.extend_from_slice(&self.scratch);
        Ok(())
    }

    /// The blocks, in the order of their keys.
    pub(in super::super) fn finish(mut self) -> Vec<EncodedBlock> {
        self.close();
        self.blocks
    }

    fn close(&mut self) {
        if self.count == 0 {
            return;
        }
        let header = Header {
            kind: Kind::Whole,
            count: self.count,
            first: self.first,
            part: 0,
            committed: self.committed,
            base_revision: self.base_revision,
        };
        self.blocks.push(encode_block(&header, &self.body));
        self.body.clear();
        self.count = 0;
        self.base_revision = None;
    }

    fn push_parts(&mut self, index: u64, base_revision: Option<u64>) {
        let pieces = self.scratch.chunks(MAX_BODY_BYTES);
        let count = pieces.len() as u16;
        for (part, piece) in (0..).zip(pieces) {
            let committed = self.committed;
            let header = Header { kind: Kind::Part, count, first: index, part, committed, base_revision };
            self.blocks.push(encode_block(&header, piece));
        }
    }
}

/// Writes an entry behind what is in `out`, and returns its base revision if it has one.
fn encode_entry(entry: &LogEntry, out: &mut Vec<u8>) -> Option<u64> {
    out.put_u64_le(entry.log_id.leader_id.term);
    match &entry.payload {
        EntryPayload::Blank => {
            out.put_u8(0);
            None
        }
        EntryPayload::Normal(data) => {
            out.put_u8(1);
            out.extend_from_slice(data.bytes());
            CoreEntry::peek(data.bytes()).map(|head| head.base_revision)
        }
        EntryPayload::Membership(membership) => {
            out.put_u8(2);
            bincode::serde::encode_into_std_write(membership, out, bincode::config::standard())
                .expect("a membership is plain data, and writing to a Vec does not fail");
            None
        }
    }
}

fn encode_block(header: &Header, body: &[u8]) -> EncodedBlock {
    let mut value = Vec::with_capacity(HEADER_BYTES + body.len());
    value.extend_from_slice(&MAGIC);
    value.put_u8(FORMAT_VERSION);
    value.put_u8(match header.kind {
        Kind::Whole => 0,
        Kind::Part => 1,
    });
    value.put_u16_le(header.count);
    value.put_u32_le(0);
    value.put_u64_le(header.first);
    value.put_u16_le(header.part);
    let committed_flag = if header.committed.is_some() { HAS_COMMITTED } else { 0 };
    let revision_flag = if header.base_revision.is_some() { HAS_BASE_REVISION } else { 0 };
    value.put_u8(committed_flag | revision_flag);
    value.put_u8(0);
    value.put_u64_le(header.committed.map_or(0, |id| id.leader_id.term));
    value.put_u64_le(header.committed.map_or(0, |id| id.index));
    value.put_u64_le(header.base_revision.unwrap_or(0));
    value.extend_from_slice(body);
    let crc = checksum(&value);
    value[CRC].copy_from_slice(&crc.to_le_bytes());
    EncodedBlock { first: header.first, part: header.part, value }
}
