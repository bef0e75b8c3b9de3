//! Writing a snapshot.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::format::{self, CHUNK_BYTES, MAX_HEADER_BYTES};
use super::{SnapshotFile, SnapshotId, SnapshotStore};
use crate::storage::StorageError;
use crate::storage::files::failed;

/// Writes a snapshot's body. It exists for others only after [`SnapshotWriter::finish`]; dropped before, it leaves
/// nothing. Blocks: use it off the runtime.
pub struct SnapshotWriter {
    store: SnapshotStore,
    id: SnapshotId,
    temporary: Temporary,
    out: Hashed,
    buffer: Vec<u8>,
    body_bytes: u64,
}

impl SnapshotWriter {
    pub(super) fn create(
        store: SnapshotStore,
        id: SnapshotId,
        header: &[u8],
        path: PathBuf,
    ) -> Result<Self, StorageError> {
        if header.len() > MAX_HEADER_BYTES {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "the snapshot's header is too large");
            return Err(failed("write", &path)(source));
        }
        let file = File::create_new(&path).map_err(failed("create", &path))?;
        let temporary = Temporary(Some(path));
        let mut out = Hashed { file: BufWriter::new(file), hasher: blake3::Hasher::new() };
        out.write(&format::encode_start(id, header)).map_err(failed("write", temporary.path()))?;
        Ok(Self { store, id, temporary, out, buffer: Vec::with_capacity(CHUNK_BYTES), body_bytes: 0 })
    }

    /// Ends the file, makes it durable and gives it its name. Then the oldest snapshots are removed.
    ///
    /// # Errors
    /// If the disk refuses; then there is no new snapshot.
    pub fn finish(mut self) -> Result<SnapshotFile, StorageError> {
        let path = self.temporary.path().to_owned();
        self.write_chunk().map_err(failed("write", &path))?;
        let mut end = [0; 12];
        end[4..].copy_from_slice(&self.body_bytes.to_le_bytes());
        self.out.write(&end).map_err(failed("write", &path))?;
        let hash = self.out.hasher.finalize();
        let mut file = self.out.file;
        file.write_all(hash.as_bytes()).map_err(failed("write", &path))?;
        let file = file.into_inner().map_err(|error| failed("write", &path)(error.into_error()))?;
        file.sync_all().map_err(failed("fsync", &path))?;
        self.store.accept(self.id, &path)?;
        self.temporary.keep();
        self.store.open_snapshot(self.id)
    }

    fn write_chunk(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.out.write(&(self.buffer.len() as u32).to_le_bytes())?;
        self.out.write(&format::crc(&self.buffer).to_le_bytes())?;
        self.out.write(&self.buffer)?;
        self.body_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Write for SnapshotWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK_BYTES {
            self.write_chunk()?;
        }
        Ok(taken)
    }

    /// Does nothing: only a finished snapshot means anything.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Hashed {
    file: BufWriter<File>,
    hasher: blake3::Hasher,
}

impl Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }
}

/// A file that goes away unless it is kept.
pub(super) struct Temporary(pub(super) Option<PathBuf>);

impl Temporary {
    fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    fn keep(&mut self) {
        self.0 = None;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            // The next start removes it.
            tracing::warn!(path = %path.display(), %error, "cannot remove an unfinished snapshot");
        }
    }
}
