//! Sessions: one with every control node, always. They only carry: what is said is the loop's affair.

mod connections;
mod dialog;
mod directory;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use rand::RngExt;
use sandkeeper_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::dialog::End;
use crate::config::{AgentConfig, Capacity};
use crate::lease::LeaseKeeper;
use crate::ledger::Incarnation;
use crate::mailbox::Message;
use crate::wire;

pub(crate) use connections::{Connections, Lease, STREAMS_PER_CONNECTION};
pub(crate) use directory::Directory;

/// The first and the longest pause between two attempts to reach a control node.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often it is looked whether an address lacks a session.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How often an address of a node that has a session by another address is looked at again.
const SAME_NODE_PAUSE: Duration = Duration::from_secs(1);
/// After a session that lasted so long the pauses begin at the shortest again. A node that takes agents in and loses them at
/// once is as little helped by haste as one that is not reached.
const LASTED: Duration = Duration::from_secs(10);

/// What sessions say about the agent and the loop changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The cluster, once known.
    pub(crate) cluster_id: String,
    /// The highest term seen.
    pub(crate) term: u64,
    /// What its sandboxes hold.
    pub(crate) used: Capacity,
}

/// What all sessions of one agent share.
#[derive(Debug)]
pub(crate) struct Sessions {
    hello: v1::Hello,
    heartbeat_interval: Duration,
    standing: watch::Receiver<Standing>,
    mailbox: mpsc::Sender<Message>,
    connections: Arc<Connections>,
    directory: Directory,
    lease: Option<Arc<LeaseKeeper>>,
    /// The number of the last session. Numbers grow over all nodes, so the newest session with a node is the one with
    /// the highest number, also when two addresses lead to one node.
    last: AtomicU64,
    nodes: Mutex<Nodes>,
}

/// Which nodes are behind the addresses. Several addresses may lead to one node, which wants one session: the newest.
#[derive(Debug, Default)]
struct Nodes {
    /// The newest session with a node, by the name that it gave.
    sessions: HashMap<String, u64>,
    /// The node that was last found at an address.
    names: HashMap<SocketAddr, String>,
}

impl Sessions {
    pub(crate) fn new(
        config: &AgentConfig,
        incarnation: &Incarnation,
        standing: watch::Receiver<Standing>,
        mailbox: mpsc::Sender<Message>,
        connections: Arc<Connections>,
        directory: Directory,
        lease: Option<Arc<LeaseKeeper>>,
    ) -> Self {
        let hello = v1::Hello {
            agent_id: config.agent_id.clone(),
            incarnation: Some(wire::incarnation(incarnation)),
            capacity: Some(wire::capacity(config.capacity)),
            labels: config.labels.clone(),
            pool: config.pool.clone(),
            runtime: config.runtime.name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: config.host.clone(),
            ..v1::Hello::default()
        };
        Self {
            hello,
            heartbeat_interval: config.heartbeat_interval,
            standing,
            mailbox,
            connections,
            directory,
            lease,
            last: AtomicU64::new(0),
            nodes: Mutex::default(),
        }
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the node at this address has a session by another one. To be asked while this one has none.
    fn has_session_elsewhere(&self, address: SocketAddr) -> bool {
        let nodes = self.nodes();
        nodes.names.get(&address).is_some_and(|node| nodes.sessions.contains_key(node))
    }

    fn hello(&self, session: u64) -> v1::Hello {
        let standing = self.standing.borrow();
        v1::Hello {
            session,
            cluster_id: standing.cluster_id.clone(),
            term: standing.term,
            ..self.hello.clone()
        }
    }
}

/// Keeps a session with every address of the directory, until `token` is cancelled; then ends them all.
pub(crate) async fn keep(sessions: Arc<Sessions>, token: CancellationToken) {
    let mut addresses = sessions.directory.subscribe();
    let mut running = JoinSet::new();
    let mut keepers: BTreeMap<SocketAddr, tokio::task::AbortHandle> = BTreeMap::new();
    while !token.is_cancelled() {
        keepers.retain(|_, keeper| !keeper.is_finished());
        let wanted = addresses.borrow_and_update().clone();
        for address in wanted {
            keepers
                .entry(address)
                .or_insert_with(|| running.spawn(keep_one(Arc::clone(&sessions), address, token.clone())));
        }
        tokio::select! {
            () = token.cancelled() => {}
            changed = addresses.changed() => {
                if changed.is_err() {
                    token.cancelled().await;
                }
            }
            Some(ended) = running.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the keeper of a session failed");
                }
            }
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
    while running.join_next().await.is_some() {}
}

/// Keeps a session with one address, as long as the directory has it.
async fn keep_one(sessions: Arc<Sessions>, address: SocketAddr, token: CancellationToken) {
    let pauses = || {
        ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .without_max_times()
            .build()
    };
    let mut backoff = pauses();
    let mut failures = 0u32;
    while !token.is_cancelled() && sessions.directory.has(address) {
        if sessions.has_session_elsewhere(address) {
            tokio::select! {
                () = token.cancelled() => return,
                () = tokio::time::sleep(SAME_NODE_PAUSE) => continue,
            }
        }
        let number = sessions.last.fetch_add(1, Ordering::Relaxed) + 1;
        let begun = Instant::now();
        let end = dialog::run(&sessions, address, number, &token).await;
        sessions.nodes().sessions.retain(|_, session| *session != number);
        if begun.elapsed() >= LASTED && !matches!(end, End::NotReached(_)) {
            backoff = pauses();
        }
        let mut next_pause = || backoff.next().unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE);
        let pause = match end {
            End::Cancelled => return,
            End::NotReached(error) => {
                failures += 1;
                if failures == 1 {
                    tracing::warn!(server = %address, error, "control node is not reached; trying on");
                }
                next_pause()
            }
            End::Lost(error) => {
                tracing::warn!(server = %address, session = number, error, "session lost");
                failures = 0;
                next_pause()
            }
            End::Goodbye { reason, retry_after } => {
                tracing::info!(server = %address, session = number, reason, "the control node ended the session");
                failures = 0;
                scattered(retry_after.max(next_pause()))
            }
            End::Superseded => {
                tracing::info!(server = %address, session = number, "the node has a newer session by another address");
                SAME_NODE_PAUSE
            }
        };
        sessions.directory.look_up_now();
        tokio::select! {
            () = token.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
    sessions.nodes().names.remove(&address);
}

/// A pause that a control node asked for, and up to as much again: it asks all of its agents at one moment, and they are not
/// to come back at one moment.
fn scattered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(1.0..2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_that_are_sent_away_together_do_not_come_back_together() {
        let second = Duration::from_secs(1);
        let pauses: std::collections::BTreeSet<_> =
            (0..1_000).map(|_| scattered(second).as_millis() / 100).collect();
        assert!(pauses.iter().eq((10..20).collect::<Vec<_>>().iter()), "{pauses:?}");
    }
}
