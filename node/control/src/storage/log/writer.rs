//! The one thread that writes.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot};

use super::block::{self, BlockBuilder};
use super::database::Database;
use super::databases::{Databases, Removed};
use super::end::{EndFile, EndRecord};
use super::fetched::FetchedLog;
use super::meta::{HistoryStart, Meta};
use super::options::{LogOptions, Step};
use super::sled_folder::panic_message;
use super::stats::Counters;
use super::tail::{Purge, Reads, Tail};
use crate::raft::types::{LogEntry, LogId, TypeConfig, Vote};
use crate::storage::files::failed;
use crate::storage::{StorageError, describe};

/// How many operations may wait for the disk.
pub(super) const QUEUE: usize = 1024;

/// One fdatasync covers at most about this many bytes of entries, so that the first of them isn't told too late.
const GROUP_BYTES: usize = 4 << 20;

/// What store, readers and writer share.
pub(super) struct Shared {
    pub tail: Tail,
    pub databases: Databases,
    pub counters: Arc<Counters>,
    /// As it is recorded.
    history: Mutex<Option<HistoryStart>>,
    stopped: OnceLock<String>,
}

impl Shared {
    pub(super) fn new(
        tail: Tail,
        databases: Databases,
        counters: Arc<Counters>,
        history: Option<HistoryStart>,
    ) -> Self {
        Self { tail, databases, counters, history: Mutex::new(history), stopped: OnceLock::new() }
    }

    /// Where the history begins, if that is recorded.
    pub(super) fn history_start(&self) -> Option<HistoryStart> {
        *self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_history_start(&self, start: Option<HistoryStart>) {
        *self.history.lock().unwrap_or_else(PoisonError::into_inner) = start;
    }

    /// Fails once a write has failed.
    pub(super) fn check(&self) -> Result<(), StorageError> {
        self.stopped.get().map_or(Ok(()), |cause| Err(StorageError::Stopped { cause: cause.clone() }))
    }

    /// Nothing is written or read any more. The first cause is kept.
    fn stop(&self, cause: &str) {
        // A second failure is a consequence of the first.
        let _ = self.stopped.set(cause.to_owned());
    }
}

/// Tells the caller that waits for an operation.
pub(super) type Done = oneshot::Sender<Result<(), StorageError>>;

/// Entries that are to become durable.
pub(super) struct Append {
    pub entries: Vec<LogEntry>,
    /// Its number, see [`Tail::append`].
    pub number: u64,
    pub callback: IOFlushed<TypeConfig>,
}

/// An operation on the log's disk.
pub(super) enum Operation {
    Append(Append),
    SaveVote {
        vote: Vote,
        done: Done,
    },
    /// Removes the entries from `from` on, which is behind `after`.
    Truncate {
        from: u64,
        after: Option<LogId>,
        done: Done,
    },
    /// Records that Raft does not need the entries up to `upto`.
    Purge {
        upto: LogId,
        purge: Purge,
        done: Done,
    },
    /// Removes the history before `start`.
    Trim {
        start: HistoryStart,
        done: Done,
    },
    /// Makes fetched entries the beginning of the history.
    Adopt {
        fetched: Box<FetchedLog>,
        /// They come back if they can't be taken.
        adopted: oneshot::Sender<Result<Option<FetchedLog>, StorageError>>,
    },
    Shutdown {
        done: Done,
    },
}

/// The writer's state: where the disk is.
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub options: LogOptions,
    pub meta: Meta,
    pub end: EndFile,
    pub reaper: SyncSender<Removed>,
    /// The newest database; none if the log is empty.
    pub current: Option<Arc<Database>>,
    /// About how many bytes were written to it.
    pub current_bytes: u64,
    /// The last entry on the disk.
    pub last: Option<LogId>,
}

