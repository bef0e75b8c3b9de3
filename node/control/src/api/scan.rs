//! `ListEvents`: the newest events that match, newest last, from the history of this node, and what it does not have from
//! its peers.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use sandkeeper_proto::internal::{FindEventsRequest, FindEventsResponse};
use sandkeeper_proto::v1;
use sandkeeper_statemachine::{Event, Rejection, Revision, SandboxId, Timestamp};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::convert::event::{Filter, event};
use super::convert::invalid;
use super::status::{history as history_status, rejected};
use crate::history::index::{Key, SubjectIndex};
use crate::history::search::{Ended, Search, Sink};
use crate::history::{History, HistoryError};
use crate::raft::RaftNode;
use crate::raft::history::OtherNodes;
use crate::raft::peer_service::EventFinder;
use crate::raft::peers::reason;

/// Events of a list, if the caller does not say.
pub const DEFAULT_LIMIT: u32 = 1_000;
/// The most events of a list.
pub const MAX_LIMIT: u32 = 5_000;
/// Scans of one node at once: each decodes some hundred thousand events a second on one CPU.
const MAX_SCANS: usize = 2;
/// The most bytes of a list (and one event more): what gRPC clients accept by default is 4 MiB.
const MAX_BYTES: usize = 3 * 1024 * 1024;
/// How long peers may take for the part of a list that this node does not have.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

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
#[derive(Debug)]
pub(super) struct Found {
    /// Newest last.
    pub events: Vec<v1::Event>,
    /// There may be more before the first.
    pub truncated: bool,
}

/// Collects events, newest first, within the limits.
struct Collected<'a> {
    filter: &'a Filter,
    newest_first: Vec<v1::Event>,
    limit: usize,
    bytes: usize,
    /// The first event of the only sandbox that is wanted was found.
    begun: bool,
}

impl<'a> Collected<'a> {
    fn new(filter: &'a Filter, limit: usize) -> Self {
        Self { filter, newest_first: Vec::new(), limit, bytes: 0, begun: false }
    }

    fn add(&mut self, wire: v1::Event) {
        self.bytes += prost::Message::encoded_len(&wire);
        self.newest_first.push(wire);
    }

    fn is_full(&self) -> bool {
        self.newest_first.len() >= self.limit || self.bytes >= MAX_BYTES
    }

    fn end(mut self, truncated: bool) -> Found {
        self.newest_first.reverse();
        Found { events: self.newest_first, truncated }
    }
}

impl Sink for Collected<'_> {
    fn wants(&self, event: &Event) -> bool {
        // The first event of a sandbox ends its history, whether its type is wanted or not.
        self.filter.matches(event) || self.is_first(event)
    }

    fn take(&mut self, revision: Revision, time: Timestamp, core: &Event) {
        self.begun = self.is_first(core);
        if self.filter.matches(core) {
            self.add(event(revision, time, core));
        }
    }

    fn is_done(&self) -> Option<Ended> {
        if self.begun { Some(Ended::Complete) } else { self.is_full().then_some(Ended::More) }
    }
}

impl Collected<'_> {
    fn is_first(&self, event: &Event) -> bool {
        let id =
            |wanted: &SandboxId| event.header.subject.sandbox.as_ref().is_some_and(|(id, _)| id == wanted);
        event.header.previous == 0 && self.filter.sandbox.as_ref().is_some_and(id)
    }
}

/// By what the index is asked: the one of the filter's subjects that has the fewest events. `None`: it names none.
fn key_of(filter: &Filter) -> Option<Key> {
    let name = filter.namespace.as_ref().zip(filter.name.as_ref());
    let namespace = filter.namespace.as_ref();
    (filter.sandbox.as_ref().map(Key::sandbox))
        .or(name.map(|(namespace, name)| Key::name(namespace, name)))
        .or(filter.agent.as_ref().map(Key::agent))
        .or(namespace.map(Key::namespace))
}

/// Finds events in the history, for callers and for peers. Cheap to clone.
#[derive(Clone)]
pub struct Searcher {
    history: History,
    index: SubjectIndex,
    others: Option<Arc<OtherNodes>>,
    scans: Arc<Semaphore>,
    /// Where it searches for peers, which are served by Raft's threads.
    threads: Handle,
}

