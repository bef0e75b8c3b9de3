//! `CreateSandboxes`: creates as a client sends them, answers as they come.
//!
//! One task for each stream, and no other: it reads creates, hands them to the decider, and sends the answers. So many
//! are on their way at once that the decider has entries to fill, and no more than the client's window. Nobody waits for
//! a client that takes no answers: then nothing more is read from it, and what it is told stays with the cluster, which
//! remembers it until the client has acknowledged it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{BoxStream, FuturesUnordered, StreamExt};
use prost::Message;
use sandkeeper_proto::v1;
use sandkeeper_proto::v1::create_sandboxes_request::Message as Incoming;
use sandkeeper_proto::v1::create_sandboxes_response::Message as Outgoing;
use sandkeeper_proto::v1::streamed_answer::Result as AnswerResult;
use sandkeeper_statemachine::limits::STREAM_WINDOW;
use sandkeeper_statemachine::{Actor, Command, Outcome, Request as CoreRequest, StreamKey, StreamPosition};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout_at};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use super::Api;
use super::call::{DEFAULT_DEADLINE, DEFAULT_LONG_DEADLINE};
use super::convert::many::{Opening, in_stream, opening};
use super::convert::{Retention, invalid, nanos};
use super::sandbox::strong_key;
use super::status::{Problem, fault, refusal, rejected, shutting_down};
use super::watch::outgoing;

/// The most streams of creates of one node: with [`STREAM_BYTES`] a bound for its memory.
pub const MAX_CREATE_STREAMS: usize = 1_024;

/// The most bytes of creates of one stream that are on their way: a quarter of what the decider's queue holds, and four of
/// the largest.
const STREAM_BYTES: usize = 4 * 1024 * 1024;
/// Answers that wait for gRPC to take them: enough to fill its buffers. More wait in the task.
const ANSWERS: usize = 256;
/// The pause of a create that found the decider's queue full: the queue is emptied in less.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);
/// The reasons of refusals that are the end of a stream.
const ENDS: [&str; 2] = ["STREAM_FORGOTTEN", "STREAM_SUPERSEDED"];

type Responses = BoxStream<'static, Result<v1::CreateSandboxesResponse, Status>>;

impl Api {
    /// Serves a stream of creates.
    pub(super) fn create_stream(
        &self,
        requests: Streaming<v1::CreateSandboxesRequest>,
        actor: Actor,
    ) -> Result<Responses, Status> {
        let parts = self.parts();
        if parts.stop.is_cancelled() {
            return Err(shutting_down());
        }
        let permit = Arc::clone(&self.inner.create_streams).try_acquire_owned().map_err(|_| {
            let text =
                format!("this node has {MAX_CREATE_STREAMS} streams of creates: open yours at another one");
            Problem::new(Code::ResourceExhausted, "TOO_MANY_STREAMS", text)
                .retry_after(DEFAULT_DEADLINE)
                .status()
        })?;
        let (answers, receiver) = mpsc::channel(ANSWERS);
        let (end, ended) = oneshot::channel();
        let (api, stop) = (self.clone(), parts.stop.clone());
        self.inner.tasks.spawn(async move {
            let served = stop.run_until_cancelled(serve(api, requests, actor, answers)).await;
            if let Err(status) = served.unwrap_or_else(|| Err(shutting_down())) {
                // If the caller is gone there is nobody to tell.
                let _ = end.send(status);
            }
        });
        Ok(outgoing(receiver, ended, permit))
    }
}

/// How long a stream's client is remembered without a word of it, and how often the node that serves it gives word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    retention: i64,
    every: Duration,
}

impl Memory {
    /// A client that was cut off is remembered for the retention from then on, not from the last word before.
    fn of(retention: &Retention) -> Self {
        let every = (retention.caller / 4).max(Duration::from_secs(1));
        Self { retention: nanos(retention.caller.saturating_add(every)), every }
    }
}

