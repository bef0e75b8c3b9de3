//! `WatchEvents`: the history as it happens, without gaps.
//!
//! Each watcher is a task that reads the history at its own pace and fills a small queue, which gRPC empties. A watcher
//! whose queue stays full is cut off, with a clear status; it resumes from the last revision that it has seen.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use planted_bugs::{Bug, planted};
use prost::Message;
use sandkeeper_proto::v1;
use sandkeeper_statemachine::Revision;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::Api;
use super::convert::event::{Filter, event};
use super::status::{Problem, history as history_status, shutting_down};
use crate::history::{AppliedEntry, History, HistoryError};
use crate::metrics::Metrics;
use crate::raft::replica::WaitError;

/// The most watchers of one node: what its memory and its connections bear.
pub const MAX_WATCHERS: usize = 4_096;

/// How often a watcher without news is told how far it is.
const BOOKMARK: Duration = Duration::from_secs(1);
/// How long a watcher may take none of the messages that wait for it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Messages that wait for one watcher. With [`MESSAGE_BYTES`] this bounds the memory of a slow one.
const QUEUE: usize = 4;
/// A message has no more events beyond this size, bytes.
const MESSAGE_BYTES: usize = 64 * 1024;
/// Encoded entries that are read at a time, bytes.
const READ_BYTES: usize = 256 * 1024;

type Watch = BoxStream<'static, Result<v1::WatchEventsResponse, Status>>;

/// A watcher that is counted as long as this lives.
struct Counted {
    _permit: OwnedSemaphorePermit,
    metrics: Arc<Metrics>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.watchers.dec();
    }
}

impl Api {
    /// Every event from `from` on (0: from now on) that the filter wants.
    pub(super) async fn watch(&self, from: Revision, filter: Filter) -> Result<Watch, Status> {
        let parts = self.parts();
        if parts.stop.is_cancelled() {
            return Err(shutting_down());
        }
        let permit = Arc::clone(&self.inner.watchers).try_acquire_owned().map_err(|_| {
            let text = format!("this node has {MAX_WATCHERS} watchers already: watch at another one");
            Problem::new(Code::ResourceExhausted, "TOO_MANY_WATCHERS", text).status()
        })?;
        let history = parts.raft.history().clone();
        let next = if from == 0 { parts.raft.replica().revision() + 1 } else { from };
        let missed = planted(Bug::WatchMissesFirst) && from > 1 && from <= parts.raft.replica().revision();
        let next = next + u64::from(missed);
        if next < history.oldest_revision() && !planted(Bug::WatchSkipsAtCompaction) {
            // Peers may have it. What is too old everywhere is said at once.
            let reached = self.unless_stopped(history.read(next, 1)).await?;
            reached.map_err(|error| history_status(&error))?;
        }
        parts.metrics.watchers.inc();
        let counted = Counted { _permit: permit, metrics: Arc::clone(&parts.metrics) };
        let (messages, receiver) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let watcher = Watcher { node: self.node_name(), history, filter, next, messages };
        let (stop, metrics) = (parts.stop.clone(), Arc::clone(&parts.metrics));
        self.inner.tasks.spawn(async move {
            let why = stop.run_until_cancelled(watcher.run()).await.unwrap_or(End::Stopped);
            if matches!(why, End::Slow) {
                metrics.watchers_cut_off.inc();
            }
            if let Some(status) = why.status() {
                // If the caller is gone there is nobody to tell.
                let _ = end.send(status);
            }
        });
        Ok(outgoing(receiver, ended, counted))
    }
}

/// The queue, then the reason of its end. A full queue delivers its reason too: it has a place of its own.
pub(super) fn outgoing<T: Send + 'static>(
    messages: mpsc::Receiver<T>,
    ended: oneshot::Receiver<Status>,
    counted: impl Send + 'static,
) -> BoxStream<'static, Result<T, Status>> {
    let last =
        stream::once(async move { ended.await.ok() }).filter_map(|status| async move { status.map(Err) });
    let all = ReceiverStream::new(messages).map(Ok).chain(last);
    // It counts until its stream is dropped, not only until it is cut off: its queue stays until then.
    all.map(move |message| {
        let _ = &counted;
        message
    })
    .boxed()
}

/// Why a watch ended.
#[derive(Debug)]
enum End {
    /// The caller is gone.
    Gone,
    /// The caller took nothing for too long.
    Slow,
    /// The node stops.
    Stopped,
    /// The history is not there, or can't be read.
    History(HistoryError),
}

