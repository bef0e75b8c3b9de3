//! History that comes from a peer: databases of the same form as the log's own, in a folder of their own until they are
//! verified. A start removes the folder, so what a crash leaves of it never counts.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::block::BlockBuilder;
use super::database::Database;
use super::databases::{FETCHING, name_of};
use super::meta::HistoryStart;
use super::options::LogOptions;
use super::stats::Counters;
use crate::raft::types::LogEntry;
use crate::storage::StorageError;
use crate::storage::files::{create_folder, failed, sync_folder};

/// So many bytes are made durable at a time: a flush of all would hold up the log's own, which waits for the same disk.
const SYNC_BYTES: u64 = 4 << 20;

/// Entries that are collected, one after the other. Dropping it removes what was not adopted. Everything in here blocks.
pub struct FetchedLog {
    folder: PathBuf,
    start: HistoryStart,
    end: u64,
    databases: Vec<(u64, PathBuf)>,
    current: Option<Database>,
    current_bytes: u64,
    not_durable: u64,
    options: LogOptions,
    counters: Arc<Counters>,
}

impl fmt::Debug for FetchedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FetchedLog({} to {})", self.start.index, self.end)
    }
}

impl FetchedLog {
    pub(super) fn begin(
        root: &Path,
        start: HistoryStart,
        options: &LogOptions,
    ) -> Result<Self, StorageError> {
        let folder = root.join(FETCHING);
        remove(&folder)?;
        create_folder(&folder)?;
        Ok(Self {
            folder,
            start,
            end: start.index,
            databases: Vec::new(),
            current: None,
            current_bytes: 0,
            not_durable: 0,
            options: options.clone(),
            counters: Arc::default(),
        })
    }

    /// Where it begins.
    pub fn start(&self) -> HistoryStart {
        self.start
    }

    /// The index behind its last entry.
    pub fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn databases(&self) -> &[(u64, PathBuf)] {
        &self.databases
    }

    /// Adds the entries that follow.
    ///
    /// # Errors
    /// If they do not follow, or the disk refuses.
    pub fn append(&mut self, entries: &[LogEntry]) -> Result<(), StorageError> {
        let mut builder = BlockBuilder::new(None);
        for (expected, entry) in (self.end..).zip(entries) {
            let found = entry.log_id.index;
            if found != expected {
                return Err(StorageError::NotContiguous { expected, found });
            }
            builder.push(entry)?;
        }
        for block in builder.finish() {
            if block.part == 0 && self.current_bytes >= self.options.database_bytes {
                self.seal()?;
            }
            let current = match &self.current {
                Some(current) => current,
                None => self.begin_database(block.first)?,
            };
            current.insert(&block)?;
            self.current_bytes += block.value.len() as u64;
            self.not_durable += block.value.len() as u64;
        }
        self.end += entries.len() as u64;
        if self.not_durable >= SYNC_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    /// Ends it: everything is durable, and nothing is open.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn finish(&mut self) -> Result<(), StorageError> {
        self.seal()?;
        sync_folder(&self.folder)
    }

    fn begin_database(&mut self, first: u64) -> Result<&Database, StorageError> {
        let dir = self.folder.join(name_of(first));
        let database = Database::open(&dir, first, self.options.hooks.clone(), Arc::clone(&self.counters))?;
        self.databases.push((first, dir));
        self.current_bytes = 0;
        Ok(self.current.insert(database))
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.not_durable = 0;
        self.current.as_ref().map_or(Ok(()), Database::sync)
    }

    fn seal(&mut self) -> Result<(), StorageError> {
        self.sync()?;
        self.current = None;
        Ok(())
    }
}

impl Drop for FetchedLog {
    fn drop(&mut self) {
        self.current = None;
        if let Err(error) = remove(&self.folder) {
            tracing::warn!(%error, "fetched history that does not count is left until the next start");
        }
    }
}

fn remove(folder: &Path) -> Result<(), StorageError> {
    if folder.exists() { fs::remove_dir_all(folder).map_err(failed("remove", folder)) } else { Ok(()) }
}
