//! Linearizable reads: finding the read index. Many reads share one round to a quorum.
//!
//! A read may join only a round that begins after it came: so whoever waits when a round ends is served by the next
//! one. Lease reads are deliberately absent: they trust clocks.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::errors::{LinearizableReadError, RaftError};
use openraft::{LinearizerOption, Raft};
use sandkeeper_proto::internal::ReadIndexRequest;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::codec;
use super::leadership::known_leader;
use super::peers::{Peers, reason};
use super::replica::{Replica, View, WaitError};
use super::state_machine::StateMachine;
use super::types::{LogId, TypeConfig};

/// How long one round may take. A leader that can't reach a quorum for this long is likely no leader any more.
const ROUND_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause before a read that found no leader looks again; and of the rounds themselves, so that many such readers don't keep them
/// going, each of which dials a leader that is dead.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Reads that wait for a round at once. More wait in the queue of whoever asks.
const QUEUE: usize = 8192;

/// Why a linearizable read was not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader confirmed a read index by the deadline.
    #[error("no leader confirmed the read: {0}")]
    NoLeader(String),
    /// The leader confirmed, but this replica did not catch up by the deadline.
    #[error("this replica is behind and did not catch up in time (it is at revision {revision})")]
    Behind {
        /// What it had reached.
        revision: u64,
    },
    /// The node stops.
    #[error("this node is stopping")]
    Stopped,
}

type Found = Result<LogId, ReadError>;
type Waiting = oneshot::Sender<Found>;

/// One queue of reads, and the task that serves it.
#[derive(Clone)]
struct Rounds {
    queue: mpsc::Sender<Waiting>,
}

impl Rounds {
    fn start<F>(
        tasks: &TaskTracker,
        cancel: CancellationToken,
        round: impl Fn() -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Found> + Send,
    {
        let (queue, mut waiting) = mpsc::channel::<Waiting>(QUEUE);
        tasks.spawn(async move {
            let mut served = Vec::new();
            loop {
                let some = tokio::select! {
                    () = cancel.cancelled() => return,
                    count = waiting.recv_many(&mut served, QUEUE) => count > 0,
                };
                if !some {
                    return;
                }
                let found = tokio::select! {
                    () = cancel.cancelled() => Err(ReadError::Stopped),
                    found = round() => found,
                };
                for reader in served.drain(..) {
                    // A reader whose deadline has passed is gone.
                    let _ = reader.send(found.clone());
                }
                if found.is_err() && cancel.run_until_cancelled(sleep(RETRY_PAUSE)).await.is_none() {
                    return;
                }
            }
        });
        Self { queue }
    }

    async fn find(&self) -> Found {
        let (reader, found) = oneshot::channel();
        self.queue.send(reader).await.map_err(|_| ReadError::Stopped)?;
        found.await.unwrap_or(Err(ReadError::Stopped))
    }
}

/// Finds read indexes, on the leader and on every other replica.
#[derive(Clone)]
pub(super) struct ReadIndexes {
    /// Rounds of this node as the leader.
    own: Rounds,
    /// Rounds of whoever leads. Apart from `own`, so that two nodes that each take the other for the leader don't
    /// wait for each other.
    any: Rounds,
    replica: Replica,
}

impl ReadIndexes {
    pub(super) fn start(
        raft: &Raft<TypeConfig, StateMachine>,
        peers: &Arc<Peers>,
        replica: Replica,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) -> Self {
        let leader = raft.clone();
        let own = Rounds::start(tasks, cancel.clone(), move || own_round(leader.clone()));
        let (raft, peers, as_leader) = (raft.clone(), Arc::clone(peers), own.clone());
        let any = Rounds::start(tasks, cancel.clone(), move || {
            any_round(raft.clone(), Arc::clone(&peers), as_leader.clone())
        });
        Self { own, any, replica }
    }

