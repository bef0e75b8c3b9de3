//! `ListEvents`: the newest events that match, newest last.
//!
//! The events of a sandbox are a chain: each names the one before. So the history of one that is still in the state is
//! followed back, event by event. Everything else is found by looking through the history, newest first, so that what
//! is found within the limits is always the newest.

use sandkeeper_proto::v1;
use sandkeeper_statemachine::{Event, Rejection, Revision, State, Timestamp};
use tokio::time::Instant;
use tonic::Status;

use super::Api;
use super::convert::event::{Filter, event};
use super::convert::invalid;
use super::status::{history as history_status, unavailable};
use crate::history::{History, HistoryError};

/// Events of a list, if the caller does not say.
pub const DEFAULT_LIMIT: u32 = 1_000;
/// The most events of a list.
pub const MAX_LIMIT: u32 = 5_000;
/// Scans of one node at once: each decodes some hundred thousand events a second on one CPU.
pub(super) const MAX_SCANS: usize = 2;
/// The most bytes of a list (and one event more): what gRPC clients accept by default is 4 MiB.
const MAX_BYTES: usize = 3 * 1024 * 1024;
/// Revisions that are looked through at a time.
const WINDOW: Revision = 4_096;
/// Encoded entries that are read at a time, bytes.
const READ_BYTES: usize = 1024 * 1024;

/// Reads how many events are wanted.
///
/// # Errors
/// If it is more than [`MAX_LIMIT`].
pub(super) fn list_limit(limit: u32) -> Result<usize, Rejection> {
    match limit {
        0 => Ok(DEFAULT_LIMIT as usize),
        limit if limit <= MAX_LIMIT => Ok(limit as usize),
        limit => Err(invalid("limit", format!("at most {MAX_LIMIT}, is {limit}"))),
    }
}

/// What was found.
pub(super) struct Found {
    /// Newest last.
    pub events: Vec<v1::Event>,
    /// There may be more before the first.
    pub truncated: bool,
}

/// Collects events, newest first, within the limits.
struct Collected {
    newest_first: Vec<v1::Event>,
    limit: usize,
    bytes: usize,
}

impl Collected {
    fn new(limit: usize) -> Self {
        Self { newest_first: Vec::new(), limit, bytes: 0 }
    }

    fn full(&self) -> bool {
        self.newest_first.len() >= self.limit || self.bytes >= MAX_BYTES
    }

    fn add(&mut self, revision: Revision, time: Timestamp, core: &Event) {
        let wire = event(revision, time, core);
        self.bytes += prost::Message::encoded_len(&wire);
        self.newest_first.push(wire);
    }

    fn end(mut self, truncated: bool) -> Found {
        self.newest_first.reverse();
        Found { events: self.newest_first, truncated }
    }
}

impl Api {
    /// The newest events up to the state's revision that the filter wants.
    pub(super) async fn events(
        &self,
        state: &State,
        filter: &Filter,
        limit: usize,
        deadline: Instant,
    ) -> Result<Found, Status> {
        let history = self.parts().raft.history();
        let live = filter.sandbox.as_ref().and_then(|id| state.sandbox(id));
        let found = if let Some(sandbox) = live {
            self.unless_stopped(chain(history, sandbox.status.revision, filter, limit, deadline)).await?
        } else {
            let permit = tokio::time::timeout_at(deadline, self.inner.scans.acquire()).await;
            let Ok(Ok(_permit)) = permit else {
                return Err(unavailable("this node reads its history for others: try again"));
            };
            self.unless_stopped(scan(history, state.revision(), filter, limit, deadline)).await?
        };
        found.map_err(|error| history_status(&error))
    }
}

/// Follows the chain of events back from revision `from`.
async fn chain(
    history: &History,
    from: Revision,
    filter: &Filter,
    limit: usize,
    deadline: Instant,
) -> Result<Found, HistoryError> {
    let mut collected = Collected::new(limit);
    let mut next = from;
    while next != 0 {
        if collected.full() || Instant::now() >= deadline {
            return Ok(collected.end(true));
        }
        let found = match history.event_at(next).await {
            Ok(Some(found)) => found,
            Ok(None) | Err(HistoryError::Compacted { .. }) => return Ok(collected.end(true)),
            Err(fault) => return Err(fault),
        };
        if filter.matches(&found.event) {
            collected.add(found.revision, found.time, &found.event);
        }
        next = found.event.header.previous;
    }
    Ok(collected.end(false))
}

