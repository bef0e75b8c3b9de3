//! A finished snapshot.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::SnapshotId;
use super::format::{self, CHUNK_BYTES, END_BYTES, FIXED_BYTES, Invalid};
use crate::storage::StorageError;
use crate::storage::files::failed;

/// A handle on a finished snapshot. It holds the file open, so it can be read to its end though the file be deleted
/// meanwhile. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    id: SnapshotId,
    length: u64,
    body_bytes: u64,
    digest: [u8; 32],
    header: Vec<u8>,
}

impl SnapshotFile {
    /// Opens a file and verifies its beginning and that it has an end. The body is verified when it is read.
    pub(crate) fn open(path: &Path) -> Result<Self, StorageError> {
        let file = File::open(path).map_err(failed("open", path))?;
        let length = file.metadata().map_err(failed("read the length of", path))?.len();
        let corrupt = |offset: u64, what: &str| StorageError::CorruptFile {
            path: path.to_owned(),
            offset,
            what: what.to_owned(),
        };
        if length < (FIXED_BYTES + END_BYTES) as u64 {
            return Err(corrupt(length, "it is cut off"));
        }
        let mut start = [0; FIXED_BYTES];
        file.read_exact_at(&mut start, 0).map_err(failed("read", path))?;
        let fixed = format::decode_fixed(&start).map_err(|e| invalid(path, 0, e))?;
        let end_at = length - END_BYTES as u64;
        if FIXED_BYTES as u64 + u64::from(fixed.header_bytes) > end_at {
            return Err(corrupt(length, "it is cut off"));
        }
        let mut header = vec![0; fixed.header_bytes as usize];
        file.read_exact_at(&mut header, FIXED_BYTES as u64).map_err(failed("read", path))?;
        format::check_header(&fixed, &start, &header).map_err(|e| invalid(path, FIXED_BYTES as u64, e))?;
        let mut end = [0; END_BYTES];
        file.read_exact_at(&mut end, end_at).map_err(failed("read", path))?;
        let (body_bytes, digest) = format::decode_end(&end).map_err(|e| invalid(path, end_at, e))?;
        let (path, id) = (path.to_owned(), fixed.id);
        Ok(Self { inner: Arc::new(Inner { path, file, id, length, body_bytes, digest, header }) })
    }

    /// The last log id that it includes.
    pub fn id(&self) -> SnapshotId {
        self.inner.id
    }

    /// Where it is, for messages: it may be deleted meanwhile.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The length of the whole file, bytes.
    pub fn length(&self) -> u64 {
        self.inner.length
    }

    /// What its maker gave as the header.
    pub fn header(&self) -> &[u8] {
        &self.inner.header
    }

    /// The hash that the file ends with. Two files with the same digest are the same, so a transfer may go on with
    /// another sender's.
    pub fn digest(&self) -> [u8; 32] {
        self.inner.digest
    }

    /// At most `max` bytes of the file from `offset` on, to be sent to a follower; empty at the end. Reads off the
    /// runtime.
    ///
    /// # Errors
    /// If the disk refuses.
    pub async fn read_chunk(&self, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        let this = self.clone();
        let read = tokio::task::spawn_blocking(move || this.read_chunk_blocking(offset, max));
        let aborted = || io::Error::other("the read was aborted");
        read.await.map_err(|_| failed("read", self.path())(aborted()))?
    }

    /// Like [`SnapshotFile::read_chunk`], on this thread.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn read_chunk_blocking(&self, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        let left = self.inner.length.saturating_sub(offset);
        let mut chunk = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(max)];
        self.inner.file.read_exact_at(&mut chunk, offset).map_err(failed("read", self.path()))?;
        Ok(chunk.into())
    }

    /// The body, verified as it is read. Only its end shows that all of it was right. Blocks.
    pub fn body(&self) -> SnapshotBody {
        let at = FileAt { file: self.clone(), offset: 0 };
        SnapshotBody {
            snapshot: self.clone(),
            input: BufReader::with_capacity(CHUNK_BYTES / 4, at),
            hasher: blake3::Hasher::new(),
            offset: 0,
            body_bytes: 0,
            ended: false,
            chunk: Vec::new(),
            taken: 0,
        }
    }

    /// Reads all of it and verifies every checksum and the hash. Blocks.
    ///
    /// # Errors
    /// [`StorageError::CorruptFile`] with the place of the first thing that is wrong.
    pub fn verify(&self) -> Result<(), StorageError> {
        let mut body = self.body();
        while body.next_chunk()?.is_some() {}
        Ok(())
    }
}

