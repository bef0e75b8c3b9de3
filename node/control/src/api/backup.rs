//! `Backup`: the newest snapshot of this node, made for it, as a stream.

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use sandkeeper_proto::v1;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::Api;
use super::call::Call;
use super::status::{fault, shutting_down};
use crate::raft::snapshots::SnapshotHeader;
use crate::storage::describe;
use crate::storage::snapshot::SnapshotFile;

/// The most bytes of a message: clients take 4 MiB, and this keeps many backups small in memory.
const CHUNK_BYTES: usize = 256 * 1024;

pub(super) type BackupStream = BoxStream<'static, Result<v1::BackupResponse, Status>>;

impl Api {
    /// A snapshot that contains everything that was acknowledged before the call.
    pub(super) async fn stream_backup(&self, call: Call) -> Result<BackupStream, Status> {
        let read = self.read(None, call.deadline).await?;
        self.unless_stopped(self.snapshot(call.deadline)).await??;
        let parts = self.parts();
        let file = parts.raft.newest_snapshot().ok_or_else(|| fault("the snapshot is not there"))?;
        let digests = SnapshotHeader::read(&file).map_err(|error| fault(&error.to_string()))?.digests();
        let header = v1::BackupHeader {
            cluster_id: read.state.cluster().map(|cluster| cluster.id.to_string()).unwrap_or_default(),
            revision: digests.revision,
            history_digest: digests.history.to_string(),
            state_digest: digests.state.to_string(),
            bytes: file.length(),
        };
        let first = v1::BackupResponse { header: Some(header), data: Vec::new() };
        Ok(stream::once(async { Ok(first) }).chain(bytes(file, parts.stop.clone())).boxed())
    }
}

/// The bytes of the file, to its end, or until the node stops.
fn bytes(file: SnapshotFile, stop: CancellationToken) -> BackupStream {
    let next = |state: Option<(SnapshotFile, u64, CancellationToken)>| async {
        let (file, offset, stop) = state?;
        match stop.run_until_cancelled(file.read_chunk(offset, CHUNK_BYTES)).await {
            None => Some((Err(shutting_down()), None)),
            Some(Err(error)) => Some((Err(fault(&describe(&error))), None)),
            Some(Ok(chunk)) if chunk.is_empty() => None,
            Some(Ok(chunk)) => {
                let end = offset + chunk.len() as u64;
                let message = v1::BackupResponse { header: None, data: chunk.into() };
                Some((Ok(message), Some((file, end, stop))))
            }
        }
    };
    stream::unfold(Some((file, 0, stop)), next).boxed()
}
