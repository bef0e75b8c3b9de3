//! The folder of snapshots.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{SnapshotFile, SnapshotReceiver, SnapshotWriter};
use crate::raft::types::LogId;
use crate::storage::files::{create_folder, failed, sync_folder};
use crate::storage::{StorageError, describe};

/// How many snapshots are kept: the newest, and the one before it in case the newest can't be read.
const KEPT: usize = 2;
const PREFIX: &str = "snapshot-";
const SUFFIX: &str = ".sk";
const BUILDING: &str = "building-";
const RECEIVING: &str = "receiving-";

/// Which snapshot: the last log id that it includes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotId {
    /// The index of the last entry that it includes.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
}

impl From<LogId> for SnapshotId {
    fn from(id: LogId) -> Self {
        Self { index: id.index, term: id.leader_id.term }
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}-{}", self.index, self.term)
    }
}

impl SnapshotId {
    fn from_name(name: &str) -> Option<Self> {
        let (index, term) = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.split_once('-')?;
        Some(Self { index: index.parse().ok()?, term: term.parse().ok()? })
    }
}

/// The snapshots of this node. A clone is another handle on the same folder. All methods block, if only for the
/// time of a few file operations: call them off the runtime.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    /// Makes the names of temporary files unique.
    temporaries: AtomicU64,
    /// Held while the set of files changes.
    changing: Mutex<()>,
    /// The number of the newest receiver, which is the only one that may write.
    receiver: Arc<Mutex<u64>>,
}

impl SnapshotStore {
    /// Opens the folder (`DATA/snapshots`), creating it if it is not there, and removes what was left unfinished.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn open(folder: &Path) -> Result<Self, StorageError> {
        create_folder(folder)?;
        for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
            let path = entry.map_err(failed("list", folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(BUILDING) || name.starts_with(RECEIVING) {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        sync_folder(folder)?;
        let inner = Inner {
            folder: folder.to_owned(),
            temporaries: AtomicU64::new(0),
            changing: Mutex::new(()),
            receiver: Arc::new(Mutex::new(0)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The snapshots that are there, newest first.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn list(&self) -> Result<Vec<SnapshotId>, StorageError> {
        let folder = &self.inner.folder;
        let mut ids = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
            let entry = entry.map_err(failed("list", folder))?;
            ids.extend(entry.file_name().to_str().and_then(SnapshotId::from_name));
        }
        ids.sort_unstable_by(|a, b| b.cmp(a));
        Ok(ids)
    }

    /// Opens one snapshot. Its body is verified when it is read.
    ///
    /// # Errors
    /// If it is not there, corrupt, or of a newer format.
    pub fn open_snapshot(&self, id: SnapshotId) -> Result<SnapshotFile, StorageError> {
        let path = self.path(id);
        let file = SnapshotFile::open(&path)?;
        if file.id() == id {
            Ok(file)
        } else {
            let what = format!("it is the snapshot {}, by another name", file.id());
            Err(StorageError::CorruptFile { path, offset: 8, what })
        }
    }

    /// The newest snapshot that is sound, wholly verified; `None` if there is none at all. If the newest is corrupt,
    /// that is logged as an error, and the one before it is taken if `log_reaches_back` to it: if the log still has
    /// every entry behind it. The corrupt file is renamed to `….corrupt`, and kept.
    ///
    /// # Errors
    /// If a snapshot is corrupt and none before it will do; if it is of a newer format; if the disk refuses.
    pub fn open_newest(
        &self,
        log_reaches_back: impl Fn(SnapshotId) -> bool,
    ) -> Result<Option<SnapshotFile>, StorageError> {
        let ids = self.list()?;
        for (place, id) in ids.iter().enumerate() {
            let opened = self.open_snapshot(*id).and_then(|file| file.verify().map(|()| file));
            let corrupt = match opened {
                Err(error @ StorageError::CorruptFile { .. }) => error,
                other => return other.map(Some),
            };
            tracing::error!(snapshot = %id, error = describe(&corrupt), "a snapshot is corrupt");
            match ids.get(place + 1) {
                Some(before) if log_reaches_back(*before) => {
                    tracing::warn!(snapshot = %before, "the snapshot before it is taken, and the log behind it");
                    self.set_aside(*id)?;
                }
                _ => return Err(corrupt),
            }
        }
        Ok(None)
    }

    /// Begins a snapshot. `header` is what its maker wants to know without reading the body.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn create(&self, id: SnapshotId, header: &[u8]) -> Result<SnapshotWriter, StorageError> {
        let number = self.inner.temporaries.fetch_add(1, Ordering::Relaxed);
        let path = self.inner.folder.join(format!("{BUILDING}{id}-{number}"));
        SnapshotWriter::create(self.clone(), id, header, path)
    }

    /// Begins to receive the file of `length` bytes with this digest from a peer, or goes on with it. An earlier
    /// receiver can't write any more.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn receive(
        &self,
        id: SnapshotId,
        length: u64,
        digest: [u8; 32],
    ) -> Result<SnapshotReceiver, StorageError> {
        let name = format!("{RECEIVING}{id}-{length}-{}", blake3::Hash::from_bytes(digest).to_hex());
        let mut newest = self.inner.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        *newest += 1;
        let path = self.inner.folder.join(&name);
        self.remove_other_received(&path)?;
        let current = Arc::clone(&self.inner.receiver);
        SnapshotReceiver::open(self.clone(), path, id, length, digest, (*newest, current))
    }

    /// Gives a finished, durable file its name, and removes the oldest ones.
    pub(super) fn accept(&self, id: SnapshotId, temporary: &Path) -> Result<(), StorageError> {
        let _changing = self.changing();
        let path = self.path(id);
        fs::rename(temporary, &path).map_err(failed("rename a new file to", &path))?;
        sync_folder(&self.inner.folder)?;
        for old in self.list()?.into_iter().skip(KEPT).filter(|old| *old != id) {
            let path = self.path(old);
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        sync_folder(&self.inner.folder)
    }

    fn set_aside(&self, id: SnapshotId) -> Result<(), StorageError> {
        let _changing = self.changing();
        let path = self.path(id);
        fs::rename(&path, path.with_extension("sk.corrupt")).map_err(failed("rename", &path))?;
        sync_folder(&self.inner.folder)
    }

    /// Parts of other transfers are given up: their sender has something newer.
    fn remove_other_received(&self, keep: &Path) -> Result<(), StorageError> {
        let folder = &self.inner.folder;
        for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
            let entry = entry.map_err(failed("list", folder))?;
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with(RECEIVING) && path != keep {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    fn path(&self, id: SnapshotId) -> PathBuf {
        self.inner.folder.join(format!("{PREFIX}{id}{SUFFIX}"))
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.inner.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