impl Writer {
    /// Works off the queue until the store is shut down or dropped, or a write fails. Then it answers what still
    /// comes with the failure, until nobody can send any more.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Operation>) {
        let mut waiting = VecDeque::new();
        while let Some(operation) = queue.blocking_recv() {
            waiting.push_back(operation);
            while waiting.len() < QUEUE
                && let Ok(operation) = queue.try_recv()
            {
                waiting.push_back(operation);
            }
            while let Some(operation) = waiting.pop_front() {
                if let Operation::Shutdown { done } = operation {
                    self.finish(done);
                    return refuse(&mut queue, waiting, "it was shut down");
                }
                self.shared.counters.begins();
                let performed = self.perform(operation, &mut waiting);
                self.shared.counters.ends();
                if let Err(cause) = performed {
                    tracing::error!(cause, "the log can't be written; this node has to stop");
                    self.shared.databases.abandon();
                    std::mem::forget((self.meta, self.current));
                    return refuse(&mut queue, waiting, &cause);
                }
            }
        }
        let (done, _) = oneshot::channel();
        self.finish(done);
    }

    /// Performs an operation and tells its caller. An error is final, and the caller has been told.
    fn perform(&mut self, operation: Operation, waiting: &mut VecDeque<Operation>) -> Result<(), String> {
        match operation {
            Operation::Append(append) => self.perform_appends(append, waiting),
            Operation::SaveVote { vote, done } => self.answer(done, |writer| {
                writer.meta.save_vote(vote)?;
                writer.end.save(writer.end_record())?;
                writer.shared.tail.set_vote(vote);
                Ok(())
            }),
            Operation::Truncate { from, after, done } => {
                self.answer(done, |writer| writer.truncate(from, after))
            }
            Operation::Purge { upto, purge, done } => self.answer(done, |writer| writer.purge(upto, purge)),
            Operation::Trim { start, done } => self.answer(done, |writer| writer.trim(start)),
            Operation::Adopt { fetched, adopted } => {
                let mut took = false;
                let result = self.attempt(|writer| {
                    took = writer.adopt(&fetched)?;
                    Ok(())
                });
                let told = result.clone().map(|()| (!took).then_some(*fetched));
                // Whoever fetched it may be gone; what was adopted stays.
                let _ = adopted.send(told.map_err(|cause| StorageError::Stopped { cause }));
                result
            }
            Operation::Shutdown { .. } => unreachable!("the loop takes it out"),
        }
    }

    /// Group commit: takes the appends that wait directly behind this one along.
    fn perform_appends(&mut self, first: Append, waiting: &mut VecDeque<Operation>) -> Result<(), String> {
        let weigh = |append: &Append| append.entries.iter().map(block::weight).sum::<usize>();
        let mut bytes = weigh(&first);
        let mut group = vec![first];
        while bytes < GROUP_BYTES
            && let Some(operation) = waiting.pop_front()
        {
            match operation {
                Operation::Append(append) => {
                    bytes += weigh(&append);
                    group.push(append);
                }
                other => {
                    waiting.push_front(other);
                    break;
                }
            }
        }
        let result = self.attempt(|writer| writer.write(&group));
        if let (Ok(()), Some(last)) = (&result, group.last()) {
            self.shared.tail.durable(last.number);
        }
        for append in group {
            let told = result.as_ref().map_err(|cause| io::Error::other(cause.clone()));
            append.callback.io_completed(told.copied());
        }
        result
    }

    fn answer(
        &mut self,
        done: Done,
        work: impl FnOnce(&mut Self) -> Result<(), StorageError>,
    ) -> Result<(), String> {
        let result = self.attempt(work);
        // A caller that was cancelled is not told; that what it asked for is done all the same is its affair.
        let _ = done.send(result.clone().map_err(|cause| StorageError::Stopped { cause }));
        result
    }

    /// After a failure nothing is read or written any more, from before anybody is told of it.
    fn attempt(&mut self, work: impl FnOnce(&mut Self) -> Result<(), StorageError>) -> Result<(), String> {
        let result = guarded(|| work(self));
        if let Err(cause) = &result {
            self.shared.stop(cause);
        }
        result
    }

    fn write(&mut self, group: &[Append]) -> Result<(), StorageError> {
        let entries = || group.iter().flat_map(|append| &append.entries);
        let mut builder = BlockBuilder::new(self.shared.tail.committed());
        for entry in entries() {
            builder.push(entry)?;
        }
        let mut bytes = 0;
        for block in builder.finish() {
            if block.part == 0 && self.current_bytes >= self.options.database_bytes {
                self.last = entries().map(|e| e.log_id).rfind(|id| id.index < block.first).or(self.last);
                self.seal()?;
            }
            let current = match &self.current {
                Some(current) => current,
                None => self.begin_database(block.first)?,
            };
            current.insert(&block)?;
            self.current_bytes += block.value.len() as u64;
            bytes += block.value.len() as u64;
        }
        if let (Some(current), Some(last)) = (&self.current, entries().last()) {
            current.sync()?;
            self.last = Some(last.log_id);
            self.end.note(self.end_record())?;
        }
        self.shared.counters.appended(entries().count() as u64, bytes);
        Ok(())
    }

    /// Ends the current database with the last entry.
    fn seal(&mut self) -> Result<(), StorageError> {
        if let Some(current) = self.current.take() {
            current.sync()?;
            self.end.save(self.end_record())?;
            self.shared.databases.close_sealed(current);
        }
        Ok(())
    }

    fn begin_database(&mut self, first: u64) -> Result<&Arc<Database>, StorageError> {
        let database = self.shared.databases.create(first)?;
        self.step(Step::DatabaseCreated)?;
        self.current_bytes = 0;
        Ok(self.current.insert(database))
    }

    /// From the end backward, so that no crash leaves a hole: whole databases first, the newest one first, then
    /// what is behind the point in the one that it is in.
    fn truncate(&mut self, from: u64, after: Option<LogId>) -> Result<(), StorageError> {
        self.last = after;
        // First: else a start after a crash in here would miss what was truncated.
        self.end.save(self.end_record())?;
        self.current = None;
        for first in self.shared.databases.beginning_at_or_after(from) {
            self.discard(first)?;
            self.step(Step::TruncatedDatabase)?;
        }
        let Some(newest) = self.shared.databases.newest() else {
            self.last = None;
            return Ok(());
        };
        self.shared.databases.forget_places(newest)?;
        let database = self.shared.databases.get(newest)?;
        database.truncate(from)?;
        self.current_bytes = database.file_bytes()?;
        self.current = Some(database);
        Ok(())
    }

    /// What Raft does not need stays as history, if it leads up to the log that is left.
    fn purge(&mut self, upto: LogId, purge: Purge) -> Result<(), StorageError> {
        let begins = self.shared.tail.indexes(Reads::History).start;
        let history = match purge {
            Purge::Kept => self.meta.history.unwrap_or(HistoryStart::of_log(begins)),
            Purge::Cut => HistoryStart::of_log(upto.index + 1),
        };
        if purge == Purge::Cut {
            // What is fetched later may be another entry in the place of the last one.
            self.end.save(EndRecord { durable: None, ..self.end_record() })?;
        }
        self.meta.save_purged(upto, history)?;
        self.shared.set_history_start(self.meta.history);
        self.step(Step::PurgeRecorded)?;
        match purge {
            Purge::Kept => Ok(()),
            Purge::Cut => self.remove_before(upto.index + 1),
        }
    }

    fn trim(&mut self, start: HistoryStart) -> Result<(), StorageError> {
        self.meta.save_history(start)?;
        self.shared.set_history_start(self.meta.history);
        self.step(Step::TrimRecorded)?;
        self.remove_before(start.index)
    }

    /// Takes fetched databases over if they still end where the history begins: first they get their places, the newest
    /// first, then it is recorded that they count. After a crash in between they are removed as if purged.
    fn adopt(&mut self, fetched: &FetchedLog) -> Result<bool, StorageError> {
        let (begins, oldest) =
            (self.shared.tail.indexes(Reads::History).start, self.shared.databases.oldest());
        if fetched.end() != begins || oldest.is_some_and(|oldest| oldest != begins) {
            return Ok(false);
        }
        self.shared.databases.take_over(fetched.databases())?;
        self.step(Step::FetchedMoved)?;
        self.meta.save_history(fetched.start())?;
        if oldest.is_none() {
            self.last = self.shared.databases.end()?;
        }
        self.shared.set_history_start(self.meta.history);
        self.shared.tail.adopt(fetched.start().index);
        Ok(true)
    }

    /// It is recorded that they are not needed: the databases that hold nothing else are removed, oldest first.
    fn remove_before(&mut self, index: u64) -> Result<(), StorageError> {
        let Some(upto) = index.checked_sub(1) else { return Ok(()) };
        for first in self.shared.databases.ending_at_or_before(upto, self.last.map(|last| last.index)) {
            if self.current.as_ref().is_some_and(|current| current.first() == first) {
                self.current = None;
            }
            self.discard(first)?;
        }
        if self.current.is_none() {
            self.last = None;
        }
        Ok(())
    }

    fn discard(&self, first: u64) -> Result<(), StorageError> {
        if let Some(removed) = self.shared.databases.remove(first)? {
            // It ends only after this thread. If it is gone all the same, the next start deletes the folder.
            let _ = self.reaper.send(removed);
        }
        Ok(())
    }

    /// What is durable now. Nothing that is claimed here is truncated: see [`Writer::truncate`].
    fn end_record(&self) -> EndRecord {
        EndRecord { durable: self.last, committed: self.shared.tail.committed(), vote: self.meta.vote }
    }

    fn step(&self, step: Step) -> Result<(), StorageError> {
        let at = self.current.as_ref().map_or("log".into(), |current| current.first().to_string());
        self.options.hooks.at_step(step).map_err(failed("go on with", at.as_ref()))
    }

    /// Records where the log ends, and closes everything.
    fn finish(mut self, done: Done) {
        let result = self.attempt(|writer| writer.end.save(writer.end_record()));
        match result {
            Ok(()) => {
                self.shared.stop("it was shut down");
                self.shared.databases.close();
                drop((self.current, self.meta));
                let _ = done.send(Ok(()));
            }
            Err(cause) => {
                self.shared.databases.abandon();
                std::mem::forget((self.meta, self.current));
                let _ = done.send(Err(StorageError::Stopped { cause }));
            }
        }
    }
}

/// Runs a piece of work. sled panics on some errors; the callers that wait must hear of that too.
fn guarded(work: impl FnOnce() -> Result<(), StorageError>) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| describe(&error)),
        Err(panic) => Err(format!("the log writer panicked: {}", panic_message(panic.as_ref()))),
    }
}

/// Answers everything that is left with the cause.
fn refuse(queue: &mut mpsc::Receiver<Operation>, mut waiting: VecDeque<Operation>, cause: &str) {
    queue.close();
    while let Some(operation) = waiting.pop_front().or_else(|| queue.blocking_recv()) {
        match operation {
            Operation::Append(append) => {
                let error = StorageError::Stopped { cause: cause.to_owned() };
                append.callback.io_completed(Err(error.into()));
            }
            Operation::SaveVote { done, .. }
            | Operation::Truncate { done, .. }
            | Operation::Purge { done, .. }
            | Operation::Trim { done, .. }
            | Operation::Shutdown { done } => {
                let _ = done.send(Err(StorageError::Stopped { cause: cause.to_owned() }));
            }
            Operation::Adopt { adopted, .. } => {
                let _ = adopted.send(Err(StorageError::Stopped { cause: cause.to_owned() }));
            }
        }
    }
}
