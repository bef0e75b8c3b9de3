//! Commands from this node's callers to the leader, over one stream.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use sandkeeper_proto::internal::{ForwardRequest, ForwardResponse};
use sandkeeper_statemachine::Request;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Streaming;
use tracing::{debug, warn};

use super::Forwarded;
use crate::agents::lock;
use crate::decider::MAX_QUEUED_COMMANDS;
use crate::raft::codec;
use crate::raft::peers::Peers;
use crate::raft::types::{Member, NodeId};

/// How long the leader may take to open the stream.
const OPENING: Duration = Duration::from_secs(2);
/// Before the next attempt, if the leader did not even open the stream. All who have commands meanwhile wait for it: each by itself
/// would dial a leader that is dead, many times a second.
const PAUSE: Duration = Duration::from_millis(20);

/// A command that waits for the leader's answer.
struct Pending {
    command: bytes::Bytes,
    deadline: Instant,
    reply: oneshot::Sender<Forwarded>,
}

/// The stream to the leader of the moment.
pub(super) struct Link {
    peers: Arc<Peers>,
    stop: CancellationToken,
    tasks: TaskTracker,
    current: Mutex<Option<(NodeId, String, mpsc::Sender<Pending>)>>,
}

impl Link {
    pub(super) fn new(peers: Arc<Peers>, stop: CancellationToken, tasks: TaskTracker) -> Self {
        Self { peers, stop, tasks, current: Mutex::new(None) }
    }

    /// Sends a command to `leader` and waits for its answer.
    pub(super) async fn send(
        &self,
        leader: NodeId,
        member: &Member,
        request: &Request,
        deadline: Instant,
    ) -> Forwarded {
        let sender = self.sender(leader, member);
        let (reply, answer) = oneshot::channel();
        let pending = Pending { command: codec::encode(request), deadline, reply };
        let lost = || Forwarded::Undecided(format!("the connection to the leader, {member}, was lost"));
        match timeout_at(deadline, sender.send(pending)).await {
            Ok(Ok(())) => answer.await.unwrap_or_else(|_| lost()),
            Ok(Err(_)) => lost(),
            Err(_) => Forwarded::Undecided(format!("the leader, {member}, takes no more commands")),
        }
    }

    /// The stream to `leader`, a new one if the old one has ended or leads elsewhere.
    fn sender(&self, leader: NodeId, member: &Member) -> mpsc::Sender<Pending> {
        let mut current = lock(&self.current);
        if let Some((id, address, sender)) = &*current
            && *id == leader
            && *address == member.peer_address
            && !sender.is_closed()
        {
            return sender.clone();
        }
        let (sender, receiver) = mpsc::channel(MAX_QUEUED_COMMANDS);
        let (peers, member) = (Arc::clone(&self.peers), member.clone());
        *current = Some((leader, member.peer_address.clone(), sender.clone()));
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let why = tokio::select! {
                () = stop.cancelled() => return,
                why = run(&peers, leader, &member, receiver) => why,
            };
            debug!(%member, %why, "the stream to the leader ended");
        });
        sender
    }
}

type Stream = (mpsc::Sender<ForwardRequest>, Streaming<ForwardResponse>);

async fn open(peers: &Peers, leader: NodeId, member: &Member) -> Result<Stream, String> {
    let mut client = peers.client(&member.peer_address, Some(leader)).map_err(|error| error.to_string())?;
    let (outbound, requests) = mpsc::channel(256);
    let opened = timeout(OPENING, client.forward(ReceiverStream::new(requests))).await;
    let answers = opened
        .map_err(|_| "the leader does not open the stream".to_owned())?
        .map_err(|status| status.to_string())?;
    Ok((outbound, answers.into_inner()))
}

