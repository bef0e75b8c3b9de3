//! Finding events in the log: compare and append, folded exactly as the state does it, but by the entries' heads: only
//! what is wanted is decoded.

use futures::future::BoxFuture;
use openraft::EntryPayload;
use sandkeeper_statemachine::{Entry, Revision};
use tokio::task::yield_now;

use super::checkpoints::Checkpoint;
use super::feed::AppliedEntry;
use crate::raft::types::LogEntry;
use crate::storage::describe;
use crate::storage::log::{HistoryError, LogReader};

/// How much of the log is read at a time, bytes.
const READ_BYTES: usize = 1024 * 1024;

/// Where log entries are read from.
pub trait LogSource: Send + Sync + 'static {
    /// The entries from `index` on, about `max_bytes` of them, at least one if it is there; empty at the end.
    ///
    /// # Errors
    /// [`SourceError::Purged`] if `index` is no longer kept.
    fn entries_from(&self, index: u64, max_bytes: usize)
    -> BoxFuture<'_, Result<Vec<LogEntry>, SourceError>>;

    /// The index of the first entry that is kept (or would be the next, if none is).
    fn first_index(&self) -> u64;
}

/// Why the log did not give its entries.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// They are purged.
    #[error("the log begins later")]
    Purged,
    /// The disk, or what is on it.
    #[error("{0}")]
    Fault(String),
}

impl LogSource for LogReader {
    fn entries_from(
        &self,
        index: u64,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<Vec<LogEntry>, SourceError>> {
        Box::pin(async move {
            LogReader::entries_from(self, index, max_bytes).await.map_err(|error| match error {
                HistoryError::Purged { .. } => SourceError::Purged,
                HistoryError::Fault(fault) => SourceError::Fault(describe(&fault)),
            })
        })
    }

    fn first_index(&self) -> u64 {
        LogReader::first_index(self)
    }
}

/// Folds the log from a checkpoint on.
pub struct Fold {
    next_index: u64,
    revision: Revision,
}

impl Fold {
    /// Begins at a checkpoint.
    pub fn new(start: Checkpoint) -> Self {
        Self { next_index: start.index, revision: start.revision }
    }

    /// The log entries that count, none of them decoded, from the one that holds event `from`, up to log index
    /// `last_index` (nothing behind it is applied) and up to `max_bytes`, but at least one.
    ///
    /// # Errors
    /// If the log ends early, has a gap, or holds what is no entry.
    pub async fn read(
        mut self,
        source: &dyn LogSource,
        from: Revision,
        last_index: u64,
        max_bytes: usize,
    ) -> Result<Vec<LogEntry>, SourceError> {
        let mut found = Vec::new();
        let mut bytes = 0;
        while self.next_index <= last_index {
            let batch = source.entries_from(self.next_index, READ_BYTES).await?;
            if batch.is_empty() {
                let missing = format!("the log ends before entry {}, which was applied", self.next_index);
                return Err(SourceError::Fault(missing));
            }
            for entry in &batch {
                if entry.log_id.index() > last_index {
                    return Ok(found);
                }
                if !self.step(entry, from)? {
                    continue;
                }
                let size = encoded_bytes(entry);
                if bytes + size > max_bytes && !found.is_empty() {
                    return Ok(found);
                }
                bytes += size;
                found.push(entry.clone());
                if bytes >= max_bytes {
                    return Ok(found);
                }
            }
            // A batch in memory makes no other pause.
            yield_now().await;
        }
        Ok(found)
    }

    /// Takes the next log entry: whether it counts and reaches `from`.
    fn step(&mut self, log_entry: &LogEntry, from: Revision) -> Result<bool, SourceError> {
        let index = log_entry.log_id.index();
        if index != self.next_index {
            let gap = format!("the log holds entry {index} where entry {} belongs", self.next_index);
            return Err(SourceError::Fault(gap));
        }
        self.next_index += 1;
        let Some(revision) = revision_after(log_entry, self.revision)? else { return Ok(false) };
        self.revision = revision;
        Ok(revision >= from)
    }
}

/// The revision of the first event of an entry that counts.
pub fn first_revision(log_entry: &LogEntry) -> Option<Revision> {
    let EntryPayload::Normal(data) = &log_entry.payload else { return None };
    Entry::peek(data.bytes()).map(|head| head.base_revision + 1)
}

fn encoded_bytes(log_entry: &LogEntry) -> usize {
    if let EntryPayload::Normal(data) = &log_entry.payload { data.bytes().len() } else { 0 }
}

/// The revision after a log entry, if it changes a state at `revision`: it follows that one, was decided in its own term,
/// and has events. The same that `apply` asks.
///
/// # Errors
/// If it is no entry of a format that this version reads.
pub fn revision_after(log_entry: &LogEntry, revision: Revision) -> Result<Option<Revision>, SourceError> {
    let EntryPayload::Normal(data) = &log_entry.payload else { return Ok(None) };
    let Some(head) = Entry::peek(data.bytes()) else {
        let index = log_entry.log_id.index();
        return Err(SourceError::Fault(format!("log entry {index} is none that this version reads")));
    };
    let term = log_entry.log_id.committed_leader_id().term;
    let counts = head.base_revision == revision && head.decided_term == term && head.events > 0;
    Ok(counts.then(|| revision + u64::from(head.events)))
}

/// An entry that is known to count.
///
/// # Errors
/// If it can't be decoded.
pub fn applied(log_entry: &LogEntry) -> Result<AppliedEntry, SourceError> {
    let (index, term) = (log_entry.log_id.index(), log_entry.log_id.committed_leader_id().term);
    let fault = |what: &str| SourceError::Fault(format!("log entry {index}: {what}"));
    let EntryPayload::Normal(data) = &log_entry.payload else { return Err(fault("it has no events")) };
    let entry = data.entry().map_err(|error| fault(&error.to_string()))?;
    Ok(AppliedEntry { first_revision: entry.base_revision + 1, term, index, entry })
}
