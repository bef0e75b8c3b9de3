//! Where the blocks of a sealed database stand in its file, so that a few of them are read without opening it: for that
//! sled takes 30 to 130 ms, and 5 MiB of memory.
//!
//! sled writes a value in one piece, as it is. So the places are found by looking through the file for blocks, and one
//! counts if its checksum is right and it is the very block that sled gives for its key. They are derived: the file
//! `places` in the database's folder may be missing, or wrong; a block that is not where it says is read through sled, and
//! the file is made again. It is made only of what is committed, which is never truncated or written again.
//!
//! ```text
//!  0  4  "SKLP"
//!  4  1  format version: 1
//!  5  3  0
//!  8  …  for each block, in the order of the keys, 24 bytes: index of its first entry (8), number of the part (2), 0 (2),
//!        where it begins in `db` (8), its length (4); little-endian
//! ```

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::{BufMut as _, BytesMut};

use super::block::{self, Block, Kind, MAX_VALUE_BYTES};
use super::database::{Database, Want};
use crate::raft::types::LogEntry;
use crate::storage::StorageError;
use crate::storage::files::{failed, sync_folder, write_atomically};

const NAME: &str = "places";
const MAGIC: [u8; 8] = *b"SKLP\x01\0\0\0";
const RECORD_BYTES: usize = 24;
/// How much of the file is looked through at a time.
const PIECE_BYTES: usize = 4 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    first: u64,
    part: u16,
    offset: u64,
    length: u32,
}

/// Whether a database's folder has places.
pub(super) fn exist(dir: &Path) -> bool {
    dir.join(NAME).exists()
}

/// Removes them, durably.
pub(super) fn remove(dir: &Path) -> Result<(), StorageError> {
    let path = dir.join(NAME);
    if path.exists() {
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        sync_folder(dir)?;
    }
    Ok(())
}

/// Finds the places of all blocks of a database, and writes them down.
pub(super) fn find(database: &Database, dir: &Path) -> Result<(), StorageError> {
    let mut blocks = HashMap::new();
    database.for_each_block(|key, value| {
        blocks.insert(key.to_vec(), (value.len(), block::recorded_checksum(value), None));
    })?;
    let data = dir.join("db");
    let mut file = File::open(&data).map_err(failed("open", &data))?;
    let (mut piece, mut begins) = (Vec::new(), 0);
    loop {
        let read = Read::by_ref(&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece);
        if read.map_err(failed("read", &data))? == 0 {
            break;
        }
        look_through(&piece, begins, &mut blocks);
        // A block may stand across the border.
        let drop = piece.len().saturating_sub(MAX_VALUE_BYTES);
        piece.drain(..drop);
        begins += drop as u64;
    }
    let mut places: Vec<Place> = blocks
        .into_iter()
        .filter_map(|(key, (length, _, offset))| {
            let (first, part) = block::parse_key(&key)?;
            Some(Place { first, part, offset: offset?, length: length as u32 })
        })
        .collect();
    places.sort_unstable_by_key(|place| (place.first, place.part));
    write(dir, &places)
}

/// Length, recorded checksum and, once it is found, place of each block.
type Blocks = HashMap<Vec<u8>, (usize, u32, Option<u64>)>;

/// Notes the places of the blocks in a piece of the file that begins at `begins`.
fn look_through(piece: &[u8], begins: u64, blocks: &mut Blocks) {
    let mut at = 0;
    while let Some(found) = piece[at..].iter().position(|byte| *byte == block::MAGIC[0]) {
        at += found;
        if let Some(key) = block::key_in(&piece[at..])
            && let Some((length, checksum, place)) = blocks.get_mut(&key)
            && let Some(bytes) = piece.get(at..at + *length)
            && block::recorded_checksum(bytes) == *checksum
            && block::decode_header(&key, bytes).is_ok()
        {
            *place = Some(begins + at as u64);
            at += *length;
        } else {
            at += 1;
        }
    }
}

fn write(dir: &Path, places: &[Place]) -> Result<(), StorageError> {
    let mut bytes = MAGIC.to_vec();
    for place in places {
        bytes.put_u64_le(place.first);
        bytes.put_u16_le(place.part);
        bytes.put_u16_le(0);
        bytes.put_u64_le(place.offset);
        bytes.put_u32_le(place.length);
    }
    write_atomically(&dir.join(NAME), &bytes)
}

/// The places of one database, open for reading.
pub(super) struct Places {
    records: File,
    data: File,
    count: u64,
}

impl Places {
    /// `None` if there are none.
    pub(super) fn open(dir: &Path) -> Option<Self> {
        let places = File::open(dir.join(NAME)).ok()?;
        let data = File::open(dir.join("db")).ok()?;
        let mut magic = [0; MAGIC.len()];
        places.read_exact_at(&mut magic, 0).ok()?;
        let count = (places.metadata().ok()?.len() - MAGIC.len() as u64) / RECORD_BYTES as u64;
        (magic == MAGIC).then_some(Self { records: places, data, count })
    }

