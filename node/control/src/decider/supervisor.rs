//! One decider for each term in which this node leads; while it does not, the queue is answered.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use planted_bugs::{Bug, planted};
use sandkeeper_statemachine::Term;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{CommandQueue, Consensus, Fate, Surroundings, Undecided, run};
use crate::raft::LeaderTerm;
use crate::raft::node::RaftNode;
use crate::raft::types::EntryData;

/// An entry that is not applied by then has lost its quorum, or the disk hangs. The callers have given up by then.
const PROPOSAL_DEADLINE: Duration = Duration::from_secs(30);

/// How long a decider that begins anew in its term may wait for what the one before it proposed.
const BARRIER: Duration = Duration::from_secs(10);

/// Before a decider begins anew in the same term, so that a lasting fault does not spin.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs deciders until it is stopped.
pub async fn supervise(
    raft: RaftNode,
    mut queue: CommandQueue,
    around: Surroundings,
    stop: CancellationToken,
) {
    let mut leads = raft.leadership();
    while !stop.is_cancelled() {
        let leadership = *leads.borrow_and_update();
        let Some(LeaderTerm { term }) = leadership else {
            tokio::select! {
                () = stop.cancelled() => {}
                changed = leads.changed() => if changed.is_err() { return },
                () = queue.refuse_all("this node does not lead") => return,
            }
            continue;
        };
        // Everything that stands in the log is applied before a decider begins, also what a decider of this very term
        // proposed before its end: or it would decide on a state from which that is still missing.
        let last = raft.status().last_log_index.unwrap_or(0);
        let barrier = async {
            let deadline = Instant::now() + BARRIER;
            let view = if planted(Bug::BaseRevisionIgnored) {
                raft.replica().view()
            } else {
                raft.replica().wait_applied_index(last, deadline).await.ok()?;
                raft.read_index(deadline).await.ok()?
            };
            // Nothing is decided by one machine's clock.
            let clock = around.clocks.of(term, view.state.last_time());
            timeout_at(deadline, clock.agreed()).await.ok()?;
            Some(view)
        };
        let view = tokio::select! {
            () = stop.cancelled() => return,
            changed = leads.changed() => if changed.is_err() { return } else { continue },
            view = barrier => view,
        };
        let Some(view) = view else {
            warn!(term, "elected, but no quorum confirms it, or says what time it is");
            sleep(PAUSE).await;
            continue;
        };
        let ends = stop.child_token();
        let deposed = depose(leads.clone(), leadership, ends.clone());
        let consensus: Arc<dyn Consensus> = Arc::new(raft.clone());
        let decider = run(term, view.state.clone(), &mut queue, consensus, around.clone(), ends);
        tokio::select! {
            () = decider => sleep(PAUSE).await,
            () = deposed => {}
        }
    }
}

/// Ends a decider when the leadership that it works under has gone; never ends itself.
async fn depose(
    mut leads: watch::Receiver<Option<LeaderTerm>>,
    leadership: Option<LeaderTerm>,
    ends: CancellationToken,
) {
    // An error means that Raft has stopped: nobody leads.
    let _ = leads.wait_for(|now| *now != leadership).await;
    ends.cancel();
    std::future::pending::<()>().await;
}

impl Consensus for RaftNode {
    fn propose(&self, term: Term, entry: EntryData) -> BoxFuture<'_, Result<Fate, Undecided>> {
        async move {
            let proposal =
                Self::propose(self, term, entry).await.map_err(|error| Undecided(error.to_string()))?;
            let deadline = Instant::now() + PROPOSAL_DEADLINE;
            let fate =
                async move { proposal.outcome(deadline).await.map_err(|error| Undecided(error.to_string())) };
            Ok(fate.boxed())
        }
        .boxed()
    }

    fn confirm(&self, term: Term) -> BoxFuture<'static, Result<(), Undecided>> {
        let raft = self.clone();
        async move { raft.confirm_leadership(term).await.map_err(|error| Undecided(error.to_string())) }
            .boxed()
    }
}
