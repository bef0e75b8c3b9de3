//! The task behind a stream of creates: opens streams, one after another, and keeps what has no answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use futures::{StreamExt, stream};
use sandkeeper_proto::v1;
use sandkeeper_proto::v1::create_sandboxes_request::Message as Outgoing;
use sandkeeper_proto::v1::create_sandboxes_response::Message as Incoming;
use sandkeeper_proto::v1::streamed_answer::Result as AnswerResult;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Code, Streaming};
use uuid::Uuid;

use super::{CreateAnswer, QUEUE};
use crate::client::{Client, Retry, SHARE_OF_ONE_TRY, SHORTEST_TRY, Span, Tries};
use crate::error::{ClientError, Failure, MOMENT, Refusal, ServerFailure, ServerFailureKind};

/// The pause before a create that was not decided is sent again, if the server names none.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// The server has forgotten this client, which was idle for too long.
const FORGOTTEN: &str = "STREAM_FORGOTTEN";

/// A create without an answer.
struct Unanswered {
    create: v1::CreateSandboxRequest,
    since: Instant,
}

/// What the cluster knows this client as, until it is forgotten.
struct Life {
    client_id: Uuid,
    /// Its sequences begin after this one of ours.
    after: u64,
    /// Something was sent, or its sending was tried: from then on the cluster has to know us.
    used: bool,
}

impl Life {
    fn new(after: u64) -> Self {
        Self { client_id: Uuid::new_v4(), after, used: false }
    }
}

pub(super) struct Worker {
    client: Client,
    namespace: String,
    life: Life,
    creates: mpsc::Receiver<v1::CreateSandboxRequest>,
    answers: mpsc::Sender<Result<CreateAnswer, ClientError>>,
    /// How many creates have come from the caller.
    received: u64,
    /// The greatest sequence that was sent, or tried to.
    sent: u64,
    /// The caller sends no more.
    finished: bool,
    unanswered: BTreeMap<u64, Unanswered>,
    /// How many of them are answered at once by a server that can serve.
    urgent: usize,
    /// Answers that the caller has not taken.
    ready: VecDeque<CreateAnswer>,
}

/// A stream that is open.
struct Open {
    server: usize,
    outbound: mpsc::Sender<v1::CreateSandboxesRequest>,
    inbound: Streaming<v1::CreateSandboxesResponse>,
    window: u64,
    /// Sequences that are to be sent.
    to_send: VecDeque<u64>,
    /// Those that are sent again at a time.
    later: BTreeSet<(Instant, u64)>,
    /// Whether it has brought an answer.
    useful: bool,
    /// When it last brought one, or nothing was waited for.
    heard: Instant,
}

impl Worker {
    pub(super) fn new(
        client: Client,
        namespace: String,
        creates: mpsc::Receiver<v1::CreateSandboxRequest>,
        answers: mpsc::Sender<Result<CreateAnswer, ClientError>>,
    ) -> Self {
        Self {
            client,
            namespace,
            life: Life::new(0),
            creates,
            answers,
            received: 0,
            sent: 0,
            finished: false,
            unanswered: BTreeMap::new(),
            urgent: 0,
            ready: VecDeque::new(),
        }
    }

    pub(super) async fn run(mut self) {
        let client = self.client.clone();
        let mut tries = Tries::new(&client);
        while self.wants_stream().await {
            let failed = match self.open(&tries).await {
                Ok(mut open) => {
                    let Some(failed) = self.serve(&mut open).await else { return };
                    if open.useful {
                        tries = Tries::new(&client);
                        tries.server = open.server;
                    }
                    failed
                }
                Err(failed) => failed,
            };
            if self.begin_anew(&failed) {
                continue;
            }
            if self.unanswered.is_empty() && !matches!(failed, Failure::Refused(_)) {
                // Nobody waits: the next create finds the way by itself.
                tries = Tries::new(&client);
                continue;
            }
            if let Err(error) = tries.failed(failed, Retry::Always).await {
                // If the caller is gone there is nobody to tell.
                let _ = self.answers.send(Err(error)).await;
                return;
            }
        }
    }

    /// Waits until there is something to send; false: there never will be.
    async fn wants_stream(&mut self) -> bool {
        while self.unanswered.is_empty() {
            while let Some(answer) = self.ready.pop_front() {
                if self.answers.send(Ok(answer)).await.is_err() {
                    return false;
                }
            }
            tokio::select! {
                () = self.answers.closed() => return false,
                create = self.creates.recv() => match create {
                    Some(create) => { self.take(create); }
                    None => return false,
                },
            }
        }
        true
    }

