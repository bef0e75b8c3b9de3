//! The task that keeps the history of this node as long as it is to be: no longer, and, if its peers have it, no shorter.
//!
//! What is to be kept is said by this node's own settings: `history.retain_entries` behind its newest snapshot, and of these
//! as many as fit into `history.retain_bytes`, but for the log database that the snapshot ends in. So a node
//! that is to keep less than its peers fetches no more than that, and drops it when the time comes; one that is to keep
//! more than they have asks from time to time, until what it lacks is no longer to be kept.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::Raft;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::elsewhere::OtherNodes;
use super::fetch::{Failure, Fetch, discard};
use super::start_at;
use crate::history::{History, Recorder};
use crate::raft::snapshots::SnapshotState;
use crate::raft::state_machine::StateMachine;
use crate::raft::types::{NodeId, TypeConfig};
use crate::storage::StorageError;
use crate::storage::log::LogStore;

/// How often it looks whether there is something to do. Each look is a few comparisons.
const LOOK: Duration = Duration::from_millis(500);
/// Between two attempts to fetch, if the first failed or nobody had anything.
const RETRY: Duration = Duration::from_secs(5);

/// How far the fetching of history is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetching {
    /// Log entries that are to be kept, and that this node does not have yet.
    pub missing_entries: u64,
    /// Log entries that came from peers since the start.
    pub fetched_entries: u64,
    /// How often what came from peers was not this node's history.
    pub thrown_away: u64,
}

/// The same, as it changes.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    missing: AtomicU64,
    fetched: AtomicU64,
    thrown_away: AtomicU64,
}

impl Progress {
    pub(crate) fn now(&self) -> Fetching {
        Fetching {
            missing_entries: self.missing.load(Ordering::Relaxed),
            fetched_entries: self.fetched.load(Ordering::Relaxed),
            thrown_away: self.thrown_away.load(Ordering::Relaxed),
        }
    }

    pub(super) fn is_missing(&self, entries: u64) {
        self.missing.store(entries, Ordering::Relaxed);
    }

    pub(super) fn fetched(&self, entries: u64) {
        self.fetched.fetch_add(entries, Ordering::Relaxed);
    }
}

/// See the module.
pub(in crate::raft) struct Keeper {
    pub(in crate::raft) log: LogStore,
    pub(in crate::raft) history: History,
    pub(in crate::raft) recorder: Recorder,
    pub(in crate::raft) snapshots: SnapshotState,
    pub(in crate::raft) others: Arc<OtherNodes>,
    pub(in crate::raft) raft: Raft<TypeConfig, StateMachine>,
    pub(in crate::raft) retain_entries: u64,
    pub(in crate::raft) retain_bytes: u64,
    pub(in crate::raft) progress: Arc<Progress>,
}

/// What is known of the peers, from one attempt to the next.
#[derive(Default)]
struct Peers {
    /// What they gave was not this node's history.
    distrusted: BTreeSet<NodeId>,
    /// All have answered that they have nothing before this log index either.
    nobody_has_before: Option<u64>,
}

impl Keeper {
    /// Works until `cancel`.
    ///
    /// # Errors
    /// If this node's disk fails.
    pub(in crate::raft) async fn run(self, cancel: CancellationToken) -> Result<(), StorageError> {
        let work = async {
            let (mut peers, mut next_attempt) = (Peers::default(), Instant::now());
            loop {
                self.trim().await?;
                // One at a time: each takes a tenth of a second of a CPU.
                self.log.reader().find_places().await?;
                if Instant::now() >= next_attempt && self.fetch(&mut peers).await? {
                    next_attempt = Instant::now() + RETRY;
                }
                sleep(LOOK).await;
            }
        };
        // The log is closed after this task has ended.
        cancel.run_until_cancelled(work).await.unwrap_or(Ok(()))
    }

    /// The first log index that is to be kept.
    async fn wanted(&self) -> Result<Option<u64>, StorageError> {
        let Some(snapshot) = self.snapshots.newest().and_then(|newest| newest.meta.last_log_id) else {
            return Ok(None);
        };
        let by_entries = (snapshot.index() + 1).saturating_sub(self.retain_entries);
        let by_bytes = self.log.reader().first_within(self.retain_bytes, snapshot.index()).await?;
        Ok(Some(by_entries.max(by_bytes.unwrap_or(0))))
    }

    /// Drops what is older than is to be kept, up to a position: from it on all can be found.
    async fn trim(&self) -> Result<(), StorageError> {
        let Some(wanted) = self.wanted().await? else { return Ok(()) };
        let position = self.history.position_for(wanted).filter(|position| position.index <= wanted);
        let reader = self.log.reader();
        let Some(position) = position.filter(|position| position.index > reader.first_index()) else {
            return Ok(());
        };
        if position.index > reader.first_raft_index() {
            // Raft keeps as many entries as it was told at its start, whatever they weigh. The next look finds it done; an
            // error means that Raft has stopped, which is noticed elsewhere.
            let _ = self.raft.trigger().purge_log(position.index - 1).await;
        }
        self.log.trim_history(start_at(position)).await
    }

    /// Fetches what a snapshot jumped over. False if nothing is to be fetched.
    async fn fetch(&self, peers: &mut Peers) -> Result<bool, StorageError> {
        let start = self.log.reader().history_start().filter(|start| start.before.is_none());
        let wanted = if start.is_some() { self.wanted().await? } else { None };
        let (Some(start), Some(wanted)) = (start, wanted) else {
            self.progress.is_missing(0);
            return Ok(false);
        };
        // Before the snapshot is installed there is no state that could prove anything.
        let Some(own) = self.history.position_behind(start.index) else { return Ok(false) };
        if peers.nobody_has_before != Some(start.index) {
            self.progress.is_missing(start.index.saturating_sub(wanted));
        }
        if wanted >= start.index {
            return Ok(false);
        }
        let fetch = Fetch {
            others: &self.others,
            log: &self.log,
            progress: &self.progress,
            distrusted: &peers.distrusted,
            wanted,
            end: start.index,
            own,
        };
        match fetch.run().await {
            Ok((fetched, positions)) => {
                let from = positions.oldest().map_or(0, |position| position.revision + 1);
                match self.log.adopt(fetched).await? {
                    None => {
                        self.recorder.extend_back(&positions.to_vec());
                        self.progress.is_missing(0);
                        tracing::info!(oldest_revision = from, "the history from peers is verified and kept");
                    }
                    Some(late) => discard(late).await,
                }
            }
            Err(Failure::NobodyHasMore { certain }) => {
                peers.distrusted.clear();
                if certain {
                    // As in a cluster that was restored from a backup. It is asked again: there may be new members.
                    peers.nobody_has_before = Some(start.index);
                    self.progress.is_missing(0);
                }
            }
            Err(Failure::Peers { why, distrusted: unfit }) => {
                if !unfit.is_empty() {
                    self.progress.thrown_away.fetch_add(1, Ordering::Relaxed);
                }
                tracing::warn!(%why, "no history was fetched; another peer is tried");
                peers.distrusted.extend(unfit);
            }
            Err(Failure::Fault(fault)) => return Err(fault),
        }
        Ok(true)
    }
}
