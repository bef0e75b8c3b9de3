//! One of the databases that the log is made of: the blocks from its first index up to the next database's.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sled::IVec;

use super::block::{self, Block, BlockError, EncodedBlock, Header, Kind};
use super::options::{Hooks, Step};
use super::sled_folder::SledFolder;
use super::stats::Counters;
use crate::raft::types::{LogEntry, LogId};
use crate::storage::StorageError;
use crate::storage::files::failed;

/// The end of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// The id of its last entry.
    pub last: LogId,
    /// What was known to be committed when its last block was written.
    pub committed: Option<LogId>,
}

/// What a reader wants: entries from `next` on, before `end`, until `left` is used up.
pub(super) struct Want {
    pub next: u64,
    pub end: u64,
    /// Bytes, by [`block::weight`]. The entry that exceeds it is the last one.
    pub left: usize,
    /// Of the entry before `next`, if that was read.
    pub term: u64,
}

impl Want {
    pub(super) fn new(range: Range<u64>, max_bytes: usize) -> Self {
        Self { next: range.start, end: range.end, left: max_bytes.max(1), term: 0 }
    }

    pub(super) fn is_satisfied(&self) -> bool {
        self.next >= self.end || self.left == 0
    }

    /// Takes what comes next. Terms never fall along a log: where they do, a truncation was forgotten.
    pub(super) fn take(&mut self, entry: LogEntry, out: &mut Vec<LogEntry>) -> Result<(), BlockError> {
        let (index, term) = (entry.log_id.index, entry.log_id.leader_id.term);
        if term < self.term {
            let before = self.term;
            return Err(BlockError::Corrupt(format!(
                "entry {index} is of term {term}, and the one before it of {before}"
            )));
        }
        (self.next, self.term) = (index + 1, term);
        self.left = self.left.saturating_sub(block::weight(&entry));
        out.push(entry);
        Ok(())
    }
}

/// An open database of log blocks.
pub(super) struct Database {
    folder: SledFolder,
    first: u64,
    hooks: Hooks,
}

