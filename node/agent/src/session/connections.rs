//! HTTP/2 connections to control nodes, shared by the sessions and tunnels of all agents of this process.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use sandkeeper_proto::MAX_MESSAGE_BYTES;
use sandkeeper_proto::v1::agent_service_client::AgentServiceClient;
use tonic::transport::{Channel, Endpoint};

/// Half of what a control node allows on one connection (design.md, "Limits"): sessions here, tunnels beside them.
pub(crate) const STREAMS_PER_CONNECTION: usize = 500;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A silent connection is asked whether it lives, and given up when it does not answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);

/// All connections of this process. A connection is closed when its last lease is dropped.
#[derive(Debug)]
pub(crate) struct Connections {
    streams: usize,
    open: Mutex<HashMap<SocketAddr, Vec<Weak<Connection>>>>,
}

#[derive(Debug)]
struct Connection {
    channel: Channel,
    leases: AtomicUsize,
}

/// The right to use a connection for one session and its tunnels. Clones are the same right.
#[derive(Clone, Debug)]
pub(crate) struct Lease(Arc<Share>);

#[derive(Debug)]
struct Share(Arc<Connection>);

impl Connections {
    /// `streams`: how many sessions share a connection at most.
    pub(crate) fn new(streams: usize) -> Self {
        Self { streams, open: Mutex::default() }
    }

    /// A connection with room for one more session. It is dialled when it is first used, and again after a loss.
    pub(crate) fn lease(&self, address: SocketAddr) -> Result<Lease, tonic::transport::Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = open.entry(address).or_default();
        connections.retain(|connection| connection.strong_count() > 0);
        let mut free = connections
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|connection| connection.leases.load(Ordering::Relaxed) < self.streams);
        let connection = if let Some(connection) = free.next() {
            connection
        } else {
            let channel = Endpoint::from_shared(format!("http://{address}"))?
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .keep_alive_while_idle(true)
                .connect_lazy();
            let connection = Arc::new(Connection { channel, leases: AtomicUsize::new(0) });
            connections.push(Arc::downgrade(&connection));
            connection
        };
        // Counted under the lock, so that a connection never gets more than its share.
        connection.leases.fetch_add(1, Ordering::Relaxed);
        Ok(Lease(Arc::new(Share(connection))))
    }
}

impl Lease {
    /// A client on this connection.
    pub(crate) fn client(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(self.0.0.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.leases.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn leases_share_a_connection_up_to_its_streams() {
        let connections = Connections::new(2);
        let address = "127.0.0.1:1".parse().unwrap();
        let leases: Vec<_> = (0..3).map(|_| connections.lease(address).unwrap()).collect();
        assert!(Arc::ptr_eq(&leases[0].0.0, &leases[1].0.0));
        assert!(!Arc::ptr_eq(&leases[0].0.0, &leases[2].0.0));
        drop(leases);
        let fresh = connections.lease(address).unwrap();
        assert_eq!(Arc::strong_count(&fresh.0.0), 1);
        assert_eq!(connections.open.lock().unwrap()[&address].len(), 1, "dead connections are forgotten");
    }
}
