//! One session, from its hello to its end.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use planted_bugs::{Bug, planted};
use sandkeeper_proto::v1;
use sandkeeper_proto::v1::agent_message::Body as Up;
use sandkeeper_proto::v1::server_message::Body as Down;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::Sessions;
use crate::boottime::BootTime;
use crate::mailbox::{Link, Message};
use crate::wire;

/// How many messages wait at most for a control node to read them. An inventory of 100,000 sandboxes has 200.
const OUTBOUND: usize = 1_024;
/// The longest wait for the connection, and again for the welcome.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

/// Heartbeats whose acknowledgement may still come: what is older than a minute prolongs no lease.
const MAX_UNACKNOWLEDGED: usize = 60;

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// The agent ends.
    Cancelled,
    /// It never came to a welcome.
    NotReached(String),
    /// It broke.
    Lost(String),
    /// The control node ended it.
    Goodbye {
        /// For people.
        reason: String,
        /// When to come back.
        retry_after: Duration,
    },
    /// The node has a newer session by another address.
    Superseded,
}

/// Dials, and stays until the session ends.
pub(super) async fn run(
    sessions: &Sessions,
    address: SocketAddr,
    number: u64,
    token: &CancellationToken,
) -> End {
    let lease = match sessions.connections.lease(address) {
        Ok(lease) => lease,
        Err(error) => return End::NotReached(chain(&error)),
    };
    let (outbound, queue) = mpsc::channel(OUTBOUND);
    let hello = wire::message(Up::Hello(sessions.hello(number)));
    if outbound.try_send(hello).is_err() {
        return End::NotReached("a fresh queue is full".to_owned());
    }
    let mut client = lease.client();
    let opening = timeout(OPENING_TIMEOUT, client.connect(ReceiverStream::new(queue)));
    let inbound = tokio::select! {
        () = token.cancelled() => return End::Cancelled,
        opened = opening => match opened {
            Err(_) => return End::NotReached(format!("no answer within {OPENING_TIMEOUT:?}")),
            Ok(Err(status)) => return End::NotReached(chain(&status)),
            Ok(Ok(response)) => response.into_inner(),
        },
    };
    let close = token.child_token();
    let link = Link { server: address.to_string(), outbound: outbound.clone(), close: close.clone(), lease };
    if sessions.mailbox.send(Message::Opened { session: number, link }).await.is_err() {
        return End::Cancelled;
    }
    let mut dialog = Dialog {
        sessions,
        address,
        number,
        inbound,
        outbound,
        welcomed: false,
        node: String::new(),
        heartbeats: 0,
        unacknowledged: VecDeque::new(),
        heard: None,
    };
    let end = dialog.go_on(&close).await;
    // After this nothing of the session is in the mailbox: what the loop says from now on is said with all of it known.
    let _ = sessions.mailbox.send(Message::Closed { session: number }).await;
    match end {
        _ if token.is_cancelled() => End::Cancelled,
        End::Lost(error) if !dialog.welcomed => End::NotReached(error),
        end => end,
    }
}

struct Dialog<'a> {
    sessions: &'a Sessions,
    address: SocketAddr,
    number: u64,
    inbound: Streaming<v1::ServerMessage>,
    outbound: mpsc::Sender<v1::AgentMessage>,
    welcomed: bool,
    /// The name of the node, once it has said it.
    node: String,
    heartbeats: u64,
    /// The numbers of heartbeats, and when they were sent.
    unacknowledged: VecDeque<(u64, BootTime)>,
    /// When the newest heartbeat was sent that is acknowledged.
    heard: Option<BootTime>,
}

