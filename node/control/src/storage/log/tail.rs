//! What the log is for those who read it: its bounds, the vote, and its newest entries, in memory.
//!
//! The disk is always behind: an entry is in here before `append` returns, and leaves only after it is durable. So
//! whoever reads looks here first, and finds on the disk all that is older.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use openraft::EntryPayload;

use super::block;
use crate::raft::types::{LogEntry, LogId, Vote};
use crate::storage::StorageError;

struct Cached {
    entry: LogEntry,
    /// What a read of it counts, bytes.
    weight: usize,
    /// The memory that it takes, bytes.
    memory: usize,
    /// Which append brought it.
    append: u64,
}

struct State {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// The last entry, or what was purged last.
    last: Option<LogId>,
    /// The index of the oldest entry that is not purged, or that comes next.
    first: u64,
    /// The index of the oldest entry that is kept for readers of the history; at most `first`.
    history: u64,
    /// The newest entries, without a hole, up to the last.
    cache: VecDeque<Cached>,
    cache_bytes: usize,
    /// The number of the last append.
    appends: u64,
    /// The number of the last append that is durable.
    durable: u64,
    /// Counts truncations and purges. A reader that began before one reads again.
    epoch: u64,
}

impl State {
    fn next_index(&self) -> u64 {
        self.last.map_or(self.first, |last| last.index + 1)
    }

    fn first_for(&self, reads: Reads) -> u64 {
        match reads {
            Reads::Raft => self.first,
            Reads::History => self.history,
        }
    }

    fn cache_first(&self) -> u64 {
        self.cache.front().map_or(self.next_index(), |cached| cached.entry.log_id.index)
    }

    fn drop_front(&mut self) {
        if let Some(cached) = self.cache.pop_front() {
            self.cache_bytes -= cached.memory;
        }
    }

    fn trim(&mut self, limit: usize) {
        while self.cache_bytes > limit && self.cache.front().is_some_and(|front| front.append <= self.durable)
        {
            self.drop_front();
        }
    }
}

fn memory_bytes(entry: &LogEntry) -> usize {
    let payload = match &entry.payload {
        EntryPayload::Normal(data) => data.memory_bytes(),
        // Few, and small.
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    };
    size_of::<Cached>() + payload
}

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    /// Raft: what is not purged.
    Raft,
    /// A reader of the history, which is kept for longer.
    History,
}

/// What a purge means for the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purge {
    /// Raft needs the entries no longer; they stay as history.
    Kept,
    /// The log does not reach to where it was purged (a snapshot went beyond its end), so what it has would leave a
    /// hole: all of it goes.
    Cut,
}

/// The part of a read that is on the disk, and the part that is here.
pub(super) struct Plan {
    /// Counts truncations and purges.
    pub epoch: u64,
    /// The oldest index that can be read.
    pub first: u64,
    /// What has to be read from the disk; may be empty.
    pub disk: Range<u64>,
    /// What follows it. If the read is limited and something is on the disk, nothing.
    pub cached: Vec<LogEntry>,
}

/// Where an open log stands.
pub(super) struct Bounds {
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    pub last: Option<LogId>,
    /// Where the history begins, if that is recorded.
    pub history: Option<u64>,
    /// The first index of the oldest database, if there is one.
    pub oldest: Option<u64>,
}

/// See the module.
pub(super) struct Tail {
    state: Mutex<State>,
    cache_limit: usize,
}

impl Tail {
    pub(super) fn new(bounds: &Bounds, cache_limit: usize) -> Self {
        let behind_purged = bounds.purged.map(|purged| purged.index + 1);
        let first = behind_purged.or(bounds.oldest).unwrap_or(0);
        let state = State {
            vote: bounds.vote,
            committed: bounds.committed,
            purged: bounds.purged,
            last: bounds.last,
            first,
            history: bounds.history.or(bounds.oldest).unwrap_or(first).min(first),
            cache: VecDeque::new(),
            cache_bytes: 0,
            appends: 0,
            durable: 0,
            epoch: 0,
        };
        Self { state: Mutex::new(state), cache_limit }
    }

