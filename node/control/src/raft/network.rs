//! How Raft speaks to its peers: openraft's network traits over the peer service.
//!
//! To each peer there is one long stream of appends, pipelined ([`append`]), and one over which heartbeats go
//! forth and back one at a time; votes are single calls; a snapshot has a connection of its own ([`snapshot`]).
//!
//! Architecture invariant: a failed call says so. Nothing here retries, and nothing pretends that a peer agreed.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use openraft::alias::SnapshotOf;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use sandkeeper_proto::internal::RaftMessage;
use tokio::time::timeout;
use tonic::{Code, Response, Status};

mod append;
mod snapshot;

use super::codec;
use super::peers::{PeerClient, Peers, reason};
use super::types::{Member, NodeId, TypeConfig, Vote};
use crate::storage::snapshot::SnapshotFile;
use append::Exchange;

type AppendAnswers<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

/// Makes the links to peers.
pub struct PeerNetwork {
    peers: Arc<Peers>,
}

impl PeerNetwork {
    /// Over these connections.
    pub fn new(peers: Arc<Peers>) -> Self {
        Self { peers }
    }

    fn link(&self, target: NodeId, node: &Member, use_of: Use) -> PeerLink {
        let first_address = node.peer_address.clone();
        self.peers.note_address(target, &first_address);
        PeerLink { peers: Arc::clone(&self.peers), target, first_address, use_of, exchange: None }
    }
}

impl RaftNetworkFactory<TypeConfig> for PeerNetwork {
    type Network = PeerLink;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> PeerLink {
        self.link(target, node, Use::Messages)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Member) -> PeerLink {
        self.link(target, node, Use::Heartbeats)
    }
}

/// What a link is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Everything: appends are pipelined.
    Messages,
    /// One append at a time over a stream that is kept.
    Heartbeats,
}

/// The way to one peer.
pub struct PeerLink {
    peers: Arc<Peers>,
    target: NodeId,
    /// Where the target was when the link was made.
    first_address: String,
    use_of: Use,
    /// The stream that is kept for heartbeats. Taken out while one is on its way, so that one that is given up
    /// takes its stream with it, and no late answer is taken for the next one's.
    exchange: Option<Exchange>,
}

impl PeerLink {
    /// Where the target is. It may move while the link lives.
    fn address(&self) -> String {
        self.peers.address_of(self.target).unwrap_or_else(|| self.first_address.clone())
    }

    fn client(&self) -> Result<PeerClient, RPCError<TypeConfig>> {
        self.peers
            .client(&self.address(), Some(self.target))
            .map_err(|error| Unreachable::from_string(error).into())
    }

    /// Makes an error of openraft's from a gRPC status. `Unreachable` makes openraft wait before it tries again.
    fn failed(&self, status: &Status) -> RPCError<TypeConfig> {
        let text = format!("peer {}: {}", self.address(), reason(status));
        match status.code() {
            Code::Aborted | Code::Internal | Code::Cancelled => NetworkError::from_string(text).into(),
            _ => Unreachable::from_string(text).into(),
        }
    }

    fn timed_out(&self, action: RPCTypes, limit: Duration) -> RPCError<TypeConfig> {
        Timeout { action, id: self.peers.local().node_id, target: self.target, timeout: limit }.into()
    }

    fn unreadable(&self, error: &codec::CodecError) -> RPCError<TypeConfig> {
        Unreachable::from_string(format!("peer {} answered what can't be read: {error}", self.address()))
            .into()
    }

    /// One call with one small message each way.
    async fn call<Q, A, F>(
        &self,
        action: RPCTypes,
        limit: Duration,
        question: &Q,
        send: impl FnOnce(PeerClient, RaftMessage) -> F,
    ) -> Result<A, RPCError<TypeConfig>>
    where
        Q: serde::Serialize,
        A: serde::de::DeserializeOwned,
        F: Future<Output = Result<Response<RaftMessage>, Status>>,
    {
        let message = RaftMessage { payload: codec::encode(question) };
        let answer = timeout(limit, send(self.client()?, message))
            .await
            .map_err(|_| self.timed_out(action, limit))?
            .map_err(|status| self.failed(&status))?;
        codec::decode(&answer.into_inner().payload).map_err(|error| self.unreadable(&error))
    }
}

impl RaftNetworkV2<TypeConfig> for PeerLink {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let limit = option.hard_ttl();
        let exchange = async {
            let mut exchange = match self.exchange.take() {
                Some(exchange) => exchange,
                None => Exchange::open(self).await?,
            };
            let answer = exchange.ask(self, &rpc).await?;
            if answer.is_ok() {
                self.exchange = Some(exchange);
            }
            Ok(answer.into())
        };
        match timeout(limit, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(self.timed_out(RPCTypes::AppendEntries, limit)),
        }
    }

    fn stream_append<S>(
        &mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'_, Result<AppendAnswers<'_>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        match self.use_of {
            Use::Heartbeats => stream_append_sequential(self, input, option),
            Use::Messages => Box::pin(append::pipeline(self, input)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let send = |mut client: PeerClient, message| async move { client.vote(message).await };
        self.call(RPCTypes::Vote, option.soft_ttl(), &rpc, send).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let send = |mut client: PeerClient, message| async move { client.pre_vote(message).await };
        self.call(RPCTypes::Vote, option.soft_ttl(), &rpc, send).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = snapshot::send(self, vote, snapshot, option.hard_ttl()) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let send = |mut client: PeerClient, message| async move { client.transfer_leader(message).await };
        self.call(RPCTypes::TransferLeader, option.soft_ttl(), &req, send).await
    }
}