/// Serves one stream to its end. An error is what the client is told last.
async fn serve(
    api: Api,
    mut requests: Streaming<v1::CreateSandboxesRequest>,
    actor: Actor,
    answers: mpsc::Sender<v1::CreateSandboxesResponse>,
) -> Result<(), Status> {
    let deadline = Instant::now() + DEFAULT_DEADLINE;
    let opened = async {
        let first = requests.next().await.transpose()?.and_then(|first| first.message);
        let Some(Incoming::Open(open)) = first else {
            return Err(misuse("the first message of a stream must be `open`"));
        };
        let opening = opening(&open).map_err(|rejection| rejected(&rejection))?;
        open_stream(&api, opening, &actor, deadline).await
    };
    let opened = timeout_at(deadline, opened).await;
    let (key, position) = opened.map_err(|_| misuse("no `open` came in time"))??;
    let header = Some(api.header_written(position.opened));
    let acknowledged_below = position.acknowledged_below;
    let told = v1::CreateStreamOpened { header, window: STREAM_WINDOW, acknowledged_below };
    let told = v1::CreateSandboxesResponse { message: Some(Outgoing::Opened(told)) };
    if answers.send(told).await.is_err() {
        return Ok(());
    }
    let sequences = BTreeSet::new();
    let (work, ready) = (FuturesUnordered::new(), VecDeque::new());
    let server = Server { api, actor, key, position, sequences, bytes: 0, work, ready, answers };
    server.run(requests).await
}

async fn open_stream(
    api: &Api,
    opening: Opening,
    actor: &Actor,
    deadline: Instant,
) -> Result<(StreamKey, StreamPosition), Status> {
    let Opening { stream, resume, acknowledged_below } = opening;
    let retention = Memory::of(&api.parts().retention).retention;
    let key = stream.clone();
    let command = Command::OpenStream { stream, resume, acknowledged_below, retention };
    let request = CoreRequest { actor: actor.clone(), id: None, command };
    match api.submit(request, deadline).await? {
        Outcome::Stream(position) => Ok((key, position)),
        _ => Err(fault("the opening of a stream had the outcome of another command")),
    }
}

/// A stream that is open.
struct Server {
    api: Api,
    actor: Actor,
    key: StreamKey,
    position: StreamPosition,
    /// Creates on their way, or whose answers are.
    sequences: BTreeSet<u64>,
    /// About the bytes of those on their way.
    bytes: usize,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Answers that gRPC has not taken.
    ready: VecDeque<v1::StreamedAnswer>,
    answers: mpsc::Sender<v1::CreateSandboxesResponse>,
}

/// What has come to its end.
#[expect(clippy::large_enum_variant, reason = "all but a few are of the largest")]
enum Done {
    Answer { sequence: u64, bytes: usize, result: Result<v1::CreateSandboxResponse, Status> },
    Kept(Result<Outcome, Status>),
}

impl Server {
    async fn run(mut self, mut requests: Streaming<v1::CreateSandboxesRequest>) -> Result<(), Status> {
        let Memory { every, .. } = Memory::of(&self.api.parts().retention);
        let mut keep = interval_at(Instant::now() + every, every);
        keep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let answers = self.answers.clone();
        let mut open = true;
        while open || !self.sequences.is_empty() {
            let has_room = self.sequences.len() < STREAM_WINDOW as usize && self.bytes < STREAM_BYTES;
            tokio::select! {
                request = requests.next(), if open && has_room => match request {
                    Some(Ok(request)) => self.take(request)?,
                    // The client is gone; what it has sent is not for anybody any more.
                    Some(Err(_)) => return Ok(()),
                    None => open = false,
                },
                Some(done) = self.work.next(), if !self.work.is_empty() => self.done(done)?,
                place = answers.reserve(), if !self.ready.is_empty() => {
                    let Ok(place) = place else { return Ok(()) };
                    if let Some(answer) = self.ready.pop_front() {
                        self.sequences.remove(&answer.sequence);
                        place.send(v1::CreateSandboxesResponse { message: Some(Outgoing::Answer(answer)) });
                    }
                }
                _ = keep.tick() => self.keep(),
                () = answers.closed() => return Ok(()),
            }
        }
        Ok(())
    }

