//! The Raft log and vote on sled.
//!
//! ```text
//! DATA/log/meta/                       vote, purged log id, format version
//! DATA/log/end                         what was durable, so that a loss is found
//! DATA/log/log-00000000000000000000/   blocks of entries from index 0 on
//! DATA/log/log-00000000000000183442/   the next database, begun after 32 MiB
//! DATA/log/removed-…/                  no longer kept, or truncated: being deleted
//! DATA/log/fetching/                   databases with history that comes from a peer, until it is verified
//! ```
//!
//! One thread writes (`writer`): it takes appends, votes, truncations and purges from one queue, in their order,
//! makes all the appends that wait durable with one `fdatasync`, and only then says so. Entries are readable from
//! memory (`tail`) as soon as they are appended. What Raft purges stays as history, in the same databases, until it is
//! trimmed; what a snapshot jumped over is fetched from a peer (`fetched`). Databases are removed whole: deleting single
//! keys of sled's would be slow, and never gives space back.
//!
//! # Formats
//!
//! `block` describes the values of the log databases, `meta` the records. Both carry a magic, a version and a CRC.

mod block;
pub(crate) mod check;
mod database;
mod databases;
mod end;
mod fetched;
mod meta;
mod open;
mod options;
mod places;
mod reader;
mod reaper;
mod sled_folder;
mod stats;
mod store;
mod tail;
mod writer;

pub use fetched::FetchedLog;
pub use meta::HistoryStart;
pub use options::LogOptions;
pub use reader::{HistoryError, LogReader};
pub use stats::LogStats;
pub use store::LogStore;

#[cfg(test)]
mod tests;