/// Looks through the history from revision `newest` back.
async fn scan(
    history: &History,
    newest: Revision,
    filter: &Filter,
    limit: usize,
    deadline: Instant,
) -> Result<Found, HistoryError> {
    let mut collected = Collected::new(limit);
    let mut end = newest;
    while end > 0 {
        if Instant::now() >= deadline {
            return Ok(collected.end(true));
        }
        let oldest = history.oldest_revision();
        let start = end.saturating_sub(WINDOW - 1).max(oldest).max(1);
        if start > end {
            // The history does not reach back to where this would go on.
            return Ok(collected.end(true));
        }
        match window(history, start, end, filter, &mut collected).await {
            Ok(()) => {}
            // It was purged meanwhile.
            Err(HistoryError::Compacted { .. }) => return Ok(collected.end(true)),
            Err(fault) => return Err(fault),
        }
        if collected.full() {
            return Ok(collected.end(true));
        }
        end = start - 1;
    }
    Ok(collected.end(false))
}

/// Looks through the revisions from `start` to `end`, and collects what is wanted, newest first.
async fn window(
    history: &History,
    start: Revision,
    end: Revision,
    filter: &Filter,
    collected: &mut Collected,
) -> Result<(), HistoryError> {
    let mut found = Vec::new();
    let mut next = start;
    while next <= end {
        let entries = history.read(next, READ_BYTES).await?;
        let Some(last) = entries.last() else { break };
        let last = last.last_revision();
        for applied in entries {
            for (at, revision) in (0..applied.entry.events.len()).zip(applied.first_revision..) {
                let wanted = (next..=end).contains(&revision) && filter.matches(&applied.entry.events[at]);
                if wanted {
                    found.push((revision, at, applied.entry.clone()));
                }
            }
        }
        next = last + 1;
        // What is in memory makes no pause of its own.
        tokio::task::yield_now().await;
    }
    for (revision, at, entry) in found.into_iter().rev() {
        if collected.full() {
            break;
        }
        collected.add(revision, entry.time_of(at), &entry.events[at]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::testing::World;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    /// Two sandboxes of one name after another, and another one between.
    fn world() -> (World, Filter, Vec<Revision>) {
        let mut world = World::with_agent();
        let (first, _) = world.create_strong("web");
        world.create_strong("other");
        world.terminate(&first);
        world.create_strong("web");
        let filter = Filter { name: Some("web".parse().unwrap()), ..Filter::default() };
        let mut all = Vec::new();
        for applied in &world.applied {
            for (event, revision) in applied.entry.events.iter().zip(applied.first_revision..) {
                if filter.matches(event) {
                    all.push(revision);
                }
            }
        }
        assert_eq!(all.len(), 5, "created, allocated, terminating; created, allocated");
        (world, filter, all)
    }

    fn revisions(found: &Found) -> Vec<Revision> {
        found.events.iter().map(|event| event.revision).collect()
    }

    #[tokio::test]
    async fn a_scan_finds_the_newest_and_says_whether_there_is_more() {
        let (world, filter, all) = world();
        let (history, ..) = world.history(1);
        let newest = world.state.revision();
        for limit in 1..=6 {
            let found = scan(&history, newest, &filter, limit, soon()).await.unwrap();
            assert_eq!(revisions(&found), all[all.len().saturating_sub(limit)..]);
            assert_eq!(found.truncated, limit <= all.len(), "limit {limit}");
        }
        let found = scan(&history, all[3] - 1, &filter, 10, soon()).await.unwrap();
        assert_eq!(revisions(&found), all[..3], "only up to the revision of the read");
    }

    #[tokio::test]
    async fn a_history_that_begins_later_is_truncated() {
        let (world, filter, all) = world();
        let (history, ..) = world.history(all[2]);
        let found = scan(&history, world.state.revision(), &filter, 10, soon()).await.unwrap();
        assert_eq!(revisions(&found), all[2..]);
        assert!(found.truncated);
        let late = scan(&history, world.state.revision(), &filter, 10, Instant::now()).await.unwrap();
        assert!(late.truncated && late.events.is_empty(), "the deadline bounds it");
    }

    #[tokio::test]
    async fn a_chain_is_the_history_of_one_sandbox() {
        let (world, _, all) = world();
        let (history, ..) = world.history(1);
        let web = world.state.sandbox_named(&World::name("web")).unwrap();
        let found = chain(&history, web.status.revision, &Filter::default(), 10, soon()).await.unwrap();
        assert_eq!(revisions(&found), all[3..]);
        assert!(!found.truncated);
        let found = chain(&history, web.status.revision, &Filter::default(), 1, soon()).await.unwrap();
        assert_eq!((revisions(&found), found.truncated), (all[4..].to_vec(), true));
        let (later, ..) = world.history(all[4] + 1);
        let found = chain(&later, web.status.revision, &Filter::default(), 10, soon()).await.unwrap();
        assert!(found.truncated && found.events.is_empty());
    }

    #[test]
    fn limits_have_a_default_and_a_bound() {
        assert_eq!(list_limit(0).unwrap(), DEFAULT_LIMIT as usize);
        assert_eq!(list_limit(MAX_LIMIT).unwrap(), MAX_LIMIT as usize);
        assert!(list_limit(MAX_LIMIT + 1).is_err());
    }
}