impl End {
    fn status(self) -> Option<Status> {
        match self {
            Self::Gone => None,
            Self::Slow => {
                let text = format!(
                    "this watcher took nothing for {} s and was cut off: resume from the last revision that it has \
                     seen, plus 1",
                    PATIENCE.as_secs()
                );
                Some(Problem::new(Code::ResourceExhausted, "SLOW_WATCHER", text).status())
            }
            Self::Stopped => Some(shutting_down()),
            Self::History(error) => Some(history_status(&error)),
        }
    }
}

struct Watcher {
    node: String,
    history: History,
    filter: Filter,
    /// The next revision that the caller has not been told of.
    next: Revision,
    messages: mpsc::Sender<v1::WatchEventsResponse>,
}

impl Watcher {
    async fn run(mut self) -> End {
        let mut told = Instant::now();
        loop {
            let entries = match self.history.read(self.next, READ_BYTES).await {
                Ok(entries) => entries,
                Err(HistoryError::Compacted { oldest }) if planted(Bug::WatchSkipsAtCompaction) => {
                    self.next = oldest;
                    continue;
                }
                Err(error) => return End::History(error),
            };
            let Some(last) = entries.last().map(AppliedEntry::last_revision) else {
                match self.idle(told).await {
                    Ok(true) => {}
                    Ok(false) => {
                        if let Err(end) = self.send(Vec::new()).await {
                            return end;
                        }
                        told = Instant::now();
                    }
                    Err(end) => return end,
                }
                continue;
            };
            for (revision, events) in messages(&entries, self.next, &self.filter) {
                self.next = revision + 1;
                if let Err(end) = self.send(events).await {
                    return end;
                }
                told = Instant::now();
            }
            self.next = last + 1;
            // Much that is not wanted may go by: the caller learns how far it is.
            if told.elapsed() >= BOOKMARK {
                if let Err(end) = self.send(Vec::new()).await {
                    return end;
                }
                told = Instant::now();
            }
        }
    }

    /// Waits for news: true if there are, false if a bookmark is due.
    async fn idle(&self, told: Instant) -> Result<bool, End> {
        let newer = self.history.wait_newer(self.next - 1, told + BOOKMARK);
        let waited = tokio::select! {
            () = self.messages.closed() => return Err(End::Gone),
            waited = newer => waited,
        };
        match waited {
            Ok(()) => Ok(true),
            Err(WaitError::Timeout { .. }) => Ok(false),
            Err(WaitError::Stopped) => Err(End::Stopped),
        }
    }

    async fn send(&self, events: Vec<v1::Event>) -> Result<(), End> {
        let message = v1::WatchEventsResponse { node: self.node.clone(), revision: self.next - 1, events };
        self.messages.send_timeout(message, PATIENCE).await.map_err(|error| match error {
            SendTimeoutError::Timeout(_) => End::Slow,
            SendTimeoutError::Closed(_) => End::Gone,
        })
    }
}

