//! What this node does for its peers: the gRPC `PeerService`, and serving it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, ready};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use openraft::raft::AppendEntriesRequest;
use sandkeeper_proto::internal::peer_service_server::{PeerService, PeerServiceServer};
use sandkeeper_proto::internal::{
    ChangeMembershipRequest, ChangeMembershipResponse, ClockRequest, ClockResponse, DescribeRequest,
    DescribeResponse, DigestRequest, DigestResponse, DiskRequest, DiskResponse, FindEventsRequest,
    FindEventsResponse, ForwardRequest, ForwardResponse, HistoryEntriesRequest, HistoryEntriesResponse,
    HistoryStartRequest, HistoryStartResponse, RaftMessage, ReadHistoryRequest, ReadHistoryResponse,
    ReadIndexRequest, ReadIndexResponse, SnapshotChunk, SnapshotOffsetRequest, SnapshotOffsetResponse,
};
use sandkeeper_statemachine::DIGEST_FORM;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::codec::{self, CodecError, MAX_MESSAGE_BYTES};
use super::membership::PASSED_ON;
use super::node::RaftNode;
use super::peers::{Admit, CONNECTION_WINDOW, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, STREAM_WINDOW, sender};
use super::replica::WaitError;
use super::transfer::{self, Announcement, TransferError};
use super::types::TypeConfig;

/// For a request that names no deadline: changing the membership includes catching up.
const MEMBERSHIP_TIMEOUT: Duration = Duration::from_mins(10);
/// How long a peer that asks for the digests at a revision waits until this node has reached it.
const DIGEST_TIMEOUT: Duration = Duration::from_secs(10);
/// openraft answers everything in milliseconds, or its disk is stuck; then the peer is told so.
const RAFT_TIMEOUT: Duration = Duration::from_secs(10);
/// After the streams have been told to end, connections are closed, ready or not.
const SERVER_STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Streams of one connection: a peer needs a handful, and one for each membership change that waits.
const MAX_STREAMS: u32 = 256;

/// Takes commands that other nodes send to this one as the leader. The decider is one.
pub trait Forwarder: Send + Sync + 'static {
    /// Answers requests, in any order, until they end.
    fn forward(
        &self,
        requests: Streaming<ForwardRequest>,
    ) -> BoxStream<'static, Result<ForwardResponse, Status>>;
}

/// Finds events for a peer that does not have them, in what this node has itself.
pub trait EventFinder: Send + Sync + 'static {
    /// Answers one request.
    fn find(&self, request: FindEventsRequest) -> BoxFuture<'static, Result<FindEventsResponse, Status>>;
}

/// The service of one node.
pub struct PeerApi {
    node: RaftNode,
    forwarder: Arc<dyn Forwarder>,
    finder: Arc<dyn EventFinder>,
}

/// The service with its limits, and with the check of who may call.
pub type PeerServer = InterceptedService<PeerServiceServer<PeerApi>, Admit>;

impl PeerApi {
    /// The service of `node`; commands go to `forwarder`, and `finder` looks for events.
    pub fn new(node: RaftNode, forwarder: Arc<dyn Forwarder>, finder: Arc<dyn EventFinder>) -> Self {
        Self { node, forwarder, finder }
    }

    /// With limits and checks, ready to be served.
    pub fn into_server(self) -> PeerServer {
        let admit = Admit::new(Arc::clone(self.node.local()));
        let server = PeerServiceServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        InterceptedService::new(server, admit)
    }