    fn take(&mut self, create: v1::CreateSandboxRequest) -> u64 {
        self.received += 1;
        self.urgent += usize::from(is_urgent(&create));
        self.unanswered.insert(self.received, Unanswered { create, since: Instant::now() });
        self.received
    }

    /// A client that the cluster has forgotten while nothing of it was on its way goes on under a new id.
    fn begin_anew(&mut self, failed: &Failure) -> bool {
        let forgotten = matches!(failed, Failure::Refused(ClientError::Refused(refusal))
            if refusal.reason.as_deref() == Some(FORGOTTEN));
        let unsent = self.unanswered.keys().next().is_none_or(|first| *first > self.sent);
        if forgotten && unsent {
            let first = self.unanswered.keys().next().copied().unwrap_or(self.received + 1);
            self.life = Life::new(first - 1);
        }
        forgotten && unsent
    }

    async fn open(&mut self, tries: &Tries<'_>) -> Result<Open, Failure> {
        let server = self.client.server(tries.server).clone();
        let budget = tries.budget(Span::Stream);
        let (outbound, mut receiver) = mpsc::channel(QUEUE);
        let open = v1::OpenCreateStream {
            client_id: self.life.client_id.to_string(),
            namespace: self.namespace.clone(),
            resume: self.life.used,
            acknowledged_below: if self.life.used { self.acknowledged_below() } else { 0 },
        };
        let open = v1::CreateSandboxesRequest { message: Some(Outgoing::Open(open)) };
        let opening = async {
            let _ = outbound.send(open).await;
            let requests = stream::poll_fn(move |context| receiver.poll_recv(context));
            let answer = crate::calls::sandbox(server.channel.clone()).create_sandboxes(requests).await;
            let mut inbound = answer.map_err(|status| Failure::of(&server.address, &status))?.into_inner();
            let first = inbound.next().await.transpose();
            match first
                .map_err(|status| Failure::of(&server.address, &status))?
                .and_then(|first| first.message)
            {
                Some(Incoming::Opened(opened)) => Ok((inbound, opened.window)),
                _ => Err(ended(&server.address)),
            }
        };
        let opened = timeout(budget, opening).await;
        let (inbound, window) = opened.map_err(|_| Failure::timed_out(&server.address, budget))??;
        let to_send = self.unanswered.keys().copied().collect();
        let (server, later, heard) = (tries.server, BTreeSet::new(), Instant::now());
        Ok(Open { server, outbound, inbound, window, to_send, later, useful: false, heard })
    }

    /// Sends and receives until the stream breaks; says how. `None`: all is done, or nobody wants it any more.
    async fn serve(&mut self, open: &mut Open) -> Option<Failure> {
        let (answers, outbound) = (self.answers.clone(), open.outbound.clone());
        let patience = SHORTEST_TRY.max(self.client.deadline() / SHARE_OF_ONE_TRY);
        let address = self.client.server(open.server).address.clone();
        loop {
            if self.finished && self.unanswered.is_empty() && self.ready.is_empty() {
                return None;
            }
            let next = self.received + 1 - self.life.after;
            let in_window = next < self.acknowledged_below() + open.window;
            let next_retry = open.later.first().map(|(at, _)| *at);
            tokio::select! {
                create = self.creates.recv(), if !self.finished && in_window && open.to_send.len() < QUEUE => {
                    match create {
                        Some(create) => {
                            if self.urgent == 0 {
                                open.heard = Instant::now();
                            }
                            open.to_send.push_back(self.take(create));
                        }
                        None => self.finished = true,
                    }
                }
                place = outbound.reserve(), if !open.to_send.is_empty() => {
                    let Ok(place) = place else { return Some(ended(&address)) };
                    if let Some(message) = open.to_send.pop_front().and_then(|sequence| self.message(sequence)) {
                        place.send(message);
                    }
                }
                message = open.inbound.next(), if self.ready.len() < QUEUE => match message {
                    Some(Ok(v1::CreateSandboxesResponse { message: Some(Incoming::Answer(answer)) })) => {
                        self.answered(answer, open, &address);
                    }
                    Some(Ok(_)) | None => return Some(ended(&address)),
                    Some(Err(status)) => return Some(Failure::of(&address, &status)),
                },
                place = answers.reserve(), if !self.ready.is_empty() => {
                    let place = place.ok()?;
                    if let Some(answer) = self.ready.pop_front() {
                        place.send(Ok(answer));
                    }
                }
                () = sleep_until(next_retry.unwrap_or_else(Instant::now)), if next_retry.is_some() => {
                    open.to_send.extend(open.later.pop_first().map(|(_, sequence)| sequence));
                }
                // It may be cut off from the others, or hang: another one may do.
                () = sleep_until(open.heard + patience), if self.urgent > 0 => {
                    return Some(Failure::timed_out(&address, patience));
                }
                () = answers.closed() => return None,
            }
        }
    }

