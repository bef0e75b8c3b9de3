//! One member of the Raft group: openraft, the state machine, the connections to peers, and the tasks around them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use openraft::{Raft, SnapshotPolicy};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::history::{Keeper, OtherNodes, Progress};
use super::leadership::{self, LeaderTerm, metrics};
use super::local_node::LocalNode;
use super::network::PeerNetwork;
use super::peers::Peers;
use super::reads::{ReadError, ReadIndexes};
use super::removal::{self, REMOVED};
use super::replay::replay;
use super::replica::{Replica, View};
use super::snapshots::SnapshotState;
use super::state_machine::{Observers, StateMachine};
use super::types::{Member, NodeId, TypeConfig};
use crate::config::Config;
use crate::disk::DiskSpace;
use crate::history::index::{self, SubjectIndex};
use crate::history::{Elsewhere, History, Recorder};
use crate::storage::identity::NodeIdentity;
use crate::storage::log::LogStore;
use crate::storage::snapshot::{SnapshotFile, SnapshotStore};
use crate::storage::{StorageError, describe};

mod confirm;
mod dead_leader;
mod hung_disk;
mod proposal;
mod snapshot_trigger;
mod status;

pub use proposal::{Proposal, ProposeError};
pub use status::{MemberStatus, NodeStatus, Role};

/// Entries in one append, at most. The log's reader bounds the bytes, which is what matters.
const MAX_APPEND_ENTRIES: u64 = 4096;
/// For the small calls that begin a snapshot transfer; the transfer itself has limits of its own.
const SNAPSHOT_CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long closing the log may take beyond the deadline of a shutdown: some fsyncs.
const LOG_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a peer is left alone after it was not reachable: first, then twice as long, and so on.
const PEER_BACKOFF: &str = "50ms 100ms ...1s";
/// A leader that reaches no majority falls silent for this many longest election timeouts, so that nodes that hear
/// it, and that it does not hear, can elect another one. openraft wants two at least.
const QUORUM_LOSS_ELECTIONS: u64 = 4;

/// What a node has on its disk.
pub struct Disk {
    /// Who it is.
    pub identity: NodeIdentity,
    /// Its log.
    pub log: LogStore,
    /// Its snapshots.
    pub snapshots: SnapshotStore,
    /// How much room there is.
    pub space: DiskSpace,
}

/// Why a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The timers can't work.
    #[error("the Raft timers are not usable: {0}")]
    Config(String),
    /// What is on the disk can't be used.
    #[error("this node's state could not be read")]
    State(#[source] io::Error),
    /// openraft did not start.
    #[error("Raft did not start: {0}")]
    Raft(String),
}

/// A handle to the Raft group's member in this process. Cloning is cheap.
#[derive(Clone)]
pub struct RaftNode {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) local: Arc<LocalNode>,
    pub(super) raft: Raft<TypeConfig, StateMachine>,
    pub(super) peers: Arc<Peers>,
    pub(super) replica: Replica,
    pub(super) history: History,
    index: SubjectIndex,
    others: Arc<OtherNodes>,
    progress: Arc<Progress>,
    pub(super) reads: ReadIndexes,
    pub(super) store: SnapshotStore,
    pub(super) snapshots: SnapshotState,
    /// One change of the membership at a time.
    pub(super) membership: Mutex<()>,
    /// Some node's appends to this one have ended: perhaps its process has.
    pub(super) appends_ended: Arc<Notify>,
    pub(super) cancel: CancellationToken,
    pub(super) tasks: TaskTracker,
    pub(super) log: LogStore,
    pub(super) space: DiskSpace,
    leadership: watch::Receiver<Option<LeaderTerm>>,
    fatal: watch::Sender<Option<String>>,
    /// See [`super::removal`].
    pub(super) removed: AtomicBool,
    #[cfg(test)]
    pub(super) tamper: std::sync::Mutex<Option<super::history::Tamper>>,
}

