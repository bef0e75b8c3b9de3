//! What a control node keeps on its disk: the Raft log and vote, snapshots, its identity, and the lock on its
//! data directory. The only place of the workspace that names sled.
//!
//! ```text
//! DATA/LOCK         one process at a time          (lock)
//! DATA/node.toml    who this node is               (identity)
//! DATA/log/         vote and entries, on sled      (log)
//! DATA/snapshots/   the last two snapshots         (snapshot)
//! DATA/index/       derived: see `history::index`
//! ```
//!
//! # Architecture invariants
//!
//! - Nothing counts as stored before an `fdatasync` (or `fsync`) of its file has returned. sled's own `flush` does
//!   not call one, so it is never relied on alone.
//! - After the first failed write or fsync the log store does nothing more: no retry, no second flush. What the
//!   kernel kept of the failed pages is unknown, so only a restart, which reads what the disk really has, is safe.
//! - What is corrupt is reported with its place and never skipped. What a newer version wrote is refused.
//! - There is no cache of decoded entries, and no knowledge of events: the log holds opaque [`EntryData`] bytes.
//!
//! [`EntryData`]: crate::raft::types::EntryData

mod error;
pub(crate) mod files;
pub mod identity;
pub mod lock;
pub mod log;
pub mod snapshot;

pub use error::{StorageError, describe};
