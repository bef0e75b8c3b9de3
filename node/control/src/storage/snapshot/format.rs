//! The form of a snapshot file. All numbers are little-endian.
//!
//! ```text
//!  0  6  "SKSNAP"
//!  6  2  format version: 1
//!  8 16  index and term of the last log id that it includes (the file's name repeats them)
//! 24  4  length of the header
//! 28  4  CRC-32 of all before it, and the header
//! 32  …  the header
//!        chunks of the body: 4 bytes length (1 to 1 MiB), 4 bytes CRC-32, the bytes
//!        the end: 4 bytes 0, 8 bytes length of the body, 32 bytes BLAKE3 of the file up to here
//! ```

use super::SnapshotId;

/// The format version that is written, and the newest that can be read.
pub(super) const VERSION: u16 = 1;
/// The largest chunk of a body.
pub const CHUNK_BYTES: usize = 1 << 20;
/// The largest header. It holds a membership and a few numbers and digests.
pub const MAX_HEADER_BYTES: usize = 16 << 20;
/// Bytes before the header.
pub(super) const FIXED_BYTES: usize = 32;
/// Bytes of the end.
pub(super) const END_BYTES: usize = 4 + 8 + 32;

const MAGIC: [u8; 6] = *b"SKSNAP";

/// What the fixed bytes say.
pub(super) struct Fixed {
    pub id: SnapshotId,
    pub header_bytes: u32,
    crc: u32,
}

/// Why a file is not a snapshot.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    /// A later version of this program wrote it.
    Newer(u16),
    /// It is not what was written.
    Corrupt(String),
}

/// The beginning of a file: fixed bytes and header.
pub(super) fn encode_start(id: SnapshotId, header: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FIXED_BYTES + header.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&id.index.to_le_bytes());
    bytes.extend_from_slice(&id.term.to_le_bytes());
    bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
    let crc = start_crc(&bytes, header);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(header);
    bytes
}

/// Reads the fixed bytes.
pub(super) fn decode_fixed(bytes: &[u8; FIXED_BYTES]) -> Result<Fixed, Invalid> {
    if bytes[..6] != MAGIC {
        return Err(Invalid::Corrupt("it does not begin with the magic bytes of a snapshot".to_owned()));
    }
    let version = u16::from_le_bytes([bytes[6], bytes[7]]);
    if version > VERSION {
        return Err(Invalid::Newer(version));
    }
    let header_bytes = u32_at(bytes, 24);
    if header_bytes as usize > MAX_HEADER_BYTES {
        return Err(Invalid::Corrupt(format!("its header can't have {header_bytes} bytes")));
    }
    let id = SnapshotId { index: u64_at(bytes, 8), term: u64_at(bytes, 16) };
    Ok(Fixed { id, header_bytes, crc: u32_at(bytes, 28) })
}

/// Verifies the header with the fixed bytes before it.
pub(super) fn check_header(fixed: &Fixed, bytes: &[u8; FIXED_BYTES], header: &[u8]) -> Result<(), Invalid> {
    if start_crc(&bytes[..28], header) == fixed.crc {
        Ok(())
    } else {
        Err(Invalid::Corrupt("the checksum of its header is wrong".to_owned()))
    }
}

/// What the end says: length of the body, hash.
pub(super) fn decode_end(bytes: &[u8; END_BYTES]) -> Result<(u64, [u8; 32]), Invalid> {
    if u32_at(bytes, 0) != 0 {
        return Err(Invalid::Corrupt("it has no end: it was cut off".to_owned()));
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(&bytes[12..]);
    Ok((u64_at(bytes, 4), hash))
}

pub(super) fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn start_crc(before: &[u8], header: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(before);
    hasher.update(header);
    hasher.finalize()
}
