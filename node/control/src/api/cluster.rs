//! `ClusterService`: the control nodes themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use sandkeeper_proto::v1;
use sandkeeper_proto::v1::cluster_service_server::ClusterService;
use sandkeeper_statemachine::Revision;
use tokio::time::{Instant, sleep};
use tonic::{Code, Request, Response, Status};

use super::Api;
use super::call::{Call, DEFAULT_DEADLINE};
use super::convert::{cluster as convert, invalid};
use super::status::{Problem, membership, rejected, unavailable};
use crate::history::Digests;
use crate::raft::digests::NoDigests;
use crate::raft::node::{NodeStatus, Role};

/// A membership change includes that a node catches up, and a snapshot that it is written.
const ADMIN_DEADLINE: Duration = Duration::from_mins(2);
/// How often it is looked whether a snapshot is there: openraft tells nobody.
const SNAPSHOT_LOOK: Duration = Duration::from_millis(50);
/// One comparison of the digests; a node that is far behind may need the next one.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the digests are compared at a new revision, when a node no longer knows those of the last.
const COMPARISONS: usize = 8;

type Answer<T> = Result<Response<T>, Status>;

impl Api {
    fn members(&self) -> Vec<v1::Member> {
        self.members_of(&self.parts().raft.status())
    }

    fn members_of(&self, status: &NodeStatus) -> Vec<v1::Member> {
        let leads = status.role == Role::Leader;
        let skews = if leads { self.parts().clocks.skews(status.term) } else { BTreeMap::new() };
        status.members.iter().map(|member| convert::member(member, status, &skews)).collect()
    }

    /// Waits until a snapshot contains everything that is applied now.
    pub(super) async fn snapshot(&self, deadline: Instant) -> Result<u64, Status> {
        let raft = &self.parts().raft;
        let wanted = raft.status().applied.map(|id| id.index());
        raft.trigger_snapshot().await.map_err(|error| membership(&error))?;
        loop {
            let reached = raft.status().snapshot.map(|id| id.index());
            if reached.is_some() && reached >= wanted {
                return Ok(reached.unwrap_or(0));
            }
            if Instant::now() >= deadline {
                let text = "the snapshot is not written yet; it goes on";
                return Err(Problem::new(Code::DeadlineExceeded, "SNAPSHOT_NOT_READY", text).status());
            }
            sleep(SNAPSHOT_LOOK).await;
        }
    }

    /// Asks all members for their digests at one revision, and says whether it is worth to ask at another one.
    async fn compare(&self, revision: Revision, deadline: Instant) -> (Vec<v1::verify_response::Node>, bool) {
        let status = self.parts().raft.status();
        let answers = join_all(status.members.iter().map(|member| async {
            let raft = &self.parts().raft;
            let digests = if member.node_id == status.node_id {
                raft.own_digests(revision, deadline).await
            } else {
                let address = &member.member.peer_address;
                raft.digests_of(member.node_id, address, revision, deadline).await
            };
            (member.member.name.clone(), digests)
        }))
        .await;
        let forgotten = answers.iter().any(|(_, answer)| matches!(answer, Err(NoDigests::Forgotten(_))));
        let node = |(name, answer): (String, Result<Digests, NoDigests>)| {
            convert::digests(name, answer.map_err(|why| why.to_string()))
        };
        (answers.into_iter().map(node).collect(), forgotten)
    }
}

/// Whether all nodes answered, at this revision, with the same digests.
fn identical(nodes: &[v1::verify_response::Node], revision: Revision) -> bool {
    let digests = |node: &v1::verify_response::Node| (node.history_digest.clone(), node.state_digest.clone());
    let first = nodes.first().map(digests);
    let same = |node: &v1::verify_response::Node| {
        node.error.is_empty() && node.revision == revision && Some(digests(node)) == first
    };
    !nodes.is_empty() && nodes.iter().all(same)
}

/// Whether two nodes answered differently: which no repetition mends.
fn differ(nodes: &[v1::verify_response::Node]) -> bool {
    let mut answered = nodes.iter().filter(|node| node.error.is_empty());
    let Some(first) = answered.next() else { return false };
    answered.any(|node| {
        node.revision == first.revision
            && (node.history_digest != first.history_digest || node.state_digest != first.state_digest)
    })
}

#[tonic::async_trait]
impl ClusterService for Api {
    type BackupStream = super::backup::BackupStream;

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Answer<Self::BackupStream> {
        let call = Call::of(&request, ADMIN_DEADLINE)?;
        self.stream_backup(call).await.map(Response::new)
    }

