//! Opening a log: finds where it begins and ends, without decoding what is in between.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::database::{Database, End, Want};
use super::databases::{Databases, META, Removed, name_of};
use super::end::{self, EndFile, EndRecord};
use super::meta::{Age, Meta};
use super::options::LogOptions;
use super::stats::Counters;
use super::tail::{Bounds, Tail};
use super::writer::{Shared, Writer};
use crate::raft::types::{LogId, Vote};
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
    let recorded = match meta.age {
        // What is there is left of a start that a crash cut off.
        Age::Old(_) => None,
        Age::New | Age::Current => EndFile::open(root, options.hooks.clone())?,
    };
    if meta.age == Age::Current && recorded.is_none() {
        return Err(end::missing(root));
    }
    let promised = Promised::new(&meta, recorded.as_ref().map(EndFile::record).unwrap_or_default());
    promised.check_vote(&meta)?;
    let newest = open_newest(&databases, &promised, &reaper, &progress)?;
    remove_trimmed(&databases, &meta, newest.as_ref(), &reaper)?;
    check_begin(&databases, &meta)?;
    promised.check_end(root, &databases, &meta, newest.as_ref())?;
    progress.say("found the end of the log");

    // It may have been among what was to be removed.
    let newest = newest.filter(|(database, _)| databases.newest() == Some(database.first()));
    let durable = newest.as_ref().map(|(_, end)| end.last);
    let last = durable.max(meta.purged);
    let committed = newest.as_ref().and_then(|(_, end)| end.committed);
    // What was committed may be known before it is on this disk. What is on this disk up to there is committed too.
    let committed = committed.max(promised.committed).max(meta.purged).min(last);
    let record = EndRecord { durable, committed, vote: meta.vote };
    let (meta, end) = make_current(root, meta, recorded, record, &options)?;
    let (vote, purged, oldest, history) = (meta.vote, meta.purged, databases.oldest(), meta.history);
    let bounds = Bounds { vote, committed, purged, last, history: history.map(|start| start.index), oldest };
    let tail = Tail::new(&bounds, options.tail_cache_bytes);
    let current = newest.map(|(database, _)| database);
    let current_bytes = current.as_ref().map_or(Ok(0), |database| database.file_bytes())?;
    tracing::info!(?purged, ?last, took = ?progress.begun.elapsed(), path = %root.display(), "opened the log");
    let shared = Arc::new(Shared::new(tail, databases, counters, history));
    Ok(Writer { shared, options, meta, end, reaper, current, current_bytes, last: durable })
}

/// Everything that was found is durable: opening the databases has made it so. A folder of an older version becomes one of
/// this version.
fn make_current(
    root: &Path,
    mut meta: Meta,
    recorded: Option<EndFile>,
    record: EndRecord,
    options: &LogOptions,
) -> Result<(Meta, EndFile), StorageError> {
    let end = match recorded {
        Some(mut end) if meta.age == Age::Current => {
            end.save(record)?;
            end
        }
        _ => EndFile::create(root, record, options.hooks.clone())?,
    };
    meta.make_current()?;
    Ok((meta, end))
}

/// What was told to somebody, as far as that is on record: the log must hold it.
pub(super) struct Promised {
    /// Index and, if that is recorded, term of an entry that was durable.
    pub durable: Option<(u64, Option<u64>)>,
    pub committed: Option<LogId>,
    vote: Option<Vote>,
}

impl Promised {
    /// By a folder's records; `record` is what `end` says, if the folder is of a version that has it.
    pub(super) fn new(meta: &Meta, record: EndRecord) -> Self {
        if let Age::Old(tail) = meta.age {
            let durable = tail.durable.map(|index| (index, None));
            return Self { durable, committed: tail.committed, vote: None };
        }
        let EndRecord { durable, committed, vote } = record;
        Self { durable: durable.map(|id| (id.index, Some(id.leader_id.term))), committed, vote }
    }

