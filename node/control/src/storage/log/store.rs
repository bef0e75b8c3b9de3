//! The log store as openraft sees it.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use planted_bugs::{Bug, planted};
use tokio::sync::{mpsc, oneshot};

use super::fetched::FetchedLog;
use super::meta::HistoryStart;
use super::options::LogOptions;
use super::reader::LogReader;
use super::stats::{Counters, LogStats};
use super::writer::{Append, Done, Operation, QUEUE, Shared};
use super::{open, reaper};
use crate::raft::types::{LogEntry, LogId, TypeConfig, Vote};
use crate::storage::StorageError;
use crate::storage::files::failed;

/// Raft's log and vote on this node's disk.
///
/// A clone is another handle on the same store; only openraft writes. All methods may be called on the runtime:
/// what blocks runs on threads of its own.
///
/// Nothing here has a deadline, as there is nothing that could be done instead of waiting for the disk. A leader that
/// waits too long ([`LogStore::unfinished_for`]) hands over (`raft::node::hung_disk`).
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
    operations: mpsc::Sender<Operation>,
    options: LogOptions,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl LogStore {
    /// Opens the log in `dir` (`DATA/log`), creating it if it is not there. Blocks: call it off the runtime.
    ///
    /// # Errors
    /// If the disk refuses; if the log is corrupt, has a hole or lost entries that were durable; if a later version
    /// of this program wrote it.
    pub fn open(dir: &Path, options: LogOptions) -> Result<Self, StorageError> {
        let counters = Arc::new(Counters::default());
        let (removals, reaper) =
            reaper::start(Arc::clone(&counters)).map_err(failed("start a thread for", dir))?;
        let writer = open::open(dir, options.clone(), counters, removals)?;
        let shared = Arc::clone(&writer.shared);
        let (operations, queue) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new().name("log-writer".to_owned()).spawn(move || writer.run(queue));
        let thread = thread.map_err(failed("start a thread for", dir))?;
        Ok(Self { shared, operations, options, threads: Arc::new(Mutex::new(vec![thread, reaper])) })
    }

    /// A reader. It sees what is appended at once, and outlives the store (then its reads fail).
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.shared))
    }

    /// Removes the history before `start`, as far as Raft does not need it; whole databases go, and what is left before
    /// it in the oldest one can't be read any more.
    ///
    /// # Errors
    /// If the disk refuses, now or before.
    pub async fn trim_history(&self, start: HistoryStart) -> Result<(), StorageError> {
        self.shared.check()?;
        self.perform(|done| self.shared.tail.trim(start.index).then_some(Operation::Trim { start, done }))
            .await
    }

    /// Begins to collect entries that a peer keeps and this node does not: those from `start` on. They count when they are
    /// [adopted](Self::adopt); one collection at a time. Blocks: call it off the runtime.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn begin_fetch(&self, start: HistoryStart) -> Result<FetchedLog, StorageError> {
        FetchedLog::begin(self.shared.databases.root(), start, &self.options)
    }

    /// Makes verified entries the beginning of the history: all of them, also after a crash, or none. They come back if
    /// they do not end where the history begins now: a snapshot came in between.
    ///
    /// # Errors
    /// If the disk refuses, now or before.
    pub async fn adopt(&self, fetched: FetchedLog) -> Result<Option<FetchedLog>, StorageError> {
        self.shared.check()?;
        let Ok(place) = self.operations.reserve().await else {
            return Err(self.gone());
        };
        let (adopted, outcome) = oneshot::channel();
        place.send(Operation::Adopt { fetched: Box::new(fetched), adopted });
        outcome.await.unwrap_or_else(|_| Err(self.gone()))
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        self.shared.databases.root()
    }

    /// How long the writer has not got further with what it is at: no fsync has ended, nor the work. None: it waits for
    /// work.
    pub fn unfinished_for(&self) -> Option<Duration> {
        self.shared.counters.unfinished_for()
    }

    /// What was done since the store was opened.
    pub fn stats(&self) -> LogStats {
        self.shared.counters.snapshot()
    }

    /// Writes what waits, closes the databases and ends the threads. Every call after it fails. Without it the
    /// same happens, unobserved, when the last clone is dropped.
    ///
    /// # Errors
    /// If the last write failed, or one before it.
    pub async fn shutdown(&self) -> Result<(), StorageError> {
        let result = self.perform(|done| Some(Operation::Shutdown { done })).await;
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count()
        });
        match joined.await {
            Ok(0) => result,
            _ => Err(StorageError::Stopped { cause: "one of its threads panicked".to_owned() }),
        }
    }

    #[cfg(test)]
    pub(super) fn threads(&self) -> &Mutex<Vec<JoinHandle<()>>> {
        &self.threads
    }

    /// Queues an operation, if there is one to be done, and waits until it is done. It is made when it has its place
    /// in the queue: a caller that gives up before that has changed nothing.
    async fn perform(&self, operation: impl FnOnce(Done) -> Option<Operation>) -> Result<(), StorageError> {
        let Ok(place) = self.operations.reserve().await else {
            return Err(self.gone());
        };
        let (done, outcome) = oneshot::channel();
        let Some(operation) = operation(done) else { return Ok(()) };
        place.send(operation);
        outcome.await.unwrap_or_else(|_| Err(self.gone()))
    }

    /// Why the writer does not listen any more.
    fn gone(&self) -> StorageError {
        let unknown = || StorageError::Stopped { cause: "its writer is gone".to_owned() };
        self.shared.check().err().unwrap_or_else(unknown)
    }

    async fn enqueue(
        &self,
        entries: Vec<LogEntry>,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), (StorageError, IOFlushed<TypeConfig>)> {
        if let Err(error) = self.shared.check() {
            return Err((error, callback));
        }
        // The place is taken before anything changes, so that giving up here changes nothing.
        let Ok(place) = self.operations.reserve().await else {
            return Err((self.gone(), callback));
        };
        let mut callback = Some(callback);
        let queued = self.shared.tail.append(entries, |entries, number| {
            if let Some(mut callback) = callback.take() {
                if planted(Bug::AckBeforeFlush) {
                    std::mem::replace(&mut callback, IOFlushed::noop()).io_completed(Ok(()));
                }
                place.send(Operation::Append(Append { entries, number, callback }));
            }
        });
        match (queued, callback) {
            (Err(error), Some(callback)) => Err((error, callback)),
            _ => Ok(()),
        }
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        self.shared.check()?;
        let (last_purged_log_id, last_log_id) = self.shared.tail.bounds();
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.reader()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = *vote;
        Ok(self.perform(|done| Some(Operation::SaveVote { vote, done })).await?)
    }

    /// It is written with the next block, or when something else is recorded: after a crash an older one is found.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.shared.check()?;
        self.shared.tail.set_committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        self.shared.check()?;
        Ok(self.shared.tail.committed())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = LogEntry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<LogEntry> = entries.into_iter().collect();
        match self.enqueue(entries, callback).await {
            Ok(()) => Ok(()),
            Err((error, callback)) => {
                let error = io::Error::from(error);
                callback.io_completed(Err(io::Error::other(error.to_string())));
                Err(error)
            }
        }
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.shared.check()?;
        let truncate = |done| {
            let (from, after) = self.shared.tail.truncate(last_log_id)?;
            Some(Operation::Truncate { from, after, done })
        };
        Ok(self.perform(truncate).await?)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.shared.check()?;
        let purge = |done| {
            let purge = self.shared.tail.purge(log_id)?;
            Some(Operation::Purge { upto: log_id, purge, done })
        };
        Ok(self.perform(purge).await?)
    }
}
