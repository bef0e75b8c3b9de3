//! Nodes for tests.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use openraft::EntryPayload;
use openraft::storage::{RaftLogStorage as _, RaftLogStorageExt as _};
use sandkeeper_proto::internal::{ForwardRequest, ForwardResponse};
use sandkeeper_statemachine::{Digest, Revision};
use tempfile::TempDir;
use test_lives::Lives;
use test_ports::Ports;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::api::Searcher;
use crate::config::Config;
use crate::disk::DiskSpace;
use crate::history::testing::{filler, filler_of};
use crate::raft::RaftNode;
use crate::raft::bootstrap::{BootstrapError, Entered, enter};
use crate::raft::node::{Disk, ProposeError, StartError};
use crate::raft::peer_service::{Forwarder, PeerApi};
use crate::raft::types::{Applied, EntryData, LogEntry, LogId};
use crate::server::HAND_OVER;
use crate::storage::identity::NodeIdentity;
use crate::storage::log::{LogOptions, LogStore};
use crate::storage::snapshot::SnapshotStore;

/// Only a test that fails waits this long.
const PATIENCE: Duration = Duration::from_mins(1);

/// Commands are not what is tested here.
struct NoForwarder;

impl Forwarder for NoForwarder {
    fn forward(&self, _: Streaming<ForwardRequest>) -> BoxStream<'static, Result<ForwardResponse, Status>> {
        stream::once(async { Err(Status::unimplemented("no decider in this test")) }).boxed()
    }
}

