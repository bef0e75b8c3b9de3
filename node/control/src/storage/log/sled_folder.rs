//! One sled database in its folder, and what it takes to make its writes durable.

use std::any::Any;
use std::fs::{self, File, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use sled::IVec;

use super::options::Hooks;
use super::stats::Counters;
use crate::storage::StorageError;
use crate::storage::files::{create_folder, failed, sync_file, sync_folder};

/// sled's unit of allocation. Large, so that no page is ever more than a quarter of it (see
/// [`MAX_VALUE_BYTES`](super::block::MAX_VALUE_BYTES)). It can't be changed for databases that exist.
const SEGMENT_BYTES: usize = 2 << 20;
/// sled's page cache for each open database. What is read often is in the tail cache.
const CACHE_BYTES: u64 = 4 << 20;

/// An open sled database.
///
/// sled 0.34.7 writes with `sync_file_range`, which is not power-safe, and never calls fsync in `flush`; so this
/// keeps a handle of its own on sled's data file. [`SledFolder::sync`] is the only thing that makes writes durable.
pub(super) struct SledFolder {
    dir: PathBuf,
    blobs: PathBuf,
    db: sled::Db,
    file: File,
    hooks: Hooks,
    counters: Arc<Counters>,
}

/// How sled calls a snapshot that it is writing: `snap.<position>.generating`.
const UNFINISHED_SNAPSHOT: &str = "generating";

/// How long sled's data file is at most before anything is inserted: the header of a segment, and empty pages.
const EMPTY_DATA_BYTES: u64 = 96;

/// How long the file is that sled keeps in this folder: about how much was written to the database.
pub(super) fn sled_file_bytes(dir: &Path) -> Result<u64, StorageError> {
    let path = dir.join("db");
    fs::metadata(&path).map(|data| data.len()).map_err(failed("read the length of", &path))
}

/// What the operating system says to sled is about its data file, unless it misses a file: then sled does not say which of its
/// folder. sled keeps of the error only the kind, and a text.
fn sled_failed(action: &'static str, dir: &Path, source: sled::Error) -> StorageError {
    let error = match source {
        sled::Error::Io(error) => match error.kind() {
            io::ErrorKind::NotFound => return failed(action, dir)(error),
            io::ErrorKind::StorageFull => Errno::ENOSPC.into(),
            io::ErrorKind::QuotaExceeded => Errno::EDQUOT.into(),
            io::ErrorKind::ReadOnlyFilesystem => Errno::EROFS.into(),
            _ => error,
        },
        source => return StorageError::Database { action, dir: dir.to_owned(), source },
    };
    failed(action, &dir.join("db"))(error)
}

/// Runs something in sled. A panic of it becomes an error with the place; it is fatal like every other one.
fn guarded<T>(dir: &Path, work: impl FnOnce() -> Result<T, StorageError>) -> Result<T, StorageError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(StorageError::Panicked { dir: dir.to_owned(), said: panic_message(panic.as_ref()).to_owned() })
    })
}

/// What a panic said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// How long a handle of this process on a database takes to be gone after it was dropped, at most.
const RELEASE: Duration = Duration::from_secs(5);

/// sled drops its lock on a data file in a thread of its own, a moment after its handle was dropped: whoever opens the
/// database again at once would be refused. (Other processes are kept away by the data directory's lock.)
fn wait_until_released(data: &Path) -> Result<(), StorageError> {
    if !data.exists() {
        return Ok(());
    }
    let file = File::open(data).map_err(failed("open", data))?;
    let start = Instant::now();
    while matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) && start.elapsed() < RELEASE {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Whatever else is wrong with it, opening it says so.
    Ok(())
}

/// sled writes its settings with two calls before it creates the data file, and refuses to open if it finds only a part of
/// them. They are made durable before anything is inserted, so without data they are of a creation that was cut off, and
/// are written anew. With data they are corrupt, and sled says so.
fn remove_unfinished_config(config: &Path, data: &Path) -> Result<(), StorageError> {
    if !config.exists() {
        return Ok(());
    }
    let bytes = fs::read(config).map_err(failed("read", config))?;
    let written = bytes.split_last_chunk();
    let whole = written.is_some_and(|(text, crc)| crc32fast::hash(text) == u32::from_le_bytes(*crc));
    let empty = !data.exists()
        || data.metadata().map_err(failed("read the length of", data))?.len() <= EMPTY_DATA_BYTES;
    if !whole && empty {
        tracing::info!(path = %config.display(), "removing what a crash left of the settings of a new database");
        fs::remove_file(config).map_err(failed("remove", config))?;
    }
    Ok(())
}

