//! Connections to the other control nodes, and who may connect.
//!
//! Every request carries who sends it and to whom: the cluster's id (once it is known), the sender's node id, and,
//! if it is meant for one node, that node's id. A receiver refuses another cluster's messages and those meant for
//! another node, so that a re-used address or a copied configuration can't mix two histories.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sandkeeper_proto::internal::peer_service_client::PeerServiceClient;
use tokio::runtime::Handle;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::codec::MAX_MESSAGE_BYTES;
use super::local_node::LocalNode;
use super::types::NodeId;

const CLUSTER_ID: &str = "sandkeeper-cluster-id";
const FROM_NODE: &str = "sandkeeper-from-node";
const TO_NODE: &str = "sandkeeper-to-node";

/// A peer that does not even accept a connection for this long is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// HTTP/2 pings go out this often, also when nothing else is sent.
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// A ping that is not answered for this long ends the connection. Longer than a busy machine's stalls.
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Flow control of one stream, bytes: a full message.
pub(super) const STREAM_WINDOW: u32 = MAX_MESSAGE_BYTES as u32;
/// Flow control of a connection: more than its streams can fill, so that no stream holds up a heartbeat.
pub(super) const CONNECTION_WINDOW: u32 = 8 * STREAM_WINDOW;
/// Addresses change when nodes are replaced; beyond this many, connections are forgotten and made anew.
const MAX_CHANNELS: usize = 64;

/// A client of a peer.
pub type PeerClient = PeerServiceClient<InterceptedService<Channel, Introduce>>;

/// An address that is none.
#[derive(Debug, thiserror::Error)]
#[error("{address:?} is not an address of the form host:port")]
pub struct InvalidAddress {
    address: String,
    source: tonic::transport::Error,
}

impl From<InvalidAddress> for Status {
    fn from(error: InvalidAddress) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// The connections of this node: one for each peer address, made when it is first used, and made again by itself
/// after it broke.
pub struct Peers {
    local: Arc<LocalNode>,
    /// Where the connections are driven, whoever dials: Raft's, which callers can't keep busy.
    runtime: Handle,
    channels: Mutex<HashMap<String, Channel>>,
    /// Where members were found last. openraft keeps its links when a member's address changes.
    addresses: Mutex<HashMap<NodeId, String>>,
}

impl Peers {
    /// Without any connection yet. All of them will run on this runtime.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new(local: Arc<LocalNode>) -> Self {
        Self { local, runtime: Handle::current(), channels: Mutex::default(), addresses: Mutex::default() }
    }

    /// This node.
    pub fn local(&self) -> &Arc<LocalNode> {
        &self.local
    }

    /// A client of the peer at `address` (`host:port`). `to`: which node that must be, if it is known.
    ///
    /// # Errors
    /// If the address is none. Whether somebody is there shows with the first call.
    pub fn client(&self, address: &str, to: Option<NodeId>) -> Result<PeerClient, InvalidAddress> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = if let Some(channel) = channels.get(address) {
            channel.clone()
        } else {
            let channel = self.dial(address)?;
            if channels.len() >= MAX_CHANNELS {
                channels.clear();
            }
            channels.insert(address.to_owned(), channel.clone());
            channel
        };
        Ok(self.introduce(channel, to))
    }

    /// Takes note of where a member is.
    pub(super) fn note_address(&self, node: NodeId, address: &str) {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if addresses.len() >= MAX_CHANNELS {
            addresses.clear();
        }
        addresses.insert(node, address.to_owned());
    }

    /// Where a member was found last.
    pub(super) fn address_of(&self, node: NodeId) -> Option<String> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    /// A client with a connection of its own, for a transfer that would hold up others on a shared one.
    ///
    /// # Errors
    /// If the address is none.
    pub fn separate_client(&self, address: &str, to: NodeId) -> Result<PeerClient, InvalidAddress> {
        Ok(self.introduce(self.dial(address)?, Some(to)))
    }

    fn introduce(&self, channel: Channel, to: Option<NodeId>) -> PeerClient {
        let introduce = Introduce { local: Arc::clone(&self.local), to };
        PeerServiceClient::with_interceptor(channel, introduce)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn dial(&self, address: &str) -> Result<Channel, InvalidAddress> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|source| InvalidAddress { address: address.to_owned(), source })?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let _runtime = self.runtime.enter();
        Ok(endpoint.connect_lazy())
    }
}

