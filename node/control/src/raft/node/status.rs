//! What this node knows of itself and its cluster.

use std::time::Duration;

use openraft::{Instant as _, ServerState};
use sandkeeper_statemachine::Revision;

use super::RaftNode;
use crate::history::{Digests, digests_of};
use crate::raft::history::Fetching;
use crate::raft::leadership::metrics;
use crate::raft::types::{LogId, Member, NodeId};

/// What a node is in its Raft group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receives the log, has no vote.
    Learner,
    /// Follows the leader.
    Follower,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
    /// Has stopped.
    Stopped,
}

/// One member, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its number.
    pub node_id: NodeId,
    /// Its name and addresses.
    pub member: Member,
    /// Whether it has a vote.
    pub voter: bool,
    /// The last log index that it is known to have; only the leader knows.
    pub matched_index: Option<u64>,
    /// How long ago it last answered the leader; only the leader knows.
    pub last_heard: Option<Duration>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// This node.
    pub node_id: NodeId,
    /// Its name and addresses.
    pub member: Member,
    /// The cluster, once it is known.
    pub cluster_id: Option<String>,
    /// What it is.
    pub role: Role,
    /// The Raft term.
    pub term: u64,
    /// The leader, as far as this node knows.
    pub leader: Option<NodeId>,
    /// The last entry of its log.
    pub last_log_index: Option<u64>,
    /// The last entry that it has applied.
    pub applied: Option<LogId>,
    /// The last entry that its newest snapshot contains.
    pub snapshot: Option<LogId>,
    /// The last entry that is purged from its log.
    pub purged: Option<LogId>,
    /// Revision and digests of its state.
    pub digests: Digests,
    /// The oldest revision that its history reaches back to.
    pub oldest_revision: Revision,
    /// What it fetches of what is older.
    pub fetching: Fetching,
    /// How long ago a majority last answered; only the leader knows.
    pub quorum_heard: Option<Duration>,
    /// All members, by number. A node that was removed is not among them.
    pub members: Vec<MemberStatus>,
    /// The others have taken this node out of the cluster.
    pub removed: bool,
}

impl RaftNode {
    /// What this node knows now.
    pub fn status(&self) -> NodeStatus {
        let metrics = metrics(&self.inner.raft);
        let view = self.replica().view();
        let removed = self.is_removed();
        let membership = &metrics.membership_config;
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let heard = |id: &NodeId| Some(metrics.heartbeat.as_ref()?.get(id)?.as_ref()?.elapsed());
        let matched = |id: &NodeId| Some(metrics.replication.as_ref()?.get(id)?.as_ref()?.index());
        let members = membership.nodes().map(|(id, member)| MemberStatus {
            node_id: *id,
            member: member.clone(),
            voter: voters.contains(id),
            matched_index: matched(id),
            last_heard: heard(id),
        });
        NodeStatus {
            node_id: metrics.id,
            member: self.inner.local.member.clone(),
            cluster_id: self.inner.local.cluster_id().map(str::to_owned),
            role: match metrics.state {
                ServerState::Learner => Role::Learner,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Leader => Role::Leader,
                ServerState::Shutdown => Role::Stopped,
            },
            term: metrics.current_term,
            leader: metrics.current_leader,
            last_log_index: metrics.last_log_index,
            applied: view.applied,
            snapshot: metrics.snapshot,
            purged: metrics.purged,
            digests: digests_of(&view.state),
            oldest_revision: self.history().oldest_revision(),
            fetching: self.inner.progress.now(),
            quorum_heard: metrics.last_quorum_acked.map(|at| at.elapsed()),
            members: members.filter(|member| !removed || member.node_id != metrics.id).collect(),
            removed,
        }
    }
}