impl Database {
    /// Opens the database in `dir`, or creates it. Its entries begin with `first`.
    pub(super) fn open(
        dir: &Path,
        first: u64,
        hooks: Hooks,
        counters: Arc<Counters>,
    ) -> Result<Self, StorageError> {
        let folder = SledFolder::open(dir, hooks.clone(), counters)?;
        Ok(Self { folder, first, hooks })
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn insert(&self, block: &EncodedBlock) -> Result<(), StorageError> {
        self.folder.insert(&block.key(), &block.value)
    }

    /// Makes what was inserted and removed durable.
    pub(super) fn sync(&self) -> Result<(), StorageError> {
        self.folder.sync()
    }

    pub(super) fn file_bytes(&self) -> Result<u64, StorageError> {
        self.folder.file_bytes()
    }

    /// An error about this database.
    pub(super) fn corrupt(&self, key: impl Into<String>, what: impl Into<String>) -> StorageError {
        self.folder.corrupt(key, what)
    }

    /// Where it ends; `None` if it is empty. Also checks that it begins where its name says.
    pub(super) fn end(&self) -> Result<Option<End>, StorageError> {
        let Some((key, value)) = self.last_block()? else { return Ok(None) };
        let first = self.folder.with_db(|db| db.first().map_err(|e| self.folder.failed("read", e)))?;
        if let Some((key, _)) = first
            && key != block::head_key(self.first)
        {
            let found = block::display_key(&key);
            return Err(self.corrupt(found, format!("it begins here, and its name says {}", self.first)));
        }
        let last = self.decode(&key, &value)?;
        let header = &last.header;
        let id = match header.kind {
            Kind::Whole => {
                let entries = last.entries().map_err(|e| self.unreadable(&key, e))?;
                entries.last().map(|entry| entry.log_id)
            }
            Kind::Part if header.part + 1 == header.count => {
                let mut out = Vec::new();
                let next = header.first;
                self.read(&mut Want::new(next..next + 1, usize::MAX), &mut out)?;
                out.last().map(|entry| entry.log_id)
            }
            Kind::Part => None,
        };
        match id {
            Some(last) => Ok(Some(End { last, committed: header.committed })),
            None => Err(self.corrupt(block::display_key(&key), "the parts behind it are missing")),
        }
    }

    /// The index of a last entry that is not complete.
    pub(super) fn unfinished_entry(&self) -> Result<Option<u64>, StorageError> {
        let Some((key, value)) = self.last_block()? else { return Ok(None) };
        let header = self.decode_header(&key, &value)?;
        let whole = header.kind == Kind::Whole || header.part + 1 == header.count;
        Ok((!whole).then_some(header.first))
    }

    /// Removes the parts of a last entry whose write was cut off by a crash: nobody was told that it is stored.
    pub(super) fn remove_unfinished(&self, index: u64) -> Result<(), StorageError> {
        self.remove_from(index)?;
        self.sync()
    }

    /// Reads what is wanted as far as it is here.
    pub(super) fn read(&self, want: &mut Want, out: &mut Vec<LogEntry>) -> Result<(), StorageError> {
        self.folder.with_db(|db| self.read_from(db, want, out))
    }

    fn read_from(&self, db: &sled::Db, want: &mut Want, out: &mut Vec<LogEntry>) -> Result<(), StorageError> {
        let start = self
            .key_at_or_before(db, want.next)?
            .unwrap_or_else(|| block::head_key(want.next).as_slice().into());
        let mut parts: Option<Parts> = None;
        let mut expected = None;
        for item in db.range(start..) {
            let (key, value) = item.map_err(|e| self.folder.failed("read", e))?;
            if want.is_satisfied() {
                return Ok(());
            }
            let block = self.decode(&key, &value)?;
            let header = &block.header;
            if header.first >= want.end {
                break;
            }
            if block.last() < want.next {
                expected = Some(block.last() + 1);
                continue;
            }
            match (header.kind, &mut parts) {
                (Kind::Whole, None) => self.check_follows(&key, expected, header)?,
                (Kind::Part, None) if header.part == 0 => {
                    self.check_follows(&key, expected, header)?;
                    parts = Some(Parts { count: header.count, next: 0, bytes: BytesMut::new() });
                }
                (Kind::Part, Some(parts)) if header.part == parts.next && header.count == parts.count => {}
                _ => return Err(self.corrupt(block::display_key(&key), "the parts before it are missing")),
            }
            expected = Some(block.last() + 1);
            if let Some(mut collected) = parts.take() {
                parts = collected.add(block.body());
                if parts.is_none() {
                    let entry = block::decode_entry(header.first, collected.bytes.freeze());
                    let taken = entry.and_then(|entry| want.take(entry, out));
                    taken.map_err(|e| self.unreadable(&key, e))?;
                }
                continue;
            }
            for entry in block.entries().map_err(|e| self.unreadable(&key, e))? {
                if entry.log_id.index >= want.next && !want.is_satisfied() {
                    want.take(entry, out).map_err(|e| self.unreadable(&key, e))?;
                }
            }
        }
        match parts {
            None => Ok(()),
            Some(_) => Err(self.corrupt(want.next.to_string(), "its last parts are missing")),
        }
    }

    /// Removes the entries from `from` on, from the last one backward: wherever this is cut off, no hole is left.
    /// Durable when it returns. `from` must be behind the first entry.
    pub(super) fn truncate(&self, from: u64) -> Result<(), StorageError> {
        self.remove_from(from)?;
        self.hooks.at_step(Step::TruncatedBlocks).map_err(failed("truncate", self.folder.dir()))?;
        if let Some((key, value)) = self.last_block()? {
            let boundary = self.decode(&key, &value)?;
            if boundary.header.kind == Kind::Whole && boundary.last() >= from {
                self.insert(&boundary.cut(from).map_err(|e| self.unreadable(&key, e))?)?;
            }
        }
        self.sync()
    }

    /// Shows each block, in the order of the keys.
    pub(super) fn for_each_block(&self, mut show: impl FnMut(&[u8], &[u8])) -> Result<(), StorageError> {
        self.folder.with_db(|db| {
            for item in db.iter() {
                let (key, value) = item.map_err(|e| self.folder.failed("read", e))?;
                show(&key, &value);
            }
            Ok(())
        })
    }

    fn last_block(&self) -> Result<Option<(IVec, IVec)>, StorageError> {
        self.folder.with_db(|db| db.last().map_err(|e| self.folder.failed("read", e)))
    }

    fn remove_from(&self, from: u64) -> Result<(), StorageError> {
        self.folder.with_db(|db| {
            let keys = db.range(block::head_key(from)..).keys().collect::<Result<Vec<_>, _>>();
            for key in keys.map_err(|e| self.folder.failed("read", e))?.iter().rev() {
                self.folder.remove(key)?;
            }
            Ok(())
        })
    }

    /// The key of the block that `index` is in if it is here.
    fn key_at_or_before(&self, db: &sled::Db, index: u64) -> Result<Option<IVec>, StorageError> {
        let mut before = db.range(..=block::head_key(index)).keys();
        before.next_back().transpose().map_err(|e| self.folder.failed("read", e))
    }

    fn check_follows(&self, key: &[u8], expected: Option<u64>, header: &Header) -> Result<(), StorageError> {
        match expected {
            Some(expected) if expected != header.first => {
                Err(self.corrupt(block::display_key(key), format!("a hole: {expected} comes next")))
            }
            _ => Ok(()),
        }
    }

    fn decode(&self, key: &[u8], value: &[u8]) -> Result<Block, StorageError> {
        Block::decode(key, value).map_err(|e| self.unreadable(key, e))
    }

    fn decode_header(&self, key: &[u8], value: &[u8]) -> Result<Header, StorageError> {
        block::decode_header(key, value).map_err(|e| self.unreadable(key, e))
    }

    /// The error for a block that can't be read.
    pub(super) fn unreadable(&self, key: &[u8], error: BlockError) -> StorageError {
        match error {
            BlockError::Corrupt(what) => self.corrupt(block::display_key(key), what),
            BlockError::Newer(found) => StorageError::NewerFormat {
                path: self.folder.dir().to_owned(),
                found: found.into(),
                supported: block::FORMAT_VERSION.into(),
            },
        }
    }
}

/// An entry that is being put together.
struct Parts {
    count: u16,
    next: u16,
    bytes: BytesMut,
}

impl Parts {
    /// Takes the next part; gives itself back while more are to come.
    fn add(&mut self, piece: &Bytes) -> Option<Self> {
        self.bytes.extend_from_slice(piece);
        self.next += 1;
        let more = self.next < self.count;
        more.then(|| Self { count: self.count, next: self.next, bytes: std::mem::take(&mut self.bytes) })
    }
}