    /// Takes a create in; an error is misuse.
    fn take(&mut self, request: v1::CreateSandboxesRequest) -> Result<(), Status> {
        let create = match request.message {
            Some(Incoming::Create(create)) => create,
            Some(Incoming::Open(_)) => {
                return Err(misuse("a stream is opened once: this is a second `open`"));
            }
            None => return Err(misuse("a message must be `open` or `create`")),
        };
        let sequence = create.sequence;
        if sequence == 0 {
            return Err(misuse("sequences begin with 1"));
        }
        if !self.sequences.insert(sequence) {
            return Err(misuse(&format!("sequence {sequence} was sent again before it was answered")));
        }
        self.position.acknowledged_below = self.position.acknowledged_below.max(create.acknowledged_below);
        let bytes = create.encoded_len();
        match in_stream(create, &self.key, self.position, self.actor.clone()) {
            Ok(request) => {
                self.bytes += bytes;
                self.work.push(make(self.api.clone(), Arc::new(request), sequence, bytes).boxed());
                Ok(())
            }
            Err(rejection) => self.answer(sequence, Err(rejected(&rejection))),
        }
    }

    fn done(&mut self, done: Done) -> Result<(), Status> {
        match done {
            Done::Answer { sequence, bytes, result } => {
                self.bytes -= bytes;
                self.answer(sequence, result)
            }
            Done::Kept(Ok(_)) => Ok(()),
            Done::Kept(Err(status)) if is_end(&status) => Err(status),
            Done::Kept(Err(status)) => {
                // The next one is due long before the client is forgotten.
                tracing::debug!(client = %self.key.client, %status, "a stream could not be kept");
                Ok(())
            }
        }
    }

    /// Puts an answer in line, or ends the stream with it.
    fn answer(
        &mut self,
        sequence: u64,
        result: Result<v1::CreateSandboxResponse, Status>,
    ) -> Result<(), Status> {
        let result = match result {
            Ok(created) => AnswerResult::Created(created),
            Err(status) if is_end(&status) => return Err(status),
            Err(status) => AnswerResult::Refusal(refusal(&status)),
        };
        self.ready.push_back(v1::StreamedAnswer { sequence, result: Some(result) });
        Ok(())
    }

    /// Says to the cluster that the client is still there.
    fn keep(&mut self) {
        let retention = Memory::of(&self.api.parts().retention).retention;
        let command = Command::KeepStream { stream: self.key.clone(), position: self.position, retention };
        let request = CoreRequest { actor: self.actor.clone(), id: None, command };
        let api = self.api.clone();
        self.work.push(
            async move { Done::Kept(api.submit(request, Instant::now() + DEFAULT_DEADLINE).await) }.boxed(),
        );
    }
}

/// Has one create decided. A full queue makes it wait, and with it the stream.
async fn make(api: Api, request: Arc<CoreRequest>, sequence: u64, bytes: usize) -> Done {
    let strong = strong_key(&request).is_some();
    let deadline = Instant::now() + if strong { DEFAULT_LONG_DEADLINE } else { DEFAULT_DEADLINE };
    loop {
        let result = api.make(&request, deadline).await;
        let full = result.as_ref().is_err_and(|status| reason(status).as_deref() == Some("OVERLOADED"));
        if full && Instant::now() + QUEUE_PAUSE < deadline {
            sleep(QUEUE_PAUSE).await;
            continue;
        }
        return Done::Answer { sequence, bytes, result };
    }
}

fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

fn is_end(status: &Status) -> bool {
    reason(status).is_some_and(|reason| ENDS.contains(&reason.as_str()))
}

/// The client does not keep to the protocol.
fn misuse(text: &str) -> Status {
    rejected(&invalid("message", text))
}
