//! A whole control node: opens its disk, starts every part in order, and stops them in the opposite one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::agents::{AgentGate, Sessions, Turns, members};
use crate::api::convert::Retention;
use crate::api::{self, Api};
use crate::applier::{dispatch, losses};
use crate::clock::{self, Clocks};
use crate::commands::{CommandForwarder, Commands};
use crate::config::Config;
use crate::decider::{self, LeaderKnowledge};
use crate::disk::{self, DiskSpace};
use crate::front::Front;
use crate::http;
use crate::metrics::Metrics;
use crate::raft::bootstrap::{self, BootstrapError};
use crate::raft::node::{Disk, RaftNode, StartError};
use crate::raft::peer_service::PeerApi;
use crate::storage::StorageError;
use crate::storage::identity::NodeIdentity;
use crate::storage::lock::DataDirLock;
use crate::storage::log::{LogOptions, LogStore};
use crate::storage::snapshot::SnapshotStore;
use crate::verification;

/// How long a node takes to stop at most: leadership handed over, streams ended, the log closed.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// How long the next leader may take to take over; after that the election does it.
pub(crate) const HAND_OVER: Duration = Duration::from_secs(1);

/// Why a control node could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The system gives no more threads.
    #[error("threads can't be started")]
    Threads(#[source] io::Error),
    /// The data directory can't be used.
    #[error("the data directory can't be used")]
    Storage(#[from] StorageError),
    /// A port can't be listened on.
    #[error("can't listen on {address} for {what}: is another process using it?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What would have been served there.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The data directory belongs to a node of another name.
    #[error(
        "the data directory belongs to node {found:?}, and this node is to be {wanted:?}: use the right directory, \
         or the right --name"
    )]
    Name {
        /// Whose it is.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// Raft did not start.
    #[error("the node could not be started")]
    Start(#[from] StartError),
    /// It can't come into its cluster.
    #[error("the node can't enter its cluster")]
    Bootstrap(#[from] BootstrapError),
    /// A fault while it ran.
    #[error("the node stopped because of a fault: {0}")]
    Fault(String),
}

struct Listeners {
    api: TcpListener,
    peer: TcpListener,
    http: TcpListener,
}

impl Listeners {
    /// Each on the runtime that serves it.
    async fn bind(config: &Config, front: &Front) -> Result<Self, ServerError> {
        let (raft, front) = (&Handle::current(), front.handle());
        Ok(Self {
            api: listen(front, config.listen_api, "clients and agents").await?,
            peer: listen(raft, config.listen_peer, "peers").await?,
            http: listen(front, config.listen_http, "metrics and health").await?,
        })
    }
}

async fn listen(on: &Handle, address: SocketAddr, what: &'static str) -> Result<TcpListener, ServerError> {
    let bound = on.spawn(TcpListener::bind(address)).await;
    bound.map_err(io::Error::other).flatten().map_err(|source| ServerError::Listen { address, what, source })
}

fn open_disk(config: &Config) -> Result<(DataDirLock, Disk), ServerError> {
    let lock = DataDirLock::acquire(&config.data_dir)?;
    let identity = match NodeIdentity::load(&config.data_dir)? {
        Some(identity) if identity.name != config.name => {
            return Err(ServerError::Name { found: identity.name, wanted: config.name.clone() });
        }
        Some(identity) => {
            // One of an older version gets its checksum.
            identity.save(&config.data_dir)?;
            identity
        }
        None => {
            let node_id = rand::random_range(1..=u64::MAX);
            let identity = NodeIdentity { node_id, cluster_id: None, name: config.name.clone() };
            identity.save(&config.data_dir)?;
            identity
        }
    };
    let log = LogStore::open(&config.data_dir.join("log"), LogOptions::default())?;
    let snapshots = SnapshotStore::open(&config.data_dir.join("snapshots"))?;
    let space = DiskSpace::open(&config.name, &config.data_dir, config.disk_low_water)?;
    Ok((lock, Disk { identity, log, snapshots, space }))
}

/// Runs a control node until it is cancelled, or has to stop.
///
/// # Errors
/// If it can't start, or a fault stops it. After a cancellation it ends well.
pub async fn run(config: Config, cancel: CancellationToken) -> Result<(), ServerError> {
    let front = Front::start().map_err(ServerError::Threads)?;
    // The ports first: two nodes on one machine find out before they touch a disk.
    let listeners = Listeners::bind(&config, &front).await?;
    let for_disk = config.clone();
    let opened = spawn_blocking(move || open_disk(&for_disk)).await;
    let (lock, disk) = opened.map_err(|error| ServerError::Fault(error.to_string()))??;
    let log_stats = disk.log.clone();
    let raft = RaftNode::start(&config, disk).await?;
    info!(name = %config.name, node_id = raft.local().node_id, data_dir = %config.data_dir.display(), "started");

    let parts = Parts::start(&config, &raft, listeners, log_stats, &front);
    let ended = parts.watch(&config, &raft, &cancel).await;
    info!("this node is shutting down");
    let stopped = parts.stop(&raft).await;
    drop(lock);
    // Why it had to stop says more than what that left of the log.
    ended?;
    Ok(stopped?)
}

/// The running parts of a node.
struct Parts {
    /// Ends callers' and agents' streams, and whatever serves them.
    front: CancellationToken,
    /// Ends the decider and what serves peers.
    back: CancellationToken,
    tasks: TaskTracker,
    failures: tokio::sync::Mutex<JoinSet<Result<(), String>>>,
}

impl Parts {
    /// Raft, its peers and the decider run on the runtime that this is called on, all else on `threads`.
    fn start(config: &Config, raft: &RaftNode, listeners: Listeners, log: LogStore, threads: &Front) -> Self {
        let threads = threads.handle();
        let (front, back, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let mut servers = JoinSet::new();
        let metrics = Arc::new(Metrics::new());
        let (queue, queued) = decider::queue();
        let commands = Commands::new(queue.clone(), raft.clone(), front.clone(), tasks.clone());
        let (knowledge, clocks) = (LeaderKnowledge::default(), Clocks::default());
        let sessions = Sessions::default();

        let forwarder = Arc::new(CommandForwarder::new(queue.clone(), back.clone(), tasks.clone()));
        let searcher = api::Searcher::new(raft, threads.clone());
        let peers = PeerApi::new(raft.clone(), forwarder, Arc::new(searcher.clone()));
        let peers = peers.serve(listeners.peer, back.clone());
        servers.spawn(async move { peers.await.map_err(|error| format!("serving peers failed: {error}")) });
        let around = decider::Surroundings {
            knowledge: knowledge.clone(),
            metrics: Arc::clone(&metrics),
            clocks: clocks.clone(),
            disk: raft.disk_space().clone(),
        };
        tasks.spawn(clock::keep(raft.clone(), clocks.clone(), Arc::clone(&metrics), back.clone()));
        tasks.spawn(decider::supervise(raft.clone(), queued, around, back.clone()));
        tasks.spawn(raft.disk_space().clone().watch(back.clone()));
        tasks.spawn(disk::keep(raft.clone(), back.clone()));
        tasks.spawn(verification::run(raft.clone(), Arc::clone(&metrics), front.clone()));

        let (members, following) = members::follow(raft.replica(), front.clone());
        tasks.spawn_on(following, threads);
        let gate = AgentGate {
            sessions: sessions.clone(),
            commands: commands.clone(),
            leads: raft.leadership(),
            replica: raft.replica().clone(),
            members,
            knowledge,
            metrics: Arc::clone(&metrics),
            node: config.name.clone(),
            lost_after: config.lost_after,
            clocks: clocks.clone(),
            orphan_grace: config.orphan_grace,
            turns: Turns::default(),
            stop: front.clone(),
            tasks: tasks.clone(),
        };
        let (history, replica) = (raft.history().clone(), raft.replica().clone());
        tasks.spawn_on(dispatch::run(history, replica.clone(), sessions.clone(), front.clone()), threads);
        tasks.spawn_on(raft.clone().keep_index(), threads);
        let losses = losses::run(
            raft.leadership(),
            replica,
            sessions.clone(),
            commands.clone(),
            Arc::clone(&metrics),
            config.lost_after,
            front.clone(),
        );
        tasks.spawn_on(losses, threads);

        let api = Api::new(api::Parts {
            raft: raft.clone(),
            clocks,
            commands,
            sessions: sessions.clone(),
            metrics: Arc::clone(&metrics),
            retention: Retention {
                caller: config.request_retention,
                server: config.server_request_retention,
            },
            searcher,
            stop: front.clone(),
        });
        let served = api::serve(listeners.api, api, gate, front.clone());
        let served = async move { served.await.map_err(|error| format!("serving clients failed: {error}")) };
        servers.spawn_on(served, threads);
        let pages = http::Pages { raft: raft.clone(), sessions, metrics, log, queue };
        let served = http::serve(listeners.http, pages, front.clone());
        let served = async move { served.await.map_err(|error| format!("serving HTTP failed: {error}")) };
        servers.spawn_on(served, threads);
        Self { front, back, tasks, failures: tokio::sync::Mutex::new(servers) }
    }

    /// Enters the cluster and waits until the node is told to stop, or has to.
    async fn watch(
        &self,
        config: &Config,
        raft: &RaftNode,
        cancel: &CancellationToken,
    ) -> Result<(), ServerError> {
        let enter = async {
            bootstrap::enter(raft, &config.join).await?;
            bootstrap::announce_addresses(raft).await?;
            // It is in; nothing more comes from here.
            std::future::pending::<Result<(), BootstrapError>>().await
        };
        let mut failures = self.failures.lock().await;
        tokio::select! {
            () = cancel.cancelled() => Ok(()),
            entered = enter => entered.map_err(ServerError::from),
            reason = raft.fatal() => Err(ServerError::Fault(reason)),
            Some(ended) = failures.join_next() => {
                let reason = match ended {
                    Ok(Ok(())) => "a server ended by itself".to_owned(),
                    Ok(Err(reason)) => reason,
                    Err(error) => error.to_string(),
                };
                Err(ServerError::Fault(reason))
            }
        }
    }

    /// Leadership first, while everything still runs: the next leader is there before anyone notices. Then the
    /// streams of callers and agents, Raft and the log, the decider and the peers.
    async fn stop(self, raft: &RaftNode) -> Result<(), StorageError> {
        let deadline = Instant::now() + SHUTDOWN;
        if let Err(reason) = raft.hand_over(Instant::now() + HAND_OVER).await {
            info!(%reason, "leadership was not handed over");
        }
        self.front.cancel();
        let stopped = raft.shutdown(deadline).await;
        self.back.cancel();
        self.tasks.close();
        let mut servers = self.failures.into_inner();
        let ends = async {
            self.tasks.wait().await;
            while servers.join_next().await.is_some() {}
        };
        if tokio::time::timeout_at(deadline, ends).await.is_err() {
            warn!("some tasks did not stop in time and are dropped");
        }
        stopped
    }
}
