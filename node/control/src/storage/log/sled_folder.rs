//! One sled database in its folder, and what it takes to make its writes durable.

use std::any::Any;
use std::fs::{self, File, TryLockError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
        let config = sled::Config::new()
            .path(dir)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None);
        let db = guarded(dir, || {
            config.open().map_err(|source| StorageError::Database {
                action: "open",
                dir: dir.to_owned(),
                source,
            })
        })?;
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
        self.file
            .metadata()
            .map(|data| data.len())
            .map_err(failed("read the length of", &self.dir.join("db")))
    }

    pub(super) fn failed(&self, action: &'static str, source: sled::Error) -> StorageError {
        StorageError::Database { action, dir: self.dir.clone(), source }
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
