//! openraft's own suite for log stores. The state machine beside it is the least that the suite accepts; its
//! snapshots are real ones.

use std::io::{self, Read as _, Write as _};
use std::sync::{Arc, Mutex};

use futures::{Stream, TryStreamExt as _};
use openraft::RaftSnapshotBuilder;
use openraft::StorageError;
use openraft::entry::RaftPayload as _;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::super::{LogOptions, LogStore};
use crate::raft::types::{Applied, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::storage::snapshot::{SnapshotFile, SnapshotId, SnapshotStore};

type State = (Option<LogId>, StoredMembership);

#[derive(Clone)]
struct Machine {
    applied: Arc<Mutex<State>>,
    snapshots: SnapshotStore,
}

fn decode(file: &SnapshotFile) -> io::Result<SnapshotMeta> {
    let mut bytes = Vec::new();
    file.body().read_to_end(&mut bytes)?;
    let (meta, _) = bincode::serde::decode_from_slice::<State, _>(&bytes, bincode::config::standard())
        .map_err(io::Error::other)?;
    Ok(SnapshotMeta { last_log_id: meta.0, last_membership: meta.1 })
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let applied = self.applied.lock().unwrap().clone();
        let bytes = bincode::serde::encode_to_vec(&applied, bincode::config::standard()).unwrap();
        // The suite also wants a snapshot of a machine to which nothing was applied.
        let id = applied.0.map_or(SnapshotId { index: 0, term: 0 }, SnapshotId::from);
        let mut writer = self.snapshots.create(id, b"")?;
        writer.write_all(&bytes)?;
        let snapshot = writer.finish()?;
        Ok(Snapshot { meta: decode(&snapshot)?, snapshot })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok(self.applied.lock().unwrap().clone())
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut applied = self.applied.lock().unwrap();
            applied.0 = Some(entry.log_id);
            if let Some(membership) = entry.payload.get_membership() {
                applied.1 = StoredMembership::new(Some(entry.log_id), membership);
            }
            if let Some(responder) = responder {
                responder.send(Applied::Internal);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let applied = decode(&snapshot)?;
        assert_eq!(&applied, meta);
        *self.applied.lock().unwrap() = (applied.last_log_id, applied.last_membership);
        let mut receiver = self.snapshots.receive(snapshot.id(), snapshot.length(), snapshot.digest())?;
        let bytes = snapshot.read_chunk(0, usize::MAX).await?;
        receiver.write(0, bytes).await.map_err(io::Error::other)?;
        receiver.finish().await.map_err(io::Error::other)?;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let newest = self.snapshots.open_newest(|_| false)?;
        newest.map(|snapshot| Ok(Snapshot { meta: decode(&snapshot)?, snapshot })).transpose()
    }
}

struct Builder {
    options: LogOptions,
}

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let store = LogStore::open(&dir.path().join("log"), self.options.clone()).unwrap();
        let snapshots = SnapshotStore::open(&dir.path().join("snapshots")).unwrap();
        Ok((dir, store, Machine { applied: Arc::default(), snapshots }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_conforms() {
    Suite::test_all(Builder { options: LogOptions::default() }).await.unwrap();
}

/// Each block in a database of its own, and nothing in memory that is durable.
#[tokio::test(flavor = "multi_thread")]
async fn the_store_conforms_with_tiny_databases_and_no_cache() {
    let options = LogOptions { database_bytes: 1, tail_cache_bytes: 0, ..LogOptions::default() };
    Suite::test_all(Builder { options }).await.unwrap();
}
