//! One call, from the first server tried to the answer or the deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::builder::{ClientBuilder, Selection};
use crate::error::{ClientError, Failure, ServerFailure, ServerFailureKind};

/// The wait after the first round over all servers; it doubles from round to round. Short, because an election is over
/// within some hundred milliseconds, and the caller waits for what is left of the pause after it.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// The longest wait between rounds; up to as much again comes to it at random, so that the callers of a cluster that
/// was away for long do not come back all at once.
const BACKOFF_MAX: Duration = Duration::from_millis(125);
/// A short call leaves at least two thirds of its deadline to the other servers when one hangs.
pub(crate) const SHARE_OF_ONE_TRY: u32 = 3;
/// But a try is never shorter than this (unless the deadline is): an fsync on a busy disk takes its time.
pub(crate) const SHORTEST_TRY: Duration = Duration::from_secs(1);

/// A control node and the connection to it.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) channel: Channel,
}

/// A client of one cluster. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    servers: Arc<[Server]>,
    /// The server that the next call begins with (modulo their number).
    preferred: Arc<AtomicUsize>,
    deadline: Duration,
    selection: Selection,
    unreachable_after: Option<Duration>,
}

/// Whether a call that may have been received can be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// A read, or a call with a request id.
    Always,
    /// Only when it is certain that no server received it.
    NotSent,
}

/// How long a call takes by its nature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    /// Answered at once: a server that is silent for a while is given up.
    Short,
    /// Answered when something has happened: one try may last until the deadline.
    Long,
    /// A stream: the deadline is for its opening only.
    Stream,
}

/// What the engine has to know about a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) retry: Retry,
    pub(crate) span: Span,
}

impl Kind {
    pub(crate) const SHORT: Self = Self { retry: Retry::Always, span: Span::Short };
    pub(crate) const LONG: Self = Self { retry: Retry::Always, span: Span::Long };
    pub(crate) const ONCE: Self = Self { retry: Retry::NotSent, span: Span::Long };
    pub(crate) const STREAM: Self = Self { retry: Retry::Always, span: Span::Stream };
}

impl Client {
    /// Starts the making of a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    pub(crate) fn new(
        servers: Vec<Server>,
        deadline: Duration,
        selection: Selection,
        unreachable_after: Option<Duration>,
    ) -> Self {
        let preferred = Arc::new(AtomicUsize::new(0));
        Self { servers: servers.into(), preferred, deadline, selection, unreachable_after }
    }

    /// The same client, with another deadline for its calls.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// How long a call may take, retries included.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// The addresses that calls may go to.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.servers.iter().map(|server| server.address.as_str())
    }

    /// A client for each server by itself, without failover: for questions to one node.
    pub fn on_each_server(&self) -> Vec<(String, Self)> {
        let one = |server: &Server| {
            let servers = vec![server.clone()];
            let client = Self::new(servers, self.deadline, self.selection, self.unreachable_after);
            (server.address.clone(), client)
        };
        self.servers.iter().map(one).collect()
    }

    pub(crate) fn server(&self, index: usize) -> &Server {
        &self.servers[index % self.servers.len()]
    }

    pub(crate) fn server_count(&self) -> usize {
        self.servers.len()
    }

    pub(crate) fn first_server(&self) -> usize {
        match self.selection {
            Selection::Sticky => self.preferred.load(Ordering::Relaxed) % self.servers.len(),
            Selection::RoundRobin => self.preferred.fetch_add(1, Ordering::Relaxed) % self.servers.len(),
        }
    }

    pub(crate) fn prefer(&self, index: usize) {
        if self.selection == Selection::Sticky {
            self.preferred.store(index % self.servers.len(), Ordering::Relaxed);
        }
    }

    /// Sends `request` until it is answered, refused, or the deadline has come.
    pub(crate) async fn call<Req, Resp, F, Fut>(
        &self,
        kind: Kind,
        request: Req,
        send: F,
    ) -> Result<Resp, ClientError>
    where
        Req: Clone,
        F: Fn(Channel, Request<Req>) -> Fut,
        Fut: Future<Output = Result<Response<Resp>, Status>>,
    {
        self.call_at(kind, request, send).await.map(|(_, answer)| answer)
    }

    /// As [`Self::call`], and says which server answered.
    pub(crate) async fn call_at<Req, Resp, F, Fut>(
        &self,
        kind: Kind,
        request: Req,
        send: F,
    ) -> Result<(usize, Resp), ClientError>
    where
        Req: Clone,
        F: Fn(Channel, Request<Req>) -> Fut,
        Fut: Future<Output = Result<Response<Resp>, Status>>,
    {
        let mut tries = Tries::new(self);
        loop {
            let budget = tries.budget(kind.span);
            if budget.is_zero() {
                return Err(tries.give_up());
            }
            let server = self.server(tries.server);
            let mut message = Request::new(request.clone());
            if kind.span != Span::Stream {
                message.set_timeout(budget);
            }
            let failure = match timeout(budget, send(server.channel.clone(), message)).await {
                Ok(Ok(answer)) => {
                    self.prefer(tries.server);
                    return Ok((tries.server, answer.into_inner()));
                }
                Ok(Err(status)) => Failure::of(&server.address, &status),
                Err(_) => Failure::timed_out(&server.address, budget),
            };
            tries.failed(failure, kind.retry).await?;
        }
    }
}

