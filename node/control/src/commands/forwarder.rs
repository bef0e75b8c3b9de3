//! Commands from other nodes to this one's decider.

use std::time::Duration;

use futures::stream::{BoxStream, FuturesUnordered, StreamExt};
use sandkeeper_proto::internal::{ForwardRequest, ForwardResponse};
use sandkeeper_statemachine::Request;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};

use super::{Forwarded, dropped};
use crate::decider::{MAX_QUEUED_COMMANDS, QueueSender};
use crate::raft::codec;
use crate::raft::peer_service::Forwarder;

/// The longest that a command waits here, whatever the sender says.
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// Answers on their way to one node that wait to be sent.
const ANSWERS: usize = 256;

/// The leader's half of forwarding.
pub struct CommandForwarder {
    queue: QueueSender,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl CommandForwarder {
    /// Hands what comes to `queue`.
    pub fn new(queue: QueueSender, stop: CancellationToken, tasks: TaskTracker) -> Self {
        Self { queue, stop, tasks }
    }
}

impl Forwarder for CommandForwarder {
    fn forward(
        &self,
        requests: Streaming<ForwardRequest>,
    ) -> BoxStream<'static, Result<ForwardResponse, Status>> {
        let (answers, receiver) = mpsc::channel(ANSWERS);
        let (queue, stop) = (self.queue.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = serve(requests, &queue, &answers) => {}
            }
        });
        ReceiverStream::new(receiver).boxed()
    }
}

async fn serve(
    mut requests: Streaming<ForwardRequest>,
    queue: &QueueSender,
    answers: &mpsc::Sender<Result<ForwardResponse, Status>>,
) {
    let mut waiting = FuturesUnordered::new();
    loop {
        tokio::select! {
            request = requests.next(), if waiting.len() < MAX_QUEUED_COMMANDS => match request {
                Some(Ok(request)) => waiting.push(decide(request, queue)),
                _ => return,
            },
            Some(answer) = waiting.next(), if !waiting.is_empty() => {
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn decide(request: ForwardRequest, queue: &QueueSender) -> ForwardResponse {
    let deadline = Instant::now() + Duration::from_millis(request.deadline_millis).min(MAX_DEADLINE);
    let answer = match codec::decode::<Request>(&request.command) {
        Err(error) => Forwarded::Undecided(format!("the leader can't read the command: {error}")),
        Ok(command) => match queue.push(command, deadline, None) {
            Ok(answer) => Forwarded::from(Ok(answer.await.unwrap_or_else(|_| Err(dropped())))),
            Err(full) => Forwarded::from(Err(full)),
        },
    };
    ForwardResponse { id: request.id, outcome: codec::encode(&answer) }
}