pub(super) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Waits until `check` gives something.
pub(super) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, check: impl Fn() -> F) -> T {
    let deadline = soon();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A place for a node: its folder and its address, which outlive a restart.
pub(super) struct Site {
    folder: TempDir,
    ports: Ports,
    pub(super) config: Config,
    pub(super) log: LogOptions,
}

/// A node that runs.
pub(super) struct Running {
    pub(super) node: RaftNode,
    cancel: CancellationToken,
    server: JoinHandle<()>,
}

impl Site {
    /// With timers that elect nobody needlessly when all tests run at once.
    pub(super) fn new(name: &str, expect: Option<usize>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::local(name, folder.path(), 1);
        config.bootstrap_expect = expect;
        config.heartbeat = Duration::from_millis(100);
        config.election = (Duration::from_millis(600), Duration::from_millis(1200));
        let mut site = Self { folder, ports: Ports::take(1), config, log: LogOptions::default() };
        site.announce();
        site
    }

    /// Gives it another port.
    pub(super) fn move_elsewhere(&mut self) {
        self.ports = Ports::take(1);
        self.announce();
    }

    fn announce(&mut self) {
        self.config.listen_peer = self.ports.socket(0);
        self.config.advertise_peer = self.config.listen_peer.to_string();
    }

    pub(super) fn data_dir(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.config.listen_peer
    }

    pub(super) async fn try_start(&self) -> Result<RaftNode, StartError> {
        let path = self.folder.path();
        let known = NodeIdentity::load(path).unwrap();
        let identity = known.unwrap_or_else(|| {
            let identity =
                NodeIdentity { node_id: rand::random(), cluster_id: None, name: self.config.name.clone() };
            identity.save(path).unwrap();
            identity
        });
        let log = LogStore::open(&path.join("log"), self.log.clone()).unwrap();
        let snapshots = SnapshotStore::open(&path.join("snapshots")).unwrap();
        let space = DiskSpace::open(&self.config.name, path, self.config.disk_low_water).unwrap();
        let disk = Disk { identity, log, snapshots, space };
        RaftNode::start(&self.config, disk).await
    }

    pub(super) async fn start(&self) -> Running {
        let node = self.try_start().await.unwrap();
        let listener =
            eventually("the port is free", || async { TcpListener::bind(self.address()).await.ok() }).await;
        let cancel = CancellationToken::new();
        let finder = Arc::new(Searcher::new(&node, tokio::runtime::Handle::current()));
        let served =
            PeerApi::new(node.clone(), Arc::new(NoForwarder), finder).serve(listener, cancel.clone());

        let server = tokio::spawn(async { served.await.unwrap() });
        Running { node, cancel, server }
    }
}

impl Running {
    /// As SIGTERM.
    pub(super) async fn stop(self) {
        // A node that does not lead, or is alone, has nobody to hand over to; and the last one that leads nobody who answers.
        let _ = self.node.hand_over(Instant::now() + HAND_OVER).await;
        self.node.shutdown(soon()).await.unwrap();
        self.cancel.cancel();
        self.server.await.unwrap();
    }

    /// Without a word to anybody: the nearest to a crash that one process allows.
    pub(super) async fn crash(self) {
        self.server.abort();
        let _ = self.server.await;
        self.node.crash().await;
    }

    pub(super) fn revision(&self) -> Revision {
        self.node.replica().revision()
    }

    pub(super) fn digests(&self) -> (Revision, Digest, Digest) {
        let state = self.node.replica().state();
        (state.revision(), state.history_digest(), state.state_digest())
    }

    pub(super) async fn reaches(&self, revision: Revision) {
        self.node.replica().wait_revision(revision, soon()).await.unwrap();
    }

    pub(super) fn term(&self) -> Option<u64> {
        self.node.leadership().borrow().map(|leader| leader.term)
    }

    /// Proposes `count` entries of one event each, all in flight at once, as the leader of its term.
    pub(super) async fn write(&self, count: u64) -> Result<(), ProposeError> {
        let term = self.term().ok_or(ProposeError::NotLeader { leader: None })?;
        let base = self.revision();
        let mut proposals = Vec::new();
        for revision in base..base + count {
            let data = EntryData::new(filler(revision, term, 1));
            proposals.push((revision + 1, self.node.propose(term, data).await?));
        }
        for (revision, proposal) in proposals {
            assert_eq!(proposal.outcome(soon()).await?, Applied::Done { revision });
        }
        Ok(())
    }

    /// Makes this leader's cluster one with an id of its own.
    pub(super) async fn create_cluster(&self, id: u128) {
        let term = self.term().unwrap();
        let proposal = self.node.propose(term, EntryData::new(filler_of(id, 0, term, 1))).await.unwrap();
        assert_eq!(proposal.outcome(soon()).await.unwrap(), Applied::Done { revision: 1 });
    }
}

/// A cluster of `count` nodes that find each other.
pub(super) async fn cluster(count: usize, adjust: impl Fn(&mut Config)) -> (Vec<Site>, Vec<Running>) {
    let mut sites = Vec::new();
    for number in 0..count {
        sites.push(Site::new(&format!("cn-{number}"), Some(count)));
    }
    let everybody: Vec<_> = sites.iter().map(|site| site.address().to_string()).collect();
    for site in &mut sites {
        // The own address among them must not matter.
        site.config.join.clone_from(&everybody);
        adjust(&mut site.config);
    }
    let mut nodes = Vec::new();
    for site in &sites {
        nodes.push(site.start().await);
    }
    for entered in enter_all(&sites, &nodes).await {
        assert!(matches!(entered, Ok(Entered::Formed | Entered::Joined)), "{entered:?}");
    }
    leader(&nodes).await;
    (sites, nodes)
}

pub(super) async fn enter_all(sites: &[Site], nodes: &[Running]) -> Vec<Result<Entered, BootstrapError>> {
    let all = sites.iter().zip(nodes).map(|(site, running)| enter(&running.node, &site.config.join));
    tokio::time::timeout(PATIENCE, futures::future::join_all(all)).await.expect("nodes find each other")
}

/// The place of the node that leads.
pub(super) async fn leader(nodes: &[Running]) -> usize {
    eventually("a leader", || async { nodes.iter().position(|node| node.term().is_some()) }).await
}

/// Writes through whoever leads, again if leadership changes meanwhile.
pub(super) async fn write(nodes: &[Running], count: u64) -> Revision {
    eventually("a write", || async {
        let leader = &nodes[leader(nodes).await];
        leader.write(count).await.ok().map(|()| leader.revision())
    })
    .await
}

pub(super) async fn all_equal(nodes: &[Running], revision: Revision) {
    for node in nodes {
        node.reaches(revision).await;
    }
    let digests: Vec<_> = nodes.iter().map(Running::digests).collect();
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "{digests:?}");
}

/// Fills the log of a node that is down with entries of sandboxes' lives, behind those that it has and in the term of the last
/// one, up to an index.
pub(super) async fn fill_log(site: &Site, lives: &mut Lives, end: u64) {
    let mut store = LogStore::open(&site.data_dir().join("log"), LogOptions::default()).unwrap();
    let last = store.get_log_state().await.unwrap().last_log_id.unwrap();
    lives.lead_in(last.leader_id.term);
    let mut next = last.index + 1;
    while next < end {
        let batch: Vec<_> = (next..end.min(next + 1_000))
            .map(|index| {
                let payload = EntryPayload::Normal(EntryData::new(lives.decide()));
                LogEntry { log_id: LogId { index, ..last }, payload }
            })
            .collect();
        next += batch.len() as u64;
        store.blocking_append(batch).await.unwrap();
    }
    store.save_committed(Some(LogId { index: next - 1, ..last })).await.unwrap();
    store.shutdown().await.unwrap();
}