/// What the filter wants of these entries, from revision `from` on, in messages of bounded size: each with the revision
/// of its last event. Made one by one, so that a slow watcher holds only one in memory.
fn messages<'a>(
    entries: &'a [AppliedEntry],
    from: Revision,
    filter: &'a Filter,
) -> impl Iterator<Item = (Revision, Vec<v1::Event>)> + Send + 'a {
    let numbered = entries.iter().flat_map(|applied| {
        let entry = &applied.entry;
        (applied.first_revision..)
            .zip(&entry.events)
            .enumerate()
            .map(|(at, (revision, event))| (revision, entry.time_of(at), event))
    });
    let mut wanted = numbered.filter(move |(revision, _, event)| *revision >= from && filter.matches(event));
    std::iter::from_fn(move || {
        let mut events = VecDeque::new();
        let mut bytes = 0;
        while bytes < MESSAGE_BYTES
            && let Some((revision, time, core)) = wanted.next()
        {
            let wire = event(revision, time, core);
            bytes += wire.encoded_len();
            events.push_back(wire);
        }
        let last = events.back()?.revision;
        Some((last, events.into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::World;

    fn entries() -> (Vec<AppliedEntry>, Revision) {
        let mut world = World::with_agent();
        for index in 0..4 {
            world.create_large(&format!("sb-{index}"), 60 * 1024);
        }
        world.create_strong("web");
        (world.applied.clone(), world.state.revision())
    }

    #[test]
    fn messages_have_no_gap_and_are_bounded() {
        let (entries, last) = entries();
        for from in 1..=last + 1 {
            let all: Vec<_> = messages(&entries, from, &Filter::default()).collect();
            let revisions: Vec<Revision> =
                all.iter().flat_map(|(_, events)| events).map(|event| event.revision).collect();
            assert_eq!(revisions, (from..=last).collect::<Vec<_>>());
            for (revision, events) in &all {
                assert_eq!(*revision, events.last().unwrap().revision);
                let before_last: usize = events[..events.len() - 1].iter().map(Message::encoded_len).sum();
                assert!(before_last < MESSAGE_BYTES);
            }
        }
    }

    #[test]
    fn only_what_is_wanted_is_sent() {
        let (entries, _) = entries();
        let filter = Filter { name: Some("web".parse().unwrap()), ..Filter::default() };
        let all: Vec<v1::Event> = messages(&entries, 1, &filter).flat_map(|(_, events)| events).collect();
        let types: Vec<v1::EventType> = all.iter().map(v1::Event::r#type).collect();
        assert_eq!(types, [v1::EventType::SandboxCreated, v1::EventType::SandboxAllocated]);
        assert!(all.windows(2).all(|pair| pair[1].previous_revision == pair[0].revision));
    }

    fn watcher(history: History, next: Revision) -> (Watcher, mpsc::Receiver<v1::WatchEventsResponse>) {
        let (messages, receiver) = mpsc::channel(QUEUE);
        (Watcher { node: "n1".into(), history, filter: Filter::default(), next, messages }, receiver)
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_sees_what_was_and_what_comes_and_bookmarks_between() {
        let mut world = World::with_agent();
        world.create_strong("web");
        let (history, publisher, recorder) = world.history(1);
        let last = world.state.revision();
        let (watcher, mut messages) = watcher(history, 1);
        let task = tokio::spawn(watcher.run());
        let mut seen = Vec::new();
        while seen.len() < last as usize {
            seen.extend(messages.recv().await.unwrap().events.into_iter().map(|event| event.revision));
        }
        assert_eq!(seen, (1..=last).collect::<Vec<_>>());
        let bookmark = messages.recv().await.unwrap();
        assert_eq!((bookmark.revision, bookmark.events.len(), bookmark.node.as_str()), (last, 0, "n1"));
        world.create_strong("next");
        let applied = world.applied.last().unwrap().clone();
        recorder.applied(applied, crate::history::digests_of(&world.state));
        world.publish(&publisher);
        let news = loop {
            let message = messages.recv().await.unwrap();
            if !message.events.is_empty() {
                break message;
            }
        };
        assert_eq!(news.events[0].revision, last + 1);
        assert_eq!(news.revision, world.state.revision());
        drop(messages);
        assert!(matches!(task.await.unwrap(), End::Gone));
    }

    #[tokio::test(start_paused = true)]
    async fn a_revision_in_the_future_is_waited_for() {
        let world = World::with_agent();
        let (history, _publisher, _recorder) = world.history(1);
        let (watcher, mut messages) = watcher(history, 1_000);
        let task = tokio::spawn(watcher.run());
        let bookmark = messages.recv().await.unwrap();
        assert_eq!(
            (bookmark.revision, bookmark.events.len()),
            (999, 0),
            "resuming from it skips nothing wanted"
        );
        drop(messages);
        assert!(matches!(task.await.unwrap(), End::Gone));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_takes_nothing_is_cut_off() {
        let mut world = World::with_agent();
        for index in 0..2 * QUEUE {
            world.create_large(&format!("sb-{index}"), 60 * 1024);
        }
        let (history, _publisher, _recorder) = world.history(1);
        let (watcher, _messages) = watcher(history, 1);
        assert!(matches!(watcher.run().await, End::Slow));
    }

    #[tokio::test]
    async fn what_is_too_old_ends_the_watch_with_the_oldest() {
        let world = World::with_agent();
        let (history, _publisher, _recorder) = world.history(2);
        let (watcher, _messages) = watcher(history, 1);
        let status = watcher.run().await.status().unwrap();
        assert_eq!(status.code(), Code::OutOfRange);
    }

    #[tokio::test]
    async fn a_watcher_that_is_cut_off_learns_it_after_what_was_queued() {
        let metrics = Arc::new(Metrics::new());
        metrics.watchers.inc();
        let permit = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        let (messages, receiver) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let counted = Counted { _permit: permit, metrics: Arc::clone(&metrics) };
        let mut watch = outgoing(receiver, ended, counted);
        for revision in 0..QUEUE as u64 {
            let message = v1::WatchEventsResponse { revision, ..Default::default() };
            messages.try_send(message).unwrap();
        }
        end.send(End::Slow.status().unwrap()).unwrap();
        drop(messages);
        for revision in 0..QUEUE as u64 {
            assert_eq!(watch.next().await.unwrap().unwrap().revision, revision);
        }
        let status = watch.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("resume"), "{status}");
        assert!(watch.next().await.is_none());
        assert_eq!(metrics.watchers.get(), 1, "it counts as long as its stream lives");
        drop(watch);
        assert_eq!(metrics.watchers.get(), 0);
    }
}
