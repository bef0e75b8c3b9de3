//! Reading the log: for replication and apply (openraft), and for watchers, audit and time travel.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;

use futures::{Stream, stream};
use openraft::RaftLogReader;

use super::meta::HistoryStart;
use super::tail::Reads;
use super::writer::Shared;
use crate::raft::types::{LogEntry, TypeConfig, Vote};
use crate::storage::StorageError;

/// How much is read at once for a follower or for apply. A gRPC message must be able to hold it, with an entry that
/// exceeds it.
const READ_BYTES: usize = 1 << 20;

/// Why history can't be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// It is no longer there: the reader's wish comes too late.
    #[error("the log before index {oldest} is purged")]
    Purged {
        /// The oldest index that can be read.
        oldest: u64,
    },
    /// The disk of this node failed.
    #[error("the log cannot be read")]
    Fault(#[from] StorageError),
}

/// Reads the log. Cheap to clone; any number of readers may read at once.
#[derive(Clone)]
pub struct LogReader {
    shared: Arc<Shared>,
}

impl LogReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The index of the oldest entry that can be read here, though Raft may not need it any more. If there is none, of
    /// the one that comes next.
    pub fn first_index(&self) -> u64 {
        self.shared.tail.indexes(Reads::History).start
    }

    /// The index of the oldest entry that Raft can read: what is not purged.
    pub fn first_raft_index(&self) -> u64 {
        self.shared.tail.indexes(Reads::Raft).start
    }

    /// Where the history on this disk begins, if not where the log began.
    pub fn history_start(&self) -> Option<HistoryStart> {
        self.shared.history_start()
    }

    /// The index of the last entry, durable or not, committed or not; `None` if there is none.
    pub fn last_index(&self) -> Option<u64> {
        let indexes = self.shared.tail.indexes(Reads::Raft);
        if indexes.is_empty() { None } else { indexes.end.checked_sub(1) }
    }

    /// Entries from `index` on: at least one, then as many as make up about `max_bytes`; none if the log ends before
    /// it. They need not be committed; what a watcher sees must be bounded by what is applied.
    ///
    /// # Errors
    /// If `index` is purged, or the disk fails.
    pub async fn entries_from(&self, index: u64, max_bytes: usize) -> Result<Vec<LogEntry>, HistoryError> {
        let (first, entries) = self.read(Reads::History, index..u64::MAX, Some(max_bytes)).await?;
        if index < first { Err(HistoryError::Purged { oldest: first }) } else { Ok(entries) }
    }

    /// From which entry on the log takes no more than `bytes` on the disk, up to the entry `upto`; what stands behind it
    /// does not count. Rounded to whole databases, and at least the one with `upto` in it. None: all of it takes no more.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn first_within(&self, bytes: u64, upto: u64) -> Result<Option<u64>, StorageError> {
        self.shared.check()?;
        self.blocking(move |shared| shared.databases.first_within(bytes, upto)).await
    }

    /// Prepares one sealed database for quick reads, if one is not: finds where its blocks are. False if all are.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn find_places(&self) -> Result<bool, StorageError> {
        self.shared.check()?;
        let Some(committed) = self.shared.tail.committed() else { return Ok(false) };
        self.blocking(move |shared| shared.databases.find_places(committed.index)).await
    }

    /// Reads the entries of `range`; all of them, or if there is a limit, some from the first one on. Returns them
    /// behind the oldest index that could be read.
    async fn read(
        &self,
        reads: Reads,
        range: Range<u64>,
        limit: Option<usize>,
    ) -> Result<(u64, Vec<LogEntry>), StorageError> {
        loop {
            self.shared.check()?;
            let plan = self.shared.tail.plan(reads, &range, limit);
            if plan.disk.is_empty() {
                return Ok((plan.first, plan.cached));
            }
            let disk = plan.disk.clone();
            let max_bytes = limit.unwrap_or(usize::MAX);
            let read =
                self.blocking(move |shared| shared.databases.read(disk.start, disk.end, max_bytes)).await;
            // A truncation or a purge may have taken away what was being read; what is wanted of the rest is known
            // only now.
            if self.shared.tail.epoch() != plan.epoch {
                continue;
            }
            let mut entries = read?;
            check_complete(&entries, &plan.disk, limit.is_none())?;
            entries.extend(plan.cached);
            return Ok((plan.first, entries));
        }
    }

    /// Runs something that reads the disk, off the runtime.
    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let shared = Arc::clone(&self.shared);
        match tokio::task::spawn_blocking(move || read(&shared)).await {
            Ok(result) => result,
            Err(error) => Err(StorageError::Stopped { cause: format!("reading the log failed: {error}") }),
        }
    }
}

/// The disk must have what the bounds of the log promise.
fn check_complete(entries: &[LogEntry], wanted: &Range<u64>, all: bool) -> Result<(), StorageError> {
    let begins = entries.first().is_some_and(|entry| entry.log_id.index == wanted.start);
    let ends = !all || entries.last().is_some_and(|entry| entry.log_id.index + 1 == wanted.end);
    if begins && ends {
        return Ok(());
    }
    let found = entries.first().zip(entries.last());
    let found =
        found.map_or("nothing".to_owned(), |(a, b)| format!("{} to {}", a.log_id.index, b.log_id.index));
    Err(StorageError::CorruptLog {
        dir: "log".into(),
        key: wanted.start.to_string(),
        what: format!("a hole: entries before {} are wanted, and the disk has {found}", wanted.end),
    })
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<LogEntry>, io::Error> {
        let (_, entries) = self.read(Reads::Raft, bounds(&range), None).await?;
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.shared.check()?;
        Ok(self.shared.tail.vote())
    }

    /// At most about [`READ_BYTES`]. If `start` is purged, nothing: openraft takes that for a heartbeat, and would
    /// send entries from another index than it says otherwise (#1795).
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<LogEntry>, io::Error> {
        let (first, entries) = self.read(Reads::Raft, start..end, Some(READ_BYTES)).await?;
        Ok(if start < first { Vec::new() } else { entries })
    }

    /// In pieces of [`READ_BYTES`], so that catching up on a long log doesn't take it into memory whole.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<LogEntry, io::Error>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let state =
            Piecewise { reader: self.clone(), left: bounds(&range), begun: false, read: VecDeque::new() };
        stream::try_unfold(state, |mut state| async move {
            let entry = state.next().await?;
            Ok(entry.map(|entry| (entry, state)))
        })
    }
}

/// A read that goes on where the last piece ended.
struct Piecewise {
    reader: LogReader,
    left: Range<u64>,
    begun: bool,
    read: VecDeque<LogEntry>,
}

impl Piecewise {
    async fn next(&mut self) -> Result<Option<LogEntry>, StorageError> {
        if self.read.is_empty() && !self.left.is_empty() {
            let (first, entries) = self.reader.read(Reads::Raft, self.left.clone(), Some(READ_BYTES)).await?;
            if self.begun && first > self.left.start {
                let cause = format!("entry {} was purged while it was read", self.left.start);
                return Err(StorageError::Stopped { cause });
            }
            self.begun = true;
            self.left.start = entries.last().map_or(self.left.end, |entry| entry.log_id.index + 1);
            self.read = entries.into();
        }
        Ok(self.read.pop_front())
    }
}
