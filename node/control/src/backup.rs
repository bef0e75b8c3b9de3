//! Backups, offline: looking at one, and making a data directory from one.
//!
//! A backup is a snapshot file: what `Backup` streams. A restore makes the data directory of one node, whose cluster has
//! that node alone, and **another cluster id**: peers and agents of the old cluster, which may still run, are not its own
//! until an operator says so (`agents rehome`). The event that says so (`ClusterRestored`) is folded into the restored
//! state before any node sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use openraft::storage::RaftLogStorage as _;
use openraft::{Membership, vote::RaftLeaderId as _};
use sandkeeper_statemachine::{Actor, Command, Draft, Request, State, Surroundings, Timestamp};
use uuid::Uuid;

use crate::history::{Digests, digests_of};
use crate::raft::replica::View;
use crate::raft::snapshots::{load, write};
use crate::raft::types::{LogId, Member, NodeId, StoredMembership, Vote};
use crate::storage::StorageError;
use crate::storage::identity::NodeIdentity;
use crate::storage::lock::DataDirLock;
use crate::storage::log::{LogOptions, LogStore};
use crate::storage::snapshot::{SnapshotFile, SnapshotStore};

/// The term of the first entry of a restored log. Terms count anew: it is another cluster.
const FIRST_TERM: u64 = 1;

/// Why a backup can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file is not one, or not whole.
    #[error("{} is no backup that can be used", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// Something is there.
    #[error(
        "{} is not empty: a restore makes a new data directory; name another one, or move what is there away",
        .0.display()
    )]
    NotEmpty(PathBuf),
    /// The backup is of no cluster.
    #[error("{0}")]
    Refused(String),
    /// The disk refused.
    #[error("the data directory can't be written")]
    Storage(#[from] StorageError),
    /// The disk refused.
    #[error("the data directory can't be written")]
    Io(#[from] io::Error),
}

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupInfo {
    /// The cluster that it was made of.
    pub cluster_id: String,
    /// Revision and digests of its state.
    pub digests: Digests,
    /// When the last event in it happened, unix nanoseconds.
    pub last_event_nanos: i64,
    /// Sandboxes in it.
    pub sandboxes: usize,
    /// Agents in it.
    pub agents: usize,
    /// The length of the file.
    pub bytes: u64,
}

/// What a restore made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredInfo {
    /// What was restored.
    pub backup: BackupInfo,
    /// The id of the new cluster.
    pub cluster_id: String,
    /// The node's number in it.
    pub node_id: NodeId,
}

/// Reads a whole backup, and verifies every checksum and the digests of its state. Blocks.
///
/// # Errors
/// If anything is wrong with it.
pub fn verify(path: &Path) -> Result<BackupInfo, BackupError> {
    let (file, state) = read(path)?;
    Ok(info(&file, &state))
}

/// Makes the data directory of a node named `name` from a backup. `now_nanos`: unix nanoseconds. Blocks.
///
/// # Errors
/// If the backup can't be used, the directory is not empty, or the disk refuses. What was half made is taken away again.
pub fn restore(
    path: &Path,
    data_dir: &Path,
    name: &str,
    now_nanos: i64,
) -> Result<RestoredInfo, BackupError> {
    let (file, state) = read(path)?;
    let backup = info(&file, &state);
    let existed = is_empty_folder(data_dir)?;
    let cluster_id = Uuid::new_v4();
    let state = going_on_as(state, cluster_id, Timestamp(now_nanos))?;
    let node_id = rand::random_range(1..=u64::MAX);
    // Whoever does not get it has made nothing, and takes nothing away: it is another process's directory.
    let lock = DataDirLock::acquire(data_dir)?;
    let made = make(data_dir, node_id, name, cluster_id, state, file.id().index + 1);
    if let Err(error) = made {
        take_away(data_dir, existed);
        return Err(error);
    }
    drop(lock);
    Ok(RestoredInfo { backup, cluster_id: cluster_id.to_string(), node_id })
}

fn read(path: &Path) -> Result<(SnapshotFile, State), BackupError> {
    let unusable = |source: io::Error| BackupError::Unusable { path: path.to_owned(), source };
    let file = SnapshotFile::open(path).map_err(|error| unusable(error.into()))?;
    let (_, state) = load(&file).map_err(unusable)?;
    Ok((file, state))
}

fn info(file: &SnapshotFile, state: &State) -> BackupInfo {
    BackupInfo {
        cluster_id: state.cluster().map(|cluster| cluster.id.to_string()).unwrap_or_default(),
        digests: digests_of(state),
        last_event_nanos: state.last_time().0,
        sandboxes: state.sandbox_count(),
        agents: state.agent_count(),
        bytes: file.length(),
    }
}