/// Runs one stream until it ends; says why. What is pending then is dropped, and its senders try again.
async fn run(peers: &Peers, leader: NodeId, member: &Member, mut waiting: mpsc::Receiver<Pending>) -> String {
    let (outbound, mut answers) = match open(peers, leader, member).await {
        Ok(stream) => stream,
        Err(why) => {
            sleep(PAUSE).await;
            return why;
        }
    };
    let mut pending: BTreeMap<u64, oneshot::Sender<Forwarded>> = BTreeMap::new();
    let mut next_id = 0;
    loop {
        if pending.len() >= MAX_QUEUED_COMMANDS {
            pending.retain(|_, reply| !reply.is_closed());
        }
        // Nothing is waited for inside of an arm: answers are always read, so the leader can always answer, and read on.
        tokio::select! {
            answer = answers.next() => match answer {
                Some(Ok(answer)) => give(&answer, &mut pending),
                Some(Err(status)) => return status.to_string(),
                None => return "the leader ended it".into(),
            },
            next = next_command(&outbound, &mut waiting), if pending.len() < MAX_QUEUED_COMMANDS => {
                let Some((place, waiter)) = next else { return "no longer needed".into() };
                next_id += 1;
                let left = waiter.deadline.saturating_duration_since(Instant::now());
                let deadline_millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                let request = ForwardRequest { id: next_id, command: waiter.command, deadline_millis };
                pending.insert(next_id, waiter.reply);
                place.send(request);
            }
        }
    }
}

/// A place in the stream, and a command for it; None: the stream or its need has ended.
async fn next_command<'a>(
    outbound: &'a mpsc::Sender<ForwardRequest>,
    waiting: &mut mpsc::Receiver<Pending>,
) -> Option<(mpsc::Permit<'a, ForwardRequest>, Pending)> {
    let place = outbound.reserve().await.ok()?;
    Some((place, waiting.recv().await?))
}

fn give(answer: &ForwardResponse, pending: &mut BTreeMap<u64, oneshot::Sender<Forwarded>>) {
    let Some(reply) = pending.remove(&answer.id) else { return };
    let forwarded = codec::decode(&answer.outcome).unwrap_or_else(|error| {
        warn!(%error, "the leader's answer does not decode");
        Forwarded::Undecided(format!("the leader's answer does not decode: {error}"))
    });
    // If the caller has gone there is nobody to tell.
    let _ = reply.send(forwarded);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use sandkeeper_statemachine::{Actor, Command};
    use tokio::net::TcpListener;

    use super::*;
    use crate::raft::LocalNode;

    #[tokio::test]
    async fn however_many_have_commands_a_leader_that_is_dead_is_dialled_at_intervals() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let member = Member { peer_address: listener.local_addr().unwrap().to_string(), ..Member::default() };
        let dialled = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&dialled);
        // It does not refuse, so that what comes can be counted; and it answers nobody.
        let leader = tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                drop(caller);
            }
        });
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let local = Arc::new(LocalNode::new(1, Member::default(), 0, None));
        let link = Arc::new(Link::new(Arc::new(Peers::new(local)), stop.clone(), tasks.clone()));
        let request = Arc::new(Request { actor: Actor::Leader, id: None, command: Command::Housekeeping });
        let began = Instant::now();
        let callers = (0..64).map(|number| {
            let (link, member, request) = (Arc::clone(&link), member.clone(), Arc::clone(&request));
            async move {
                // They did not all come at once.
                sleep(Duration::from_micros(300 * number)).await;
                for _ in 0..10 {
                    let answer = link.send(2, &member, &request, Instant::now() + OPENING).await;
                    assert!(matches!(answer, Forwarded::Undecided(_)));
                    sleep(PAUSE).await;
                }
            }
        });
        futures::future::join_all(callers).await;
        let intervals = began.elapsed().as_millis() / PAUSE.as_millis();
        let dialled = dialled.load(Ordering::Relaxed);
        assert!(u128::from(dialled) <= intervals + 1, "{dialled} times in {intervals} intervals");
        leader.abort();
        stop.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
