//! A section of the index: in memory while it grows, then a file that is read in place.
//!
//! ```text
//!  0  4  "SKHX"
//!  4  1  format version: 1
//!  5  1  how many bits of a key say its bucket
//!  6  2  0
//!  8  8  revision of its first event, 16 8 of its last one
//! 24  8  index of its first log entry
//! 32  4  CRC-32 of the bytes before
//! 36  …  for each bucket, and for the end: where it begins, from the start of the file (4 bytes)
//!     …  the buckets: CRC-32 of its number (4 bytes) and the rest; then, for each key, in order: the key (8 bytes), how many
//!        places, and each place: its revision and its index, less those of the place before (at first, less the section's)
//! ```
//!
//! Numbers are little-endian; counts and places are varints.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::{Buf as _, BufMut as _};
use prost::encoding::{decode_varint, encode_varint};
use sandkeeper_statemachine::Revision;

use super::key::Key;
use super::{Place, SECTION_EVENTS};
use crate::history::AppliedEntry;
use crate::storage::files::failed;
use crate::storage::{StorageError, describe};

const MAGIC: [u8; 4] = *b"SKHX";
const FORMAT_VERSION: u8 = 1;
const HEAD_BYTES: usize = 36;
/// Places in a bucket, about: some hundred bytes, read at once.
const BUCKET_PLACES: usize = 64;
/// Of a key, that say its bucket: far more than a section's places make.
const MAX_BITS: u8 = 24;
/// A bucket is never longer: the places of the whole section.
const MAX_BUCKET_BYTES: u32 = 16 << 20;

/// Why a section can't be used.
#[derive(Debug)]
pub(super) enum Corrupt {
    /// It is not what was written. It is built again.
    Damaged(String),
    /// The disk refuses.
    Fault(StorageError),
}

impl From<StorageError> for Corrupt {
    fn from(fault: StorageError) -> Self {
        Self::Fault(fault)
    }
}

fn damaged(what: impl Into<String>) -> Corrupt {
    Corrupt::Damaged(what.into())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    key: Key,
    /// Less the section's first.
    revision: u32,
    index: u32,
}

/// A section that grows.
#[derive(Clone)]
pub(super) struct Open {
    from: Revision,
    next: Revision,
    first_index: u64,
    entries: Vec<Entry>,
}

impl Open {
    /// An empty one, that begins with an entry.
    pub(super) fn new(first: &AppliedEntry) -> Self {
        let from = first.first_revision;
        Self { from, next: from, first_index: first.index, entries: Vec::new() }
    }

    pub(super) fn from(&self) -> Revision {
        self.from
    }

    /// The revision that comes next.
    pub(super) fn next(&self) -> Revision {
        self.next
    }

    pub(super) fn covers(&self, revision: Revision) -> bool {
        (self.from..self.next).contains(&revision)
    }

    /// Whether it has as much as a section is to have (or as its numbers bear).
    pub(super) fn is_full(&self, index: u64) -> bool {
        self.next - self.from >= SECTION_EVENTS || index - self.first_index > u64::from(u32::MAX)
    }

    /// Adds the events of the entry that follows, from the one on that comes next.
    pub(super) fn add(&mut self, applied: &AppliedEntry) {
        let index = (applied.index - self.first_index) as u32;
        for (revision, event) in (applied.first_revision..).zip(&applied.entry.events) {
            if revision >= self.next {
                let revision = (revision - self.from) as u32;
                self.entries.extend(Key::of_event(event).map(|key| Entry { key, revision, index }));
            }
        }
        self.next = applied.last_revision() + 1;
    }

    /// Adds the places of a key up to a revision, newest first.
    pub(super) fn places(&self, key: Key, upto: Revision, out: &mut Vec<Place>) {
        let of_key = self.entries.iter().rev().filter(|entry| entry.key == key);
        let places = of_key.map(|entry| Place {
            revision: self.from + u64::from(entry.revision),
            index: self.first_index + u64::from(entry.index),
        });
        out.extend(places.filter(|place| place.revision <= upto));
    }