/// Whether the folder is there; it must be empty then.
fn is_empty_folder(data_dir: &Path) -> Result<bool, BackupError> {
    match fs::read_dir(data_dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(true),
            Some(_) => Err(BackupError::NotEmpty(data_dir.to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The state of the new cluster.
fn going_on_as(state: State, cluster_id: Uuid, now: Timestamp) -> Result<State, BackupError> {
    let mut draft = Draft::new(state, now);
    let command = Command::RestoreCluster { cluster_id };
    let request = Request { actor: Actor::Client("cluster restore".to_owned()), id: None, command };
    draft.decide(&request, &mut Nobody).map_err(|rejection| BackupError::Refused(rejection.to_string()))?;
    let (_, state) = draft.seal(FIRST_TERM);
    Ok(state)
}

/// A restore places nothing and draws nothing.
struct Nobody;

impl Surroundings for Nobody {
    fn new_uuid(&mut self) -> Uuid {
        Uuid::new_v4()
    }

    fn agents_with_image(&self, _: &str) -> Option<&BTreeSet<sandkeeper_statemachine::AgentId>> {
        None
    }
}

/// The identity comes last: a directory without one is no node's.
fn make(
    data_dir: &Path,
    node_id: NodeId,
    name: &str,
    cluster_id: Uuid,
    state: State,
    index: u64,
) -> Result<(), BackupError> {
    let leader = openraft::impls::leader_id_std::LeaderId::new(FIRST_TERM, node_id).to_committed();
    let applied = LogId::new(leader, index);
    // Its addresses are told when it starts.
    let member = Member { name: name.to_owned(), ..Member::default() };
    let nodes = BTreeMap::from([(node_id, member)]);
    let membership = Membership::new(vec![BTreeSet::from([node_id])], nodes)
        .map_err(|error| BackupError::Refused(error.to_string()))?;
    let membership = StoredMembership::new(Some(applied), membership);
    let view = View { state, applied: Some(applied), membership };
    let snapshots = SnapshotStore::open(&data_dir.join("snapshots"))?;
    write(&snapshots, &view, &crate::history::checkpoints::Checkpoints::default())?;
    let mut log = LogStore::open(&data_dir.join("log"), LogOptions::default())?;
    // The log's writer answers through a runtime; here is none of its own to wait on.
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        log.save_vote(&Vote::new(FIRST_TERM, node_id)).await?;
        log.shutdown().await.map_err(io::Error::from)
    })?;
    let cluster_id = Some(cluster_id.to_string());
    NodeIdentity { node_id, cluster_id, name: name.to_owned() }.save(data_dir)?;
    Ok(())
}

/// As far as that is possible: what is left is no node's, as it has no identity.
fn take_away(data_dir: &Path, existed: bool) {
    let emptied = fs::remove_dir_all(data_dir);
    if existed
        && emptied.is_ok()
        && let Err(error) = fs::create_dir(data_dir)
    {
        tracing::warn!(data_dir = %data_dir.display(), %error, "the empty data directory can't be made again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::World;
    use crate::history::checkpoints::Checkpoints;

    /// A backup of a cluster with two sandboxes.
    fn backup(folder: &Path) -> (PathBuf, State) {
        let mut world = World::with_agent();
        world.create_strong("web");
        world.create_strong("db");
        let leader = openraft::impls::leader_id_std::LeaderId::new(3, 7).to_committed();
        let view = View {
            state: world.state.clone(),
            applied: Some(LogId::new(leader, 40)),
            membership: StoredMembership::default(),
        };
        let store = SnapshotStore::open(folder).unwrap();
        let file = write(&store, &view, &Checkpoints::default()).unwrap();
        (file.path().to_owned(), world.state)
    }

    #[test]
    fn a_restore_keeps_everything_and_is_another_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let (path, state) = backup(&folder.path().join("from"));
        let found = verify(&path).unwrap();
        assert_eq!((found.digests, found.sandboxes, found.agents), (digests_of(&state), 2, 1));
        let data_dir = folder.path().join("to");
        let restored = restore(&path, &data_dir, "node-1", 5_000_000_000).unwrap();
        assert_eq!(restored.backup, found);
        assert_ne!(restored.cluster_id, found.cluster_id);

        let identity = NodeIdentity::load(&data_dir).unwrap().unwrap();
        assert_eq!(identity.name, "node-1");
        assert_eq!((identity.node_id, identity.cluster_id), (restored.node_id, Some(restored.cluster_id)));
        let store = SnapshotStore::open(&data_dir.join("snapshots")).unwrap();
        let file = store.open_newest(|_| false).unwrap().unwrap();
        let (header, now) = load(&file).unwrap();
        assert_eq!(header.meta.last_log_id.map(|id| id.index()), Some(41), "behind what the backup holds");
        assert_eq!((now.revision(), now.sandbox_count()), (state.revision() + 1, 2));
        let cluster = now.cluster().unwrap();
        assert_eq!(cluster.restored.unwrap().from, state.cluster().unwrap().id);
        assert!(now.unconfirmed_restore().is_some());
    }

    #[test]
    fn what_is_no_backup_or_not_whole_is_refused_and_nothing_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = backup(&folder.path().join("from"));
        let content = fs::read(&path).unwrap();
        let data_dir = folder.path().join("to");
        let bad = folder.path().join("bad");
        let mut flipped = content.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for wrong in [&b"hello"[..], &content[..content.len() - 1], &flipped] {
            fs::write(&bad, wrong).unwrap();
            assert!(matches!(verify(&bad), Err(BackupError::Unusable { .. })));
            let error = restore(&bad, &data_dir, "a", 0).unwrap_err();
            assert!(matches!(error, BackupError::Unusable { .. }), "{error}");
            assert!(!data_dir.exists());
        }
        assert!(verify(&folder.path().join("none")).is_err());
    }

    #[test]
    fn a_directory_with_something_in_it_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = backup(&folder.path().join("from"));
        let data_dir = folder.path().join("to");
        fs::create_dir(&data_dir).unwrap();
        fs::write(data_dir.join("precious"), "x").unwrap();
        let error = restore(&path, &data_dir, "a", 0).unwrap_err();
        assert!(matches!(error, BackupError::NotEmpty(_)), "{error}");
        assert_eq!(fs::read_dir(&data_dir).unwrap().count(), 1);
        // An empty one will do: it may be where a disk is mounted.
        fs::remove_file(data_dir.join("precious")).unwrap();
        restore(&path, &data_dir, "a", 0).unwrap();
    }
}
