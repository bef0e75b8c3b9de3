//! A node on free ports, and clients for it.

use std::net::SocketAddr;
use std::time::Duration;

use sandkeeper_proto::v1;
use sandkeeper_proto::v1::agent_service_client::AgentServiceClient;
use sandkeeper_proto::v1::cluster_service_client::ClusterServiceClient;
use sandkeeper_proto::v1::event_service_client::EventServiceClient;
use sandkeeper_proto::v1::fleet_service_client::FleetServiceClient;
use sandkeeper_proto::v1::sandbox_service_client::SandboxServiceClient;
use tempfile::TempDir;
use test_ports::Ports;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::agent;
use crate::config::Config;
use crate::server;

const LONG: Duration = Duration::from_secs(30);

pub(super) struct Rig {
    channel: Channel,
    http: SocketAddr,
    cancel: CancellationToken,
    node: JoinHandle<Result<(), server::ServerError>>,
    _data: TempDir,
    _ports: Ports,
}

impl Rig {
    /// Starts a cluster of one node, and waits until its API answers.
    pub(super) async fn start() -> Self {
        let data = TempDir::new().unwrap();
        let ports = Ports::take(3);
        let (api, peer, http) = (ports.socket(0), ports.socket(1), ports.socket(2));
        let config = Config {
            listen_api: api,
            listen_peer: peer,
            listen_http: http,
            advertise_api: api.to_string(),
            advertise_peer: peer.to_string(),
            bootstrap_expect: Some(1),
            ..Config::local("n1", data.path(), 1)
        };
        let cancel = CancellationToken::new();
        let node = tokio::spawn(server::run(config, cancel.clone()));
        let channel = Endpoint::from_shared(format!("http://{api}")).unwrap().connect_lazy();
        let rig = Self { channel, http, cancel, node, _data: data, _ports: ports };
        let connected = async {
            // The listener is there before anything else of the node; until then, dialling is refused.
            while TcpStream::connect(api).await.is_err() {
                tokio::task::yield_now().await;
            }
            rig.until_serving("").await;
        };
        timeout(LONG, connected).await.unwrap();
        rig
    }

    /// An agent a1 with a session, registered.
    pub(super) async fn agent(&self, slots: u64) -> JoinHandle<()> {
        let agent = tokio::spawn(agent::run(AgentServiceClient::new(self.channel.clone()), slots));
        let filter =
            v1::EventFilter { types: vec![v1::EventType::AgentRegistered.into()], ..Default::default() };
        let watch = v1::WatchEventsRequest { from_revision: 1, filter: Some(filter) };
        let mut watch = self.events().watch_events(watch).await.unwrap().into_inner();
        let registered = async { while watch.message().await.unwrap().unwrap().events.is_empty() {} };
        timeout(LONG, registered).await.unwrap();
        agent
    }

    pub(super) fn sandboxes(&self) -> SandboxServiceClient<Channel> {
        SandboxServiceClient::new(self.channel.clone())
    }

    pub(super) fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone())
    }

    pub(super) fn fleet(&self) -> FleetServiceClient<Channel> {
        FleetServiceClient::new(self.channel.clone())
    }

    pub(super) fn cluster(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.channel.clone())
    }

    /// Waits until a service says that it serves.
    pub(super) async fn until_serving(&self, service: &str) {
        let request = HealthCheckRequest { service: service.into() };
        let mut health = HealthClient::new(self.channel.clone()).watch(request).await.unwrap().into_inner();
        let serving =
            async { while health.message().await.unwrap().unwrap().status() != ServingStatus::Serving {} };
        timeout(LONG, serving).await.unwrap_or_else(|_| panic!("{service:?} does not serve"));
    }

    pub(super) async fn reflected_services(&self) -> Vec<String> {
        let message_request = Some(MessageRequest::ListServices(String::new()));
        let request = ServerReflectionRequest { host: String::new(), message_request };
        let requests = tokio_stream::once(request).chain(tokio_stream::empty());
        let mut client = ServerReflectionClient::new(self.channel.clone());
        let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
        let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
        list.service.into_iter().map(|service| service.name).collect()
    }

    /// Status and body of an HTTP page.
    pub(super) async fn http(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: n1\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }

    /// Stops the node.
    pub(super) async fn stop(self) {
        self.cancel.cancel();
        self.node.await.unwrap().unwrap();
    }
}
