//! Opening a log: finds where it begins and ends, without decoding what is in between.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::database::{Database, End};
use super::databases::{Databases, META, Removed};
use super::meta::Meta;
use super::options::LogOptions;
use super::stats::Counters;
use super::tail::{Bounds, Tail};
use super::writer::{Shared, Writer};
use crate::storage::StorageError;

/// From then on the log says what it is doing, so that a long start does not look like a hang.
const QUIET: Duration = Duration::from_secs(2);

/// Opens the log in `root` and removes what a crash left unfinished. Returns the writer, ready to be started.
pub(super) fn open(
    root: &Path,
    options: LogOptions,
    counters: Arc<Counters>,
    reaper: SyncSender<Removed>,
) -> Result<Writer, StorageError> {
    let progress = Progress { begun: Instant::now(), root };
    let found = Databases::scan(root, options.hooks.clone(), Arc::clone(&counters))?;
    for removed in found.leftovers {
        discard(&reaper, removed);
    }
    let databases = found.databases;
    let log_is_empty = databases.newest().is_none();
    let meta = Meta::open(&root.join(META), log_is_empty, options.hooks.clone(), Arc::clone(&counters))?;
    progress.say("read the vote");
    let end = open_newest(&databases, &meta, &reaper, &progress)?;
    remove_trimmed(&databases, &meta, end.as_ref(), &reaper)?;
    check_bounds(&databases, &meta, end.as_ref())?;
    progress.say("found the end of the log");

    // It may have been among what was to be removed.
    let end = end.filter(|(database, _)| databases.newest() == Some(database.first()));
    let last = end.as_ref().map(|(_, end)| end.last).max(meta.purged);
    let committed = end.as_ref().and_then(|(_, end)| end.committed);
    // What was committed may be known before it is on this disk. What is on this disk up to there is committed too.
    let committed = committed.max(meta.tail.committed).max(meta.purged).min(last);
    let (vote, purged, oldest, history) = (meta.vote, meta.purged, databases.oldest(), meta.history);
    let bounds = Bounds { vote, committed, purged, last, history: history.map(|start| start.index), oldest };
    let tail = Tail::new(&bounds, options.tail_cache_bytes);
    let current = end.as_ref().map(|(database, _)| Arc::clone(database));
    let current_bytes = current.as_ref().map_or(Ok(0), |database| database.file_bytes())?;
    tracing::info!(?purged, ?last, took = ?progress.begun.elapsed(), path = %root.display(), "opened the log");
    Ok(Writer {
        shared: Arc::new(Shared::new(tail, databases, counters, history)),
        options,
        meta,
        reaper,
        current,
        current_bytes,
        last: end.map(|(_, end)| end.last.index),
    })
}

type Newest = (Arc<Database>, End);

/// Opens the newest database that has something in it. One that is empty was created just before a crash.
fn open_newest(
    databases: &Databases,
    meta: &Meta,
    reaper: &SyncSender<Removed>,
    progress: &Progress<'_>,
) -> Result<Option<Newest>, StorageError> {
    while let Some(first) = databases.newest() {
        let database = databases.get(first)?;
        progress.say("opened the newest database");
        if database.remove_unfinished_entry()? {
            tracing::warn!(database = first, "removed the beginning of an entry whose write was cut off");
        }
        if let Some(end) = database.end()? {
            return Ok(Some((database, end)));
        }
        if meta.tail.durable.is_some_and(|durable| durable >= first) {
            let what = "it is empty, and it held entries that were durable";
            return Err(database.corrupt(first.to_string(), what));
        }
        drop(database);
        if let Some(removed) = databases.remove(first)? {
            discard(reaper, removed);
        }
    }
    Ok(None)
}

/// Finishes what a crash cut off: removing what the history no longer has, or taking over what was fetched.
fn remove_trimmed(
    databases: &Databases,
    meta: &Meta,
    end: Option<&Newest>,
    reaper: &SyncSender<Removed>,
) -> Result<(), StorageError> {
    let Some(upto) = meta.history.and_then(|start| start.index.checked_sub(1)) else { return Ok(()) };
    for first in databases.ending_at_or_before(upto, end.map(|(_, end)| end.last.index)) {
        if let Some(removed) = databases.remove(first)? {
            discard(reaper, removed);
        }
    }
    Ok(())
}

/// The log must reach from where the history begins, and Raft's part of it, to what was durable.
fn check_bounds(databases: &Databases, meta: &Meta, end: Option<&Newest>) -> Result<(), StorageError> {
    let purged = meta.purged.map(|purged| purged.index);
    let begins = meta.history.map(|start| start.index).or(purged.map(|purged| purged + 1));
    if let (Some(begins), Some(oldest)) = (begins, databases.oldest())
        && oldest > begins
    {
        let what =
            format!("a hole: the log is kept from {begins} on, and the oldest database begins with {oldest}");
        return Err(meta.corrupt("history", what));
    }
    let last = end.map(|(_, end)| end.last.index).max(purged);
    if meta.tail.durable > last {
        let what = format!(
            "the log ends with {last:?}, and entries up to {:?} were durable: acknowledged entries are lost",
            meta.tail.durable
        );
        return Err(meta.corrupt("tail", what));
    }
    Ok(())
}

fn discard(reaper: &SyncSender<Removed>, removed: Removed) {
    // If the reaper is gone, the next start deletes the folder.
    let _ = reaper.send(removed);
}

struct Progress<'a> {
    begun: Instant,
    root: &'a Path,
}

impl Progress<'_> {
    fn say(&self, what: &str) {
        let took = self.begun.elapsed();
        if took > QUIET {
            tracing::info!(path = %self.root.display(), ?took, "opening the log: {what}");
        }
    }
}
