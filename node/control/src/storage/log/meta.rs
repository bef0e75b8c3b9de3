//! `DATA/log/meta/`: the few records that are not entries.
//!
//! | key | value |
//! | --- | --- |
//! | `format` | the format version of the whole log folder |
//! | `vote` | the last vote |
//! | `purged` | the last purged log id |
//! | `history` | [`HistoryStart`]: where the history begins, once that is no longer where the log began |
//!
//! A folder of version 1 has `tail` too: an index that was durable, and the last log id that was known to be committed.
//! Since version 2 the file `end` says that (see [`end`](super::end)).
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
/// The format version of the log folder: which databases and files there are, and what the keys mean. 2: `end` must be
/// there. Version 1 is read and made version 2; a program that knows only that would truncate and not say so in `end`.
const FOLDER_VERSION: u64 = 2;
const WITHOUT_END: u64 = 1;
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

/// What a folder of version 1 knows of the log's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OldTail {
    /// An index that was durable, and is not truncated.
    pub durable: Option<u64>,
    /// The last log id that was known to be committed.
    pub committed: Option<LogId>,
}

/// What kind of folder it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    /// There was nothing.
    New,
    /// Of version 1.
    Old(OldTail),
    /// Of this version.
    Current,
}

/// The open meta database with its records.
pub(super) struct Meta {
    folder: SledFolder,
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    /// None: it begins where the log began.
    pub history: Option<HistoryStart>,
    /// What it was when it was opened.
    pub age: Age,
}

impl Meta {
    /// Opens it; if the log is empty it may be new. Then, and if it is of an older version, it is as before until
    /// [`Meta::make_current`].
    pub(super) fn open(
        dir: &Path,
        log_is_empty: bool,
        hooks: Hooks,
        counters: Arc<Counters>,
    ) -> Result<Self, StorageError> {
        let folder = SledFolder::open(dir, hooks, counters)?;
        let age = match read::<u64>(&folder, FORMAT)? {
            Some(FOLDER_VERSION) => Age::Current,
            Some(WITHOUT_END) => Age::Old(read(&folder, TAIL)?.unwrap_or_default()),
            Some(found) => {
                let path = dir.to_owned();
                return Err(StorageError::NewerFormat { path, found, supported: FOLDER_VERSION });
            }
            None if log_is_empty && folder.is_empty()? => Age::New,
            None => return Err(folder.corrupt(FORMAT, "the record is missing, and the log is not new")),
        };
        let (vote, purged) = (read(&folder, VOTE)?, read(&folder, PURGED)?);
        let history = read(&folder, HISTORY)?;
        Ok(Self { folder, vote, purged, history, age })
    }

    /// Makes it a folder of this version, durably; `end` must be there by then.
    pub(super) fn make_current(&mut self) -> Result<(), StorageError> {
        if self.age != Age::Current {
            write(&self.folder, FORMAT, &FOLDER_VERSION)?;
            self.folder.remove(TAIL.as_bytes())?;
            self.folder.sync()?;
            self.age = Age::Current;
        }
        Ok(())
    }

    /// Records a vote; durable when it returns.
    pub(super) fn save_vote(&mut self, vote: Vote) -> Result<(), StorageError> {
        write(&self.folder, VOTE, &vote)?;
        self.vote = Some(vote);
        self.folder.sync()
    }

    /// Records what Raft no longer needs, and where the history begins; durable when it returns.
    pub(super) fn save_purged(&mut self, purged: LogId, history: HistoryStart) -> Result<(), StorageError> {
        write(&self.folder, PURGED, &purged)?;
        self.purged = Some(purged);
        self.save_history(history)
    }

