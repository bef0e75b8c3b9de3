//! The state in a data directory at a revision, of a node that does not run: the newest snapshot at or before the
//! revision, and the committed log behind it, folded as the state machine does it.
//!
//! # Architecture invariants
//!
//! - Nothing in the data directory is written, not even the process id in `LOCK`. Opening the log writes (sled repairs
//!   the end of its file, and the log store removes what a crash left behind), so a copy of it is opened: of `meta/`
//!   and of those databases that are needed.
//! - What is not known to be committed is counted and never applied: the cluster may have decided otherwise.
//! - What is corrupt is reported with its place. An older snapshot takes the place of a corrupt one only if the log
//!   leads on from it, and [`Inspection::problems`] says so.

use std::path::{Path, PathBuf};

use openraft::RaftLogReader as _;
use openraft::storage::RaftLogStorage as _;
use sandkeeper_proto::v1;
use sandkeeper_statemachine::{Digest, Revision, State};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

mod copy;
mod error;
mod fold;
mod lock;
mod snapshots;
mod tell;
#[cfg(test)]
mod tests;
mod verify;

use copy::Copy;
pub use error::InspectError;
use fold::Folded;
use lock::ReadLock;
use snapshots::Snapshots;
pub use verify::{Problem, Verification, VerifiedFiles, VerifyProgress, verify};

use crate::storage::identity::NodeIdentity;
use crate::storage::log::{LogOptions, LogReader, LogStore};
use crate::storage::snapshot::SnapshotId;

/// What is in a data directory.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Whose it is. `cluster_id` is also taken from the state, if `node.toml` does not have it yet.
    pub identity: NodeIdentity,
    /// The state at the revision.
    pub state: State,
    /// The chain over all entries up to the revision. It has a value only where an entry ends.
    pub history_digest: Option<Digest>,
    /// The last log entry that the state contains, whole or in part; `None` before the first.
    pub applied_index: Option<u64>,
    /// The control nodes at that entry.
    pub members: Vec<v1::Member>,
    /// The log.
    pub log: InspectedLog,
    /// The snapshots, newest first.
    pub snapshots: Vec<InspectedSnapshot>,
    /// The revision from which on all can be shown; `None` if there is none.
    pub oldest: Option<Revision>,
    /// What is wrong with the data directory, though the state could be read.
    pub problems: Vec<String>,
}

/// Where the log on this disk begins and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InspectedLog {
    /// The first entry; `None` if there is none.
    pub first_index: Option<u64>,
    /// The last entry, committed or not.
    pub last_index: Option<u64>,
    /// The last entry that is purged.
    pub purged_index: Option<u64>,
    /// The last entry that is known, on this disk, to be committed.
    pub committed_index: Option<u64>,
    /// How many entries behind it are not known to be committed.
    pub not_known_committed: u64,
    /// The Raft term of the last vote.
    pub term: u64,
}

/// A snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectedSnapshot {
    /// The last log entry that it includes.
    pub id: SnapshotId,
    /// The revision of its state, if its header can be read.
    pub revision: Option<Revision>,
    /// The length of the file.
    pub bytes: u64,
    /// What is wrong with it, if it was looked at and something is.
    pub problem: Option<String>,
}

/// Reads the state in `data_dir` at a revision; without one, at the newest that is known to be committed.
///
/// Takes what a start of the node takes, and the time to copy the part of the log that is read. The copy is in the
/// folder for temporary files (`TMPDIR`), readable only to this user, and removed in the end: `cancel` it rather than
/// drop it.
///
/// # Errors
/// See [`InspectError`].
pub async fn inspect(
    data_dir: &Path,
    at: Option<Revision>,
    cancel: CancellationToken,
) -> Result<Inspection, InspectError> {
    let data_dir = absolute(data_dir)?;
    let identity = NodeIdentity::load(&data_dir)?.ok_or_else(|| error::no_identity(&data_dir))?;
    let lock = ReadLock::acquire(&data_dir)?;
    let task_cancel = cancel.clone();
    let opened = spawn_blocking(move || open(&data_dir, at, &task_cancel)).await;
    let (copy, snapshots, base, mut log) = opened.map_err(error::panicked)??;
    let folded = read(&mut log, &snapshots, base, at, &cancel).await;
    // It is the copy that is closed; whether that succeeds matters to nobody.
    let _ = log.shutdown().await;
    let (folded, log) = folded.map_err(|error| copy.in_place(error))?;
    lock.still_alone()?;
    Ok(finish(identity, snapshots, folded, &log))
}

type Opened = (Copy, Snapshots, Folded, LogStore);