impl RaftNode {
    /// Starts the node: reads its newest snapshot, applies the committed log, and takes part in elections if it is a
    /// member. A new node waits to be initialized or added (see [`super::bootstrap`]).
    ///
    /// # Errors
    /// If its disk can't be read, or does not hold what it must.
    pub async fn start(config: &Config, disk: Disk) -> Result<Self, StartError> {
        let member = Member {
            name: config.name.clone(),
            peer_address: config.advertise_peer.clone(),
            api_address: config.advertise_api.clone(),
        };
        let Disk { identity, log, snapshots: store, space } = disk;
        let expect = config.bootstrap_expect.unwrap_or(0) as u64;
        let local = Arc::new(LocalNode::new(identity.node_id, member, expect, identity.cluster_id.clone()));
        let peers = Arc::new(Peers::new(Arc::clone(&local)));
        let raft_config = raft_config(config)?;

        let (for_machine, for_store, reader) = (Arc::clone(&local), store.clone(), log.reader());
        let index_folder = config.data_dir.join("index");
        let opened = spawn_blocking(move || {
            let index = SubjectIndex::open(&index_folder)?;
            Ok((StateMachine::open(for_machine, for_store, reader)?, index))
        });
        let opened = opened.await.map_err(io::Error::other).flatten().map_err(StartError::State)?;
        let ((machine, observers), index) = opened;
        let machine = replay(machine, &log).await.map_err(StartError::State)?;
        let Observers { replica, recorder, snapshots } = observers;
        let others = Arc::new(OtherNodes::new(Arc::clone(&peers), replica.clone(), log.reader()));
        let history = History::new(recorder.clone(), replica.clone(), Arc::new(log.reader()))
            .with_elsewhere(Arc::clone(&others) as Arc<dyn Elsewhere>);
        let network = PeerNetwork::new(Arc::clone(&peers));
        let raft = Raft::new(local.node_id, Arc::new(raft_config), network, log.clone(), machine)
            .await
            .map_err(|fatal| StartError::Raft(fatal.to_string()))?;

        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let reads = ReadIndexes::start(&raft, &peers, replica.clone(), &tasks, &cancel);
        let (leads, leadership) = watch::channel(None);
        let inner = Inner {
            local,
            raft,
            peers,
            replica,
            history,
            index,
            others,
            progress: Arc::default(),
            reads,
            store,
            snapshots,
            membership: Mutex::default(),
            appends_ended: Arc::default(),
            cancel,
            tasks,
            log,
            space,
            leadership,
            fatal: watch::channel(None).0,
            removed: AtomicBool::new(false),
            #[cfg(test)]
            tamper: std::sync::Mutex::default(),
        };
        let node = Self { inner: Arc::new(inner) };
        node.start_tasks(leads, config.snapshot_log_bytes, identity, config.data_dir.clone());
        node.start_keeper(recorder, config);
        Ok(node)
    }

    fn start_tasks(
        &self,
        leads: watch::Sender<Option<LeaderTerm>>,
        snapshot_log_bytes: u64,
        identity: NodeIdentity,
        data_dir: PathBuf,
    ) {
        let Inner { raft, replica, cancel, tasks, fatal, .. } = &*self.inner;
        let follow = leadership::follow(raft.clone(), replica.clone(), leads, cancel.clone());
        let (stopped, reported) = (raft.clone(), fatal.clone());
        tasks.spawn(async move {
            follow.await;
            if let Err(error) = metrics(&stopped).running_state
                && error != openraft::errors::Fatal::Stopped
            {
                report(&reported, format!("Raft stopped: {error}"));
            }
        });
        let (raft, snapshots) = (raft.clone(), self.inner.snapshots.clone());
        tasks.spawn(snapshot_trigger::run(
            raft,
            snapshots,
            replica.clone(),
            self.inner.space.clone(),
            snapshot_log_bytes,
            cancel.clone(),
        ));
        let (watched, cancelled) = (removal::watch(self.clone()), cancel.clone());
        tasks.spawn(async move { cancelled.run_until_cancelled(watched).await });
        let (watched, cancelled) = (hung_disk::watch(self.clone()), cancel.clone());
        tasks.spawn(async move { cancelled.run_until_cancelled(watched).await });
        let (watched, cancelled) = (dead_leader::watch(self.clone()), cancel.clone());
        tasks.spawn(async move { cancelled.run_until_cancelled(watched).await });
        if identity.cluster_id.is_none() {
            let keep = keep_cluster_id(replica.clone(), identity, data_dir);
            let (cancel, fatal) = (cancel.clone(), fatal.clone());
            tasks.spawn(async move {
                if let Some(Err(error)) = cancel.run_until_cancelled(keep).await {
                    report(&fatal, describe(&error));
                }
            });
        }
    }

