//! A replica that diverges finds out: each node compares its digests with those of the other voters, outside of the
//! log, and stops if a majority of them has others.
//!
//! Architecture invariant: no false alarm. A revision's digests follow from the committed log alone, so two nodes of one
//! cluster that differ at one revision have diverged, whatever was elected, added, removed, purged or installed
//! meanwhile. Only digests of exactly one revision, one cluster and one form are compared ([`crate::raft::digests`]);
//! who is behind, silent, or has forgotten them counts for neither side ([`verdict`]).
//!
//! Deliberately absent: a second look at records that do not change. The state digest is kept as records change, so one
//! that is overwritten in memory shows when it changes next, not before.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

mod complaints;
mod verdict;

use complaints::Complaints;
use verdict::{Answer, Verdict, dissenters, judge};

use crate::history::{Digests, digests_of};
use crate::metrics::Metrics;
use crate::raft::RaftNode;
use crate::raft::replica::View;
use crate::raft::types::NodeId;

/// Between the beginnings of two comparisons. A node that has diverged is to stop within a second: this, and the answers.
/// The cost is one small call to each peer, however much is written.
const INTERVAL: Duration = Duration::from_millis(500);
/// For the others' answers: ten heartbeats, in which one that follows reaches the revision. Whoever has not answered by
/// then is asked again, at a newer revision.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// Compares until `stop`, or until this node is found to have diverged, and has to stop.
pub async fn run(raft: RaftNode, metrics: Arc<Metrics>, stop: CancellationToken) {
    if let Some(Some(message)) = stop.run_until_cancelled(diverged(&raft, &metrics)).await {
        raft.report_divergence(message);
    }
}

/// Compares whenever the state has moved, until a majority has other digests: what to say then. `None`: the state machine
/// has ended, and says elsewhere why.
async fn diverged(raft: &RaftNode, metrics: &Metrics) -> Option<String> {
    let mut views = raft.replica().subscribe();
    let mut complaints = Complaints::default();
    // Nothing has happened at revision 0.
    let mut settled = 0;
    loop {
        let view = Arc::clone(&*views.wait_for(|view| view.revision() != settled).await.ok()?);
        let began = Instant::now();
        let comparison = Comparison::make(raft, &view, began + ANSWER_TIMEOUT).await;
        let own = comparison.own;
        match comparison.verdict() {
            Verdict::Outvoted(majority) => return Some(farewell(&comparison, &view, majority)),
            Verdict::Confirmed => {
                metrics.digest_confirmed_revision.set(own.revision);
                settled = own.revision;
            }
            // Who has not answered may yet decide it.
            Verdict::Open if comparison.is_complete() => settled = own.revision,
            Verdict::Open => {}
        }
        for dissenter in dissenters(own, &comparison.answers) {
            if complaints.is_new(dissenter.node, own.revision) {
                metrics.digest_disagreements.inc();
            }
            if complaints.is_due(dissenter.node, Instant::now()) {
                complain(&view, own, dissenter);
            }
        }
        sleep_until(began + INTERVAL).await;
    }
}

/// The digests of this node and of the voters that answered, at one revision.
struct Comparison {
    own: Digests,
    votes: bool,
    voters: usize,
    answers: Vec<Answer>,
}

impl Comparison {
    /// Asks all other voters at once, until all have answered, or enough to know that this node has diverged: then it
    /// does not wait for those that hang.
    async fn make(raft: &RaftNode, view: &View, deadline: Instant) -> Self {
        let (own, this) = (digests_of(&view.state), raft.local().node_id);
        let voters: BTreeSet<NodeId> = view.membership.voter_ids().collect();
        let others = voters.iter().filter(|id| **id != this).map(|id| async move {
            let address = &view.membership.get_node(id)?.peer_address;
            match raft.digests_of(*id, address, own.revision, deadline).await {
                Ok(digests) => Some(Answer { node: *id, digests }),
                Err(why) => {
                    tracing::debug!(peer = name_of(view, *id), revision = own.revision, %why, "no digests");
                    None
                }
            }
        });
        let mut others: FuturesUnordered<_> = others.collect();
        let votes = voters.contains(&this);
        let mut comparison = Self { own, votes, voters: voters.len(), answers: Vec::new() };
        while let Some(answer) = others.next().await {
            comparison.answers.extend(answer);
            if let Verdict::Outvoted(_) = comparison.verdict() {
                break;
            }
        }
        comparison
    }

    fn verdict(&self) -> Verdict {
        judge(self.own, self.votes, &self.answers, self.voters)
    }

    /// Whether every other voter has answered.
    fn is_complete(&self) -> bool {
        self.answers.len() + usize::from(self.votes) == self.voters
    }
}

fn name_of(view: &View, node: NodeId) -> String {
    let member = view.membership.get_node(&node);
    member.map_or_else(|| node.to_string(), |member| member.name.clone())
}

fn complain(view: &View, own: Digests, dissenter: Answer) {
    tracing::error!(
        peer = name_of(view, dissenter.node),
        revision = own.revision,
        own_state_digest = %own.state,
        own_history_digest = %own.history,
        peer_state_digest = %dissenter.digests.state,
        peer_history_digest = %dissenter.digests.history,
        "another node has other digests at the same revision: one of the two has diverged; see \"A node has \
         diverged\" in docs/operations.md"
    );
}

fn farewell(comparison: &Comparison, view: &View, majority: Digests) -> String {
    let Comparison { own, voters, answers, .. } = comparison;
    let agree = answers.iter().filter(|answer| answer.digests == majority);
    let names: Vec<_> = agree.map(|answer| name_of(view, answer.node)).collect();
    format!(
        "this node has diverged from the others: at revision {} its state digest is {} and its history digest {}, \
         and those of {}, a majority of the {voters} voters, are {} and {}. Nothing that this node holds in memory can \
         be trusted. Keep its data directory for diagnosis, remove this member and add a new one: see \"A node has \
         diverged\" in docs/operations.md",
        own.revision,
        own.state,
        own.history,
        names.join(" and "),
        majority.state,
        majority.history,
    )
}
