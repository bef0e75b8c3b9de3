//! The newest applied entries, in memory: what nearly every watcher reads.

use std::collections::VecDeque;
use std::sync::Arc;

use openraft::EntryPayload;
use sandkeeper_statemachine::{Digest, Entry, Revision};

use crate::raft::types::{EntryData, LogEntry, LogId};

/// How much memory the kept entries take. A watcher that is no further behind (some 20,000 events) never touches the
/// disk.
pub const FEED_BYTES: usize = 16 * 1024 * 1024;
/// Entries that one read takes at most, which bounds how long a reader holds the lock.
const MAX_ENTRIES: usize = 1024;

/// An entry that changed the state.
#[derive(Clone, Debug)]
pub struct AppliedEntry {
    /// The revision of its first event; event i has this plus i.
    pub first_revision: Revision,
    /// The Raft term of its log id.
    pub term: u64,
    /// The index of its log id.
    pub index: u64,
    /// The entry.
    pub entry: Arc<Entry>,
}

impl AppliedEntry {
    /// The revision of its last event.
    pub fn last_revision(&self) -> Revision {
        self.entry.last_revision()
    }

    /// As it stands in the log.
    pub fn to_log_entry(&self) -> LogEntry {
        let data = EntryData::from_bytes(self.entry.encoded().clone());
        LogEntry { log_id: LogId::new(self.term.into(), self.index), payload: EntryPayload::Normal(data) }
    }

    /// Its encoded length, bytes.
    pub fn encoded_bytes(&self) -> usize {
        self.entry.encoded().len()
    }
}

/// The two digests of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digests {
    /// The revision that they are of.
    pub revision: Revision,
    /// The chain over all events up to it.
    pub history: Digest,
    /// The sum over all records.
    pub state: Digest,
}

struct Item {
    applied: AppliedEntry,
    /// In memory.
    bytes: usize,
    /// After the entry.
    digests: Digests,
}

/// A ring of applied entries, without gaps, bounded by the memory that they take.
pub struct Feed {
    items: VecDeque<Item>,
    bytes: usize,
    limit: usize,
}

impl Feed {
    /// An empty feed that keeps about `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { items: VecDeque::new(), bytes: 0, limit }
    }

    /// Adds the next entry, and drops the oldest ones that no longer fit.
    pub fn push(&mut self, applied: AppliedEntry, digests: Digests) {
        let bytes = applied.entry.memory_bytes();
        self.bytes += bytes;
        self.items.push_back(Item { applied, bytes, digests });
        while self.bytes > self.limit && self.items.len() > 1 {
            if let Some(dropped) = self.items.pop_front() {
                self.bytes -= dropped.bytes;
            }
        }
    }

    /// Forgets everything: after a snapshot there would be a gap.
    pub fn clear(&mut self) {
        self.items.clear();
        self.bytes = 0;
    }

    /// The revision of the oldest event that is kept.
    pub fn oldest(&self) -> Option<Revision> {
        self.items.front().map(|item| item.applied.first_revision)
    }

    /// The entries from the one that holds event `from`, up to that of event `to`, and up to `max_bytes`, but at
    /// least one. `None` if the feed begins later.
    pub fn read(&self, from: Revision, to: Revision, max_bytes: usize) -> Option<Vec<AppliedEntry>> {
        if self.oldest()? > from {
            return None;
        }
        let start = self.items.partition_point(|item| item.applied.last_revision() < from);
        let mut bytes = 0;
        let mut entries = Vec::new();
        for item in self.items.range(start..).take(MAX_ENTRIES) {
            let size = item.applied.encoded_bytes();
            if item.applied.last_revision() > to || (bytes + size > max_bytes && !entries.is_empty()) {
                break;
            }
            bytes += size;
            entries.push(item.applied.clone());
        }
        Some(entries)
    }

    /// The digests at a revision that an entry ended with, if that entry is kept.
    pub fn digests_at(&self, revision: Revision) -> Option<Digests> {
        let at = self.items.partition_point(|item| item.digests.revision < revision);
        self.items.get(at).map(|item| item.digests).filter(|digests| digests.revision == revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing::filler;

    fn feed(limit: usize, counts: &[usize]) -> Feed {
        let mut feed = Feed::new(limit);
        let mut revision = 0;
        for (index, count) in (0..).zip(counts) {
            let entry = Arc::new(filler(revision, 1, *count));
            let first_revision = revision + 1;
            revision = entry.last_revision();
            let digests =
                Digests { revision, history: Digest([revision as u8; 32]), state: Digest::default() };
            feed.push(AppliedEntry { first_revision, term: 1, index, entry }, digests);
        }
        feed
    }

    fn firsts(entries: &[AppliedEntry]) -> Vec<Revision> {
        entries.iter().map(|entry| entry.first_revision).collect()
    }

    #[test]
    fn a_read_begins_with_the_entry_that_holds_the_event() {
        let feed = feed(usize::MAX, &[2, 3, 1]);
        assert_eq!(firsts(&feed.read(1, 6, usize::MAX).unwrap()), [1, 3, 6]);
        assert_eq!(firsts(&feed.read(4, 6, usize::MAX).unwrap()), [3, 6]);
        assert_eq!(firsts(&feed.read(4, 5, usize::MAX).unwrap()), [3], "6 is not published yet");
        assert_eq!(firsts(&feed.read(7, 9, usize::MAX).unwrap()), []);
        assert_eq!(firsts(&feed.read(1, 6, 1).unwrap()), [1], "at least one");
    }

    #[test]
    fn it_keeps_the_newest_within_its_bytes() {
        let feed = feed(3000, &[1; 50]);
        let oldest = feed.oldest().unwrap();
        assert!(oldest > 1 && oldest < 50, "{oldest}");
        assert!(feed.bytes <= 3000);
        assert!(feed.read(oldest - 1, 50, usize::MAX).is_none());
        assert_eq!(feed.read(oldest, 50, usize::MAX).unwrap().len() as u64, 51 - oldest);
    }

    #[test]
    fn digests_are_those_of_the_ends_of_entries() {
        let feed = feed(usize::MAX, &[2, 3, 1]);
        assert_eq!(feed.digests_at(5).unwrap().history, Digest([5; 32]));
        assert_eq!(feed.digests_at(4), None);
        assert_eq!(feed.digests_at(7), None);
    }
}