impl Searcher {
    /// Over the history of a node. For peers it searches on `threads`.
    pub fn new(raft: &RaftNode, threads: Handle) -> Self {
        let others = Some(Arc::clone(raft.others()));
        Self::over(raft.history().clone(), raft.index().clone(), others, threads)
    }

    pub(super) fn over(
        history: History,
        index: SubjectIndex,
        others: Option<Arc<OtherNodes>>,
        threads: Handle,
    ) -> Self {
        Self { history, index, others, scans: Arc::new(Semaphore::new(MAX_SCANS)), threads }
    }

    /// The newest events up to a revision that the filter wants.
    pub(super) async fn events(
        &self,
        newest: Revision,
        filter: &Filter,
        limit: usize,
        deadline: Instant,
    ) -> Result<Found, HistoryError> {
        let mut collected = Collected::new(filter, limit);
        let ended = self.search(newest, filter, &mut collected, deadline).await?;
        let Ended::Compacted { oldest } = ended else { return Ok(collected.end(ended == Ended::More)) };
        let Some(others) = &self.others else { return Ok(collected.end(true)) };
        let limit = (limit - collected.newest_first.len()) as u32;
        let request = FindEventsRequest { filter: Some(filter.to_wire()), before_revision: oldest, limit };
        let older = elsewhere(others, &request, deadline.min(Instant::now() + PEER_TIMEOUT)).await?;
        for wire in older.events.into_iter().rev() {
            if collected.is_full() {
                return Ok(collected.end(true));
            }
            collected.add(wire);
        }
        Ok(collected.end(older.truncated))
    }

    async fn search(
        &self,
        newest: Revision,
        filter: &Filter,
        collected: &mut Collected<'_>,
        deadline: Instant,
    ) -> Result<Ended, HistoryError> {
        let Some(key) = key_of(filter) else { return Ok(Ended::Complete) };
        let (history, index, scans) = (&self.history, &self.index, &self.scans);
        Search { history, index, scans, key, deadline }.run(newest, collected).await
    }

    /// What this node alone has, for a peer.
    async fn for_peer(&self, request: FindEventsRequest) -> Result<FindEventsResponse, Status> {
        let filter = Filter::of_list(request.filter.as_ref()).map_err(|rejection| rejected(&rejection))?;
        let limit = list_limit(request.limit).map_err(|rejection| rejected(&rejection))?;
        let mut collected = Collected::new(&filter, limit);
        let newest = request.before_revision.saturating_sub(1);
        if self.history.newest_revision() < newest {
            return Err(Status::unavailable("this node is behind"));
        }
        let ended = self.search(newest, &filter, &mut collected, Instant::now() + PEER_TIMEOUT).await;
        let ended = ended.map_err(|error| history_status(&error))?;
        let found = collected.end(ended != Ended::Complete);
        let oldest_revision = self.history.oldest_revision();
        Ok(FindEventsResponse { events: found.events, truncated: found.truncated, oldest_revision })
    }
}

impl EventFinder for Searcher {
    fn find(&self, request: FindEventsRequest) -> BoxFuture<'static, Result<FindEventsResponse, Status>> {
        let searcher = self.clone();
        // It ends by its deadline, whether it is waited for or not.
        let found = self.threads.spawn(async move { searcher.for_peer(request).await });
        Box::pin(async move {
            found.await.unwrap_or_else(|stopped| Err(Status::unavailable(stopped.to_string())))
        })
    }
}

/// The answer of the peer that reaches back furthest; the first one that has all of it is enough.
async fn elsewhere(
    others: &OtherNodes,
    request: &FindEventsRequest,
    deadline: Instant,
) -> Result<FindEventsResponse, HistoryError> {
    let asked = others.all().into_iter().map(|(id, member)| async move {
        let answer = async {
            others.client(id, &member)?.find_events(request.clone()).await.map_err(|status| reason(&status))
        };
        let answer =
            timeout_at(deadline, answer).await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        answer.map(tonic::Response::into_inner).map_err(|why| format!("{}: {why}", member.name))
    });
    let mut answers: FuturesUnordered<_> = asked.collect();
    let nothing =
        FindEventsResponse { truncated: true, oldest_revision: request.before_revision, events: Vec::new() };
    let (mut best, mut silent) = (nothing, Vec::new());
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(answer) if !answer.truncated => return Ok(answer),
            Ok(answer) if answer.oldest_revision < best.oldest_revision => best = answer,
            Ok(_) => {}
            Err(why) => silent.push(why),
        }
    }
    match others.nowhere(best.oldest_revision, &silent) {
        not_yet @ HistoryError::NotYet { .. } if best.events.is_empty() => Err(not_yet),
        _ => Ok(best),
    }
}

