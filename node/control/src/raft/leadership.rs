//! Who leads, and since when this node may act as the leader.

use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Raft, RaftMetrics, ServerState};
use planted_bugs::{Bug, planted};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::replica::{Replica, View};
use super::state_machine::StateMachine;
use super::types::{Member, NodeId, TypeConfig};

/// A term in which this node leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderTerm {
    /// The Raft term.
    pub term: u64,
}

/// The leader that this node knows of, which may be out of date.
pub(super) fn known_leader(raft: &Raft<TypeConfig, StateMachine>) -> Option<(NodeId, Member)> {
    let metrics = raft.server_metrics();
    let metrics = metrics.borrow_watched();
    let leader = metrics.current_leader?;
    metrics.membership_config.get_node(&leader).map(|member| (leader, member.clone()))
}

/// The newest of openraft's metrics.
pub(super) fn metrics(raft: &Raft<TypeConfig, StateMachine>) -> RaftMetrics<TypeConfig> {
    raft.metrics().borrow_watched().clone()
}

/// Follows openraft until it stops, and says in `leadership` in which term this node leads: from when an entry of
/// that very term is applied here (so the state contains everything that earlier leaders acknowledged), until it
/// leads no more. Returns when Raft has stopped, or at `cancel`.
pub(super) async fn follow(
    raft: Raft<TypeConfig, StateMachine>,
    replica: Replica,
    leadership: watch::Sender<Option<LeaderTerm>>,
    cancel: CancellationToken,
) {
    let mut server = raft.server_metrics();
    let mut views = replica.subscribe();
    loop {
        let leads_in = {
            let now = server.borrow_and_update();
            let leads = now.state == ServerState::Leader
                && now.vote.committed
                && now.vote.leader_id.voted_for == now.id;
            leads.then_some(now.vote.leader_id.term)
        };
        let applied_term = term_of(&views.borrow_and_update());
        let applied = |term: &u64| applied_term == Some(*term) || planted(Bug::BaseRevisionIgnored);
        let ready = leads_in.filter(applied).map(|term| LeaderTerm { term });
        leadership.send_if_modified(|current| {
            let changed = *current != ready;
            *current = ready;
            changed
        });
        let waits_for_apply = leads_in.is_some() && ready.is_none();
        let goes_on = tokio::select! {
            () = cancel.cancelled() => false,
            changed = server.changed() => changed.is_ok(),
            changed = views.changed(), if waits_for_apply => changed.is_ok(),
        };
        if !goes_on {
            leadership.send_replace(None);
            return;
        }
    }
}

fn term_of(view: &Arc<View>) -> Option<u64> {
    view.applied.map(|log_id| log_id.committed_leader_id().term)
}