/// Blocks: reads snapshots, copies the log.
fn open(data_dir: &Path, at: Option<Revision>, cancel: &CancellationToken) -> Result<Opened, InspectError> {
    let copy = Copy::begin(data_dir)?;
    let opened = (|| {
        let mut snapshots = Snapshots::list(&copy)?;
        let base = snapshots.newest_state(at, cancel)?;
        let log = copy.log(base.applied.map(|id| id.index()), cancel)?;
        let log = LogStore::open(&log, LogOptions::default())?;
        Ok((snapshots, base, log))
    })();
    let (snapshots, base, log) = opened.map_err(|error| copy.in_place(error))?;
    Ok((copy, snapshots, base, log))
}

/// What is known of the log, and from where on the state can be shown.
struct ReadLog {
    log: InspectedLog,
    oldest: Option<Revision>,
}

async fn read(
    store: &mut LogStore,
    snapshots: &Snapshots,
    base: Folded,
    at: Option<Revision>,
    cancel: &CancellationToken,
) -> Result<(Folded, ReadLog), InspectError> {
    let reader = store.reader();
    let log = examine(store, &reader, snapshots.newest()).await?;
    let oldest = snapshots.oldest_with_log(reader.first_index());
    let begun = base.next_index();
    let behind = log.committed_index.is_some_and(|committed| committed >= begun);
    if behind && begun < reader.first_index() && at != Some(base.state.revision()) {
        return Err(match (at, oldest) {
            (Some(at), Some(oldest)) if at < oldest => InspectError::TooOld { at, oldest },
            _ => snapshots.gap(begun, reader.first_index()),
        });
    }
    let folded = fold::fold(&reader, base, log.committed_index, at, cancel).await?;
    let revision = folded.state.revision();
    if at.is_some_and(|at| at <= revision) {
        return Ok((folded, ReadLog { log, oldest }));
    }
    // A snapshot that can't be read, or was just received, shows that the history goes on at least to its end.
    if let Some(end) = snapshots.end().filter(|end| *end > folded.next_index()) {
        return Err(snapshots.gap(folded.next_index(), end));
    }
    match at {
        None => Ok((folded, ReadLog { log, oldest })),
        Some(at) => {
            let not_known_committed = log.not_known_committed;
            Err(InspectError::TooNew { at, newest: revision, not_known_committed })
        }
    }
}

/// Where the log begins and ends. What a snapshot includes is committed, whatever the log itself knew of that.
async fn examine(
    store: &mut LogStore,
    reader: &LogReader,
    newest: Option<(SnapshotId, Revision)>,
) -> Result<InspectedLog, InspectError> {
    let failed = |error| error::log_state(&error);
    let purged = store.get_log_state().await.map_err(failed)?.last_purged_log_id;
    let vote = reader.clone().read_vote().await.map_err(failed)?;
    let saved = store.read_committed().await.map_err(failed)?.map(|id| id.index());
    let newest = newest.map(|(id, _)| id);
    let committed_index = match newest {
        Some(id) if saved < Some(id.index) && has_logged(reader, id).await? => Some(id.index),
        _ => saved,
    };
    let last_index = reader.last_index();
    let included = committed_index.max(newest.map(|id| id.index));
    let open_from = included.map_or(0, |index| index + 1).max(reader.first_index());
    Ok(InspectedLog {
        first_index: last_index.map(|_| reader.first_index()),
        last_index,
        purged_index: purged.map(|id| id.index()),
        committed_index,
        not_known_committed: last_index.map_or(0, |last| (last + 1).saturating_sub(open_from)),
        term: vote.map_or(0, |vote| vote.leader_id().term),
    })
}

/// Whether the log holds the entry that a snapshot ends with: then it is that log up to there.
async fn has_logged(log: &LogReader, id: SnapshotId) -> Result<bool, InspectError> {
    if id.index < log.first_index() {
        return Ok(false);
    }
    let entries = log.entries_from(id.index, 1).await.map_err(|error| error::log(error, None))?;
    Ok(entries.first().is_some_and(|entry| SnapshotId::from(entry.log_id) == id))
}

fn finish(mut identity: NodeIdentity, snapshots: Snapshots, folded: Folded, read: &ReadLog) -> Inspection {
    let (snapshots, mut problems) = snapshots.finish();
    let cluster_id = folded.state.cluster().map(|cluster| cluster.id.to_string());
    match (&identity.cluster_id, cluster_id) {
        (Some(known), Some(found)) if *known != found => problems.push(format!(
            "node.toml says that the node belongs to cluster {known}, and the state is of cluster {found}"
        )),
        (None, found) => identity.cluster_id = found,
        _ => {}
    }
    Inspection {
        identity,
        history_digest: folded.whole.then(|| folded.state.history_digest()),
        applied_index: folded.applied.map(|id| id.index()),
        members: tell::members(&folded.membership),
        state: folded.state,
        log: read.log,
        snapshots,
        oldest: read.oldest,
        problems,
    }
}

fn absolute(path: &Path) -> Result<PathBuf, InspectError> {
    std::path::absolute(path).map_err(|source| InspectError::Io {
        action: "find",
        path: path.to_owned(),
        source,
    })
}