#[cfg(test)]
mod tests {
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
        let (namespace, name) = (Some("default".parse().unwrap()), Some("web".parse().unwrap()));
        let filter = Filter { namespace, name, ..Filter::default() };
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

    /// A searcher over the history of a world from a revision on; with an index over a part of it.
    fn searcher(history: History, folder: &tempfile::TempDir) -> Searcher {
        Searcher::over(history, SubjectIndex::open(folder.path()).unwrap(), None, Handle::current())
    }

    #[tokio::test]
    async fn the_newest_are_found_and_whether_there_is_more_with_and_without_an_index() {
        let (world, filter, all) = world();
        let (history, ..) = world.history(1);
        let folder = tempfile::tempdir().unwrap();
        let searcher = searcher(history, &folder);
        let newest = world.state.revision();
        for indexed in 0..=world.applied.len() {
            for limit in 1..=6 {
                let found = searcher.events(newest, &filter, limit, soon()).await.unwrap();
                assert_eq!(revisions(&found), all[all.len().saturating_sub(limit)..], "{indexed} indexed");
                assert_eq!(found.truncated, limit <= all.len(), "limit {limit}");
            }
            let found = searcher.events(all[3] - 1, &filter, 10, soon()).await.unwrap();
            assert_eq!(revisions(&found), all[..3], "only up to the revision of the read");
            if let Some(next) = world.applied.get(indexed) {
                searcher.index.append(std::slice::from_ref(next));
            }
        }
    }

    #[tokio::test]
    async fn a_history_that_begins_later_is_truncated() {
        let (world, filter, all) = world();
        let (history, ..) = world.history(all[2]);
        let folder = tempfile::tempdir().unwrap();
        let searcher = searcher(history, &folder);
        let found = searcher.events(world.state.revision(), &filter, 10, soon()).await.unwrap();
        assert_eq!(revisions(&found), all[2..]);
        assert!(found.truncated);
        let late = searcher.events(world.state.revision(), &filter, 10, Instant::now()).await.unwrap();
        assert!(late.truncated && late.events.is_empty(), "the deadline bounds it");
    }

    #[tokio::test]
    async fn the_history_of_one_sandbox_is_complete_when_its_first_event_is_found() {
        let (world, _, all) = world();
        let web = world.state.sandbox_named(&World::name("web")).unwrap().id.clone();
        let filter = Filter { sandbox: Some(web), ..Filter::default() };
        let folder = tempfile::tempdir().unwrap();
        let begins_with_it = searcher(world.history(all[3]).0, &folder);
        let found = begins_with_it.events(world.state.revision(), &filter, 10, soon()).await.unwrap();
        assert_eq!((revisions(&found), found.truncated), (all[3..].to_vec(), false));
        let found = begins_with_it.events(world.state.revision(), &filter, 1, soon()).await.unwrap();
        assert_eq!((revisions(&found), found.truncated), (all[4..].to_vec(), true));
        let types = vec![v1::EventType::SandboxAllocated];
        let typed = Filter { types, ..filter.clone() };
        let found = begins_with_it.events(world.state.revision(), &typed, 10, soon()).await.unwrap();
        assert_eq!((revisions(&found), found.truncated), (all[4..].to_vec(), false));
        let later = searcher(world.history(all[4] + 1).0, &folder);
        let found = later.events(world.state.revision(), &filter, 10, soon()).await.unwrap();
        assert!(found.truncated && found.events.is_empty());
    }

    #[test]
    fn limits_have_a_default_and_a_bound() {
        assert_eq!(list_limit(0).unwrap(), DEFAULT_LIMIT as usize);
        assert_eq!(list_limit(MAX_LIMIT).unwrap(), MAX_LIMIT as usize);
        assert!(list_limit(MAX_LIMIT + 1).is_err());
    }
}
