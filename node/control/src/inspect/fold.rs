//! Folding the committed log, as the state machine does it, and no further than a revision.

use std::panic::{AssertUnwindSafe, catch_unwind};

use openraft::EntryPayload;
use sandkeeper_statemachine::{Entry, Revision, State};
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use super::{InspectError, error};
use crate::raft::types::{LogEntry, LogId, StoredMembership};
use crate::storage::log::LogReader;

/// How much of the log is read at a time, bytes. What is corrupt hides at most so much before it.
const READ_BYTES: usize = 256 * 1024;

/// A state, and where in the log that is.
pub(super) struct Folded {
    pub state: State,
    /// The last entry that it contains, whole or in part.
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
    /// Whether that entry is in it whole: a revision may lie within one.
    pub whole: bool,
}

impl Folded {
    /// The index of the entry that comes next.
    pub(super) fn next_index(&self) -> u64 {
        self.applied.map_or(0, |id| id.index() + 1)
    }

    /// Takes the next entry, or as much of it as leads to `at`.
    pub(super) fn take(&mut self, log_entry: &LogEntry, at: Option<Revision>) -> Result<(), InspectError> {
        let (id, reached) = (log_entry.log_id, self.state.revision());
        let (index, term) = (id.index(), id.committed_leader_id().term);
        let corrupt = |what: String| InspectError::Entry { index, term, what, reached };
        match &log_entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(id), membership.clone());
            }
            EntryPayload::Normal(data) => {
                let entry = data.entry().map_err(|error| corrupt(error.to_string()))?;
                let part =
                    at.filter(|_| entry.decided_term == term).and_then(|at| beginning(&entry, reached, at));
                self.whole = part.is_none();
                let entry = part.as_ref().unwrap_or(&entry);
                let state = &mut self.state;
                // What is impossible panics; here it only means that this history can't be shown.
                catch_unwind(AssertUnwindSafe(|| state.apply(entry, term))).map_err(|panic| {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                    corrupt(text.unwrap_or("it panicked").to_owned())
                })?;
            }
        }
        self.applied = Some(id);
        Ok(())
    }
}

/// The beginning of an entry that leads from `reached` to `at`; `None` if the entry does not go beyond it. It is the
/// same as a whole entry for the state, but not for the history's digest, which is a chain over whole entries.
fn beginning(entry: &Entry, reached: Revision, at: Revision) -> Option<Entry> {
    let count = usize::try_from(at.checked_sub(reached)?).ok()?;
    let goes_beyond = entry.base_revision == reached && count < entry.events.len();
    goes_beyond.then(|| Entry::new(reached, entry.decided_term, entry.time, entry.events[..count].to_vec()))
}

/// Folds the entries behind `folded` up to log index `committed`, or until the state is at revision `at`.
pub(super) async fn fold(
    log: &LogReader,
    mut folded: Folded,
    committed: Option<u64>,
    at: Option<Revision>,
    cancel: &CancellationToken,
) -> Result<Folded, InspectError> {
    let Some(committed) = committed else { return Ok(folded) };
    let reached = |state: &State| at.is_some_and(|at| state.revision() >= at);
    while folded.next_index() <= committed && !reached(&folded.state) {
        if cancel.is_cancelled() {
            return Err(InspectError::Cancelled);
        }
        let revision = folded.state.revision();
        let entries = log.entries_from(folded.next_index(), READ_BYTES).await;
        let entries = entries.map_err(|error| error::log(error, Some(revision)))?;
        if entries.is_empty() {
            let what = format!("the log ends before entry {}", folded.next_index());
            return Err(InspectError::Failed(what));
        }
        for entry in &entries {
            if entry.log_id.index() > committed || reached(&folded.state) {
                break;
            }
            folded.take(entry, at)?;
        }
        yield_now().await;
    }
    Ok(folded)
}
