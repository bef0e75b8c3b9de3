//! `DATA/log/meta/`: the few records that are not entries.
//!
//! | key | value |
//! | --- | --- |
//! | `format` | the format version of the whole log folder |
//! | `vote` | the last vote |
//! | `purged` | the last purged log id |
//! | `history` | [`HistoryStart`]: where the history begins, once that is no longer where the log began |
//! | `tail` | [`TailRecord`]: what the log must at least hold |
//!
//! Every value is `"SKLM"`, a format version, the CRC-32 of key and payload, and the payload in bincode.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::options::Hooks;
use super::sled_folder::SledFolder;
use super::stats::Counters;
use crate::raft::types::{LogId, Vote};
use crate::storage::StorageError;

const MAGIC: [u8; 4] = *b"SKLM";
const RECORD_VERSION: u8 = 1;
/// The format version of the log folder: which databases there are, and what the keys mean.
const FOLDER_VERSION: u64 = 1;
const FORMAT: &str = "format";
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const HISTORY: &str = "history";
const TAIL: &str = "tail";

/// Where the history on this disk begins: entries before it are gone, or were never here. Raft's own log begins there or
/// behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryStart {
    /// The index of the first entry.
    pub index: u64,
    /// Revision and history digest of the state before that entry. None: a snapshot took the place of what was before
    /// it, and says them; peers may have what is missing.
    pub before: Option<(u64, [u8; 32])>,
}

impl HistoryStart {
    /// The one of a log whose oldest entry is this: nothing was before it, or a snapshot took its place.
    pub(super) fn of_log(index: u64) -> Self {
        Self { index, before: (index == 0).then_some((0, [0; 32])) }
    }
}

/// What is known of the log's end.
///
/// sled takes the first unreadable message of its file for a torn end, and quietly forgets what stands behind it.
/// In all but the newest database that is found as a hole before the next one. For the newest, this record names
/// an index that was durable: if the log ends before it, entries that were acknowledged are lost, and the node must
/// not vote as if it had never had them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TailRecord {
    /// An index that was durable, and is not truncated.
    pub durable: Option<u64>,
    /// The last log id that was known to be committed.
    pub committed: Option<LogId>,
}

/// The open meta database with its records.
pub(super) struct Meta {
    folder: SledFolder,
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    /// None: it begins where the log began.
    pub history: Option<HistoryStart>,
    pub tail: TailRecord,
}

impl Meta {
    /// Opens it, or creates it if `log_is_empty`.
    pub(super) fn open(
        dir: &Path,
        log_is_empty: bool,
        hooks: Hooks,
        counters: Arc<Counters>,
    ) -> Result<Self, StorageError> {
        let folder = SledFolder::open(dir, hooks, counters)?;
        match read::<u64>(&folder, FORMAT)? {
            Some(FOLDER_VERSION) => {}
            Some(found) => {
                let path = dir.to_owned();
                return Err(StorageError::NewerFormat { path, found, supported: FOLDER_VERSION });
            }
            None if log_is_empty && folder.db().is_empty() => {
                write(&folder, FORMAT, &FOLDER_VERSION)?;
                folder.sync()?;
            }
            None => return Err(folder.corrupt(FORMAT, "the record is missing, and the log is not new")),
        }
        let (vote, purged) = (read(&folder, VOTE)?, read(&folder, PURGED)?);
        let (history, tail) = (read(&folder, HISTORY)?, read(&folder, TAIL)?.unwrap_or_default());
        Ok(Self { folder, vote, purged, history, tail })
    }

    /// Records a vote, and on the way what is known of the log's end; durable when it returns.
    pub(super) fn save_vote(&mut self, vote: Vote, tail: TailRecord) -> Result<(), StorageError> {
        write(&self.folder, VOTE, &vote)?;
        self.vote = Some(vote);
        self.save_tail(tail)
    }

    /// Records what Raft no longer needs, and where the history begins; durable when it returns.
    pub(super) fn save_purged(
        &mut self,
        purged: LogId,
        history: HistoryStart,
        tail: TailRecord,
    ) -> Result<(), StorageError> {
        write(&self.folder, PURGED, &purged)?;
        self.purged = Some(purged);
        self.save_history(history, tail)
    }

    /// Records where the history begins; durable when it returns.
    pub(super) fn save_history(&mut self, start: HistoryStart, tail: TailRecord) -> Result<(), StorageError> {
        write(&self.folder, HISTORY, &start)?;
        self.history = Some(start);
        self.save_tail(tail)
    }

    /// Records what is known of the log's end; durable when it returns.
    pub(super) fn save_tail(&mut self, tail: TailRecord) -> Result<(), StorageError> {
        if tail != self.tail {
            write(&self.folder, TAIL, &tail)?;
            self.tail = tail;
        }
        self.folder.sync()
    }

    pub(super) fn corrupt(&self, key: &str, what: impl Into<String>) -> StorageError {
        self.folder.corrupt(key, what)
    }
}

fn checksum(key: &str, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key.as_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn write<T: Serialize>(folder: &SledFolder, key: &str, record: &T) -> Result<(), StorageError> {
    let payload = bincode::serde::encode_to_vec(record, bincode::config::standard())
        .expect("records are plain data, which bincode can always encode");
    let mut value = MAGIC.to_vec();
    value.push(RECORD_VERSION);
    value.extend_from_slice(&checksum(key, &payload).to_le_bytes());
    value.extend_from_slice(&payload);
    folder.insert(key.as_bytes(), &value)
}

fn read<T: DeserializeOwned>(folder: &SledFolder, key: &str) -> Result<Option<T>, StorageError> {
    let Some(value) = folder.db().get(key).map_err(|e| folder.failed("read", e))? else {
        return Ok(None);
    };
    let corrupt = |what: &str| folder.corrupt(key, what);
    let rest = value.strip_prefix(&MAGIC[..]).ok_or_else(|| corrupt("it lacks the magic bytes"))?;
    let (&version, rest) = rest.split_first().ok_or_else(|| corrupt("it is cut off"))?;
    if version > RECORD_VERSION {
        return Err(StorageError::NewerFormat {
            path: folder.dir().to_owned(),
            found: version.into(),
            supported: RECORD_VERSION.into(),
        });
    }
    let (crc, payload) = rest.split_first_chunk().ok_or_else(|| corrupt("it is cut off"))?;
    if u32::from_le_bytes(*crc) != checksum(key, payload) {
        return Err(corrupt("its checksum is wrong"));
    }
    let config = bincode::config::standard().with_limit::<65536>();
    match bincode::serde::decode_from_slice(payload, config) {
        Ok((record, used)) if used == payload.len() => Ok(Some(record)),
        Ok(_) => Err(corrupt("bytes are left behind it")),
        Err(error) => Err(corrupt(&format!("it can't be decoded: {error}"))),
    }
}
