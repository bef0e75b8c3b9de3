//! A control node as agents see one: it hands every session to the test, which plays the leader.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "all of it is part of tests")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use sandkeeper_agent::{AgentConfig, AgentError, Capacity, ProcessConfig, RuntimeConfig, SimulatedConfig};
use sandkeeper_proto::v1;
use sandkeeper_proto::v1::agent_message::Body as Up;
use sandkeeper_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use sandkeeper_proto::v1::server_message::Body as Down;
use test_ports::Ports;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// No test waits longer for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const CLUSTER: &str = "blue";

/// What waits for a test.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// A control node that does nothing by itself.
pub struct Node {
    pub name: String,
    pub address: SocketAddr,
    /// Held, so that it can come back under its address; none if it listens everywhere.
    ports: Option<Ports>,
    sessions: mpsc::Receiver<Session>,
    tunnels: mpsc::Receiver<Streaming<v1::TunnelUp>>,
    /// Its own, so that it can go with all its connections.
    runtime: Option<Runtime>,
}

/// The node's end of a session.
pub struct Session {
    pub hello: v1::Hello,
    pub from: SocketAddr,
    up: Streaming<v1::AgentMessage>,
    down: mpsc::Sender<Result<v1::ServerMessage, Status>>,
    sequence: u64,
    term: u64,
}

struct Service {
    sessions: mpsc::Sender<Session>,
    tunnels: mpsc::Sender<Streaming<v1::TunnelUp>>,
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AgentService for Service {
    type ConnectStream = BoxStream<v1::ServerMessage>;
    type TunnelStream = BoxStream<v1::TunnelDown>;

    async fn connect(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let from = request.remote_addr().unwrap();
        let mut up = request.into_inner();
        let Some(v1::AgentMessage { body: Some(Up::Hello(hello)) }) = up.message().await? else {
            return Err(Status::invalid_argument("the first message is not a hello"));
        };
        let (down, answers) = mpsc::channel(1_024);
        let session = Session { hello, from, up, down, sequence: 0, term: 0 };
        self.sessions.send(session).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn tunnel(
        &self,
        request: Request<Streaming<v1::TunnelUp>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let sent = self.tunnels.send(request.into_inner()).await;
        sent.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(futures::stream::pending())))
    }
}

impl Node {
    pub async fn start(name: &str) -> Self {
        Self::come_back(name, Ports::take(1)).await
    }

    /// Starts under the address of a node that was killed.
    pub async fn come_back(name: &str, ports: Ports) -> Self {
        let mut node = Self::listen(name, ports.socket(0)).await;
        node.ports = Some(ports);
        node
    }

    pub async fn listen(name: &str, on: SocketAddr) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.spawn(async move { TcpListener::bind(on).await.unwrap() }).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (session_sender, sessions) = mpsc::channel(1_024);
        let (tunnel_sender, tunnels) = mpsc::channel(16);
        let service = Service { sessions: session_sender, tunnels: tunnel_sender };
        let serve = tonic::transport::Server::builder()
            .add_service(AgentServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(serve);
        Self { name: name.to_owned(), address, ports: None, sessions, tunnels, runtime: Some(runtime) }
    }

    /// The next session, not welcomed yet.
    pub async fn session(&mut self) -> Session {
        soon("an agent dials", self.sessions.recv()).await.unwrap()
    }

    /// The next session, welcomed.
    pub async fn welcome(&mut self) -> Session {
        let mut session = self.session().await;
        session.welcome(CLUSTER, &self.name).await;
        session
    }

    pub fn has_waiting_session(&mut self) -> bool {
        self.sessions.try_recv().is_ok()
    }

    pub async fn tunnel(&mut self) -> Streaming<v1::TunnelUp> {
        soon("the agent opens a tunnel", self.tunnels.recv()).await.unwrap()
    }

