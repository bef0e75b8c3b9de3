//! Control nodes.

use std::collections::BTreeMap;

use sandkeeper_proto::v1;
use sandkeeper_statemachine::Restored;

use crate::history::Digests;
use crate::raft::node::{MemberStatus, NodeStatus, Role};
use crate::raft::types::NodeId;

/// A member, as the wire tells it. `skews`: how far clocks are ahead, as far as this node knows.
pub(crate) fn member(
    member: &MemberStatus,
    status: &NodeStatus,
    skews: &BTreeMap<NodeId, f64>,
) -> v1::Member {
    let role = if member.voter { v1::MemberRole::Voter } else { v1::MemberRole::Learner };
    v1::Member {
        node_id: member.node_id.to_string(),
        name: member.member.name.clone(),
        peer_address: member.member.peer_address.clone(),
        api_address: member.member.api_address.clone(),
        role: role.into(),
        leader: status.leader == Some(member.node_id),
        clock_skew_seconds: skews.get(&member.node_id).copied(),
    }
}

/// What a member said of its digests, or why it said nothing.
pub(crate) fn digests(name: String, found: Result<Digests, String>) -> v1::verify_response::Node {
    match found {
        Ok(digests) => v1::verify_response::Node {
            name,
            revision: digests.revision,
            history_digest: digests.history.to_string(),
            state_digest: digests.state.to_string(),
            error: String::new(),
        },
        Err(error) => v1::verify_response::Node { name, error, ..Default::default() },
    }
}

/// Where a restored cluster comes from.
pub(crate) fn restored(restored: Restored) -> v1::Restore {
    v1::Restore {
        from_cluster_id: restored.from.to_string(),
        revision: restored.revision,
        time: restored.time.0,
        confirmed: restored.confirmed,
    }
}

/// What a node is, in a word.
pub(crate) fn state_name(status: &NodeStatus, stopping: bool) -> &'static str {
    match status.role {
        _ if stopping => "stopping",
        Role::Stopped => "stopping",
        _ if status.removed => "removed",
        // Nobody has told it yet who belongs to the cluster.
        Role::Learner if status.members.is_empty() => "starting",
        Role::Learner => "learner",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    }
}