    /// Whether an entry from `index` on was durable.
    fn reaches(&self, index: u64) -> bool {
        self.durable.is_some_and(|(durable, _)| durable >= index)
    }

    /// The vote must not be older than one that was given.
    pub(super) fn check_vote(&self, meta: &Meta) -> Result<(), StorageError> {
        match self.vote {
            Some(given) if meta.vote.is_none_or(|vote| vote < given) => {
                let found = meta.vote.map_or_else(|| "none".to_owned(), |vote| vote.to_string());
                let what = format!("the last vote is {found}, and {given} was given: it is lost");
                Err(meta.corrupt("vote", what))
            }
            _ => Ok(()),
        }
    }

    /// The log must reach to what was durable, with the very entry.
    fn check_end(
        &self,
        root: &Path,
        databases: &Databases,
        meta: &Meta,
        newest: Option<&Newest>,
    ) -> Result<(), StorageError> {
        let begins = begin(meta).unwrap_or(0);
        let Some((index, term)) = self.durable.filter(|(index, _)| *index >= begins) else { return Ok(()) };
        let last = newest.map(|(_, end)| end.last);
        let lost = |what: String| StorageError::CorruptLog {
            dir: databases.newest().map_or_else(|| root.to_owned(), |first| root.join(name_of(first))),
            key: index.to_string(),
            what: format!("{what}, and entries up to {index} were durable: acknowledged entries are lost"),
        };
        let Some((last, (database, _))) = last.zip(newest).filter(|(last, _)| last.index >= index) else {
            let ends = last.map_or_else(|| "is empty".to_owned(), |last| format!("ends with {}", last.index));
            return Err(lost(format!("the log {ends}")));
        };
        // What is in an older database is checked with that one.
        let Some(term) = term.filter(|_| index >= database.first()) else { return Ok(()) };
        let mut found = Vec::new();
        database.read(&mut Want::new(index..index + 1, usize::MAX), &mut found)?;
        let found = found.first().map(|entry| entry.log_id.leader_id.term);
        if found == Some(term) && last.leader_id.term >= term {
            return Ok(());
        }
        let found = found.map_or_else(|| "missing".to_owned(), |found| format!("of term {found}"));
        let ends = format!("the log ends with {} of term {}", last.index, last.leader_id.term);
        Err(lost(format!("{ends}, entry {index} is {found} and was of term {term}")))
    }
}

type Newest = (Arc<Database>, End);

/// Opens the newest database that has something in it. One that is empty was created just before a crash.
fn open_newest(
    databases: &Databases,
    promised: &Promised,
    reaper: &SyncSender<Removed>,
    progress: &Progress<'_>,
) -> Result<Option<Newest>, StorageError> {
    while let Some(first) = databases.newest() {
        let database = databases.get(first)?;
        progress.say("opened the newest database");
        match database.unfinished_entry()? {
            Some(index) if promised.reaches(index) => {
                let what = "its last parts are missing, and it was durable: an acknowledged entry is lost";
                return Err(database.corrupt(index.to_string(), what));
            }
            Some(index) => {
                database.remove_unfinished(index)?;
                tracing::warn!(
                    database = first,
                    index,
                    "removed the beginning of an entry whose write was cut off"
                );
            }
            None => {}
        }
        if let Some(end) = database.end()? {
            return Ok(Some((database, end)));
        }
        if promised.reaches(first) {
            let what = "it is empty, and it held entries that were durable: acknowledged entries are lost";
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

/// Where the history begins, if that is recorded.
fn begin(meta: &Meta) -> Option<u64> {
    meta.history.map(|start| start.index).or(meta.purged.map(|purged| purged.index + 1))
}

/// The log must reach back to where the history begins.
fn check_begin(databases: &Databases, meta: &Meta) -> Result<(), StorageError> {
    if let (Some(begins), Some(oldest)) = (begin(meta), databases.oldest())
        && oldest > begins
    {
        let what =
            format!("a hole: the log is kept from {begins} on, and the oldest database begins with {oldest}");
        return Err(meta.corrupt("history", what));
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
