//! `ClusterService`. Its changes bear no request id, so they are sent again only when they were certainly not received.

use sandkeeper_proto::v1;

use super::unary;
use crate::backup::BackupStream;
use crate::client::{Client, Kind};
use crate::error::ClientError;

impl Client {
    /// What a node knows about itself and the cluster; answered without a leader too.
    pub async fn status(&self) -> Result<v1::GetStatusResponse, ClientError> {
        unary!(self, cluster, get_status, Kind::SHORT, v1::GetStatusRequest {})
    }

    /// The control nodes.
    pub async fn list_members(&self, read: v1::ReadOptions) -> Result<v1::ListMembersResponse, ClientError> {
        let request = v1::ListMembersRequest { read: Some(read) };
        unary!(self, cluster, list_members, Kind::SHORT, request)
    }

    /// Takes the node at this peer address in: as a learner, then, when it has caught up, as a voter.
    pub async fn add_member(
        &self,
        peer_address: impl Into<String>,
    ) -> Result<v1::AddMemberResponse, ClientError> {
        let request = v1::AddMemberRequest { peer_address: peer_address.into() };
        unary!(self, cluster, add_member, Kind::ONCE, request)
    }

    /// Takes a node (by name or node id) out.
    pub async fn remove_member(
        &self,
        member: impl Into<String>,
    ) -> Result<v1::RemoveMemberResponse, ClientError> {
        let request = v1::RemoveMemberRequest { member: member.into() };
        unary!(self, cluster, remove_member, Kind::ONCE, request)
    }

    /// Hands the leadership to a node (by name or node id; empty: the one that is furthest).
    pub async fn transfer_leadership(
        &self,
        to: impl Into<String>,
    ) -> Result<v1::TransferLeadershipResponse, ClientError> {
        let request = v1::TransferLeadershipRequest { to: to.into() };
        unary!(self, cluster, transfer_leadership, Kind::ONCE, request)
    }

    /// Has the node that answers make a snapshot.
    pub async fn trigger_snapshot(&self) -> Result<v1::TriggerSnapshotResponse, ClientError> {
        unary!(self, cluster, trigger_snapshot, Kind::ONCE, v1::TriggerSnapshotRequest {})
    }

    /// Everything that was acknowledged before, as a file. The deadline is for the beginning of the stream, before which
    /// the node makes a snapshot.
    pub async fn backup(&self) -> Result<BackupStream, ClientError> {
        let (server, stream) = self
            .call_at(Kind::STREAM, v1::BackupRequest {}, |channel, request| async move {
                super::cluster(channel).backup(request).await
            })
            .await?;
        let server = self.server(server).address.clone();
        BackupStream::open(server, stream).await
    }

    /// Says that a restored state holds: what agents run and it does not know is ended, and what it knows is started and
    /// recovered again.
    pub async fn confirm_restore(&self) -> Result<v1::ConfirmRestoreResponse, ClientError> {
        unary!(self, cluster, confirm_restore, Kind::SHORT, v1::ConfirmRestoreRequest {})
    }

    /// Compares the digests of all members at one revision.
    pub async fn verify(&self) -> Result<v1::VerifyResponse, ClientError> {
        unary!(self, cluster, verify, Kind::LONG, v1::VerifyRequest {})
    }
}
