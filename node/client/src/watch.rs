//! A watch that outlives the servers that it is read from.

use futures::{Stream, StreamExt, stream};
use sandkeeper_proto::v1;
use tokio::time::timeout;
use tonic::{Code, Request, Streaming};

use crate::client::{Client, Retry, Span, Tries};
use crate::error::{ClientError, Failure, ServerFailureKind};

/// Events from a revision on, without gaps or doubles, whichever server they come from.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    filter: v1::EventFilter,
    /// The revision that comes next; `None`: from now on, and "now" is not yet known.
    next: Option<u64>,
    open: Option<Open>,
}

/// The stream that is being read.
#[derive(Debug)]
struct Open {
    server: usize,
    stream: Streaming<v1::WatchEventsResponse>,
}

impl Watch {
    pub(crate) fn new(client: Client, from: u64, filter: v1::EventFilter) -> Self {
        Self { client, filter, next: (from > 0).then_some(from), open: None }
    }

    /// The revision from which this watch goes on, once it is known: of a new watch, to resume where this one stands.
    pub fn position(&self) -> Option<u64> {
        self.next
    }

    /// The next events, or a bookmark (no events, and the revision up to which there are none). Safe to cancel.
    ///
    /// # Errors
    /// A refusal (`OUT_OF_RANGE`: the revision is older than what is kept), or no server that serves within the
    /// client's deadline.
    pub async fn next(&mut self) -> Result<v1::WatchEventsResponse, ClientError> {
        let client = self.client.clone();
        let mut tries = Tries::new(&client);
        // The deadline counts from the first failure, not from the call: a watch may be idle for days.
        let mut troubled = false;
        loop {
            let failed = if self.open.is_none() {
                match self.open(&client, &tries).await? {
                    Ok(open) => {
                        self.open = Some(open);
                        continue;
                    }
                    Err(failure) => failure,
                }
            } else {
                match self.receive().await {
                    Ok(message) => match self.accept(message)? {
                        Some(fresh) => return Ok(fresh),
                        None => continue,
                    },
                    Err((server, failure)) => {
                        if !troubled {
                            tries = Tries::new(&client);
                        }
                        tries.server = server;
                        failure
                    }
                }
            };
            troubled = true;
            tries.failed(failed, Retry::Always).await?;
        }
    }

    /// The watch as a stream of single events. It ends after an error.
    pub fn into_events(self) -> impl Stream<Item = Result<v1::Event, ClientError>> {
        let batches = stream::unfold(Some(self), |watch| async {
            let mut watch = watch?;
            match watch.next().await {
                Ok(message) => Some((message.events.into_iter().map(Ok).collect::<Vec<_>>(), Some(watch))),
                Err(error) => Some((vec![Err(error)], None)),
            }
        });
        batches.flat_map(stream::iter)
    }

    /// Opens the stream at the server whose turn it is. The outer error is final, the inner one may pass.
    async fn open(
        &mut self,
        client: &Client,
        tries: &Tries<'_>,
    ) -> Result<Result<Open, Failure>, ClientError> {
        let from = match self.next {
            Some(next) => next,
            None => self.now(client).await?,
        };
        let server = client.server(tries.server);
        let request = v1::WatchEventsRequest { from_revision: from, filter: Some(self.filter.clone()) };
        let budget = tries.budget(Span::Stream);
        let mut events = crate::calls::event(server.channel.clone());
        Ok(match timeout(budget, events.watch_events(Request::new(request))).await {
            Ok(Ok(answer)) => Ok(Open { server: tries.server, stream: answer.into_inner() }),
            Ok(Err(status)) => Err(failure(&server.address, &status)),
            Err(_) => Err(Failure::timed_out(&server.address, budget)),
        })
    }

    /// "From now on" is after all that was acknowledged before: found out once, so that a failure before the first
    /// event loses nothing.
    async fn now(&mut self, client: &Client) -> Result<u64, ClientError> {
        let read = v1::ReadOptions { consistency: v1::Consistency::Linearizable.into(), min_revision: 0 };
        let header = client.list_members(read).await?.header.unwrap_or_default();
        let next = header.revision + 1;
        self.next = Some(next);
        Ok(next)
    }

    /// The next message of the open stream, or which server failed and how; the stream is closed then.
    async fn receive(&mut self) -> Result<v1::WatchEventsResponse, (usize, Failure)> {
        let open = self.open.as_mut().expect("the caller opened the stream");
        let address = &self.client.server(open.server).address;
        let failed = match open.stream.next().await {
            Some(Ok(message)) => return Ok(message),
            Some(Err(status)) => failure(address, &status),
            None => {
                Failure::passing(address, ServerFailureKind::Unavailable, "it ended the stream".to_owned())
            }
        };
        let server = open.server;
        self.open = None;
        Err((server, failed))
    }

    /// Takes what is new of a message, and moves the position. `None`: nothing was new.
    fn accept(
        &mut self,
        mut message: v1::WatchEventsResponse,
    ) -> Result<Option<v1::WatchEventsResponse>, ClientError> {
        let next = self.next.unwrap_or_default();
        let was_bookmark = message.events.is_empty();
        message.events.retain(|event| event.revision >= next);
        if self.filter == v1::EventFilter::default() {
            self.check_gapless(&message)?;
        }
        let last = message.events.last().map_or(0, |event| event.revision).max(message.revision);
        let news = if was_bookmark { last + 1 >= next } else { !message.events.is_empty() };
        self.next = Some(next.max(last + 1));
        Ok(news.then_some(message))
    }

    /// Without a filter every revision has to come: a server that left one out is not to be believed.
    fn check_gapless(&self, message: &v1::WatchEventsResponse) -> Result<(), ClientError> {
        let expected = self.next.unwrap_or_default()..;
        let gap = expected.zip(&message.events).find(|(expected, event)| *expected != event.revision);
        let Some((expected, event)) = gap else { return Ok(()) };
        let text =
            format!("revision {expected} is missing: {} sent {} in its place", message.node, event.revision);
        Err(ClientError::refused(&message.node, &tonic::Status::data_loss(text)))
    }
}

/// A watch goes on after what would be final for a call that changes something: it can be repeated freely. A watcher
/// that was too slow, for one, is cut off so that it comes back.
fn failure(server: &str, status: &tonic::Status) -> Failure {
    match status.code() {
        Code::ResourceExhausted | Code::Aborted | Code::Internal | Code::Unknown => {
            Failure::passing(server, ServerFailureKind::Unavailable, status.message().to_owned())
        }
        _ => Failure::of(server, status),
    }
}