    /// How many blocks there are, each found where it should be.
    ///
    /// # Errors
    /// With what is wrong first.
    pub(super) fn check(dir: &Path) -> Result<u64, String> {
        let places = Self::open(dir).ok_or("it can't be read, or does not begin as it must")?;
        let length = places.records.metadata().map_err(|error| error.to_string())?.len();
        if length != (MAGIC.len() + RECORD_BYTES * places.count as usize) as u64 {
            return Err(format!("it has {length} bytes: it is cut off"));
        }
        let mut before = None;
        for at in 0..places.count {
            let block = places.block(at).map_err(|error| format!("record {at}: {error}"))?;
            let key = Some((block.header.first, block.header.part));
            if key <= before {
                return Err(format!("record {at} is out of order"));
            }
            before = key;
        }
        Ok(places.count)
    }

    /// Reads what is wanted, as far as the places lead; what is not found here is read through sled.
    ///
    /// # Errors
    /// If a block is not where it should be.
    pub(super) fn read(&self, want: &mut Want, out: &mut Vec<LogEntry>) -> io::Result<()> {
        let Some(mut at) = self.at_or_before(want.next)? else { return Ok(()) };
        while at < self.count && !want.is_satisfied() {
            let block = self.block(at)?;
            if block.header.first > want.next || block.last() < want.next {
                return Ok(());
            }
            let (entries, next) = match block.header.kind {
                Kind::Whole => (block.entries().map_err(wrong)?, at + 1),
                Kind::Part => (vec![self.in_parts(at, &block)?], at + u64::from(block.header.count)),
            };
            for entry in entries {
                if entry.log_id.index >= want.next && !want.is_satisfied() {
                    want.take(entry, out).map_err(wrong)?;
                }
            }
            at = next;
        }
        Ok(())
    }

    fn in_parts(&self, at: u64, head: &Block) -> io::Result<LogEntry> {
        let mut bytes = BytesMut::new();
        for part in 0..head.header.count {
            let piece = self.block(at + u64::from(part))?;
            let belongs = piece.header.kind == Kind::Part
                && (piece.header.first, piece.header.part) == (head.header.first, part);
            if !belongs {
                return Err(wrong("another block stands there"));
            }
            bytes.extend_from_slice(piece.body());
        }
        block::decode_entry(head.header.first, bytes.freeze()).map_err(wrong)
    }

    /// The last block that begins at or before an entry, and is no later part.
    fn at_or_before(&self, index: u64) -> io::Result<Option<u64>> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let place = self.place(middle)?;
            if (place.first, place.part) <= (index, 0) { low = middle + 1 } else { high = middle }
        }
        Ok(low.checked_sub(1))
    }

    fn place(&self, at: u64) -> io::Result<Place> {
        let mut record = [0; RECORD_BYTES];
        self.records.read_exact_at(&mut record, MAGIC.len() as u64 + at * RECORD_BYTES as u64)?;
        let u64_at = |at: usize| record[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Ok(Place {
            first: u64_at(0),
            part: u16::from_le_bytes([record[8], record[9]]),
            offset: u64_at(12),
            length: u32::from_le_bytes([record[20], record[21], record[22], record[23]]),
        })
    }

    fn block(&self, at: u64) -> io::Result<Block> {
        if at >= self.count {
            return Err(wrong("the places end before"));
        }
        let place = self.place(at)?;
        if place.length as usize > MAX_VALUE_BYTES {
            return Err(wrong("no block is so long"));
        }
        let mut value = vec![0; place.length as usize];
        self.data.read_exact_at(&mut value, place.offset)?;
        Block::decode(&block::key_of(place.first, place.part), &value).map_err(wrong)
    }
}

fn wrong(what: impl std::fmt::Debug) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As format 1 stands on the disk. It never changes: a new format gets another golden.
    const GOLDEN_1: [u8; 56] = *b"SKLP\x01\0\0\0\
        \x07\0\0\0\0\0\0\0\0\0\0\0\x00\x10\0\0\0\0\0\0\x2c\x01\0\0\
        \x08\0\0\0\0\0\0\0\x02\0\0\0\x2c\x11\0\0\x01\0\0\0\xc0\x5d\0\0";

    #[test]
    fn format_1_is_written_and_read_as_ever() {
        let dir = tempfile::tempdir().unwrap();
        let places = [
            Place { first: 7, part: 0, offset: 0x1000, length: 300 },
            Place { first: 8, part: 2, offset: 0x1_0000_112c, length: 24_000 },
        ];
        write(dir.path(), &places).unwrap();
        assert_eq!(fs::read(dir.path().join(NAME)).unwrap(), GOLDEN_1);
        File::create(dir.path().join("db")).unwrap();
        let read = Places::open(dir.path()).unwrap();
        let found = [read.place(0).unwrap(), read.place(1).unwrap()];
        assert_eq!((read.count, found), (2, places));
    }

    #[test]
    fn those_of_another_format_are_passed_over_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut newer = GOLDEN_1;
        newer[4] = 2;
        fs::write(dir.path().join(NAME), newer).unwrap();
        File::create(dir.path().join("db")).unwrap();
        assert!(Places::open(dir.path()).is_none());
    }
}