    /// Serves peers at `listener` until `cancel`, and then a moment longer for what is on its way.
    ///
    /// # Errors
    /// If accepting connections fails for good.
    pub async fn serve(
        self,
        listener: TcpListener,
        cancel: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
        let server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_STREAMS)
            .add_service(self.into_server())
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                cancel.clone().cancelled_owned(),
            );
        tokio::pin!(server);
        tokio::select! {
            served = &mut server => return served,
            () = cancel.cancelled() => {}
        }
        // Connections of peers that hold on to them don't hold this node.
        timeout(SERVER_STOP_TIMEOUT, server).await.unwrap_or(Ok(()))
    }

    fn read<T: serde::de::DeserializeOwned>(request: Request<RaftMessage>) -> Result<T, Status> {
        codec::decode(&request.into_inner().payload).map_err(|error| unreadable(&error))
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn unreadable(error: &CodecError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn message<T: Serialize>(answer: &T) -> RaftMessage {
    RaftMessage { payload: codec::encode(answer) }
}

/// What openraft says, or that it has stopped, or that it says nothing.
async fn of_raft<T: Serialize, E: std::fmt::Display>(
    call: impl Future<Output = Result<T, E>>,
) -> Answer<RaftMessage> {
    match timeout(RAFT_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(Response::new(message(&answer))),
        Ok(Err(stopped)) => Err(Status::unavailable(stopped.to_string())),
        Err(_) => Err(Status::deadline_exceeded("Raft did not answer: is the disk stuck?")),
    }
}

type MessageStream = Pin<Box<dyn Stream<Item = Result<RaftMessage, Status>> + Send>>;

/// Why a stream of appends ended early. Filled by the side that reads, reported by the side that answers.
#[derive(Clone, Default)]
struct Failure(Arc<Mutex<Option<Status>>>);

impl Failure {
    fn set(&self, status: Status) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    fn take(&self) -> Option<Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Tells that appends have ended, however they did: a connection that breaks drops what it carried.
struct Ended(Arc<Notify>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn appends(
    incoming: Streaming<RaftMessage>,
    failure: Failure,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static {
    incoming.scan(failure, |failure, message| {
        let decoded = message
            .and_then(|message| codec::decode_append(message.payload).map_err(|error| unreadable(&error)));
        ready(decoded.map_err(|status| failure.set(status)).ok())
    })
}

#[tonic::async_trait]
impl PeerService for PeerApi {
    async fn describe(&self, _request: Request<DescribeRequest>) -> Answer<DescribeResponse> {
        let initialized = timeout(RAFT_TIMEOUT, self.node.inner.raft.is_initialized())
            .await
            .map_err(|_| Status::deadline_exceeded("Raft did not answer"))?
            .map_err(|stopped| Status::unavailable(stopped.to_string()))?;
        let local = self.node.local();
        let membership = &self.node.replica().view().membership;
        Ok(Response::new(DescribeResponse {
            node_id: local.node_id,
            name: local.member.name.clone(),
            peer_address: local.member.peer_address.clone(),
            api_address: local.member.api_address.clone(),
            cluster_id: local.cluster_id().unwrap_or_default().to_owned(),
            initialized,
            leader_id: self.node.leader().map_or(0, |(id, _)| id),
            bootstrap_expect: local.bootstrap_expect,
            membership_index: membership.log_id().map_or(0, |id| id.index()),
            member_ids: membership.nodes().map(|(id, _)| *id).collect(),
        }))
    }

    type AppendStream = MessageStream;

    async fn append(&self, request: Request<Streaming<RaftMessage>>) -> Answer<MessageStream> {
        sender(&request)?;
        let failure = Failure::default();
        let requests = appends(request.into_inner(), failure.clone());
        let results = self.node.inner.raft.stream_append(requests);
        let ended = Ended(Arc::clone(&self.node.inner.appends_ended));
        let answers = results
            .map(move |result| match (&ended, result).1 {
                Ok(answer) => Ok(message(&answer)),
                Err(stopped) => Err(Status::unavailable(stopped.to_string())),
            })
            .chain(stream::once(ready(())).filter_map(move |()| ready(failure.take().map(Err))))
            .take_until(self.node.inner.cancel.clone().cancelled_owned());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Answer<RaftMessage> {
        of_raft(self.node.inner.raft.vote(Self::read(request)?)).await
    }

    async fn pre_vote(&self, request: Request<RaftMessage>) -> Answer<RaftMessage> {
        of_raft(self.node.inner.raft.pre_vote(Self::read(request)?)).await
    }

    async fn transfer_leader(&self, request: Request<RaftMessage>) -> Answer<RaftMessage> {
        of_raft(self.node.inner.raft.handle_transfer_leader(Self::read(request)?)).await
    }

    async fn snapshot_offset(
        &self,
        request: Request<SnapshotOffsetRequest>,
    ) -> Answer<SnapshotOffsetResponse> {
        let announcement: Announcement =
            codec::decode(&request.into_inner().meta).map_err(|error| unreadable(&error))?;
        let receiver = transfer::begin(&self.node.inner.store, &announcement).await;
        let offset = receiver.map_err(|error| self.not_received(error))?.offset();
        Ok(Response::new(SnapshotOffsetResponse { offset }))
    }

    async fn install_snapshot(&self, request: Request<Streaming<SnapshotChunk>>) -> Answer<RaftMessage> {
        let from = sender(&request)?;
        let received = transfer::receive(&self.node.inner.store, request.into_inner()).await;
        let (vote, snapshot) = received.map_err(|error| self.not_received(error))?;
        tracing::info!(from, bytes = snapshot.snapshot.length(), "a snapshot was received");
        // Loading it takes as long as it takes; the sender has a deadline.
        let installed = self.node.inner.raft.install_full_snapshot(vote, snapshot).await;
        let answer = installed.map_err(|stopped| Status::unavailable(stopped.to_string()))?;
        Ok(Response::new(message(&answer)))
    }

    async fn read_index(&self, _request: Request<ReadIndexRequest>) -> Answer<ReadIndexResponse> {
        let found = self.node.inner.reads.as_leader().await;
        let log_id = found.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(ReadIndexResponse { log_id: codec::encode(&log_id) }))
    }

    type ForwardStream = BoxStream<'static, Result<ForwardResponse, Status>>;

    async fn forward(&self, request: Request<Streaming<ForwardRequest>>) -> Answer<Self::ForwardStream> {
        sender(&request)?;
        Ok(Response::new(self.forwarder.forward(request.into_inner())))
    }

    async fn digest(&self, request: Request<DigestRequest>) -> Answer<DigestResponse> {
        let wanted = request.into_inner().revision;
        let view = self.node.replica().wait_revision(wanted, Instant::now() + DIGEST_TIMEOUT).await.map_err(
            |error| match error {
                WaitError::Timeout { .. } => Status::deadline_exceeded(error.to_string()),
                WaitError::Stopped => Status::unavailable(error.to_string()),
            },
        )?;
        let digests = match wanted {
            0 => Some(crate::history::digests_of(&view.state)),
            wanted => self.node.history().digests_at(wanted),
        };
        let digests = digests.ok_or_else(|| {
            Status::out_of_range(format!("the digests at revision {wanted} are not known any more"))
        })?;
        Ok(Response::new(DigestResponse {
            revision: digests.revision,
            history_digest: digests.history.0.to_vec().into(),
            state_digest: digests.state.0.to_vec().into(),
            form: DIGEST_FORM,
        }))
    }

    async fn clock(&self, _: Request<ClockRequest>) -> Answer<ClockResponse> {
        Ok(Response::new(ClockResponse { unix_nanos: crate::clock::wall().0 }))
    }

    async fn disk(&self, _: Request<DiskRequest>) -> Answer<DiskResponse> {
        let room = self.node.disk_space().room();
        let answer = DiskResponse { free_bytes: room.free, low_water_bytes: room.mark, low: room.low };
        Ok(Response::new(answer))
    }

    async fn change_membership(
        &self,
        request: Request<ChangeMembershipRequest>,
    ) -> Answer<ChangeMembershipResponse> {
        let passed_on = request.metadata().contains_key(PASSED_ON);
        let change = request.into_inner().change;
        let change = change.ok_or_else(|| Status::invalid_argument("the request names no change"))?;
        let deadline = Instant::now() + MEMBERSHIP_TIMEOUT;
        if passed_on {
            // The node that passed it on attempts again.
            self.node.attempt(&change, deadline, true).await?;
        } else {
            self.node.change(change, deadline).await?;
        }
        let leader_id = self.node.leader().map_or(0, |(id, _)| id);
        Ok(Response::new(ChangeMembershipResponse { leader_id }))
    }

    async fn history_start(&self, request: Request<HistoryStartRequest>) -> Answer<HistoryStartResponse> {
        self.node.history_start(request.into_inner()).map(Response::new)
    }

    async fn history_entries(
        &self,
        request: Request<HistoryEntriesRequest>,
    ) -> Answer<HistoryEntriesResponse> {
        self.node.history_entries(request.get_ref()).await.map(Response::new)
    }

    async fn read_history(&self, request: Request<ReadHistoryRequest>) -> Answer<ReadHistoryResponse> {
        self.node.read_history(request.get_ref()).await.map(Response::new)
    }

    async fn find_events(&self, request: Request<FindEventsRequest>) -> Answer<FindEventsResponse> {
        self.finder.find(request.into_inner()).await.map(Response::new)
    }
}

impl PeerApi {
    fn not_received(&self, error: TransferError) -> Status {
        match error {
            TransferError::Refused(status) => status,
            TransferError::Fault(fault) => {
                self.node.report_fault(&fault);
                Status::internal("the disk of the receiving node failed")
            }
        }
    }
}
