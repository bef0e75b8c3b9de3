//! The server of the API port: all services, their limits, health and reflection.

use std::io;
use std::time::Duration;

use sandkeeper_proto::MAX_MESSAGE_BYTES;
use sandkeeper_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use sandkeeper_proto::v1::cluster_service_server::ClusterServiceServer;
use sandkeeper_proto::v1::event_service_server::EventServiceServer;
use sandkeeper_proto::v1::fleet_service_server::FleetServiceServer;
use sandkeeper_proto::v1::sandbox_service_server::SandboxServiceServer;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_reflection::server::Builder;

use super::Api;
use super::health::{public_descriptors, tell, tell_all};

/// Streams of one connection at once: beyond it, a client opens another connection.
pub const MAX_STREAMS: u32 = 1_024;
/// A connection on which nothing is heard is pinged this often, …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// … and closed if it does not answer for this long.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// After all streams have been told to end, connections are closed, ready or not.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves clients and agents at `listener` until `stop`, and then a moment longer for what is on its way.
///
/// # Errors
/// If accepting connections fails for good, or the descriptors of this build are not valid.
pub async fn serve<A: AgentService>(
    listener: TcpListener,
    api: Api,
    agents: A,
    stop: CancellationToken,
) -> io::Result<()> {
    let (reporter, health) = tonic_health::server::health_reporter();
    tell_all(&reporter, ServingStatus::NotServing).await;
    let tasks = api.inner.tasks.clone();
    tasks.spawn(tell(api.parts().raft.clone(), reporter, stop.clone()));
    tasks.spawn(api.clone().sweep());
    let reflection = || {
        Builder::configure()
            .register_file_descriptor_set(public_descriptors())
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let server = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(SandboxServiceServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(EventServiceServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(FleetServiceServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(ClusterServiceServer::new(api).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(AgentServiceServer::new(agents).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(health)
        .add_service(reflection().build_v1().map_err(io::Error::other)?)
        .add_service(reflection().build_v1alpha().map_err(io::Error::other)?)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            stop.clone().cancelled_owned(),
        );
    tokio::pin!(server);
    tokio::select! {
        served = &mut server => return served.map_err(io::Error::other),
        () = stop.cancelled() => {}
    }
    tasks.close();
    // Clients that hold on to their connections don't hold this node.
    let ends = async { tokio::join!(server, tasks.wait()).0 };
    timeout(STOP_TIMEOUT, ends).await.unwrap_or(Ok(())).map_err(io::Error::other)
}