    async fn confirm_restore(
        &self,
        request: Request<v1::ConfirmRestoreRequest>,
    ) -> Answer<v1::ConfirmRestoreResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        self.confirm(call).await.map(Response::new)
    }

    async fn get_status(&self, _request: Request<v1::GetStatusRequest>) -> Answer<v1::GetStatusResponse> {
        let parts = self.parts();
        let status = parts.raft.status();
        let leader = status.members.iter().find(|member| Some(member.node_id) == status.leader);
        let index = |id: Option<crate::raft::types::LogId>| id.map_or(0, |id| id.index());
        let cluster = parts.raft.replica().state().cluster();
        let version = cluster.map_or(0, |cluster| cluster.version.into());
        let room = parts.raft.disk_space().room();
        let predecessor = cluster.and_then(|cluster| cluster.predecessor);
        Ok(Response::new(v1::GetStatusResponse {
            header: Some(self.header_at(status.digests.revision, false)),
            cluster_id: status.cluster_id.clone().unwrap_or_default(),
            node_id: status.node_id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: convert::state_name(&status, parts.stop.is_cancelled()).to_owned(),
            term: status.term,
            leader: leader.map(|member| member.member.name.clone()).unwrap_or_default(),
            leader_address: leader.map(|member| member.member.api_address.clone()).unwrap_or_default(),
            last_log_index: status.last_log_index.unwrap_or(0),
            applied_index: index(status.applied),
            snapshot_index: index(status.snapshot),
            purged_index: index(status.purged),
            oldest_revision: status.oldest_revision,
            history_digest: status.digests.history.to_string(),
            state_digest: status.digests.state.to_string(),
            cluster_version: version,
            members: self.members_of(&status),
            agents_connected: parts.sessions.count() as u64,
            uptime_seconds: self.inner.started.elapsed().as_secs(),
            restored: cluster.and_then(|cluster| cluster.restored).map(convert::restored),
            predecessor_id: predecessor.map(|id| id.to_string()).unwrap_or_default(),
            history_missing_entries: status.fetching.missing_entries,
            disk_free_bytes: room.free,
            disk_low_water_bytes: room.mark,
            disk_low: room.low,
        }))
    }

    async fn list_members(
        &self,
        request: Request<v1::ListMembersRequest>,
    ) -> Answer<v1::ListMembersResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        // After a read index this node's log holds every membership that was acknowledged.
        let read = self.read(request.into_inner().read, call.deadline).await?;
        let members = self.members();
        Ok(Response::new(v1::ListMembersResponse { header: Some(self.header(&read)), members }))
    }

    async fn add_member(&self, request: Request<v1::AddMemberRequest>) -> Answer<v1::AddMemberResponse> {
        let call = Call::of(&request, ADMIN_DEADLINE)?;
        let address = request.into_inner().peer_address;
        let port = address
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(port)) if port > 0) {
            return Err(rejected(&invalid("peer_address", "must be host:port")));
        }
        let added = self.unless_stopped(self.parts().raft.add_member(&address, call.deadline)).await?;
        added.map_err(|error| membership(&error))?;
        self.read(None, call.deadline).await?;
        Ok(Response::new(v1::AddMemberResponse { members: self.members() }))
    }

    async fn remove_member(
        &self,
        request: Request<v1::RemoveMemberRequest>,
    ) -> Answer<v1::RemoveMemberResponse> {
        let call = Call::of(&request, ADMIN_DEADLINE)?;
        let member = request.into_inner().member;
        if member.is_empty() {
            return Err(rejected(&invalid("member", "must be the name or the node id of a member")));
        }
        let removed = self.unless_stopped(self.parts().raft.remove_member(&member, call.deadline)).await?;
        removed.map_err(|error| membership(&error))?;
        // Not behind a read index: this node may be the one that was removed.
        let members = self.members();
        let gone = |other: &v1::Member| other.name != member && other.node_id != member;
        Ok(Response::new(v1::RemoveMemberResponse { members: members.into_iter().filter(gone).collect() }))
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Answer<v1::TransferLeadershipResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let to = request.into_inner().to;
        let raft = &self.parts().raft;
        let to = (!to.is_empty()).then_some(to.as_str());
        let transferred = self.unless_stopped(raft.transfer_leader(to, call.deadline)).await?;
        transferred.map_err(|error| membership(&error))?;
        // A read index is given by the new leader only, and tells this node who that is.
        self.read(None, call.deadline).await?;
        let leader = raft.leader().map(|(_, member)| member.name);
        let leader = leader.ok_or_else(|| unavailable("leadership was handed over, and is moving on"))?;
        Ok(Response::new(v1::TransferLeadershipResponse { leader }))
    }

    async fn trigger_snapshot(
        &self,
        request: Request<v1::TriggerSnapshotRequest>,
    ) -> Answer<v1::TriggerSnapshotResponse> {
        let call = Call::of(&request, ADMIN_DEADLINE)?;
        let snapshot_index = self.unless_stopped(self.snapshot(call.deadline)).await??;
        Ok(Response::new(v1::TriggerSnapshotResponse { snapshot_index }))
    }

    async fn verify(&self, request: Request<v1::VerifyRequest>) -> Answer<v1::VerifyResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let mut last = None;
        for _ in 0..COMPARISONS {
            let read = self.read(None, call.deadline).await?;
            let revision = read.state.revision();
            let deadline = call.deadline.min(Instant::now() + COMPARE_TIMEOUT);
            let (nodes, forgotten) = self.unless_stopped(self.compare(revision, deadline)).await?;
            let identical = identical(&nodes, revision);
            let done = !forgotten || differ(&nodes) || Instant::now() >= call.deadline;
            last = Some(v1::VerifyResponse { revision, identical, nodes });
            if done {
                break;
            }
        }
        last.map(Response::new).ok_or_else(|| unavailable("no comparison was possible"))
    }
}

#[cfg(test)]
mod tests {
    use sandkeeper_statemachine::Digest;

    use super::*;

    fn node(revision: Revision, digest: u8) -> v1::verify_response::Node {
        let digest = Digest([digest; 32]);
        convert::digests("n".into(), Ok(Digests { revision, history: digest, state: digest }))
    }

    #[test]
    fn only_equal_digests_of_all_at_one_revision_are_identical() {
        let unreachable = || convert::digests("n".into(), Err("no answer in time".into()));
        assert!(identical(&[node(5, 1), node(5, 1)], 5));
        assert!(!identical(&[node(5, 1), node(6, 1)], 5));
        assert!(!identical(&[node(5, 1), node(5, 2)], 5));
        assert!(!identical(&[node(5, 1), unreachable()], 5));
        assert!(!identical(&[], 5));
        assert!(differ(&[node(5, 1), unreachable(), node(5, 2)]));
        assert!(!differ(&[node(5, 1), unreachable(), node(5, 1)]));
    }
}
