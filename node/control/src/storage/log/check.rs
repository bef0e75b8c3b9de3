//! Reading all of a log to find whatever is wrong with it: one database after the other, on after each fault. Opening a
//! database writes to it, so everything in here is given copies.

use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;

use super::block::{self, Block, BlockError, Kind};
use super::database::Database;
use super::end::{self, EndRecord};
use super::meta::{Age, Meta};
use super::open::Promised;
use super::options::Hooks;
use super::places::Places;
use super::{HistoryStart, databases};
use crate::raft::types::{LogEntry, LogId};
use crate::storage::StorageError;

/// The name of the folder of the records that are not entries.
pub(crate) const META: &str = databases::META;
/// The name of the file that says what was durable.
pub(crate) const END: &str = end::NAME;

/// The index that the database in a folder of this name begins with; `None`: it is none.
pub(crate) fn first_of(name: &str) -> Option<u64> {
    databases::first_of(name)
}

/// What is on record about a log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Recorded {
    /// Index and, if that is recorded, term of an entry that was durable.
    pub(crate) durable: Option<(u64, Option<u64>)>,
    /// The last log id that was known to be committed.
    pub(crate) committed: Option<LogId>,
    /// Where the history begins, if not where the log began.
    pub(crate) history: Option<HistoryStart>,
    /// What Raft does not need any more.
    pub(crate) purged: Option<LogId>,
}

/// Reads `meta/` and `end` of the log folder `root`, of which nothing else need be there.
pub(crate) fn records(root: &Path, log_is_empty: bool, fault: &mut dyn FnMut(StorageError)) -> Recorded {
    let mut found = |read: Result<Option<EndRecord>, StorageError>| {
        read.unwrap_or_else(|error| {
            fault(error);
            None
        })
    };
    let record = found(end::read(root).map(|found| found.map(|found| found.record)));
    if let Ok(Some(end::Found { damaged: Some((offset, what)), .. })) = end::read(root) {
        fault(StorageError::CorruptFile { path: root.join(END), offset, what });
    }
    let meta = match Meta::open(&root.join(META), log_is_empty, Hooks::default(), Arc::default()) {
        Ok(meta) => meta,
        Err(error) => {
            fault(error);
            let EndRecord { durable, committed, .. } = record.unwrap_or_default();
            let durable = durable.map(|id| (id.index, Some(id.leader_id.term)));
            return Recorded { durable, committed, ..Recorded::default() };
        }
    };
    if meta.age == Age::Current && record.is_none() && !root.join(END).exists() {
        fault(end::missing(root));
    }
    let promised = Promised::new(&meta, record.unwrap_or_default());
    if let Err(error) = promised.check_vote(&meta) {
        fault(error);
    }
    let Promised { durable, committed, .. } = promised;
    Recorded { durable, committed, history: meta.history, purged: meta.purged }
}

/// Shows every entry of the database in `dir`, and everything that can't be read. Returns the index of a last entry whose
/// last parts are not there: a crash may have cut its write off.
pub(crate) fn read_database(
    dir: &Path,
    first: u64,
    each: &mut dyn FnMut(Result<LogEntry, StorageError>),
) -> Option<u64> {
    let database = match Database::open(dir, first, Hooks::default(), Arc::default()) {
        Ok(database) => database,
        Err(error) => {
            each(Err(error));
            return None;
        }
    };
    let mut parts = None;
    let read = database.for_each_block(|key, value| {
        if let Err(error) = show_block(key, value, &mut parts, each) {
            each(Err(database.unreadable(key, error)));
        }
    });
    if let Err(error) = read {
        each(Err(error));
    }
    parts.map(|parts: Parts| parts.index)
}

/// An entry of which some parts have been seen.
struct Parts {
    index: u64,
    count: u16,
    next: u16,
    bytes: BytesMut,
}

fn show_block(
    key: &[u8],
    value: &[u8],
    parts: &mut Option<Parts>,
    each: &mut dyn FnMut(Result<LogEntry, StorageError>),
) -> Result<(), BlockError> {
    let before = parts.take();
    let block = Block::decode(key, value)?;
    let header = &block.header;
    let follows = before.as_ref().map_or((header.part == 0).then_some(header.first), |parts| {
        (parts.next == header.part && parts.count == header.count).then_some(parts.index)
    });
    if follows != Some(header.first) {
        return Err(BlockError::Corrupt("the parts before it are missing".to_owned()));
    }
    if header.kind == Kind::Whole {
        for entry in block.entries()? {
            each(Ok(entry));
        }
        return Ok(());
    }
    let mut bytes = before.map_or_else(BytesMut::new, |parts| parts.bytes);
    bytes.extend_from_slice(block.body());
    if header.part + 1 == header.count {
        each(Ok(block::decode_entry(header.first, bytes.freeze())?));
    } else {
        *parts = Some(Parts { index: header.first, count: header.count, next: header.part + 1, bytes });
    }
    Ok(())
}

/// What is wrong with the places of the database in `dir`, if it has any.
pub(crate) fn places(dir: &Path) -> Option<Result<u64, String>> {
    super::places::exist(dir).then(|| Places::check(dir))
}
