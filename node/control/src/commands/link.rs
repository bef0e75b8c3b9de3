//! Commands from this node's callers to the leader, over one stream.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use sandkeeper_proto::internal::{ForwardRequest, ForwardResponse};
use sandkeeper_statemachine::Request;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::Forwarded;
use crate::agents::lock;
use crate::decider::MAX_QUEUED_COMMANDS;
use crate::raft::codec;
use crate::raft::peers::Peers;
use crate::raft::types::{Member, NodeId};

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

/// Runs one stream until it ends; says why. What is pending then is dropped, and its senders try again.
async fn run(peers: &Peers, leader: NodeId, member: &Member, mut waiting: mpsc::Receiver<Pending>) -> String {
    let mut client = match peers.client(&member.peer_address, Some(leader)) {
        Ok(client) => client,
        Err(error) => return error.to_string(),
    };
    let (outbound, requests) = mpsc::channel(256);
    let mut answers = match client.forward(ReceiverStream::new(requests)).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return status.to_string(),
    };
    let mut pending: BTreeMap<u64, oneshot::Sender<Forwarded>> = BTreeMap::new();
    let mut next_id = 0;
    loop {
        tokio::select! {
            answer = answers.next() => match answer {
                Some(Ok(answer)) => give(&answer, &mut pending),
                Some(Err(status)) => return status.to_string(),
                None => return "the leader ended it".into(),
            },
            waiter = waiting.recv(), if pending.len() < MAX_QUEUED_COMMANDS => {
                let Some(waiter) = waiter else { return "no longer needed".into() };
                next_id += 1;
                let left = waiter.deadline.saturating_duration_since(Instant::now());
                let deadline_millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                let request = ForwardRequest { id: next_id, command: waiter.command, deadline_millis };
                // Whoever has given up since is not kept in mind.
                pending.retain(|_, reply| next_id % 1_024 != 0 || !reply.is_closed());
                pending.insert(next_id, waiter.reply);
                if outbound.send(request).await.is_err() {
                    return "the leader takes nothing more".into();
                }
            }
        }
    }
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