    /// As the cluster counts.
    fn acknowledged_below(&self) -> u64 {
        self.unanswered.keys().next().copied().unwrap_or(self.received + 1) - self.life.after
    }

    fn message(&mut self, sequence: u64) -> Option<v1::CreateSandboxesRequest> {
        let acknowledged_below = self.acknowledged_below();
        let create = Some(self.unanswered.get(&sequence)?.create.clone());
        self.life.used = true;
        self.sent = self.sent.max(sequence);
        let sequence = sequence - self.life.after;
        let create = v1::StreamedCreate { sequence, acknowledged_below, create };
        Some(v1::CreateSandboxesRequest { message: Some(Outgoing::Create(create)) })
    }

    /// Takes an answer: for the caller, or for another try.
    fn answered(&mut self, answer: v1::StreamedAnswer, open: &mut Open, address: &str) {
        let sequence = answer.sequence + self.life.after;
        let Some(known) = self.unanswered.get(&sequence) else { return };
        let result = match answer.result {
            Some(AnswerResult::Created(created)) => Ok(created),
            Some(AnswerResult::Refusal(wire)) => {
                let refusal = Refusal::of_stream(address, wire);
                if passes(&refusal) {
                    let delay = refusal.retry_after.unwrap_or(RETRY_PAUSE);
                    if known.since.elapsed() + delay < self.client.deadline() {
                        open.later.insert((Instant::now() + delay, sequence));
                        return;
                    }
                    Err(too_late(&self.client, refusal))
                } else {
                    Err(ClientError::Refused(Box::new(refusal)))
                }
            }
            None => Err(ClientError::refused(address, &tonic::Status::data_loss("an answer says nothing"))),
        };
        (open.useful, open.heard) = (true, Instant::now());
        self.urgent -= usize::from(is_urgent(&known.create));
        self.unanswered.remove(&sequence);
        self.ready.push_back(CreateAnswer { sequence, result });
    }
}

/// Whether a create is answered at once, not only when it runs.
fn is_urgent(create: &v1::CreateSandboxRequest) -> bool {
    create.mode() != v1::Mode::Strong
}

/// Whether the same create may fare better in a moment.
fn passes(refusal: &Refusal) -> bool {
    match refusal.code {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => true,
        Code::ResourceExhausted => refusal.retry_after.is_some_and(|delay| delay <= MOMENT),
        _ => false,
    }
}

fn too_late(client: &Client, refusal: Refusal) -> ClientError {
    let kind = match refusal.code {
        Code::DeadlineExceeded => ServerFailureKind::TimedOut,
        _ => ServerFailureKind::Unavailable,
    };
    let failures = vec![ServerFailure { server: refusal.server, kind, message: refusal.message }];
    ClientError::Deadline { deadline: client.deadline(), failures }
}

fn ended(address: &str) -> Failure {
    Failure::passing(address, ServerFailureKind::Unavailable, "it ended the stream".to_owned())
}

#[cfg(test)]
mod tests {
    use tonic::Status;
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    fn refused(reason: &str) -> Failure {
        let details = ErrorDetails::with_error_info(reason, "sandkeeper", []);
        let status = Status::with_error_details(Code::FailedPrecondition, "no", details);
        Failure::of("n1", &status)
    }

    /// A client may be idle for longer than it is remembered. Then nothing is lost if it takes another id, unless
    /// something that was sent has no answer.
    #[tokio::test]
    async fn who_was_forgotten_while_idle_begins_anew() {
        let client = Client::builder().servers(["n1:1"]).build().unwrap();
        let ((_creates, receiver), (answers, _receiver)) = (mpsc::channel(1), mpsc::channel(1));
        let mut worker = Worker::new(client, String::new(), receiver, answers);
        for number in 1..=3 {
            worker.take(v1::CreateSandboxRequest::default());
            assert!(worker.message(number).is_some());
        }
        let before = worker.life.client_id;
        assert!(!worker.begin_anew(&refused(FORGOTTEN)), "what was sent may have been made");
        worker.unanswered.clear();
        worker.take(v1::CreateSandboxRequest::default());
        assert!(!worker.begin_anew(&refused("STREAM_SUPERSEDED")));
        assert_eq!(worker.life.client_id, before);
        assert!(worker.begin_anew(&refused(FORGOTTEN)));
        assert_ne!(worker.life.client_id, before);
        let Some(Outgoing::Create(create)) = worker.message(4).unwrap().message else { panic!("a create") };
        assert_eq!((create.sequence, create.acknowledged_below), (1, 1), "the new client counts from 1");
    }
}
