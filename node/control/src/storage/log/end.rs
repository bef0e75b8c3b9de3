//! `DATA/log/end`: what the databases must at least hold.
//!
//! sled takes the first unreadable message of its file for a torn end, and quietly forgets what stands behind it. In a
//! sealed database that is found as a hole before the next one. For the newest one, and for the vote, this file says what
//! was durable: if less is found, something that was acknowledged is lost, and the node must not go on as if it had never
//! had it.
//!
//! It is rewritten after each group of appends, without an fsync of its own. So after a crash of the process it is exact,
//! and after a power cut a lower bound: each of its records was true when it was written, and what would make one untrue (a
//! truncation) first takes it back, durably. There are two slots, each a sector with everything in it, written in turns: a
//! torn write of one leaves the other. The valid one with the higher number counts.
//!
//! ```text
//!   0  4  "SKLE"
//!   4  1  format version: 1
//!   5  1  flags: 1 the last entry is present, 2 committed is present, 4 the vote is present, 8 it is committed
//!   6  2  0
//!   8  8  number of the record: one more than that of the record before
//!  16 16  term and index of the last entry that is durable
//!  32 16  term and index of the last log id that was known to be committed
//!  48 16  the vote: term and node id
//!  64  …  0
//! 508  4  CRC-32 of all before
//! ```
//!
//! Numbers are little-endian. The second slot begins at byte 512.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::block::log_id;
use super::options::Hooks;
use crate::raft::types::{LogId, Vote};
use crate::storage::StorageError;
use crate::storage::files::{failed, write_atomically};

/// The file's name.
pub(super) const NAME: &str = "end";
/// What [`write_atomically`] makes of it; a crash may leave it.
pub(super) const TEMPORARY: &str = "end.tmp";

const MAGIC: [u8; 4] = *b"SKLE";
const FORMAT_VERSION: u8 = 1;
/// What a disk writes wholly or not at all.
const SLOT_BYTES: usize = 512;
const SLOTS: u64 = 2;
const CRC_AT: usize = SLOT_BYTES - 4;
const HAS_DURABLE: u8 = 1;
const HAS_COMMITTED: u8 = 2;
const HAS_VOTE: u8 = 4;
const VOTE_IS_COMMITTED: u8 = 8;

/// What was durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct EndRecord {
    /// The last entry that was, and is not truncated.
    pub durable: Option<LogId>,
    /// The last log id that was known to be committed. It may be of an entry that is not on this disk.
    pub committed: Option<LogId>,
    /// The last vote.
    pub vote: Option<Vote>,
}

/// Why bytes are not a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SlotError {
    /// A later version of this program wrote it.
    Newer(u8),
    /// It is not what was written.
    Damaged(String),
}

/// What the file holds.
pub(super) struct Found {
    pub record: EndRecord,
    number: u64,
    /// What is wrong with one slot, where it begins. Its write was torn, or it is damaged; the other one holds what was true
    /// one write earlier, or is the newer one.
    pub damaged: Option<(u64, String)>,
}

/// The open file.
pub(super) struct EndFile {
    path: PathBuf,
    file: File,
    hooks: Hooks,
    record: EndRecord,
    number: u64,
}

impl EndFile {
    /// Opens the file of a log folder, with the record that it holds; `None` if it is not there.
    ///
    /// # Errors
    /// If neither slot holds a record, or a later version of this program wrote one.
    pub(super) fn open(root: &Path, hooks: Hooks) -> Result<Option<Self>, StorageError> {
        let path = root.join(NAME);
        let Some(found) = read(root)? else { return Ok(None) };
        if let Some((offset, what)) = &found.damaged {
            tracing::warn!(path = %path.display(), offset, what, "half of the record of the log's end is not readable");
        }
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))?;
        Ok(Some(Self { path, file, hooks, record: found.record, number: found.number }))
    }

    /// Makes the file anew, durably.
    pub(super) fn create(root: &Path, record: EndRecord, hooks: Hooks) -> Result<Self, StorageError> {
        let path = root.join(NAME);
        let slots = (1..=SLOTS).flat_map(|number| encode(&record, number));
        write_atomically(&path, &slots.collect::<Vec<_>>())?;
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))?;
        Ok(Self { path, file, hooks, record, number: SLOTS })
    }

    /// What it says now.
    pub(super) fn record(&self) -> EndRecord {
        self.record
    }

    /// Says something new that is durable. The record itself is not: it costs one write into the kernel's memory.
    pub(super) fn note(&mut self, record: EndRecord) -> Result<(), StorageError> {
        self.number += 1;
        self.record = record;
        let at = self.number % SLOTS * SLOT_BYTES as u64;
        self.file.write_all_at(&encode(&record, self.number), at).map_err(failed("write", &self.path))
    }

    /// Says something, durably, in both slots: what was said before can't come back, not even if one of them is lost.
    pub(super) fn save(&mut self, record: EndRecord) -> Result<(), StorageError> {
        for _ in 0..SLOTS {
            self.note(record)?;
        }
        self.hooks.sync_data(&self.file).map_err(failed("fdatasync", &self.path))
    }
}

