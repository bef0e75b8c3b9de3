//! Sending a snapshot: the file's very bytes, from where the receiver's copy ends.

use std::time::Duration;

use bytes::Bytes;
use openraft::RPCTypes;
use openraft::StorageError;
use openraft::alias::SnapshotOf;
use openraft::errors::{ErrorSource, RPCError, StreamingError};
use openraft::impls::BoxedErrorSource;
use openraft::raft::SnapshotResponse;
use sandkeeper_proto::internal::{SnapshotChunk, SnapshotOffsetRequest};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use super::PeerLink;
use crate::raft::codec;
use crate::raft::transfer::{Announcement, TransferHead};
use crate::raft::types::{TypeConfig, Vote};
use crate::storage::describe;
use crate::storage::snapshot::SnapshotFile;

/// Bytes in one message.
const CHUNK_BYTES: usize = 1024 * 1024;
/// Messages that wait for the connection.
const QUEUE: usize = 2;
/// A receiver that takes no message for this long is given up. It writes each to its disk first.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the receiver may take to verify and load what it got: some hundred bytes of a million records at the
/// speed of a slow disk, several times over.
const INSTALL_TIMEOUT: Duration = Duration::from_mins(10);

type Outcome = Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>>;

pub(super) async fn send(
    link: &PeerLink,
    vote: Vote,
    snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
    limit: Duration,
) -> Outcome {
    let file = snapshot.snapshot;
    let announcement = Announcement { meta: snapshot.meta, length: file.length(), digest: file.digest() };
    let mut client = link.peers.separate_client(&link.address(), link.target).map_err(|error| {
        StreamingError::from(RPCError::from(openraft::errors::Unreachable::from_string(error)))
    })?;
    let ask = client.snapshot_offset(SnapshotOffsetRequest { meta: codec::encode(&announcement) });
    let offset = timeout(limit, ask)
        .await
        .map_err(|_| link.timed_out(RPCTypes::InstallSnapshot, limit))?
        .map_err(|status| link.failed(&status))?
        .into_inner()
        .offset;
    tracing::info!(peer = link.address(), bytes = file.length(), offset, "sending a snapshot");

    let (chunks, queue) = mpsc::channel(QUEUE);
    let head = codec::encode(&TransferHead { vote, announcement });
    let install = client.install_snapshot(ReceiverStream::new(queue));
    let feed = feed(link, &file, head, offset, chunks);
    tokio::pin!(install, feed);
    let answer = tokio::select! {
        // Before all is sent only a refusal comes.
        answer = &mut install => answer,
        fed = &mut feed => {
            fed?;
            timeout(INSTALL_TIMEOUT, install)
                .await
                .map_err(|_| link.timed_out(RPCTypes::InstallSnapshot, INSTALL_TIMEOUT))?
        }
    };
    let payload = answer.map_err(|status| link.failed(&status))?.into_inner().payload;
    codec::decode(&payload).map_err(|error| link.unreadable(&error).into())
}

/// Hands the file's bytes to the connection. Ends early, and without an error, when the receiver has: it says why.
async fn feed(
    link: &PeerLink,
    file: &SnapshotFile,
    head: Bytes,
    mut offset: u64,
    chunks: mpsc::Sender<SnapshotChunk>,
) -> Result<(), StreamingError<TypeConfig>> {
    let mut head = Some(head);
    loop {
        let data = file.read_chunk(offset, CHUNK_BYTES).await.map_err(|error| {
            let source = BoxedErrorSource::from_string(describe(&error));
            StorageError::<TypeConfig>::read_snapshot(None, source)
        })?;
        let next = offset + data.len() as u64;
        let last = next >= file.length();
        let chunk = SnapshotChunk { head: head.take().unwrap_or_default(), offset, data, last };
        match timeout(STALL_TIMEOUT, chunks.send(chunk)).await {
            Err(_) => return Err(link.timed_out(RPCTypes::InstallSnapshot, STALL_TIMEOUT).into()),
            Ok(Err(_)) => return Ok(()),
            Ok(Ok(())) if last => return Ok(()),
            Ok(Ok(())) => offset = next,
        }
    }
}