    /// Records where the history begins; durable when it returns.
    pub(super) fn save_history(&mut self, start: HistoryStart) -> Result<(), StorageError> {
        write(&self.folder, HISTORY, &start)?;
        self.history = Some(start);
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
    folder.insert(key.as_bytes(), &encode(key, record))
}

fn encode<T: Serialize>(key: &str, record: &T) -> Vec<u8> {
    let payload = bincode::serde::encode_to_vec(record, bincode::config::standard())
        .expect("records are plain data, which bincode can always encode");
    let mut value = MAGIC.to_vec();
    value.push(RECORD_VERSION);
    value.extend_from_slice(&checksum(key, &payload).to_le_bytes());
    value.extend_from_slice(&payload);
    value
}

/// Why bytes are not a record.
#[derive(Debug, PartialEq, Eq)]
enum RecordError {
    /// A later version of this program wrote it.
    Newer(u8),
    /// It is not what was written.
    Corrupt(String),
}

impl From<&str> for RecordError {
    fn from(what: &str) -> Self {
        Self::Corrupt(what.to_owned())
    }
}

fn read<T: DeserializeOwned>(folder: &SledFolder, key: &str) -> Result<Option<T>, StorageError> {
    let Some(value) = folder.get(key.as_bytes())? else { return Ok(None) };
    decode(key, &value).map(Some).map_err(|error| match error {
        RecordError::Corrupt(what) => folder.corrupt(key, what),
        RecordError::Newer(found) => StorageError::NewerFormat {
            path: folder.dir().to_owned(),
            found: found.into(),
            supported: RECORD_VERSION.into(),
        },
    })
}

fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, RecordError> {
    let rest = value.strip_prefix(&MAGIC[..]).ok_or("it lacks the magic bytes")?;
    let (&version, rest) = rest.split_first().ok_or("it is cut off")?;
    if version > RECORD_VERSION {
        return Err(RecordError::Newer(version));
    }
    let (crc, payload) = rest.split_first_chunk().ok_or("it is cut off")?;
    if u32::from_le_bytes(*crc) != checksum(key, payload) {
        return Err("its checksum is wrong".into());
    }
    let config = bincode::config::standard().with_limit::<65536>();
    match bincode::serde::decode_from_slice(payload, config) {
        Ok((record, used)) if used == payload.len() => Ok(record),
        Ok(_) => Err("bytes are left behind it".into()),
        Err(error) => Err(RecordError::Corrupt(format!("it can't be decoded: {error}"))),
    }
}

#[cfg(test)]
pub(super) mod fuzz_record {
    //! For `fuzz_meta_record`: a sample has the number of its key in front.

    use super::*;

    const KEYS: [&str; 5] = [FORMAT, VOTE, PURGED, HISTORY, TAIL];

    pub(in super::super) fn samples() -> Vec<Vec<u8>> {
        let id = super::super::block::log_id(3, 70_000);
        let history = HistoryStart { index: 9, before: Some((4, [7; 32])) };
        let records = [
            encode(FORMAT, &FOLDER_VERSION),
            encode(VOTE, &Vote::new_committed(5, u64::MAX)),
            encode(PURGED, &id),
            encode(HISTORY, &history),
            encode(TAIL, &OldTail { durable: Some(7), committed: Some(id) }),
        ];
        (0..).zip(records).map(|(key, record)| [&[key], &record[..]].concat()).collect()
    }

    pub(in super::super) fn fix_checksum(bytes: &mut [u8]) {
        if let Some((key, record)) = bytes.split_first_mut()
            && record.len() > 9
        {
            let crc = checksum(KEYS[usize::from(*key) % KEYS.len()], &record[9..]);
            record[5..9].copy_from_slice(&crc.to_le_bytes());
        }
    }

    fn whole<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
        key: &str,
        record: &[u8],
    ) -> bool {
        let Ok(value) = decode::<T>(key, record) else { return false };
        assert_eq!(decode::<T>(key, &encode(key, &value)).as_ref(), Ok(&value));
        true
    }

    pub(in super::super) fn decode_all(bytes: &[u8]) -> bool {
        let Some((key, record)) = bytes.split_first() else { return false };
        let key = KEYS[usize::from(*key) % KEYS.len()];
        match key {
            FORMAT => whole::<u64>(key, record),
            VOTE => whole::<Vote>(key, record),
            PURGED => whole::<LogId>(key, record),
            HISTORY => whole::<HistoryStart>(key, record),
            _ => whole::<OldTail>(key, record),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of each record, written by hand as docs/formats.md says.
    fn golden(key: &str, payload: &[u8]) -> Vec<u8> {
        let crc = crc32fast::hash(&[key.as_bytes(), payload].concat());
        [b"SKLM\x01", &crc.to_le_bytes()[..], payload].concat()
    }

    fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
        key: &str,
        value: &T,
        payload: &[u8],
    ) {
        let golden = golden(key, payload);
        assert_eq!(decode::<T>(key, &golden).as_ref(), Ok(value), "{key}");
        assert_eq!(encode(key, value), golden, "{key}");
        let newer = [&golden[..4], &[2], &golden[5..]].concat();
        assert_eq!(decode::<T>(key, &newer), Err(RecordError::Newer(2)), "{key}");
    }

    #[test]
    fn records_of_format_version_1_can_be_read() {
        let id = super::super::block::log_id(3, 70_000);
        let id_bytes = [3, 252, 0x70, 0x11, 0x01, 0x00];
        check(FORMAT, &2_u64, &[2]);
        check(VOTE, &Vote::new_committed(5, u64::MAX), &[&[5, 1, 253][..], &[0xff; 8], &[1]].concat());
        check(PURGED, &id, &id_bytes);
        let start = HistoryStart { index: 9, before: Some((4, [7; 32])) };
        check(HISTORY, &start, &[&[9, 1, 4][..], &[7; 32]].concat());
        let tail = OldTail { durable: Some(7), committed: Some(id) };
        check(TAIL, &tail, &[&[1, 7, 1][..], &id_bytes].concat());
    }
}
