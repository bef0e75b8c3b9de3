//! What was found, in the messages of the API, so that scripts find the same fields as in the answers of a node.

use sandkeeper_proto::v1;

use super::Inspection;
use crate::api::convert;
use crate::raft::types::{NodeId, StoredMembership};

impl Inspection {
    /// What the agents have, as `GetCapacity` tells it. No agent has a session.
    pub fn get_capacity(&self) -> v1::GetCapacityResponse {
        v1::GetCapacityResponse {
            header: Some(self.header()),
            agents: convert::fleet::agents(&self.state, self.state.agents(), |_| None),
            history_digest: self.history_digest.map_or_else(String::new, |digest| digest.to_string()),
            ..convert::fleet::fleet(&self.state)
        }
    }

    /// The sandboxes of a namespace, or all, as `ListSandboxes` tells them, on one page, by namespace and name. (A name
    /// may stand there twice: of one that is going away, and of its successor.)
    pub fn list_sandboxes(&self, namespace: Option<&str>) -> v1::ListSandboxesResponse {
        let wanted = |of: &str| namespace.is_none_or(|namespace| namespace == of);
        let sandboxes = self.state.sandboxes().filter(|one| wanted(one.spec.name.namespace.as_str()));
        let mut sandboxes: Vec<_> =
            sandboxes.map(|one| convert::sandbox::sandbox(one, &self.state)).collect();
        sandboxes.sort_by(|a, b| {
            (&a.namespace, &a.name, a.create_timestamp).cmp(&(&b.namespace, &b.name, b.create_timestamp))
        });
        v1::ListSandboxesResponse { header: Some(self.header()), sandboxes, next_page_token: String::new() }
    }

    /// The control nodes, as `ListMembers` tells them.
    pub fn list_members(&self) -> v1::ListMembersResponse {
        v1::ListMembersResponse { header: Some(self.header()), members: self.members.clone() }
    }

    fn header(&self) -> v1::ResponseHeader {
        v1::ResponseHeader {
            node: self.identity.name.clone(),
            revision: self.state.revision(),
            linearizable: false,
        }
    }
}

/// The members of a membership, by name. Who leads is not in the log.
pub(super) fn members(membership: &StoredMembership) -> Vec<v1::Member> {
    let voters: Vec<NodeId> = membership.voter_ids().collect();
    let mut members: Vec<_> = membership
        .nodes()
        .map(|(id, member)| v1::Member {
            node_id: id.to_string(),
            name: member.name.clone(),
            peer_address: member.peer_address.clone(),
            api_address: member.api_address.clone(),
            role: if voters.contains(id) { v1::MemberRole::Voter } else { v1::MemberRole::Learner }.into(),
            leader: false,
            clock_skew_seconds: None,
        })
        .collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    members
}