    /// A read index of this node as the leader, for a peer that asks.
    pub(super) async fn as_leader(&self) -> Found {
        timeout(ROUND_TIMEOUT * 2, self.own.find()).await.unwrap_or_else(|_| Err(timed_out()))
    }

    /// A view that contains everything that was acknowledged before the call.
    pub(super) async fn linearizable(&self, deadline: Instant) -> Result<Arc<View>, ReadError> {
        let mut last = timed_out();
        let index = loop {
            match timeout_at(deadline, self.any.find()).await {
                Err(_) => return Err(last),
                Ok(Ok(log_id)) => break log_id.index(),
                Ok(Err(ReadError::Stopped)) => return Err(ReadError::Stopped),
                Ok(Err(error)) => last = error,
            }
            if timeout_at(deadline, sleep(RETRY_PAUSE)).await.is_err() {
                return Err(last);
            }
        };
        self.replica.wait_applied_index(index, deadline).await.map_err(|error| match error {
            WaitError::Timeout { revision } => ReadError::Behind { revision },
            WaitError::Stopped => ReadError::Stopped,
        })
    }
}

fn timed_out() -> ReadError {
    ReadError::NoLeader("no answer in time".to_owned())
}

async fn own_round(raft: Raft<TypeConfig, StateMachine>) -> Found {
    // A quorum has to answer a heartbeat that is sent after this: never the lease.
    let option = LinearizerOption::new(Some(Duration::ZERO), true).with_wait_timeout(ROUND_TIMEOUT);
    let round = timeout(ROUND_TIMEOUT * 2, raft.get_read_linearizer(option)).await;
    match round {
        Ok(Ok(linearizer)) => Ok(*linearizer.read_log_id().log_id()),
        Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_)))) => {
            Err(ReadError::NoLeader("the node that was asked does not lead".to_owned()))
        }
        Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) => {
            Err(ReadError::NoLeader("the leader reaches no majority".to_owned()))
        }
        Ok(Err(RaftError::Fatal(_))) => Err(ReadError::Stopped),
        Err(_) => Err(timed_out()),
    }
}

async fn any_round(raft: Raft<TypeConfig, StateMachine>, peers: Arc<Peers>, own: Rounds) -> Found {
    let Some((leader, member)) = known_leader(&raft) else {
        return Err(ReadError::NoLeader("no leader is known".to_owned()));
    };
    if leader == peers.local().node_id {
        return own.find().await;
    }
    let failed = |why: String| ReadError::NoLeader(format!("the leader, {member}: {why}"));
    let mut client =
        peers.client(&member.peer_address, Some(leader)).map_err(|error| failed(error.to_string()))?;
    let answer = timeout(ROUND_TIMEOUT, client.read_index(ReadIndexRequest {}))
        .await
        .map_err(|_| timed_out())?
        .map_err(|status| failed(reason(&status)))?;
    codec::decode(&answer.into_inner().log_id).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn however_many_wait_a_leader_that_does_not_answer_is_asked_at_intervals() {
        let (tasks, cancel, asked) =
            (TaskTracker::new(), CancellationToken::new(), Arc::new(AtomicU32::new(0)));
        let count = Arc::clone(&asked);
        let rounds = Rounds::start(&tasks, cancel.clone(), move || {
            count.fetch_add(1, Ordering::Relaxed);
            async { Err(ReadError::NoLeader("its port refuses".to_owned())) }
        });
        let readers = (0..200).map(|number| {
            let rounds = rounds.clone();
            async move {
                // They did not all come at once.
                sleep(Duration::from_micros(100 * number)).await;
                for _ in 0..10 {
                    assert!(rounds.find().await.is_err());
                    sleep(RETRY_PAUSE).await;
                }
            }
        });
        let began = Instant::now();
        futures::future::join_all(readers).await;
        let intervals = began.elapsed().as_millis() / RETRY_PAUSE.as_millis();
        let asked = asked.load(Ordering::Relaxed);
        assert!(u128::from(asked) <= intervals + 1, "{asked} times in {intervals} intervals");
        cancel.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