    /// Keeps the history as long as it is to be.
    fn start_keeper(&self, recorder: Recorder, config: &Config) {
        let Inner { raft, log, history, snapshots, others, progress, cancel, tasks, fatal, .. } =
            &*self.inner;
        let keeper = Keeper {
            log: log.clone(),
            history: history.clone(),
            recorder,
            snapshots: snapshots.clone(),
            others: Arc::clone(others),
            raft: raft.clone(),
            retain_entries: config.history_retain_entries,
            retain_bytes: config.history_retain_bytes,
            progress: Arc::clone(progress),
        };
        let (cancel, fatal) = (cancel.clone(), fatal.clone());
        tasks.spawn(async move {
            if let Err(fault) = keeper.run(cancel).await {
                report(&fatal, describe(&fault));
            }
        });
    }

    /// Who this node is.
    pub fn local(&self) -> &Arc<LocalNode> {
        &self.inner.local
    }

    /// Its newest snapshot, if it has made or received one.
    pub fn newest_snapshot(&self) -> Option<SnapshotFile> {
        self.inner.snapshots.newest().map(|snapshot| snapshot.snapshot)
    }

    /// What it has applied.
    pub fn replica(&self) -> &Replica {
        &self.inner.replica
    }

    /// Every event that it still has.
    pub fn history(&self) -> &History {
        &self.inner.history
    }

    /// Where in it the events of one subject are.
    pub(crate) fn index(&self) -> &SubjectIndex {
        &self.inner.index
    }

    /// The other members, as places where history is.
    pub(crate) fn others(&self) -> &Arc<OtherNodes> {
        &self.inner.others
    }

    /// Builds the index of the history, until the node stops. On the threads that it is polled on.
    pub async fn keep_index(self) {
        let build = index::run(self.inner.history.clone(), self.inner.index.clone());
        if let Some(Err(fault)) = self.inner.cancel.run_until_cancelled(build).await {
            self.report_fault(&fault);
        }
    }

    /// How much room its disk has.
    pub fn disk_space(&self) -> &DiskSpace {
        &self.inner.space
    }