    /// Goes as if it were killed: when this returns, its listener and all its connections are closed.
    pub async fn kill(mut self) -> Ports {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
        self.ports.take().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Session {
    pub async fn say(&mut self, term: u64, sequence: u64, body: Down) {
        let incarnation = self.hello.incarnation.clone();
        let message = v1::ServerMessage { term, sequence, incarnation, body: Some(body) };
        soon("the session takes a message", self.down.send(Ok(message))).await.unwrap();
    }

    pub async fn welcome(&mut self, cluster_id: &str, node: &str) {
        let welcome = v1::Welcome {
            cluster_id: cluster_id.to_owned(),
            node: node.to_owned(),
            connection_id: format!("{}-test", self.hello.agent_id),
            ..v1::Welcome::default()
        };
        self.say(0, 0, Down::Welcome(welcome)).await;
    }

    /// Speaks as the leader of `term` from now on.
    pub fn lead(&mut self, term: u64) {
        self.term = term;
    }

    /// Sends a command, and says which sequence it has.
    pub async fn command(&mut self, body: Down) -> u64 {
        self.sequence += 1;
        let (term, sequence) = (self.term, self.sequence);
        self.say(term, sequence, body).await;
        sequence
    }

    pub async fn create(&mut self, id: &str, command: &[&str]) -> u64 {
        self.command(Down::Create(create(id, command))).await
    }

    pub async fn terminate(&mut self, id: &str) -> u64 {
        let terminate = v1::TerminateCommand { sandbox_id: id.to_owned(), generation: 1 };
        self.command(Down::Terminate(terminate)).await
    }

    /// What the agent says next, but for heartbeats.
    pub async fn hear(&mut self) -> Up {
        loop {
            let message = soon("the agent says something", self.up.message()).await.unwrap();
            match message.expect("the session goes on").body.unwrap() {
                Up::Heartbeat(_) => {}
                body => return body,
            }
        }
    }

    pub async fn heartbeat(&mut self) -> v1::Heartbeat {
        loop {
            let message = soon("a heartbeat", self.up.message()).await.unwrap();
            if let Some(Up::Heartbeat(heartbeat)) = message.expect("the session goes on").body {
                return heartbeat;
            }
        }
    }

    /// The session goes on for so many heartbeats.
    pub async fn heartbeats(&mut self, count: usize) {
        for _ in 0..count {
            self.heartbeat().await;
        }
    }

    /// The report that says that the sandbox is in this state. Others are skipped.
    pub async fn report(
        &mut self,
        id: &str,
        state: v1::SandboxState,
    ) -> (v1::SandboxReports, v1::SandboxReport) {
        loop {
            if let Up::Reports(reports) = self.hear().await
                && let Some(found) = reports.reports.iter().find(|r| r.sandbox_id == id && r.state() == state)
            {
                let found = found.clone();
                return (reports, found);
            }
        }
    }

    pub async fn refusal(&mut self) -> v1::Refusal {
        loop {
            if let Up::Refusal(refusal) = self.hear().await {
                return refusal;
            }
        }
    }

    /// Asks for the inventory and puts its parts together.
    pub async fn inventory(&mut self) -> v1::Inventory {
        let sequence = self.command(Down::InventoryRequest(v1::InventoryRequest {})).await;
        let mut whole = v1::Inventory::default();
        loop {
            if let Up::Inventory(part) = self.hear().await {
                assert!(part.processed_sequence >= sequence);
                whole.sandboxes.extend(part.sandboxes);
                (whole.term, whole.processed_sequence) = (part.term, part.processed_sequence);
                if part.last {
                    return whole;
                }
            }
        }
    }

    /// Until the agent has ended the session, or the connection is gone.
    pub async fn ended(&mut self) {
        soon("the session ends", async { while let Ok(Some(_)) = self.up.message().await {} }).await;
    }
}

pub fn create(id: &str, command: &[&str]) -> v1::CreateCommand {
    v1::CreateCommand {
        sandbox_id: id.to_owned(),
        generation: 1,
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        ..v1::CreateCommand::default()
    }
}

/// An agent that runs in this process.
pub struct Agent {
    token: CancellationToken,
    task: JoinHandle<Result<(), AgentError>>,
}

impl Agent {
    pub fn start(config: AgentConfig) -> Self {
        let token = CancellationToken::new();
        let task = tokio::spawn(sandkeeper_agent::run(config, token.clone()));
        Self { token, task }
    }

    /// Asks it to end, and sees that it does.
    pub async fn stop(self) {
        self.token.cancel();
        self.result().await.unwrap();
    }

    /// How it ends by itself.
    pub async fn result(self) -> Result<(), AgentError> {
        soon("the agent ends", self.task).await.unwrap()
    }
}

fn config(data_dir: &Path, servers: &[SocketAddr], runtime: RuntimeConfig) -> AgentConfig {
    let servers = servers.iter().map(ToString::to_string).collect();
    AgentConfig {
        runtime,
        capacity: Capacity { slots: 2, cpu_millis: 1_000, memory_bytes: 1 << 30 },
        heartbeat_interval: Duration::from_millis(50),
        ..AgentConfig::new("worker".to_owned(), data_dir.to_owned(), servers)
    }
}

pub fn simulated(data_dir: &Path, servers: &[SocketAddr]) -> AgentConfig {
    config(data_dir, servers, RuntimeConfig::Simulated(SimulatedConfig::default()))
}

pub fn process(data_dir: &Path, servers: &[SocketAddr]) -> AgentConfig {
    let shim_program = Some(shim());
    config(
        data_dir,
        servers,
        RuntimeConfig::Process(ProcessConfig { shim_program, ..ProcessConfig::default() }),
    )
}

/// The shim that cargo built beside these tests.
fn shim() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().unwrap().with_file_name("examples").join("shim");
    assert!(path.exists(), "{} is missing: run the tests through cargo, which builds it", path.display());
    path
}
