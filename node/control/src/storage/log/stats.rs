//! What the log store has done since it was opened, for `/metrics` and for the trigger of snapshots.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Counters since the log store was opened. They only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// How often a file was made durable (sled's flush and an fdatasync).
    pub fsyncs: u64,
    /// How long that took in all, in nanoseconds.
    pub fsync_nanos: u64,
    /// How many groups of appends were made durable together.
    pub groups: u64,
    /// How many entries were appended and are durable.
    pub appended_entries: u64,
    /// How many bytes of blocks that was. A snapshot is due by the growth of this since the last one.
    pub appended_bytes: u64,
    /// How many log databases were created.
    pub databases_created: u64,
    /// How many log databases were removed from the disk.
    pub databases_removed: u64,
}

/// The counters behind [`LogStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    fsyncs: AtomicU64,
    fsync_nanos: AtomicU64,
    groups: AtomicU64,
    appended_entries: AtomicU64,
    appended_bytes: AtomicU64,
    databases_created: AtomicU64,
    databases_removed: AtomicU64,
    /// When the writer began what it is at, or got further with it; None: it waits for work.
    at_work: Mutex<Option<Instant>>,
}

impl Counters {
    pub(super) fn begins(&self) {
        *self.at_work() = Some(Instant::now());
    }

    pub(super) fn ends(&self) {
        *self.at_work() = None;
    }

    pub(super) fn unfinished_for(&self) -> Option<Duration> {
        self.at_work().map(|since| since.elapsed())
    }

    fn at_work(&self) -> MutexGuard<'_, Option<Instant>> {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn synced(&self, took: Duration) {
        self.fsyncs.fetch_add(1, Ordering::Relaxed);
        self.fsync_nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        // A slow disk gets further with each fsync of a longer work; one that hangs does not.
        if let Some(since) = &mut *self.at_work() {
            *since = Instant::now();
        }
    }

    pub(super) fn appended(&self, entries: u64, bytes: u64) {
        self.groups.fetch_add(1, Ordering::Relaxed);
        self.appended_entries.fetch_add(entries, Ordering::Relaxed);
        self.appended_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn created(&self) {
        self.databases_created.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn removed(&self) {
        self.databases_removed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> LogStats {
        LogStats {
            fsyncs: self.fsyncs.load(Ordering::Relaxed),
            fsync_nanos: self.fsync_nanos.load(Ordering::Relaxed),
            groups: self.groups.load(Ordering::Relaxed),
            appended_entries: self.appended_entries.load(Ordering::Relaxed),
            appended_bytes: self.appended_bytes.load(Ordering::Relaxed),
            databases_created: self.databases_created.load(Ordering::Relaxed),
            databases_removed: self.databases_removed.load(Ordering::Relaxed),
        }
    }
}
