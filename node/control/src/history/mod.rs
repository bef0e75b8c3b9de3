//! The history: every event that was ever applied, as far back as the log reaches. Watch, audit and time travel
//! read it. The newest part is in memory ([`feed`]); the rest is the Raft log itself, in which [`checkpoints`] say
//! where a revision is found, and [`index`] where one subject's events are. What this node does not have, but its peers
//! have, is read from them ([`Elsewhere`]).
//!
//! Architecture invariants: there is no second copy of an event on disk. What is read here is what the state
//! applied: entries that were skipped are skipped here too ([`fold`]), and nothing that is not yet published.

use std::sync::{Arc, PoisonError, RwLock};

use futures::future::BoxFuture;
use sandkeeper_statemachine::Revision;
use tokio::task::yield_now;
use tokio::time::Instant;

pub mod checkpoints;
pub mod feed;
pub mod fold;
pub(crate) mod index;
pub(crate) mod search;
#[cfg(test)]
pub(crate) mod testing;

use checkpoints::{Checkpoint, Checkpoints};
use feed::Feed;
pub use feed::{AppliedEntry, Digests, FEED_BYTES};
use fold::{Fold, LogSource, SourceError};

use crate::raft::replica::{Replica, View, WaitError};
use crate::raft::types::LogEntry;

/// Why a part of the history can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// It is older than what this node keeps.
    #[error("the history is kept from revision {oldest} on")]
    Compacted {
        /// The oldest revision that can be read, here or anywhere that this node knows of.
        oldest: Revision,
    },
    /// This node came by snapshot, and fetches what was before; no peer that has it answers.
    #[error(
        "this node does not have the history before revision {oldest} yet, and no peer that has it answers: {why}"
    )]
    NotYet {
        /// The oldest revision that this node has.
        oldest: Revision,
        /// What the peers said.
        why: String,
    },
    /// Too many look through the history at once.
    #[error("this node reads its history for others: try again")]
    Busy,
    /// This node's disk failed, or its log is corrupt.
    #[error("cannot read the history: {0}")]
    Fault(String),
}

/// Where the history is read that this node does not have.
pub trait Elsewhere: Send + Sync + 'static {
    /// The entries from the one that holds event `from` on, as [`History::read`] gives them. `oldest`: what this node has.
    ///
    /// # Errors
    /// [`HistoryError::Compacted`] if nobody has it, else why nobody gave it.
    fn read(
        &self,
        from: Revision,
        max_bytes: usize,
        oldest: Revision,
    ) -> BoxFuture<'_, Result<Vec<AppliedEntry>, HistoryError>>;
}

/// What the state machine notes while it applies.
#[derive(Clone)]
pub(crate) struct Recorder {
    noted: Arc<RwLock<Noted>>,
}

struct Noted {
    feed: Feed,
    checkpoints: Checkpoints,
}

impl Recorder {
    /// An empty one, with room for about `feed_bytes` of entries.
    pub(crate) fn new(feed_bytes: usize) -> Self {
        let noted = Noted { feed: Feed::new(feed_bytes), checkpoints: Checkpoints::default() };
        Self { noted: Arc::new(RwLock::new(noted)) }
    }

    /// Before the log entry at a position is applied.
    pub(crate) fn pass(&self, position: Checkpoint) {
        self.write(|noted| noted.checkpoints.pass(position));
    }

    /// The history reaches further back now.
    pub(crate) fn extend_back(&self, older: &[Checkpoint]) {
        self.write(|noted| noted.checkpoints.extend_back(older));
    }

    /// After an entry changed the state.
    pub(crate) fn applied(&self, entry: AppliedEntry, digests: Digests) {
        self.write(|noted| noted.feed.push(entry, digests));
    }

    /// A snapshot took the state's place. `kept`: what it says of the log before it, if this node has that log.
    pub(crate) fn restart(&self, kept: Checkpoints, next: Checkpoint) {
        self.write(|noted| {
            noted.feed.clear();
            noted.checkpoints = kept;
            noted.checkpoints.keep(next);
        });
    }

    /// The checkpoints, for a snapshot.
    pub(crate) fn checkpoints(&self) -> Checkpoints {
        self.read(|noted| noted.checkpoints.clone())
    }

