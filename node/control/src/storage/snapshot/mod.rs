//! Snapshots of the state, as files: `DATA/snapshots/snapshot-<last index, 20 digits>-<term>.sk`.
//!
//! A snapshot is written to a temporary file, fsynced, renamed, and its folder fsynced, before anybody hears of it.
//! The last two are kept. A follower receives the very bytes of the leader's file, and accepts them only when every
//! checksum and the hash of the whole are right.
//!
//! What a snapshot holds is its maker's affair: a header (small, read when the file is opened) and a body (a stream).

mod file;
mod format;
mod receive;
mod store;
mod write;

pub use file::{SnapshotBody, SnapshotFile};
pub use format::{CHUNK_BYTES, MAX_HEADER_BYTES};
pub use receive::{ReceiveError, SnapshotReceiver};
pub use store::{SnapshotId, SnapshotStore};
pub use write::SnapshotWriter;

#[cfg(test)]
mod tests;
