//! What can be set about the log store, and the hooks by which its tests make the disk fail.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

use planted_bugs::{Bug, planted};

/// Settings of the log store.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// A new database is begun after this many bytes. Small ones are purged sooner, large ones are fewer.
    pub database_bytes: u64,
    /// How much memory the newest entries may take that are kept for followers and watchers that are up to date, bytes.
    /// Entries that are not yet durable are kept whatever this says.
    pub tail_cache_bytes: usize,
    /// Nothing in production.
    pub(crate) hooks: Hooks,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { database_bytes: 32 << 20, tail_cache_bytes: 8 << 20, hooks: Hooks::default() }
    }
}

/// A place in a write of several steps at which a crash must leave a sound log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A truncation has removed one of the databases behind its point.
    TruncatedDatabase,
    /// A truncation has removed blocks, and has not yet shortened the one that its point is in.
    TruncatedBlocks,
    /// A purge is recorded, and no database is removed yet.
    PurgeRecorded,
    /// It is recorded that the history begins later, and no database is removed yet.
    TrimRecorded,
    /// Fetched databases have their places, and it is not recorded yet that they count.
    FetchedMoved,
    /// A new database has been created, and nothing is in it yet.
    DatabaseCreated,
}

type SyncData = dyn Fn(&File) -> io::Result<()> + Send + Sync;
type AtStep = dyn Fn(Step) -> io::Result<()> + Send + Sync;

/// Where tests take the place of the disk.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    /// Instead of `File::sync_data`.
    pub(crate) sync_data: Option<Arc<SyncData>>,
    /// Called at each [`Step`]; an error there ends the store, as a crash would.
    pub(crate) at_step: Option<Arc<AtStep>>,
}

impl Hooks {
    pub(super) fn sync_data(&self, file: &File) -> io::Result<()> {
        match &self.sync_data {
            None if planted(Bug::SyncTakenOut) => Ok(()),
            None => file.sync_data(),
            Some(sync_data) => sync_data(file),
        }
    }

    pub(super) fn at_step(&self, step: Step) -> io::Result<()> {
        self.at_step.as_ref().map_or(Ok(()), |at_step| at_step(step))
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}