/// Says in each request who sends it, and to whom.
#[derive(Clone)]
pub struct Introduce {
    local: Arc<LocalNode>,
    to: Option<NodeId>,
}

impl Interceptor for Introduce {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert(FROM_NODE, self.local.node_id.into());
        if let Some(to) = self.to {
            metadata.insert(TO_NODE, to.into());
        }
        if let Some(cluster_id) = self.local.cluster_id() {
            let value =
                cluster_id.parse().map_err(|_| Status::internal("the cluster id is not printable"))?;
            metadata.insert(CLUSTER_ID, value);
        }
        Ok(request)
    }
}

/// Lets in who belongs here.
#[derive(Clone)]
pub struct Admit {
    local: Arc<LocalNode>,
}

impl Admit {
    /// For the services of this node.
    pub fn new(local: Arc<LocalNode>) -> Self {
        Self { local }
    }
}

impl Interceptor for Admit {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata();
        if let Some(theirs) = metadata.get(CLUSTER_ID) {
            let theirs =
                theirs.to_str().map_err(|_| Status::invalid_argument("a cluster id that is no text"))?;
            self.local
                .check_cluster_id(theirs)
                .map_err(|error| Status::failed_precondition(error.to_string()))?;
        }
        if let Some(to) = number(metadata, TO_NODE)?
            && to != self.local.node_id
        {
            return Err(Status::failed_precondition(format!(
                "this is node {} ({}), and the message is for node {to}: its address was given to another node",
                self.local.node_id, self.local.member.name
            )));
        }
        Ok(request)
    }
}

/// The node that sent a request.
///
/// # Errors
/// If the request does not say it.
pub(super) fn sender<T>(request: &Request<T>) -> Result<NodeId, Status> {
    number(request.metadata(), FROM_NODE)?
        .ok_or_else(|| Status::invalid_argument("the request does not say which node sends it"))
}

fn number(metadata: &MetadataMap, key: &str) -> Result<Option<u64>, Status> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| Status::invalid_argument(format!("{key} is not a number")))
}

/// Why a call to a peer failed, in few words: for progress lines and messages.
pub(crate) fn reason(status: &Status) -> String {
    let mut source = std::error::Error::source(status);
    let mut deepest = None;
    while let Some(error) = source {
        deepest = Some(error.to_string());
        source = error.source();
    }
    match (status.code(), deepest) {
        // tonic says "tcp connect error" and hides what the operating system said.
        (Code::Unavailable | Code::Unknown, Some(text)) => {
            text.split(" (os error").next().unwrap_or_default().to_lowercase()
        }
        (Code::Cancelled | Code::DeadlineExceeded, _) => "no answer in time".to_owned(),
        _ => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Member;

    fn node(node_id: NodeId, cluster_id: Option<&str>) -> Arc<LocalNode> {
        Arc::new(LocalNode::new(node_id, Member::default(), 0, cluster_id.map(str::to_owned)))
    }

    fn meet(
        from: (NodeId, Option<&str>),
        to: Option<NodeId>,
        at: (NodeId, Option<&str>),
    ) -> Result<(), Status> {
        let sent = Introduce { local: node(from.0, from.1), to }.call(Request::new(())).unwrap();
        assert_eq!(sender(&sent).unwrap(), from.0);
        Admit::new(node(at.0, at.1)).call(sent).map(|_| ())
    }

    #[test]
    fn the_wrong_cluster_and_the_wrong_node_are_refused() {
        assert!(meet((1, Some("a")), Some(2), (2, Some("a"))).is_ok());
        assert!(meet((1, None), Some(2), (2, Some("a"))).is_ok(), "a new node may ask");
        assert!(meet((1, Some("a")), None, (2, None)).is_ok(), "a new node may be asked");
        let refused = meet((1, Some("b")), Some(2), (2, Some("a"))).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("belongs to cluster a, and cluster b was met"), "{refused}");
        let refused = meet((1, Some("a")), Some(3), (2, Some("a"))).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("the message is for node 3"), "{refused}");
    }

    #[tokio::test]
    async fn one_address_is_one_connection() {
        let peers = Peers::new(node(1, None));
        for _ in 0..3 {
            peers.client("localhost:1", None).unwrap();
        }
        assert_eq!(peers.channels.lock().unwrap().len(), 1);
        for port in 0..1000 {
            peers.client(&format!("localhost:{port}"), None).unwrap();
        }
        assert!(peers.channels.lock().unwrap().len() <= MAX_CHANNELS);
        assert!(peers.client("not an address", None).is_err());
    }
}
