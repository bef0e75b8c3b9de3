//! The history: every event that was ever applied, as far back as the log reaches. Watch, audit and time travel
//! read it. The newest part is in memory ([`feed`]); the rest is the Raft log itself, in which [`checkpoints`] say
//! where a revision is found.
//!
//! Architecture invariants: there is no second copy of an event on disk. What is read here is what the state
//! applied: entries that were skipped are skipped here too ([`fold`]), and nothing that is not yet published.

use std::sync::{Arc, PoisonError, RwLock};

use sandkeeper_statemachine::{Event, Revision, Timestamp};
use tokio::time::Instant;

pub mod checkpoints;
pub mod feed;
pub mod fold;
#[cfg(test)]
pub(crate) mod testing;

use checkpoints::{Checkpoint, Checkpoints};
use feed::Feed;
pub use feed::{AppliedEntry, Digests, FEED_BYTES};
use fold::{Fold, LogSource, SourceError};

use crate::raft::replica::{Replica, View, WaitError};

/// Why a part of the history can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// It is older than what this node keeps.
    #[error("the history is kept from revision {oldest} on")]
    Compacted {
        /// The oldest revision that can be read.
        oldest: Revision,
    },
    /// This node's disk failed, or its log is corrupt.
    #[error("cannot read the history: {0}")]
    Fault(String),
}

/// One event of the history.
#[derive(Clone, Debug)]
pub struct HistoryEvent {
    /// Its position.
    pub revision: Revision,
    /// When it was decided.
    pub time: Timestamp,
    /// Itself.
    pub event: Event,
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

    /// Before log entry `index` is applied to a state at `revision`.
    pub(crate) fn pass(&self, index: u64, revision: Revision) {
        self.write(|noted| noted.checkpoints.pass(index, revision));
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
}

impl History {
    /// Reads what `recorder` notes, bounded by what `replica` has published, and the rest from `log`.
    pub(crate) fn new(recorder: Recorder, replica: Replica, log: Arc<dyn LogSource>) -> Self {
        Self { recorder, replica, log }
    }

    /// The entries from the one that holds event `from` on (it may begin earlier), up to `max_bytes` of encoded
    /// entries, but at least one. Empty if `from` has not happened yet.
    ///
    /// # Errors
    /// [`HistoryError::Compacted`] if `from` is too old; [`HistoryError::Fault`] if the disk fails.
    pub async fn read(&self, from: Revision, max_bytes: usize) -> Result<Vec<AppliedEntry>, HistoryError> {
        let view = self.replica.view();
        let from = from.max(1);
        if from > view.revision() {
            return Ok(Vec::new());
        }
        match self.plan(from, &view, max_bytes) {
            Plan::Memory(entries) => Ok(entries),
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

    /// The event with this revision; `None` if it has not happened yet.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn event_at(&self, revision: Revision) -> Result<Option<HistoryEvent>, HistoryError> {
        let entries = self.read(revision, 1).await?;
        Ok(entries.first().and_then(|applied| {
            let at = usize::try_from(revision.checked_sub(applied.first_revision)?).ok()?;
            let event = applied.entry.events.get(at)?.clone();
            Some(HistoryEvent { revision, time: applied.entry.time_of(at), event })
        }))
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
    ) -> Result<Vec<AppliedEntry>, HistoryError> {
        // `from` has happened, so something is applied.
        let last_index = view.applied_index().unwrap_or(0);
        let found = match Fold::new(start).read(self.log.as_ref(), from, last_index, max_bytes).await {
            Ok(found) => found,
            Err(SourceError::Purged) => return Err(self.compacted()),
            Err(SourceError::Fault(fault)) => return Err(HistoryError::Fault(fault)),
        };
        match found.first() {
            Some(first) if first.first_revision <= from => Ok(found),
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