    /// Writes it to a file. Not fsynced: what a power cut leaves of it has wrong checksums, and is built again.
    pub(super) fn write(&self, folder: &Path) -> Result<Section, StorageError> {
        let path = folder.join(format!("section-{:020}", self.from));
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary).map_err(failed("create", &temporary))?;
        let (bits, bytes) = self.encode();
        file.write_all(&bytes).map_err(failed("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(failed("rename a new file to", &path))?;
        let file = File::open(&path).map_err(failed("open", &path))?;
        Ok(Section { path, file, from: self.from, to: self.next - 1, first_index: self.first_index, bits })
    }

    fn encode(&self) -> (u8, Vec<u8>) {
        let mut entries = self.entries.clone();
        entries.sort_unstable();
        let bits = (entries.len() / BUCKET_PLACES).max(1).ilog2() as u8;
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[FORMAT_VERSION, bits, 0, 0]);
        out.put_u64_le(self.from);
        out.put_u64_le(self.next - 1);
        out.put_u64_le(self.first_index);
        out.put_u32_le(crc32fast::hash(&out));
        let buckets = 1_usize << bits;
        let directory = out.len();
        out.resize(directory + 4 * (buckets + 1), 0);
        let mut rest = &entries[..];
        for bucket in 0..=buckets {
            let begin = out.len();
            out[directory + 4 * bucket..][..4].copy_from_slice(&(begin as u32).to_le_bytes());
            let count = rest.partition_point(|entry| bucket_of(entry.key, bits) <= bucket);
            if bucket < buckets {
                out.put_u32_le(0);
                put_places(&rest[..count], &mut out);
                let crc = checksum(bucket, &out[begin + 4..]);
                out[begin..begin + 4].copy_from_slice(&crc.to_le_bytes());
                rest = &rest[count..];
            }
        }
        (bits, out)
    }
}

fn bucket_of(key: Key, bits: u8) -> usize {
    key.0.checked_shr(64 - u32::from(bits)).unwrap_or(0) as usize
}

fn put_places(entries: &[Entry], out: &mut Vec<u8>) {
    for of_key in entries.chunk_by(|a, b| a.key == b.key) {
        out.put_u64_le(of_key[0].key.0);
        encode_varint(of_key.len() as u64, out);
        let (mut revision, mut index) = (0, 0);
        for entry in of_key {
            encode_varint(u64::from(entry.revision - revision), out);
            encode_varint(u64::from(entry.index - index), out);
            (revision, index) = (entry.revision, entry.index);
        }
    }
}

