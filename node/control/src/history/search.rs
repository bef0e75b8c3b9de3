//! Finding the newest events of one subject: where the index says, and by looking through what it does not cover (yet).

use sandkeeper_statemachine::{Event, Revision, Timestamp};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::{Instant, timeout_at};

use super::index::{Key, Places, SubjectIndex};
use super::{AppliedEntry, History, HistoryError};
use crate::storage::describe;

/// Revisions that are looked through at a time.
const WINDOW: Revision = 4_096;
/// Encoded entries that are read at a time, bytes.
const READ_BYTES: usize = 1024 * 1024;

/// Takes what is found, newest first.
pub(crate) trait Sink {
    /// Whether an event is wanted.
    fn wants(&self, event: &Event) -> bool;

    /// Takes an event that is wanted.
    fn take(&mut self, revision: Revision, time: Timestamp, event: &Event);

    /// Whether no more is wanted, and why.
    fn is_done(&self) -> Option<Ended>;
}

/// How far a search came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// There is nothing before what was found.
    Complete,
    /// There may be more: it has taken as much as it wants, or the time is over.
    More,
    /// The history of this node does not reach further back.
    Compacted {
        /// The oldest revision that it has.
        oldest: Revision,
    },
}

/// Where to search.
pub(crate) struct Search<'a> {
    pub(crate) history: &'a History,
    pub(crate) index: &'a SubjectIndex,
    /// What is not in the index, nor in memory, is read from the disk and decoded: only so many at once.
    pub(crate) scans: &'a Semaphore,
    pub(crate) key: Key,
    pub(crate) deadline: Instant,
}

impl<'a> Search<'a> {
    /// Looks for events up to revision `newest`, newest first, in what this node has.
    ///
    /// # Errors
    /// If this node's disk fails.
    pub(crate) async fn run(
        &self,
        newest: Revision,
        sink: &mut (impl Sink + Send),
    ) -> Result<Ended, HistoryError> {
        let mut permit = None;
        let mut end = newest;
        while end > 0 {
            if let Some(ended) = sink.is_done() {
                return Ok(ended);
            }
            let oldest = self.history.oldest_revision();
            if end < oldest {
                return Ok(Ended::Compacted { oldest });
            }
            if Instant::now() >= self.deadline {
                return Ok(Ended::More);
            }
            let looked = if let Some(places) = self.lookup(end).await? {
                self.take(&places, oldest, sink).await
            } else {
                let start =
                    end.saturating_sub(WINDOW - 1).max(self.index.covered_before(end) + 1).max(oldest);
                if permit.is_none() && !self.history.remembers(start) {
                    permit = Some(self.permit().await?);
                }
                self.look_through(start, end, sink).await
            };
            end = match looked {
                Ok(start) => start - 1,
                // It was purged meanwhile.
                Err(HistoryError::Compacted { oldest }) => return Ok(Ended::Compacted { oldest }),
                Err(error) => return Err(error),
            };
        }
        Ok(sink.is_done().unwrap_or(Ended::Complete))
    }

    async fn permit(&self) -> Result<SemaphorePermit<'a>, HistoryError> {
        let permit = timeout_at(self.deadline, self.scans.acquire()).await;
        permit.ok().and_then(Result::ok).ok_or(HistoryError::Busy)
    }

    async fn lookup(&self, end: Revision) -> Result<Option<Places>, HistoryError> {
        let (index, key) = (self.index.clone(), self.key);
        match spawn_blocking(move || index.lookup(key, end)).await {
            Ok(found) => found.map_err(|fault| HistoryError::Fault(describe(&fault))),
            Err(error) => Err(HistoryError::Fault(error.to_string())),
        }
    }

    /// Takes the events at places. Returns the revision from which on all is taken.
    async fn take(
        &self,
        places: &Places,
        oldest: Revision,
        sink: &mut (impl Sink + Send),
    ) -> Result<Revision, HistoryError> {
        let mut entry: Option<AppliedEntry> = None;
        for place in places.places.iter().take_while(|place| place.revision >= oldest) {
            if sink.is_done().is_some() || Instant::now() >= self.deadline {
                return Ok(place.revision + 1);
            }
            let applied = match entry.take().filter(|applied| applied.index == place.index) {
                Some(applied) => applied,
                None => self.history.entry_at(place.index, place.revision).await?,
            };
            offer(&applied, place.revision, sink);
            entry = Some(applied);
        }
        Ok(places.from.max(oldest))
    }

    /// Looks through the revisions from `start` to `end`.
    async fn look_through(
        &self,
        start: Revision,
        end: Revision,
        sink: &mut (impl Sink + Send),
    ) -> Result<Revision, HistoryError> {
        let mut found = Vec::new();
        let mut next = start;
        while next <= end {
            let entries = self.history.read_here(next, READ_BYTES).await?;
            let Some(last) = entries.last() else { break };
            let last = last.last_revision();
            for applied in entries {
                for (revision, event) in (applied.first_revision..).zip(&applied.entry.events) {
                    if (next..=end).contains(&revision) && sink.wants(event) {
                        found.push((revision, applied.clone()));
                    }
                }
            }
            next = last + 1;
            // What is in memory makes no pause of its own.
            yield_now().await;
        }
        for (revision, applied) in found.into_iter().rev() {
            if sink.is_done().is_some() {
                break;
            }
            offer(&applied, revision, sink);
        }
        Ok(start)
    }
}

/// Gives an event of an entry to the sink, if it is wanted.
fn offer(applied: &AppliedEntry, revision: Revision, sink: &mut impl Sink) {
    let at = (revision - applied.first_revision) as usize;
    if let Some(event) = applied.entry.events.get(at).filter(|event| sink.wants(event)) {
        sink.take(revision, applied.entry.time_of(at), event);
    }
}
