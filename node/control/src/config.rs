//! What a control node is told at its start. Every default is a constant with its reason.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Clients and agents (gRPC).
pub const DEFAULT_API_PORT: u16 = 7600;
/// Peers (gRPC, Raft).
pub const DEFAULT_PEER_PORT: u16 = 7601;
/// `/metrics`, `/healthz`, `/readyz`.
pub const DEFAULT_HTTP_PORT: u16 = 7602;
/// The leader speaks this often: several times within [`DEFAULT_ELECTION`], so that one lost message elects nobody.
pub const DEFAULT_HEARTBEAT: Duration = Duration::from_millis(50);
/// A follower stands for election when it has heard nothing for the longer time (the leader's lease) and a random time
/// between both: 390 to 520 ms. A pre-vote goes before, so a node that was starved alone disturbs nobody.
pub const DEFAULT_ELECTION: (Duration, Duration) = (Duration::from_millis(130), Duration::from_millis(260));
/// Log entries kept behind the snapshot: the history that watches, audit and time travel read.
pub const DEFAULT_RETAIN_ENTRIES: u64 = 1_000_000;
/// Of these, as many as fit into this space on the disk: a million entries of usual sandboxes take a quarter of a GiB, but each
/// may have 64 KiB of environment.
pub const DEFAULT_RETAIN_BYTES: u64 = 4 << 30;
/// As many as the history has: a node that is behind by less is sent the log, which needs no snapshot to be made or loaded.
pub const DEFAULT_CATCH_UP_ENTRIES: u64 = DEFAULT_RETAIN_ENTRIES;
/// A snapshot is made when more log than this (and more than the last snapshot's size) was written since the last.
pub const DEFAULT_SNAPSHOT_LOG_BYTES: u64 = 64 * 1024 * 1024;
/// An agent that was not heard of for this long is lost: ten missed heartbeats.
pub const DEFAULT_LOST_AFTER: Duration = Duration::from_secs(10);
/// What an agent has and the state does not know is removed after this time.
pub const DEFAULT_ORPHAN_GRACE: Duration = Duration::from_secs(60);
/// How long a request id is remembered after its sandbox is gone, if the caller chose it.
pub const DEFAULT_REQUEST_RETENTION: Duration = Duration::from_secs(600);
/// The same for ids that the server made: only a retry inside the cluster can bring them again.
pub const DEFAULT_SERVER_REQUEST_RETENTION: Duration = Duration::from_secs(60);

/// Everything that a control node is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Unique in the cluster; shown in every answer.
    pub name: String,
    /// Log, snapshots and identity. Made if it is not there.
    pub data_dir: PathBuf,
    /// Where clients and agents are served.
    pub listen_api: SocketAddr,
    /// Where peers are served.
    pub listen_peer: SocketAddr,
    /// Where `/metrics`, `/healthz` and `/readyz` are served.
    pub listen_http: SocketAddr,
    /// `host:port` under which clients and agents reach this node.
    pub advertise_api: String,
    /// `host:port` under which peers reach this node.
    pub advertise_peer: String,
    /// Peer addresses of other control nodes, `host:port`; used until the membership is known.
    pub join: Vec<String>,
    /// Start a new cluster as soon as this many nodes (this one included) see each other. None: join one that exists.
    pub bootstrap_expect: Option<usize>,
    /// See [`DEFAULT_RETAIN_ENTRIES`].
    pub history_retain_entries: u64,
    /// See [`DEFAULT_RETAIN_BYTES`].
    pub history_retain_bytes: u64,
    /// Of these, how many are kept for nodes that are behind, at most; one that lacks more gets a snapshot, and fetches the
    /// history.
    pub catch_up_entries: u64,
    /// See [`DEFAULT_SNAPSHOT_LOG_BYTES`].
    pub snapshot_log_bytes: u64,
    /// Below this much free disk no new work is taken; None: see [`crate::disk::LOW_WATER`].
    pub disk_low_water: Option<u64>,
    /// See [`DEFAULT_HEARTBEAT`].
    pub heartbeat: Duration,
    /// See [`DEFAULT_ELECTION`].
    pub election: (Duration, Duration),
    /// See [`DEFAULT_LOST_AFTER`].
    pub lost_after: Duration,
    /// See [`DEFAULT_ORPHAN_GRACE`].
    pub orphan_grace: Duration,
    /// See [`DEFAULT_REQUEST_RETENTION`].
    pub request_retention: Duration,
    /// See [`DEFAULT_SERVER_REQUEST_RETENTION`].
    pub server_request_retention: Duration,
}

impl Config {
    /// A node with default settings that listens on the three ports after `api_port` on loopback.
    pub fn local(name: impl Into<String>, data_dir: impl Into<PathBuf>, api_port: u16) -> Self {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            name: name.into(),
            data_dir: data_dir.into(),
            listen_api: address(api_port),
            listen_peer: address(api_port + 1),
            listen_http: address(api_port + 2),
            advertise_api: address(api_port).to_string(),
            advertise_peer: address(api_port + 1).to_string(),
            join: Vec::new(),
            bootstrap_expect: None,
            history_retain_entries: DEFAULT_RETAIN_ENTRIES,
            history_retain_bytes: DEFAULT_RETAIN_BYTES,
            catch_up_entries: DEFAULT_CATCH_UP_ENTRIES,
            snapshot_log_bytes: DEFAULT_SNAPSHOT_LOG_BYTES,
            disk_low_water: None,
            heartbeat: DEFAULT_HEARTBEAT,
            election: DEFAULT_ELECTION,
            lost_after: DEFAULT_LOST_AFTER,
            orphan_grace: DEFAULT_ORPHAN_GRACE,
            request_retention: DEFAULT_REQUEST_RETENTION,
            server_request_retention: DEFAULT_SERVER_REQUEST_RETENTION,
        }
    }
}