/// sled writes a snapshot of what it has found, when it is opened, into a file of another name, and renames it. It takes
/// what is left of one that was cut off for the newest snapshot, though, and refuses to open: a kill or a power cut at
/// the wrong moment would be the end of the node. Nothing needs such a file: the older snapshot and the data are there.
fn remove_unfinished_snapshots(dir: &Path) -> Result<(), StorageError> {
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let path = entry.map_err(failed("list", dir))?.path();
        if path.extension().is_some_and(|extension| extension == UNFINISHED_SNAPSHOT) {
            tracing::info!(path = %path.display(), "removing what a crash left of a snapshot of sled's");
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
    }
    Ok(())
}

impl SledFolder {
    /// Opens the database in `dir`, creating it durably if it is not there.
    pub(super) fn open(dir: &Path, hooks: Hooks, counters: Arc<Counters>) -> Result<Self, StorageError> {
        create_folder(dir)?;
        let (data, config, blobs) = (dir.join("db"), dir.join("conf"), dir.join("blobs"));
        // Recovery writes a snapshot file of what it finds, and fsyncs that. What it finds may stand only in the
        // page cache (after a kill -9); a power cut would then leave a snapshot of what is not there, which blocks
        // every later open. So the data file is made durable first.
        for file in [&data, &config] {
            if file.exists() {
                sync_file(file)?;
            }
        }
        wait_until_released(&data)?;
        remove_unfinished_config(&config, &data)?;
        remove_unfinished_snapshots(dir)?;
        let config = sled::Config::new()
            .path(dir)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None);
        let db = guarded(dir, || config.open().map_err(|source| sled_failed("open", dir, source)))?;
        let file = File::open(&data).map_err(failed("open", &data))?;
        let folder = Self { dir: dir.to_owned(), blobs, db, file, hooks, counters };
        if let Err(error) = folder.make_durable() {
            // Dropping it would flush again, and panic if that fails.
            std::mem::forget(folder);
            return Err(error);
        }
        Ok(folder)
    }

    /// Makes the files themselves durable, with what sled wrote into them when it opened them.
    fn make_durable(&self) -> Result<(), StorageError> {
        self.sync()?;
        sync_file(&self.dir.join("conf"))?;
        sync_folder(&self.blobs)?;
        sync_folder(&self.dir)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads, iterates and removes; errors go through [`SledFolder::failed`].
    ///
    /// # Errors
    /// What `work` gives, or that sled panicked: on much of what it can't read it does.
    pub(super) fn with_db<T>(
        &self,
        work: impl FnOnce(&sled::Db) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        guarded(&self.dir, || work(&self.db))
    }

    pub(super) fn is_empty(&self) -> Result<bool, StorageError> {
        self.with_db(|db| Ok(db.is_empty()))
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<IVec>, StorageError> {
        self.with_db(|db| db.get(key).map_err(|e| self.failed("read", e)))
    }

    pub(super) fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.db.insert(key, value).map(drop).map_err(|e| self.failed("write to", e))
    }

    pub(super) fn remove(&self, key: &[u8]) -> Result<(), StorageError> {
        self.db.remove(key).map(drop).map_err(|e| self.failed("remove from", e))
    }

    /// Makes everything that was written durable.
    pub(super) fn sync(&self) -> Result<(), StorageError> {
        let begun = Instant::now();
        self.db.flush().map_err(|e| self.failed("flush", e))?;
        self.hooks.sync_data(&self.file).map_err(failed("fdatasync", &self.dir.join("db")))?;
        self.counters.synced(begun.elapsed());
        self.check_blobs()
    }

    /// How long sled's file is: about how much was written to it.
    pub(super) fn file_bytes(&self) -> Result<u64, StorageError> {
        sled_file_bytes(&self.dir)
    }

    pub(super) fn failed(&self, action: &'static str, source: sled::Error) -> StorageError {
        sled_failed(action, &self.dir, source)
    }

    pub(super) fn corrupt(&self, key: impl Into<String>, what: impl Into<String>) -> StorageError {
        StorageError::CorruptLog { dir: self.dir.clone(), key: key.into(), what: what.into() }
    }

    /// sled moves large pages into files of their own that it never fsyncs. Block sizes rule that out; if a page
    /// lands there all the same, what was "stored" is not.
    fn check_blobs(&self) -> Result<(), StorageError> {
        let mut entries = fs::read_dir(&self.blobs).map_err(failed("list", &self.blobs))?;
        match entries.next() {
            None => Ok(()),
            Some(_) => Err(self.corrupt("blobs/", "sled put a page into a file that is never fsynced")),
        }
    }
}
