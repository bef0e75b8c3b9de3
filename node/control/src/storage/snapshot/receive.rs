//! Receiving a snapshot from a peer.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::{SnapshotFile, SnapshotId, SnapshotStore};
use crate::storage::StorageError;
use crate::storage::files::failed;

/// Why a chunk, or the whole, was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The sender must go on at another offset (a chunk was lost or repeated).
    #[error("a chunk at {offset} came, and the one at {expected} is wanted")]
    WrongOffset {
        /// Where the chunk began.
        offset: u64,
        /// Where the next one must begin.
        expected: u64,
    },
    /// More came than was announced.
    #[error("the snapshot has {length} bytes, and a chunk goes beyond that")]
    TooLong {
        /// What was announced.
        length: u64,
    },
    /// It was ended too early.
    #[error("only {received} of {length} bytes have come")]
    Incomplete {
        /// What has come.
        received: u64,
        /// What was announced.
        length: u64,
    },
    /// Another transfer has begun, and this one must end.
    #[error("another transfer of a snapshot has begun")]
    Superseded,
    /// What came is not the snapshot that was announced. It was thrown away; the sender may begin again.
    #[error("the snapshot was damaged on the way, or was never sound: {what}")]
    Damaged {
        /// What is wrong.
        what: String,
    },
    /// The disk of this node failed.
    #[error("the snapshot cannot be stored")]
    Fault(#[from] StorageError),
}

/// Takes a snapshot's bytes, in order, into a temporary file. If the transfer breaks off, the next receiver of the
/// same file goes on where this one ended. Its work on the disk is done off the runtime.
#[derive(Debug)]
pub struct SnapshotReceiver {
    inner: Arc<Inner>,
    offset: u64,
}

#[derive(Debug)]
struct Inner {
    store: SnapshotStore,
    path: PathBuf,
    file: File,
    id: SnapshotId,
    length: u64,
    digest: [u8; 32],
    number: u64,
    /// The number of the receiver that may write.
    newest: Arc<Mutex<u64>>,
}

impl SnapshotReceiver {
    pub(super) fn open(
        store: SnapshotStore,
        path: PathBuf,
        id: SnapshotId,
        length: u64,
        digest: [u8; 32],
        (number, newest): (u64, Arc<Mutex<u64>>),
    ) -> Result<Self, StorageError> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(failed("open", &path))?;
        let offset = file.metadata().map_err(failed("read the length of", &path))?.len();
        let inner = Inner { store, path, file, id, length, digest, number, newest };
        Ok(Self { inner: Arc::new(inner), offset })
    }

    /// From where on the sender must send.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the chunk that begins at `offset`.
    ///
    /// # Errors
    /// See [`ReceiveError`]; after [`ReceiveError::WrongOffset`] the transfer can go on.
    pub async fn write(&mut self, offset: u64, chunk: Bytes) -> Result<(), ReceiveError> {
        if offset != self.offset {
            return Err(ReceiveError::WrongOffset { offset, expected: self.offset });
        }
        let end = offset + chunk.len() as u64;
        if end > self.inner.length {
            return Err(ReceiveError::TooLong { length: self.inner.length });
        }
        let inner = Arc::clone(&self.inner);
        self.blocking(move || inner.write(offset, &chunk)).await?;
        self.offset = end;
        Ok(())
    }

    /// Verifies what came: every checksum, the hash, and that it is the file that was announced. Only then it becomes
    /// a snapshot of this node.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub async fn finish(self) -> Result<SnapshotFile, ReceiveError> {
        let (received, length) = (self.offset, self.inner.length);
        if received != length {
            return Err(ReceiveError::Incomplete { received, length });
        }
        let inner = Arc::clone(&self.inner);
        self.blocking(move || inner.finish()).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ReceiveError> + Send + 'static,
    ) -> Result<T, ReceiveError> {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => Err(failed("write", &self.inner.path)(io::Error::other(error)).into()),
        }
    }
}

impl Inner {
    fn write(&self, offset: u64, chunk: &[u8]) -> Result<(), ReceiveError> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if *newest != self.number {
            return Err(ReceiveError::Superseded);
        }
        Ok(self.file.write_all_at(chunk, offset).map_err(failed("write", &self.path))?)
    }

    fn finish(&self) -> Result<SnapshotFile, ReceiveError> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if *newest != self.number {
            return Err(ReceiveError::Superseded);
        }
        if let Err(error) = self.verify() {
            std::fs::remove_file(&self.path).map_err(failed("remove", &self.path))?;
            return Err(error);
        }
        self.file.sync_all().map_err(failed("fsync", &self.path))?;
        self.store.accept(self.id, &self.path)?;
        Ok(self.store.open_snapshot(self.id)?)
    }

    fn verify(&self) -> Result<(), ReceiveError> {
        let file = SnapshotFile::open(&self.path).and_then(|file| file.verify().map(|()| file));
        let file = match file {
            Ok(file) => file,
            Err(fault @ StorageError::Io { .. }) => return Err(fault.into()),
            Err(error) => return Err(ReceiveError::Damaged { what: error.to_string() }),
        };
        if file.id() == self.id && file.digest() == self.digest {
            return Ok(());
        }
        Err(ReceiveError::Damaged { what: "it is another one than was announced".to_owned() })
    }
}
