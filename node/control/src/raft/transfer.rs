//! Receiving a snapshot, and what the two ends of a transfer tell each other.

use std::time::Duration;

use sandkeeper_proto::internal::SnapshotChunk;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::codec;
use super::snapshots::SnapshotHeader;
use super::types::{LogId, Snapshot, SnapshotMeta, Vote};
use crate::storage::snapshot::{ReceiveError, SnapshotReceiver, SnapshotStore};
use crate::storage::{StorageError, describe};

/// A sender that sends nothing for this long is given up. It may come again, and goes on where it ended.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// Which file is going to come. Two files with the same digest are the same, so another sender of it may go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Announcement {
    pub(super) meta: SnapshotMeta,
    pub(super) length: u64,
    pub(super) digest: [u8; 32],
}

/// What stands in the first chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TransferHead {
    pub(super) vote: Vote,
    pub(super) announcement: Announcement,
}

/// Why a snapshot was not received.
#[derive(Debug)]
pub(super) enum TransferError {
    /// The sender is told, and nothing else happens.
    Refused(Status),
    /// This node's disk failed.
    Fault(StorageError),
}

impl From<Status> for TransferError {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

impl From<StorageError> for TransferError {
    fn from(fault: StorageError) -> Self {
        Self::Fault(fault)
    }
}

impl From<ReceiveError> for TransferError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Fault(fault) => Self::Fault(fault),
            damaged @ ReceiveError::Damaged { .. } => Self::Refused(Status::data_loss(damaged.to_string())),
            other => Self::Refused(Status::aborted(other.to_string())),
        }
    }
}

/// Begins to receive, or goes on.
pub(super) async fn begin(
    store: &SnapshotStore,
    announcement: &Announcement,
) -> Result<SnapshotReceiver, TransferError> {
    let last = last_log_id(&announcement.meta)?;
    let (store, length, digest) = (store.clone(), announcement.length, announcement.digest);
    match spawn_blocking(move || store.receive(last.into(), length, digest)).await {
        Ok(receiver) => Ok(receiver?),
        Err(stopped) => Err(Status::unavailable(stopped.to_string()).into()),
    }
}

fn last_log_id(meta: &SnapshotMeta) -> Result<LogId, Status> {
    meta.last_log_id.ok_or_else(|| Status::invalid_argument("a snapshot of nothing"))
}

/// Receives a whole snapshot. It is verified, and stored under its name, when this returns.
pub(super) async fn receive(
    store: &SnapshotStore,
    mut chunks: Streaming<SnapshotChunk>,
) -> Result<(Vote, Snapshot), TransferError> {
    let mut chunk = next(&mut chunks).await?;
    let head: TransferHead =
        codec::decode(&chunk.head).map_err(|error| Status::invalid_argument(error.to_string()))?;
    check(&head)?;
    let mut receiver = begin(store, &head.announcement).await?;
    loop {
        receiver.write(chunk.offset, chunk.data).await?;
        if chunk.last {
            break;
        }
        chunk = next(&mut chunks).await?;
    }
    let snapshot = receiver.finish().await?;
    let meta = SnapshotHeader::read(&snapshot).map_err(|error| Status::data_loss(describe(&error)))?.meta;
    if meta != head.announcement.meta {
        return Err(Status::data_loss("the snapshot's header is not what was announced").into());
    }
    Ok((head.vote, Snapshot { meta, snapshot }))
}

/// openraft takes these for granted, and panics if they are wrong.
fn check(head: &TransferHead) -> Result<(), Status> {
    let last = last_log_id(&head.announcement.meta)?;
    if !head.vote.committed || head.vote.leader_id.term < last.committed_leader_id().term {
        return Err(Status::invalid_argument("a snapshot that its sender can't have made as a leader"));
    }
    Ok(())
}

async fn next(chunks: &mut Streaming<SnapshotChunk>) -> Result<SnapshotChunk, Status> {
    match timeout(IDLE_TIMEOUT, chunks.message()).await {
        Ok(Ok(Some(chunk))) => Ok(chunk),
        Ok(Ok(None)) => Err(Status::aborted("the snapshot ended before its last chunk")),
        Ok(Err(status)) => Err(status),
        Err(_) => Err(Status::deadline_exceeded("no chunk of the snapshot came for a minute")),
    }
}