fn checksum(bucket: usize, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&(bucket as u32).to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// A section on the disk. Holds its file open: 16 of them for a million events.
pub(super) struct Section {
    path: PathBuf,
    file: File,
    /// The revision of its first event.
    pub(super) from: Revision,
    /// The revision of its last event.
    pub(super) to: Revision,
    first_index: u64,
    bits: u8,
}

impl Section {
    /// Reads what a file says of itself.
    pub(super) fn open(path: &Path) -> Result<Self, Corrupt> {
        let file = File::open(path).map_err(failed("open", path))?;
        let mut head = [0; HEAD_BYTES];
        read_at(&file, path, &mut head, 0)?;
        let u64_at = |at: usize| head[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let crc = u32::from_le_bytes([head[32], head[33], head[34], head[35]]);
        if head[..4] != MAGIC || head[4] != FORMAT_VERSION || crc != crc32fast::hash(&head[..32]) {
            return Err(damaged("its head is not one of this version"));
        }
        if head[5] > MAX_BITS {
            return Err(damaged("it can't have so many buckets"));
        }
        let (from, to, first_index) = (u64_at(8), u64_at(16), u64_at(24));
        Ok(Self { path: path.to_owned(), file, from, to, first_index, bits: head[5] })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The places of a key up to a revision, newest first.
    pub(super) fn places(&self, key: Key, upto: Revision) -> Result<Vec<Place>, Corrupt> {
        let bucket = bucket_of(key, self.bits);
        let (_, bytes) = self.bucket(bucket)?;
        let places = self
            .find(Some(key), &bytes[4..])
            .ok_or_else(|| damaged(format!("bucket {bucket} is cut off")))?;
        Ok(places.into_iter().rev().filter(|place| place.revision <= upto).collect())
    }

    /// Where a bucket begins, and its bytes, checksum and all, verified.
    fn bucket(&self, bucket: usize) -> Result<(u64, Vec<u8>), Corrupt> {
        let mut ends = [0; 8];
        read_at(&self.file, &self.path, &mut ends, (HEAD_BYTES + 4 * bucket) as u64)?;
        let (begin, end) = ((&ends[..4]).get_u32_le(), (&ends[4..]).get_u32_le());
        let length = end.checked_sub(begin).filter(|length| (4..=MAX_BUCKET_BYTES).contains(length));
        let length = length.ok_or_else(|| damaged(format!("bucket {bucket} has no possible length")))?;
        let mut bytes = vec![0; length as usize];
        read_at(&self.file, &self.path, &mut bytes, begin.into())?;
        if (&bytes[..4]).get_u32_le() != checksum(bucket, &bytes[4..]) {
            return Err(damaged(format!("the checksum of bucket {bucket} is wrong")));
        }
        Ok((begin.into(), bytes))
    }

    /// How many places there are, in buckets that are all sound and fill the file.
    fn check(&self) -> Result<u64, Corrupt> {
        let buckets = 1_u64 << self.bits;
        let mut keys = 0;
        let mut expected = HEAD_BYTES as u64 + 4 * (buckets + 1);
        for bucket in 0..buckets as usize {
            let (begin, bytes) = self.bucket(bucket)?;
            if begin != expected {
                return Err(damaged(format!(
                    "bucket {bucket} begins at {begin}, and the one before ends at {expected}"
                )));
            }
            expected += bytes.len() as u64;
            let found =
                self.find(None, &bytes[4..]).ok_or_else(|| damaged(format!("bucket {bucket} is cut off")))?;
            keys += found.len() as u64;
        }
        let length = self.file.metadata().map_err(failed("read the length of", &self.path))?.len();
        if length == expected {
            Ok(keys)
        } else {
            Err(damaged(format!("it has {length} bytes, not {expected}")))
        }
    }

    /// The places of a key (or of all) in a bucket, oldest first; `None` if the bucket ends within something.
    fn find(&self, key: Option<Key>, mut bucket: &[u8]) -> Option<Vec<Place>> {
        let mut found = Vec::new();
        while !bucket.is_empty() {
            let this = bucket.try_get_u64_le().ok()?;
            let count = decode_varint(&mut bucket).ok()?;
            let (mut revision, mut index) = (self.from, self.first_index);
            for _ in 0..count {
                revision = decode_varint(&mut bucket).ok()?.checked_add(revision)?;
                index = decode_varint(&mut bucket).ok()?.checked_add(index)?;
                if key.is_none_or(|key| this == key.0) {
                    found.push(Place { revision, index });
                }
            }
        }
        Some(found)
    }
}

/// How many places a file has, if all of it is sound; else what is wrong.
pub(crate) fn check(path: &Path) -> Result<u64, String> {
    Section::open(path).and_then(|section| section.check()).map_err(|corrupt| match corrupt {
        Corrupt::Damaged(what) => what,
        Corrupt::Fault(fault) => describe(&fault),
    })
}

/// Reads exactly so much; a file that ends before is damaged.
fn read_at(file: &File, path: &Path, bytes: &mut [u8], offset: u64) -> Result<(), Corrupt> {
    match file.read_exact_at(bytes, offset) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(damaged("it is cut off")),
        read => Ok(read.map_err(failed("read", path))?),
    }
}