/// The tries of one call: which server is next, who failed how, how much time is left.
pub(crate) struct Tries<'a> {
    client: &'a Client,
    began: Instant,
    pub(crate) server: usize,
    /// Tries since the last pause; a pause comes when every server has had its turn.
    in_round: usize,
    backoff: ExponentialBackoff,
    /// The last failure of each server, in the order in which they first failed.
    failures: Vec<ServerFailure>,
    /// What a server said that speaks for itself only: it counts if no other server knows better.
    refusal: Option<ClientError>,
}

impl<'a> Tries<'a> {
    pub(crate) fn new(client: &'a Client) -> Self {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(BACKOFF_MIN)
            .with_max_delay(BACKOFF_MAX)
            .with_jitter()
            .without_max_times()
            .build();
        let server = client.first_server();
        Self {
            client,
            began: Instant::now(),
            server,
            in_round: 0,
            backoff,
            failures: Vec::new(),
            refusal: None,
        }
    }

    fn left(&self) -> Duration {
        self.client.deadline.saturating_sub(self.began.elapsed())
    }

    /// The time that the next try may take.
    pub(crate) fn budget(&self, span: Span) -> Duration {
        let left = self.left();
        match span {
            Span::Long => left,
            Span::Short | Span::Stream => left.min(SHORTEST_TRY.max(self.client.deadline / SHARE_OF_ONE_TRY)),
        }
    }

    /// Takes note of a failure, and returns when (and if) it is time for the next try.
    pub(crate) async fn failed(&mut self, failure: Failure, retry: Retry) -> Result<(), ClientError> {
        let retry_after = match failure {
            Failure::Refused(error) => return Err(error),
            Failure::Elsewhere(error) => {
                tracing::debug!(%error, "another server may do");
                self.refusal = Some(error);
                None
            }
            Failure::Passing { failure, retry_after } => {
                let ServerFailure { server, kind, message } = &failure;
                tracing::debug!(%server, ?kind, error = %message, "a try failed");
                let sent = *kind != ServerFailureKind::NotConnected;
                self.note(failure);
                if sent && retry == Retry::NotSent {
                    return Err(self.give_up());
                }
                retry_after
            }
        };
        self.server = (self.server + 1) % self.client.server_count();
        self.client.prefer(self.server);
        self.in_round += 1;
        if self.in_round < self.client.server_count() && retry_after.is_none() {
            return Ok(());
        }
        if self.refusal.is_some() || self.nobody_listens() {
            return Err(self.give_up());
        }
        self.in_round = 0;
        // Unlimited by its making, so there always is a next delay.
        let delay = self.backoff.next().unwrap_or(BACKOFF_MAX).max(retry_after.unwrap_or_default());
        if delay >= self.left() {
            return Err(self.give_up());
        }
        sleep(delay).await;
        Ok(())
    }

    fn note(&mut self, failure: ServerFailure) {
        match self.failures.iter_mut().find(|known| known.server == failure.server) {
            // That a server was silent says less than what it said before it fell silent at the deadline.
            Some(known)
                if failure.kind == ServerFailureKind::TimedOut
                    && known.kind == ServerFailureKind::Unavailable => {}
            Some(known) => *known = failure,
            None => self.failures.push(failure),
        }
    }

    /// Whether patience is over with a cluster of which no server takes a connection.
    fn nobody_listens(&self) -> bool {
        let refused = self.failures.len() == self.client.server_count()
            && self.failures.iter().all(|failure| failure.kind == ServerFailureKind::NotConnected);
        refused && self.client.unreachable_after.is_some_and(|patience| self.began.elapsed() >= patience)
    }

    pub(crate) fn give_up(&mut self) -> ClientError {
        if let Some(refusal) = self.refusal.take() {
            return refusal;
        }
        let failures = std::mem::take(&mut self.failures);
        let silent = failures.iter().any(|failure| failure.kind == ServerFailureKind::TimedOut);
        if silent || failures.is_empty() {
            ClientError::Deadline { deadline: self.client.deadline, failures }
        } else {
            ClientError::Unreachable(failures)
        }
    }
}