    // A panic while the lock is held can't leave a half-done change that matters more than the panic itself.
    fn write<T>(&self, change: impl FnOnce(&mut Noted) -> T) -> T {
        change(&mut self.noted.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn read<T>(&self, look: impl FnOnce(&Noted) -> T) -> T {
        look(&self.noted.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where a read finds its entries.
enum Plan {
    Memory(Vec<AppliedEntry>),
    Log(Checkpoint),
    Compacted,
}

/// A handle to the history of this node. Cloning is cheap.
#[derive(Clone)]
pub struct History {
    recorder: Recorder,
    replica: Replica,
    log: Arc<dyn LogSource>,
    elsewhere: Option<Arc<dyn Elsewhere>>,
}

impl History {
    /// Reads what `recorder` notes, bounded by what `replica` has published, and the rest from `log`.
    pub(crate) fn new(recorder: Recorder, replica: Replica, log: Arc<dyn LogSource>) -> Self {
        Self { recorder, replica, log, elsewhere: None }
    }

    /// The same, and what is older than `log` reaches back from `elsewhere`.
    pub(crate) fn with_elsewhere(self, elsewhere: Arc<dyn Elsewhere>) -> Self {
        Self { elsewhere: Some(elsewhere), ..self }
    }

    /// The entries from the one that holds event `from` on (it may begin earlier), up to `max_bytes` of encoded
    /// entries, but at least one. Empty if `from` has not happened yet. From a peer, if this node does not reach back.
    ///
    /// # Errors
    /// [`HistoryError::Compacted`] if `from` is too old; [`HistoryError::Fault`] if the disk fails.
    pub async fn read(&self, from: Revision, max_bytes: usize) -> Result<Vec<AppliedEntry>, HistoryError> {
        match (self.read_here(from, max_bytes).await, &self.elsewhere) {
            (Err(HistoryError::Compacted { oldest }), Some(elsewhere)) => {
                elsewhere.read(from.max(1), max_bytes, oldest).await
            }
            (read, _) => read,
        }
    }

    /// The same, of this node alone.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_here(
        &self,
        from: Revision,
        max_bytes: usize,
    ) -> Result<Vec<AppliedEntry>, HistoryError> {
        let view = self.replica.view();
        let from = from.max(1);
        if from > view.revision() {
            return Ok(Vec::new());
        }
        match self.plan(from, &view, max_bytes) {
            Plan::Memory(entries) => Ok(entries),
            Plan::Log(start) => {
                let found = self.read_log(start, from, &view, max_bytes).await?;
                let mut entries = Vec::with_capacity(found.len());
                for log_entry in &found {
                    entries.push(fold::applied(log_entry).map_err(|error| self.source(error))?);
                    // An entry can hold thousands of events.
                    yield_now().await;
                }
                Ok(entries)
            }
            Plan::Compacted => Err(self.compacted()),
        }
    }

    /// The same, not decoded, for a peer.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) async fn read_encoded(
        &self,
        from: Revision,
        max_bytes: usize,
    ) -> Result<Vec<LogEntry>, HistoryError> {
        let view = self.replica.view();
        if from > view.revision() {
            return Ok(Vec::new());
        }
        match self.plan(from, &view, max_bytes) {
            Plan::Memory(entries) => Ok(entries.iter().map(AppliedEntry::to_log_entry).collect()),
            Plan::Log(start) => self.read_log(start, from, &view, max_bytes).await,
            Plan::Compacted => Err(self.compacted()),
        }
    }

    /// The oldest revision that [`Self::read`] gives, or the next one, if it gives none.
    pub fn oldest_revision(&self) -> Revision {
        let first_index = self.log.first_index();
        let oldest = self.recorder.write(|noted| {
            noted.checkpoints.prune_below(first_index);
            let logged = noted.checkpoints.oldest().map(|position| position.revision + 1);
            [logged, noted.feed.oldest()].into_iter().flatten().min()
        });
        let next = self.replica.revision() + 1;
        oldest.map_or(next, |oldest| oldest.min(next))
    }

    /// The newest position at or before a log index, and the oldest that there is: from where a peer is given the log.
    pub(crate) fn position_for(&self, index: u64) -> Option<Checkpoint> {
        let first_index = self.log.first_index();
        self.recorder.write(|noted| noted.checkpoints.prune_below(first_index));
        self.recorder.read(|noted| noted.checkpoints.at_or_before(index).or(noted.checkpoints.oldest()))
    }

    /// The oldest position at or behind a log index.
    pub(crate) fn position_behind(&self, index: u64) -> Option<Checkpoint> {
        self.recorder.read(|noted| noted.checkpoints.at_or_behind(index))
    }

    /// Whether everything from `revision` on is in memory.
    fn remembers(&self, revision: Revision) -> bool {
        self.recorder.read(|noted| noted.feed.oldest().is_some_and(|oldest| oldest <= revision))
    }

    /// The entry that stands at a log index, and holds event `revision`.
    async fn entry_at(&self, index: u64, revision: Revision) -> Result<AppliedEntry, HistoryError> {
        let remembered = self.recorder.read(|noted| noted.feed.read(revision, Revision::MAX, 1));
        let remembered = remembered.and_then(|entries| entries.into_iter().next());
        if let Some(applied) = remembered.filter(|applied| applied.index == index) {
            return Ok(applied);
        }
        let entries = self.log.entries_from(index, 1).await.map_err(|error| self.source(error))?;
        let wrong =
            || HistoryError::Fault(format!("log entry {index} is not the one with revision {revision}"));
        let applied =
            entries.first().map(fold::applied).ok_or_else(wrong)?.map_err(|error| self.source(error))?;
        let holds = (applied.first_revision..=applied.last_revision()).contains(&revision);
        if applied.index == index && holds { Ok(applied) } else { Err(wrong()) }
    }

    fn source(&self, error: SourceError) -> HistoryError {
        match error {
            SourceError::Purged => self.compacted(),
            SourceError::Fault(fault) => HistoryError::Fault(fault),
        }
    }

    /// The newest revision that [`Self::read`] gives; 0: there is none.
    pub fn newest_revision(&self) -> Revision {
        self.replica.revision()
    }

    /// Waits until there is an event after `revision`.
    ///
    /// # Errors
    /// If there is none by `deadline`, or the node stops.
    pub async fn wait_newer(&self, revision: Revision, deadline: Instant) -> Result<(), WaitError> {
        self.replica.wait_revision(revision + 1, deadline).await.map(|_| ())
    }

    /// The digests at a revision that an entry ended with. `None` if it is not reached, not the end of an entry, or
    /// too long ago.
    pub fn digests_at(&self, revision: Revision) -> Option<Digests> {
        let view = self.replica.view();
        if view.revision() == revision {
            return Some(digests_of(&view.state));
        }
        self.recorder.read(|noted| noted.feed.digests_at(revision))
    }

    fn plan(&self, from: Revision, view: &View, max_bytes: usize) -> Plan {
        let first_index = self.log.first_index();
        self.recorder.read(|noted| {
            if let Some(entries) = noted.feed.read(from, view.revision(), max_bytes) {
                return Plan::Memory(entries);
            }
            match noted.checkpoints.before(from) {
                Some(start) if start.index >= first_index => Plan::Log(start),
                _ => Plan::Compacted,
            }
        })
    }

    async fn read_log(
        &self,
        start: Checkpoint,
        from: Revision,
        view: &View,
        max_bytes: usize,
    ) -> Result<Vec<LogEntry>, HistoryError> {
        // `from` has happened, so something is applied.
        let last_index = view.applied_index().unwrap_or(0);
        let found = match Fold::new(start).read(self.log.as_ref(), from, last_index, max_bytes).await {
            Ok(found) => found,
            Err(error) => return Err(self.source(error)),
        };
        match found.first() {
            Some(first) if fold::first_revision(first).is_some_and(|first| first <= from) => Ok(found),
            _ => Err(HistoryError::Fault(format!("revision {from} is not where the checkpoints say it is"))),
        }
    }

    fn compacted(&self) -> HistoryError {
        HistoryError::Compacted { oldest: self.oldest_revision() }
    }
}

/// The digests of a state.
pub fn digests_of(state: &sandkeeper_statemachine::State) -> Digests {
    Digests { revision: state.revision(), history: state.history_digest(), state: state.state_digest() }
}

#[cfg(test)]
mod tests;