impl Dialog<'_> {
    async fn go_on(&mut self, close: &CancellationToken) -> End {
        let mut pulse = interval(self.sessions.heartbeat_interval);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let opened = Instant::now();
        loop {
            tokio::select! {
                () = close.cancelled() => {
                    return End::Lost("the agent closed it".to_owned());
                }
                message = self.inbound.message() => {
                    let end = match message {
                        Ok(Some(message)) => self.hear(message).await,
                        Ok(None) => Some(End::Lost("the control node ended the stream".to_owned())),
                        Err(status) => Some(End::Lost(chain(&status))),
                    };
                    if let Some(end) = end {
                        return end;
                    }
                    if self.welcomed && self.heartbeats == 0 {
                        pulse.reset_immediately();
                    }
                }
                _ = pulse.tick() => {
                    if self.is_superseded() {
                        return End::Superseded;
                    }
                    if self.welcomed {
                        if let Err(end) = self.heartbeat() {
                            return end;
                        }
                    } else if opened.elapsed() > OPENING_TIMEOUT {
                        return End::Lost(format!("no welcome within {OPENING_TIMEOUT:?}"));
                    }
                }
            }
        }
    }

    fn heartbeat(&mut self) -> Result<(), End> {
        self.heartbeats += 1;
        // Before it is sent: the lease runs from here.
        if self.unacknowledged.len() == MAX_UNACKNOWLEDGED {
            self.unacknowledged.pop_front();
        }
        self.unacknowledged.push_back((self.heartbeats, BootTime::now()));
        let used = wire::capacity(self.sessions.standing.borrow().used);
        let heartbeat =
            v1::Heartbeat { number: self.heartbeats, used: Some(used), ..v1::Heartbeat::default() };
        self.outbound
            .try_send(wire::message(Up::Heartbeat(heartbeat)))
            .map_err(|_| End::Lost("the control node does not read what it is told".to_owned()))
    }

    /// What a control node says. `Some`: the session is over.
    async fn hear(&mut self, message: v1::ServerMessage) -> Option<End> {
        let received = BootTime::now();
        match &message.body {
            None => return None,
            Some(Down::HeartbeatAck(ack)) => {
                self.acknowledged(ack.number, received);
                return None;
            }
            Some(Down::Goodbye(goodbye)) => return Some(self.goodbye(goodbye).await),
            Some(Down::Members(members)) => {
                self.sessions.directory.learn(&members.servers);
                return None;
            }
            Some(Down::Welcome(welcome)) => {
                self.welcomed_by(&welcome.node);
                tracing::info!(
                    server = %self.address, session = self.number, node = welcome.node,
                    connection = welcome.connection_id, "session opened"
                );
            }
            Some(_) => {}
        }
        let (session, heard) = (self.number, self.heard);
        let message = Message::Server { session, message: Box::new(message), received, heard };
        match self.sessions.mailbox.send(message).await {
            Ok(()) => None,
            Err(_) => Some(End::Cancelled),
        }
    }

    /// A leader has led, with a quorum, after it had received that heartbeat.
    fn acknowledged(&mut self, number: u64, known: BootTime) {
        while let Some((sent, at)) = self.unacknowledged.pop_front_if(|(sent, _)| *sent <= number) {
            if sent == number {
                let at = if planted(Bug::LeaseFromReceiving) { known } else { at };
                self.heard = self.heard.max(Some(at));
                if let Some(lease) = &self.sessions.lease {
                    lease.acknowledged(at, known);
                }
            }
        }
    }

    fn welcomed_by(&mut self, node: &str) {
        self.welcomed = true;
        node.clone_into(&mut self.node);
        let mut nodes = self.sessions.nodes();
        nodes.names.insert(self.address, self.node.clone());
        nodes.sessions.insert(self.node.clone(), self.number);
    }

    fn is_superseded(&self) -> bool {
        !self.node.is_empty() && self.sessions.nodes().sessions.get(&self.node) != Some(&self.number)
    }

    async fn goodbye(&self, goodbye: &v1::Goodbye) -> End {
        if goodbye.fatal {
            let message =
                Message::SentAway { server: self.address.to_string(), reason: goodbye.reason.clone() };
            // The loop ends of it; if it has ended before, that is as good.
            let _ = self.sessions.mailbox.send(message).await;
        }
        End::Goodbye {
            reason: goodbye.reason.clone(),
            retry_after: Duration::from_millis(goodbye.retry_after_millis.into()),
        }
    }
}

/// An error with its causes: transport errors say nothing without them.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