    /// Makes entries readable, and gives them to `queue` with the number of the append, while nothing else can come
    /// between.
    pub(super) fn append(
        &self,
        entries: Vec<LogEntry>,
        queue: impl FnOnce(Vec<LogEntry>, u64),
    ) -> Result<(), StorageError> {
        let mut state = self.lock();
        // An empty log that was never purged may begin anywhere. Raft begins at 0; openraft's conformance suite
        // does not.
        let begins = state.last.is_none();
        let first = match entries.first() {
            Some(entry) if begins => entry.log_id.index,
            _ => state.next_index(),
        };
        for (expected, entry) in (first..).zip(&entries) {
            if entry.log_id.index != expected {
                return Err(StorageError::NotContiguous { expected, found: entry.log_id.index });
            }
        }
        state.appends += 1;
        let append = state.appends;
        if begins {
            (state.first, state.history) = (first, first);
        }
        for entry in &entries {
            let (weight, memory) = (block::weight(entry), memory_bytes(entry));
            state.last = Some(entry.log_id);
            state.cache_bytes += memory;
            state.cache.push_back(Cached { entry: entry.clone(), weight, memory, append });
        }
        queue(entries, append);
        Ok(())
    }

    /// All appends up to this one are on the disk.
    pub(super) fn durable(&self, append: u64) {
        let mut state = self.lock();
        state.durable = append;
        state.trim(self.cache_limit);
    }

    /// Makes the entries behind `after` unreadable. Returns the first index that is to be removed from the disk with the
    /// last log id that is left, or `None` if there is nothing to be removed.
    pub(super) fn truncate(&self, after: Option<LogId>) -> Option<(u64, Option<LogId>)> {
        let mut state = self.lock();
        let from = after.map_or(0, |id| id.index + 1).max(state.first);
        if from >= state.next_index() {
            return None;
        }
        state.epoch += 1;
        while state.cache.back().is_some_and(|cached| cached.entry.log_id.index >= from) {
            if let Some(cached) = state.cache.pop_back() {
                state.cache_bytes -= cached.memory;
            }
        }
        state.last = if from == state.first { state.purged } else { after };
        Some((from, state.last))
    }

    /// Makes the entries up to `upto` unreadable for Raft. `None` if they are already.
    pub(super) fn purge(&self, upto: LogId) -> Option<Purge> {
        let mut state = self.lock();
        if state.purged.is_some_and(|purged| purged.index >= upto.index) {
            return None;
        }
        state.epoch += 1;
        state.purged = Some(upto);
        state.first = upto.index + 1;
        if state.last.is_some_and(|last| last.index >= upto.index) {
            return Some(Purge::Kept);
        }
        state.last = Some(upto);
        state.history = state.first;
        state.cache.clear();
        state.cache_bytes = 0;
        Some(Purge::Cut)
    }

    /// Makes the entries before `index` unreadable for everybody; Raft must not need them. Returns whether that changes
    /// anything.
    pub(super) fn trim(&self, index: u64) -> bool {
        let mut state = self.lock();
        if index <= state.history || index > state.first {
            return false;
        }
        state.epoch += 1;
        state.history = index;
        true
    }

    /// Makes entries readable that stand before all others now, from `index` on.
    pub(super) fn adopt(&self, index: u64) {
        self.lock().history = index;
    }

    /// Splits a read of the indexes `range` into what is on the disk and what is here. With `limit`, the part that
    /// is here is at most about that many bytes.
    pub(super) fn plan(&self, reads: Reads, range: &Range<u64>, limit: Option<usize>) -> Plan {
        let state = self.lock();
        let first = state.first_for(reads);
        let from = range.start.max(first);
        let end = range.end.min(state.next_index()).max(from);
        let cache_first = state.cache_first();
        let disk = from..end.min(cache_first).max(from);
        let mut cached = Vec::new();
        if limit.is_none() || disk.is_empty() {
            let skip = disk.end.saturating_sub(cache_first) as usize;
            let mut left = limit.unwrap_or(usize::MAX);
            for item in state.cache.iter().skip(skip) {
                if item.entry.log_id.index >= end || left == 0 {
                    break;
                }
                left = left.saturating_sub(item.weight);
                cached.push(item.entry.clone());
            }
        }
        Plan { epoch: state.epoch, first, disk, cached }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// The purged and the last log id.
    pub(super) fn bounds(&self) -> (Option<LogId>, Option<LogId>) {
        let state = self.lock();
        (state.purged, state.last)
    }

    /// The indexes that can be read.
    pub(super) fn indexes(&self, reads: Reads) -> Range<u64> {
        let state = self.lock();
        state.first_for(reads)..state.next_index()
    }

    pub(super) fn vote(&self) -> Option<Vote> {
        self.lock().vote
    }

    pub(super) fn set_vote(&self, vote: Vote) {
        self.lock().vote = Some(vote);
    }

    pub(super) fn committed(&self) -> Option<LogId> {
        self.lock().committed
    }

    pub(super) fn set_committed(&self, committed: Option<LogId>) {
        let mut state = self.lock();
        state.committed = state.committed.max(committed);
    }

    /// Nothing that runs under the lock panics.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