struct FileAt {
    file: SnapshotFile,
    offset: u64,
}

impl Read for FileAt {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.file.inner.file.read_at(out, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// Reads a snapshot's body: chunk by chunk, or as a stream of bytes ([`Read`]).
pub struct SnapshotBody {
    snapshot: SnapshotFile,
    input: BufReader<FileAt>,
    hasher: blake3::Hasher,
    offset: u64,
    body_bytes: u64,
    ended: bool,
    chunk: Vec<u8>,
    taken: usize,
}

impl SnapshotBody {
    /// The next chunk of at most 1 MiB; `None` at the end, when the whole file has been verified.
    ///
    /// # Errors
    /// [`StorageError::CorruptFile`] with the place of what is wrong, or the disk's refusal.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, StorageError> {
        if self.ended {
            return Ok(None);
        }
        if self.offset == 0 {
            // The header was verified when the file was opened; here it only counts for the hash.
            self.take(FIXED_BYTES + self.snapshot.header().len())?;
        }
        let begin = self.offset;
        let length = format::u32_at(&self.take(4)?, 0) as usize;
        if length == 0 {
            self.check_end(begin)?;
            self.ended = true;
            return Ok(None);
        }
        if length > CHUNK_BYTES {
            return Err(self.corrupt(begin, format!("a chunk can't have {length} bytes")));
        }
        let recorded = format::u32_at(&self.take(4)?, 0);
        let chunk = self.take(length)?;
        let actual = format::crc(&chunk);
        if actual != recorded {
            let what = format!("the checksum of a chunk is {actual:08x}, and {recorded:08x} is recorded");
            return Err(self.corrupt(begin, what));
        }
        self.body_bytes += length as u64;
        Ok(Some(chunk))
    }

    fn check_end(&mut self, begin: u64) -> Result<(), StorageError> {
        self.take(8)?;
        if begin + END_BYTES as u64 != self.snapshot.length() {
            return Err(self.corrupt(begin, "it ends before the end of the file"));
        }
        if self.body_bytes != self.snapshot.inner.body_bytes {
            let what = format!("the body has {} bytes, not as many as are recorded", self.body_bytes);
            return Err(self.corrupt(begin, what));
        }
        if self.hasher.finalize() != self.snapshot.digest() {
            return Err(self.corrupt(begin, "the hash of the file is wrong"));
        }
        Ok(())
    }

    /// Reads and hashes.
    fn take(&mut self, length: usize) -> Result<Vec<u8>, StorageError> {
        let mut bytes = vec![0; length];
        match self.input.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.corrupt(self.offset, "it is cut off"));
            }
            Err(error) => return Err(failed("read", self.snapshot.path())(error)),
        }
        self.hasher.update(&bytes);
        self.offset += length as u64;
        Ok(bytes)
    }

    fn corrupt(&self, offset: u64, what: impl Into<String>) -> StorageError {
        StorageError::CorruptFile { path: self.snapshot.path().to_owned(), offset, what: what.into() }
    }
}

impl Read for SnapshotBody {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.chunk.len() {
            self.chunk = self.next_chunk()?.unwrap_or_default();
            self.taken = 0;
        }
        let mut rest = &self.chunk[self.taken..];
        let read = rest.read(out)?;
        self.taken += read;
        Ok(read)
    }
}

fn invalid(path: &Path, offset: u64, invalid: Invalid) -> StorageError {
    let path = path.to_owned();
    match invalid {
        Invalid::Corrupt(what) => StorageError::CorruptFile { path, offset, what },
        Invalid::Newer(found) => {
            StorageError::NewerFormat { path, found: found.into(), supported: format::VERSION.into() }
        }
    }
}