    /// Connections to the other nodes.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.inner.peers
    }

    /// The leader that this node knows of. It may be out of date.
    pub fn leader(&self) -> Option<(NodeId, Member)> {
        leadership::known_leader(&self.inner.raft)
    }

    /// The term in which this node leads, from when the state contains everything that earlier leaders acknowledged
    /// (an entry of its own term is applied), until it leads no more.
    pub fn leadership(&self) -> watch::Receiver<Option<LeaderTerm>> {
        self.inner.leadership.clone()
    }

    /// A view of the state that contains everything that was acknowledged, anywhere, before this call. Works on every
    /// replica. It confirms the leader with a quorum; concurrent calls share that.
    ///
    /// # Errors
    /// If no leader confirms, or this replica does not catch up, by `deadline`.
    pub async fn read_index(&self, deadline: Instant) -> Result<Arc<View>, ReadError> {
        if self.is_removed() {
            return Err(ReadError::NoLeader(REMOVED.to_owned()));
        }
        self.inner.reads.linearizable(deadline).await
    }

    /// Resolves when this node has failed and must stop, with the reason. Never, while it works.
    pub async fn fatal(&self) -> String {
        let mut fatal = self.inner.fatal.subscribe();
        loop {
            if let Some(reason) = fatal.borrow_and_update().clone() {
                return reason;
            }
            if fatal.changed().await.is_err() {
                // The sender lives in `self`.
                std::future::pending::<()>().await;
            }
        }
    }

    /// A fault of this node's disk that openraft does not see.
    pub(super) fn report_fault(&self, fault: &StorageError) {
        report(&self.inner.fatal, describe(fault));
    }

    /// The other nodes say that this one has diverged.
    pub(crate) fn report_divergence(&self, message: String) {
        report(&self.inner.fatal, message);
    }

    /// Stops at once, with no word to anybody, and lets go of the disk.
    #[cfg(test)]
    pub(crate) async fn crash(&self) {
        self.inner.cancel.cancel();
        self.inner.raft.shutdown().await.expect("joining a task");
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.log.shutdown().await.expect("the log closes");
    }

    /// Stops: Raft, then the log. Returns by `deadline`, roughly. A leader hands over first: [`Self::hand_over`].
    ///
    /// # Errors
    /// If the log could not be closed cleanly. Nothing acknowledged is lost by that.
    pub async fn shutdown(&self, deadline: Instant) -> Result<(), StorageError> {
        self.inner.cancel.cancel();
        if timeout_at(deadline, self.inner.raft.shutdown()).await.is_err() {
            tracing::warn!("Raft did not stop in time");
        }
        self.inner.tasks.close();
        if timeout_at(deadline, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!("some tasks did not stop in time");
        }
        // A disk that hangs keeps the log's writer; nobody may wait for that.
        let closing = deadline.max(Instant::now() + LOG_CLOSE_TIMEOUT);
        timeout_at(closing, self.inner.log.shutdown()).await.unwrap_or_else(|_| {
            tracing::warn!("the log was not closed in time: does its disk hang?");
            Ok(())
        })
    }
}

fn report(fatal: &watch::Sender<Option<String>>, reason: String) {
    fatal.send_if_modified(|known| {
        let first = known.is_none();
        if first {
            tracing::error!(%reason, "this node must stop");
            *known = Some(reason);
        }
        first
    });
}

/// Waits until the state names the cluster, and writes its id beside the node's own.
async fn keep_cluster_id(
    replica: Replica,
    mut identity: NodeIdentity,
    data_dir: PathBuf,
) -> Result<(), StorageError> {
    let mut views = replica.subscribe();
    let id = match views.wait_for(|view| view.state.cluster().is_some()).await {
        Ok(view) => view.state.cluster().map(|cluster| cluster.id.to_string()),
        // The state machine is gone, and says why elsewhere.
        Err(_) => return Ok(()),
    };
    identity.cluster_id = id;
    let saved = spawn_blocking(move || identity.save(&data_dir)).await;
    saved.unwrap_or(Ok(()))
}

fn raft_config(config: &Config) -> Result<openraft::Config, StartError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let election_timeout_max = millis(config.election.1);
    openraft::Config {
        cluster_name: "sandkeeper".to_owned(),
        heartbeat_interval: millis(config.heartbeat),
        election_timeout_min: millis(config.election.0),
        election_timeout_max,
        install_snapshot_timeout: millis(SNAPSHOT_CALL_TIMEOUT),
        max_payload_entries: MAX_APPEND_ENTRIES,
        // By bytes: see snapshot_trigger.rs.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: config.catch_up_entries.min(config.history_retain_entries),
        enable_pre_vote: Some(true),
        quorum_loss_probe_interval: Some(QUORUM_LOSS_ELECTIONS * election_timeout_max),
        // A leader that restarted must be elected again: its state may be behind what it acknowledged, and a second
        // decider would decide in the same term.
        enable_leader_restore: Some(false),
        backoff: PEER_BACKOFF.to_owned(),
        ..openraft::Config::default()
    }
    .validate()
    .map_err(|error| StartError::Config(error.to_string()))
}
