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
use crate::raft::types::{LogId, TypeConfig};

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
///
/// It is in `input` that openraft waits after the peer was not reachable. So nobody is dialled before the first append is there: a
/// dead peer, whose port refuses at once, would be dialled thousands of times a second.
pub(super) async fn pipeline<S>(
    link: &mut PeerLink,
    mut input: S,
) -> Result<AppendAnswers<'_>, RPCError<TypeConfig>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    let Some(first) = input.next().await else { return Ok(Box::pin(stream::empty())) };
    let (requests, answers) = open(link).await?;
    let mut pipeline = Pipeline {
        link: &*link,
        input: Some(input),
        requests: Some(requests),
        waiting: VecDeque::new(),
        answers,
        owed: Owed::default(),
        stalled_at: Instant::now(),
    };
    pipeline.waiting.extend(pipeline.owed.ask(first));
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
    owed: Owed,
    /// When it is too long since an answer came that was owed.
    stalled_at: Instant,
}

impl<S> Pipeline<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin,
{
    fn asks_for_more(&self) -> bool {
        self.input.is_some() && self.waiting.is_empty() && !self.owed.holds_back
    }

    async fn next(&mut self) -> Option<Result<Answer, RPCError<TypeConfig>>> {
        loop {
            if self.input.is_none() && self.waiting.is_empty() {
                self.requests = None;
            }
            tokio::select! {
                biased;
                answer = next_answer(self.link, &mut self.answers) => {
                    self.stalled_at = Instant::now() + STALL_TIMEOUT;
                    if self.owed.passes_on(answer.as_ref()) {
                        return answer;
                    }
                }
                () = sleep_until(self.stalled_at), if self.owed.count() > self.waiting.len() => {
                    return Some(Err(self.link.timed_out(RPCTypes::AppendEntries, STALL_TIMEOUT)));
                }
                // The peer ended its half if this fails; the answers then say why.
                Some(Ok(permit)) = reserve(self.requests.as_ref()), if !self.waiting.is_empty() => {
                    if let Some(message) = self.waiting.pop_front() {
                        // `waiting` is one shorter by now.
                        if self.owed.count() == self.waiting.len() + 1 {
                            self.stalled_at = Instant::now() + STALL_TIMEOUT;
                        }
                        permit.send(message);
                    }
                }
                request = next_request(self.input.as_mut()), if self.asks_for_more() => {
                    match request {
                        Some(request) => self.waiting.extend(self.owed.ask(request)),
                        None => self.input = None,
                    }
                }
            }
        }
    }
}

/// What each append ends with that is not answered yet, in their order.
///
/// openraft takes an answer for one to every append that ends no later than the answer says, and what was heard of the peer
/// for as new as the newest of them. An append without entries, which only tells what is committed, ends where the one before
/// it does: so an answer to the older one would pass for one to it. A leader that was stopped, and finds old answers when it
/// wakes, would believe that it still leads, and confirm reads and leases. An answer that could be mistaken so is not passed
/// on: the one to the later append says as much, when it comes. Until then nothing more is asked for, or where answers
/// take longer than it is from one heartbeat to the next there would always be a later append, and none would ever pass.
#[derive(Debug, Default)]
struct Owed {
    ends: VecDeque<Option<LogId>>,
    /// The last answer was not passed on.
    holds_back: bool,
}

impl Owed {
    /// Takes note of an append; the messages that it is sent in.
    fn ask(&mut self, append: AppendEntriesRequest<TypeConfig>) -> Vec<RaftMessage> {
        let end = |part: &AppendEntriesRequest<TypeConfig>| {
            part.entries.last().map(|entry| entry.log_id).or(part.prev_log_id)
        };
        let parts = codec::split_append(append);
        self.ends.extend(parts.iter().map(end));
        parts.iter().map(|part| RaftMessage { payload: codec::encode_append(part) }).collect()
    }

    fn count(&self) -> usize {
        self.ends.len()
    }

    /// Takes note of the next answer, or the end of all; whether openraft is to hear of it.
    fn passes_on(&mut self, answer: Option<&Result<Answer, RPCError<TypeConfig>>>) -> bool {
        self.ends.pop_front();
        self.holds_back = match answer {
            Some(Ok(Ok(matched))) => self.ends.iter().any(|last| last <= matched),
            _ => false,
        };
        !self.holds_back
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

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;

    use super::*;
    use crate::raft::types::{LogEntry, Vote};

    fn id(index: u64) -> LogId {
        LogId::new(1.into(), index)
    }

    /// With the entries from `first` up to `last`; none, if that is before it.
    fn append(first: u64, last: u64) -> AppendEntriesRequest<TypeConfig> {
        let entry = |index| LogEntry { log_id: id(index), payload: EntryPayload::Blank };
        AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(id(first - 1)),
            leader_commit: None,
            entries: (first..=last).map(entry).collect(),
        }
    }

    #[test]
    fn answers_to_appends_with_entries_are_passed_on_as_they_come() {
        let mut owed = Owed::default();
        for part in [append(1, 3), append(4, 4), append(5, 6)] {
            owed.ask(part);
        }
        for last in [3, 4, 6] {
            assert!(owed.passes_on(Some(&Ok(Ok(Some(id(last)))))), "{last}");
        }
        assert_eq!(owed.count(), 0);
    }

    /// It came before this node slept, and the append without entries was made when it woke: nobody has answered that.
    #[test]
    fn an_answer_is_not_taken_for_one_to_a_later_append_without_entries() {
        let mut owed = Owed::default();
        owed.ask(append(1, 3));
        owed.ask(append(4, 3));
        assert!(!owed.passes_on(Some(&Ok(Ok(Some(id(3)))))));
        assert_eq!(owed.count(), 1, "what is still owed is still waited for");
        assert!(owed.passes_on(Some(&Ok(Ok(Some(id(3)))))), "this is the answer to the later one");
    }

    /// Answers take 80 ms, and a heartbeat is due every 50.
    #[test]
    fn answers_pass_where_they_take_longer_than_from_heartbeat_to_heartbeat() {
        let (mut owed, mut sent, mut passed) = (Owed::default(), VecDeque::new(), 0);
        let mut due = 0_u64;
        for now in 0..1_000 {
            if sent.front().is_some_and(|sent: &u64| sent + 80 == now) {
                sent.pop_front();
                passed += usize::from(owed.passes_on(Some(&Ok(Ok(Some(id(3)))))));
            }
            if now >= due && !owed.holds_back {
                owed.ask(append(4, 3));
                sent.push_back(now);
                due = now + 50;
            }
        }
        assert!(passed >= 6, "one for two round trips: {passed}");
    }

    #[test]
    fn what_ends_the_stream_is_always_passed_on() {
        let mut owed = Owed::default();
        owed.ask(append(1, 3));
        owed.ask(append(4, 3));
        assert!(owed.passes_on(None));
        let broken = Unreachable::from_string("it is gone").into();
        assert!(owed.passes_on(Some(&Err(broken))));
    }
}
