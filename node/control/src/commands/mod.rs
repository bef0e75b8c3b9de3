//! Commands on their way to a decision: here, if this node leads; else at the leader. Callers see one identity: a
//! command is tried again, with the same request id, until it is decided or its deadline has passed.

mod forwarder;
mod link;

use std::sync::Arc;
use std::time::Duration;

use sandkeeper_statemachine::{Outcome, Rejection, Request, Term};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use forwarder::CommandForwarder;
use link::Link;

use crate::decider::{Answer, Full, QueueSender, Refusal, Undecided};
use crate::disk::LowDisks;
use crate::raft::node::RaftNode;
use crate::raft::types::NodeId;

/// The pause before a command that was not decided is tried again: about the time in which an election moves on.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// How often it is looked whether the leader that was asked still leads, while its answer is awaited.
const LEADER_LOOK: Duration = Duration::from_millis(50);

/// Why a command has no outcome.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SubmitError {
    /// The caller's fault; deterministic.
    #[error("{0}")]
    Rejected(Rejection),
    /// Not decided by the deadline, or not known to be: it may be sent again with the same request id.
    #[error("{0}")]
    Unavailable(String),
    /// The leader has too much to do right now.
    #[error("{0}")]
    Overloaded(String),
    /// It is new work, and there is no room for it.
    #[error("{0}")]
    DiskLow(LowDisks),
}

impl From<Refusal> for SubmitError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Rejected(rejection) => Self::Rejected(rejection),
            Refusal::DiskLow(low) => Self::DiskLow(low),
        }
    }
}

/// What the leader's node answers to a forwarded command.
#[derive(Debug, Serialize, Deserialize)]
enum Forwarded {
    Answered(Result<Outcome, Rejection>),
    Undecided(String),
    Full,
    DiskLow(LowDisks),
}

impl From<Result<Answer, Full>> for Forwarded {
    fn from(answer: Result<Answer, Full>) -> Self {
        match answer {
            Ok(Ok(Ok(outcome))) => Self::Answered(Ok(outcome)),
            Ok(Ok(Err(Refusal::Rejected(rejection)))) => Self::Answered(Err(rejection)),
            Ok(Ok(Err(Refusal::DiskLow(low)))) => Self::DiskLow(low),
            Ok(Err(Undecided(why))) => Self::Undecided(why),
            Err(Full) => Self::Full,
        }
    }
}

/// Where commands are handed in. Cheap to clone.
#[derive(Clone)]
pub struct Commands {
    inner: Arc<Inner>,
}

struct Inner {
    queue: QueueSender,
    raft: RaftNode,
    link: Link,
    stop: CancellationToken,
}

impl Commands {
    /// For this node. `queue` leads to its decider; links to other nodes run in `tasks` until `stop`.
    pub fn new(queue: QueueSender, raft: RaftNode, stop: CancellationToken, tasks: TaskTracker) -> Self {
        let link = Link::new(Arc::clone(raft.peers()), stop.clone(), tasks);
        Self { inner: Arc::new(Inner { queue, raft, link, stop }) }
    }

    /// Has a command decided, here or by the leader.
    ///
    /// # Errors
    /// A refusal; or that it was not decided by `deadline`, with what this node knows.
    pub async fn submit(
        &self,
        request: impl Into<Arc<Request>>,
        deadline: Instant,
    ) -> Result<Outcome, SubmitError> {
        let request = request.into();
        loop {
            let attempt = self.attempt(&request, deadline);
            let answer = tokio::select! {
                () = self.inner.stop.cancelled() => {
                    return Err(SubmitError::Unavailable("this node is shutting down: ask another one".into()));
                }
                answer = timeout_at(deadline, attempt) => answer,
            };
            let why = match answer {
                Ok(Forwarded::Answered(Ok(outcome))) => return Ok(outcome),
                Ok(Forwarded::Answered(Err(rejection))) => return Err(SubmitError::Rejected(rejection)),
                Ok(Forwarded::DiskLow(low)) => return Err(SubmitError::DiskLow(low)),
                Ok(Forwarded::Full) => return Err(SubmitError::Overloaded(Full.to_string())),
                Ok(Forwarded::Undecided(why)) => why,
                Err(_) => return Err(self.unavailable("the leader did not answer in time")),
            };
            let pause = Instant::now() + RETRY_PAUSE;
            if pause >= deadline {
                return Err(self.unavailable(&why));
            }
            sleep_until(pause).await;
        }
    }

    /// Has a command decided that rests on what this node has observed as the leader of `term`: here and in that term,
    /// or not at all. It is never forwarded and never tried again: the next look at the same things makes it anew.
    ///
    /// # Errors
    /// A refusal; or that it was not decided.
    pub async fn submit_in_term(
        &self,
        term: Term,
        request: Request,
        deadline: Instant,
    ) -> Result<Outcome, SubmitError> {
        let answer = self.inner.queue.push(request, deadline, Some(term));
        let answer = answer.map_err(|full| SubmitError::Overloaded(full.to_string()))?;
        match timeout_at(deadline, answer).await {
            Ok(Ok(Ok(decision))) => decision.map_err(SubmitError::from),
            Ok(Ok(Err(Undecided(why)))) => Err(SubmitError::Unavailable(why)),
            Ok(Err(_)) => Err(SubmitError::Unavailable(dropped().to_string())),
            Err(_) => Err(SubmitError::Unavailable("not decided in time".into())),
        }
    }

    /// Whether this node has led in `term`, confirmed by a quorum, at some moment after this call.
    pub(crate) async fn confirm_leadership(&self, term: Term) -> bool {
        self.inner.raft.confirm_leadership(term).await.is_ok()
    }

    async fn attempt(&self, request: &Arc<Request>, deadline: Instant) -> Forwarded {
        let Inner { queue, raft, link, .. } = &*self.inner;
        if raft.leadership().borrow().is_some() {
            let queued = queue.push(Arc::clone(request), deadline, None);
            return match queued {
                Ok(answer) => Forwarded::from(Ok(answer.await.unwrap_or_else(|_| Err(dropped())))),
                Err(full) => Forwarded::from(Err(full)),
            };
        }
        match raft.leader() {
            Some((id, _)) if id == raft.local().node_id => {
                Forwarded::Undecided("this node was elected, and is catching up".into())
            }
            Some((id, member)) => tokio::select! {
                answer = link.send(id, &member, request, deadline) => answer,
                () = replaced(raft, id) => Forwarded::Undecided(format!("{member} leads no more")),
            },
            None => Forwarded::Undecided("no leader is known".into()),
        }
    }

    /// What this node knows, for a caller that gets no answer.
    fn unavailable(&self, why: &str) -> SubmitError {
        let status = self.inner.raft.status();
        let leader = self.inner.raft.leader().map_or_else(|| "unknown".to_owned(), |(_, member)| member.name);
        SubmitError::Unavailable(format!(
            "not decided in time: {why} (node {}, term {}, leader {leader}, {} members); the same request may be sent \
             again with the same request_id",
            status.member.name,
            status.term,
            status.members.len()
        ))
    }
}

/// Ends when this node knows of no leader, or of another one than `leader`. A leader that hangs closes no connection; its
/// successor can be asked at once.
async fn replaced(raft: &RaftNode, leader: NodeId) {
    while raft.leader().is_some_and(|(id, _)| id == leader) {
        sleep(LEADER_LOOK).await;
    }
}

fn dropped() -> Undecided {
    Undecided("the decider ended".into())
}