/// Reads the record of a log folder; `None` if there is no file.
pub(super) fn read(root: &Path) -> Result<Option<Found>, StorageError> {
    let path = root.join(NAME);
    let mut bytes = Vec::new();
    let limit = SLOTS * SLOT_BYTES as u64;
    match File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", &path)(error)),
    }
    match decode_file(&bytes) {
        Ok(found) => Ok(Some(found)),
        Err(SlotError::Newer(found)) => {
            Err(StorageError::NewerFormat { path, found: found.into(), supported: FORMAT_VERSION.into() })
        }
        Err(SlotError::Damaged(what)) => Err(StorageError::CorruptFile { path, offset: 0, what }),
    }
}

/// The record of a file's bytes.
pub(super) fn decode_file(bytes: &[u8]) -> Result<Found, SlotError> {
    let mut best: Option<Found> = None;
    let mut damaged = None;
    for slot in 0..SLOTS {
        let at = slot * SLOT_BYTES as u64;
        let found =
            bytes.get(at as usize..).map_or(Err(SlotError::Damaged("it is cut off".to_owned())), decode);
        match found {
            Ok((record, number)) if best.as_ref().is_none_or(|best| best.number < number) => {
                best = Some(Found { record, number, damaged: None });
            }
            Ok(_) => {}
            Err(newer @ SlotError::Newer(_)) => return Err(newer),
            Err(SlotError::Damaged(what)) => damaged = Some((at, what)),
        }
    }
    match (best, damaged) {
        (Some(best), damaged) => Ok(Found { damaged, ..best }),
        (None, Some((_, what))) => Err(SlotError::Damaged(format!("neither slot holds a record: {what}"))),
        (None, None) => Err(SlotError::Damaged("it holds no record".to_owned())),
    }
}

fn encode(record: &EndRecord, number: u64) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    let mut flags = 0;
    slot[..4].copy_from_slice(&MAGIC);
    slot[4] = FORMAT_VERSION;
    let mut put = |at: usize, numbers: [u64; 2]| {
        for (place, number) in slot[at..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
    };
    put(8, [number, 0]);
    if let Some(id) = record.durable {
        flags |= HAS_DURABLE;
        put(16, [id.leader_id.term, id.index]);
    }
    if let Some(id) = record.committed {
        flags |= HAS_COMMITTED;
        put(32, [id.leader_id.term, id.index]);
    }
    if let Some(vote) = record.vote {
        flags |= HAS_VOTE | if vote.committed { VOTE_IS_COMMITTED } else { 0 };
        put(48, [vote.leader_id.term, vote.leader_id.voted_for]);
    }
    slot[5] = flags;
    let crc = crc32fast::hash(&slot[..CRC_AT]);
    slot[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    slot
}

/// A record and its number.
fn decode(bytes: &[u8]) -> Result<(EndRecord, u64), SlotError> {
    let damaged = |what: &str| SlotError::Damaged(what.to_owned());
    let slot = bytes.first_chunk::<SLOT_BYTES>().ok_or_else(|| damaged("it is cut off"))?;
    if slot[..4] != MAGIC {
        return Err(damaged("it does not begin with the magic bytes of a record"));
    }
    // The version comes before the checksum: a newer version may compute it differently.
    if slot[4] > FORMAT_VERSION {
        return Err(SlotError::Newer(slot[4]));
    }
    let recorded = slot.last_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let actual = crc32fast::hash(&slot[..CRC_AT]);
    if recorded != actual {
        return Err(SlotError::Damaged(format!(
            "its checksum is {actual:08x}, and {recorded:08x} is recorded"
        )));
    }
    let u64_at = |at: usize| slot[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let flags = slot[5];
    let id = |flag: u8, at: usize| (flags & flag != 0).then(|| log_id(u64_at(at), u64_at(at + 8)));
    let vote = (flags & HAS_VOTE != 0).then(|| {
        let committed = flags & VOTE_IS_COMMITTED != 0;
        let (term, node) = (u64_at(48), u64_at(56));
        if committed { Vote::new_committed(term, node) } else { Vote::new(term, node) }
    });
    let record = EndRecord { durable: id(HAS_DURABLE, 16), committed: id(HAS_COMMITTED, 32), vote };
    Ok((record, u64_at(8)))
}

/// Why a log that must have the file has none.
pub(super) fn missing(root: &Path) -> StorageError {
    let source = io::Error::new(ErrorKind::NotFound, "it is missing, and the log is not new");
    failed("read", &root.join(NAME))(source)
}

#[cfg(test)]
mod tests;
