//! Appends to one peer: pipelined over one stream, or one at a time.

use std::collections::VecDeque;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use openraft::RPCTypes;
use openraft::errors::{RPCError, Unreachable};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use sandkeeper_proto::internal::RaftMessage;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{AppendAnswers, PeerLink};
use crate::raft::codec;
use crate::raft::types::TypeConfig;

/// How long opening a stream may take, connecting included.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that owes an answer and gives none for this long is not making progress. Far longer than the heartbeat:
/// a follower whose fsync is slow is slow, and asking it again would make it slower.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages between Raft and the connection. Raft bounds what is in flight by itself.
const QUEUE: usize = 4;

type Requests = mpsc::Sender<RaftMessage>;
type Answer = StreamAppendResult<TypeConfig>;

async fn open(link: &PeerLink) -> Result<(Requests, Streaming<RaftMessage>), RPCError<TypeConfig>> {
    let (requests, queue) = mpsc::channel(QUEUE);
    let mut client = link.client()?;
    let opened = timeout(OPEN_TIMEOUT, client.append(ReceiverStream::new(queue))).await;
    let answers = opened
        .map_err(|_| link.timed_out(RPCTypes::AppendEntries, OPEN_TIMEOUT))?
        .map_err(|status| link.failed(&status))?;
    Ok((requests, answers.into_inner()))
}

async fn next_answer(
    link: &PeerLink,
    answers: &mut Streaming<RaftMessage>,
) -> Option<Result<Answer, RPCError<TypeConfig>>> {
    match answers.message().await {
        Ok(Some(message)) => Some(codec::decode(&message.payload).map_err(|error| link.unreadable(&error))),
        Ok(None) => None,
        Err(status) => Some(Err(link.failed(&status))),
    }
}

/// A stream over which appends go one at a time.
pub(super) struct Exchange {
    requests: Requests,
    answers: Streaming<RaftMessage>,
}

impl Exchange {
    pub(super) async fn open(link: &PeerLink) -> Result<Self, RPCError<TypeConfig>> {
        let (requests, answers) = open(link).await?;
        Ok(Self { requests, answers })
    }

    /// Sends one append and waits for its answer. After an error, and after an answer that is a refusal, the peer
    /// has ended the stream.
    pub(super) async fn ask(
        &mut self,
        link: &PeerLink,
        request: &AppendEntriesRequest<TypeConfig>,
    ) -> Result<Answer, RPCError<TypeConfig>> {
        let ended = || Unreachable::from_string(format!("peer {} ended the stream", link.address()));
        let message = RaftMessage { payload: codec::encode_append(request) };
        self.requests.send(message).await.map_err(|_| ended())?;
        next_answer(link, &mut self.answers).await.unwrap_or_else(|| Err(ended().into()))
    }
}

/// Sends what `input` yields without waiting for answers, and yields the answers in order.
pub(super) async fn pipeline<S>(
    link: &mut PeerLink,
    input: S,
) -> Result<AppendAnswers<'_>, RPCError<TypeConfig>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    let (requests, answers) = open(link).await?;
    let pipeline = Pipeline {
        link: &*link,
        input: Some(input),
        requests: Some(requests),
        waiting: VecDeque::new(),
        answers,
        owed: 0,
        stalled_at: Instant::now(),
    };
    Ok(Box::pin(stream::unfold(Some(pipeline), |state| async move {
        let mut pipeline = state?;
        match pipeline.next().await? {
            Ok(Ok(matched)) => Some((Ok(Ok(matched)), Some(pipeline))),
            last => Some((last, None)),
        }
    })))
}

/// Both directions of the stream are driven by whoever polls the answers. So `input` is dropped together with the
/// answers, at once: openraft's request stream holds a lock while it waits, and a copy of it that lived on in the
/// connection's task would keep the next session from starting.
struct Pipeline<'s, S> {
    link: &'s PeerLink,
    /// None once it has ended.
    input: Option<S>,
    /// None once everything is sent.
    requests: Option<Requests>,
    /// Encoded, not yet handed to the connection.
    waiting: VecDeque<RaftMessage>,
    answers: Streaming<RaftMessage>,
    /// Appends that are not answered yet.
    owed: u64,
    /// When it is too long since an answer came that was owed.
    stalled_at: Instant,
}

impl<S> Pipeline<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin,
{
    async fn next(&mut self) -> Option<Result<Answer, RPCError<TypeConfig>>> {
        loop {
            if self.input.is_none() && self.waiting.is_empty() {
                self.requests = None;
            }
            tokio::select! {
                biased;
                answer = next_answer(self.link, &mut self.answers) => {
                    self.owed = self.owed.saturating_sub(1);
                    self.stalled_at = Instant::now() + STALL_TIMEOUT;
                    return answer;
                }
                () = sleep_until(self.stalled_at), if self.owed > 0 => {
                    return Some(Err(self.link.timed_out(RPCTypes::AppendEntries, STALL_TIMEOUT)));
                }
                // The peer ended its half if this fails; the answers then say why.
                Some(Ok(permit)) = reserve(self.requests.as_ref()), if !self.waiting.is_empty() => {
                    if let Some(message) = self.waiting.pop_front() {
                        if self.owed == 0 {
                            self.stalled_at = Instant::now() + STALL_TIMEOUT;
                        }
                        self.owed += 1;
                        permit.send(message);
                    }
                }
                request = next_request(self.input.as_mut()), if self.waiting.is_empty() && self.input.is_some() => {
                    match request {
                        Some(request) => {
                            let parts = codec::split_append(request);
                            self.waiting.extend(parts.iter().map(|part| {
                                RaftMessage { payload: codec::encode_append(part) }
                            }));
                        }
                        None => self.input = None,
                    }
                }
            }
        }
    }
}

async fn reserve(
    requests: Option<&Requests>,
) -> Option<Result<mpsc::Permit<'_, RaftMessage>, mpsc::error::SendError<()>>> {
    Some(requests?.reserve().await)
}

async fn next_request<S: Stream + Unpin>(input: Option<&mut S>) -> Option<S::Item> {
    input?.next().await
}
