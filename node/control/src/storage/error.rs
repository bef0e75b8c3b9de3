//! What can go wrong with the disk of this node. Each of these is a fault: it stops the node.

use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

/// The way out when the disk no longer holds what was written.
const REPLACE: &str = "this node can't go on with it, and the others have everything: remove it from the cluster, clear \
                       its data directory and let it join again (docs/operations.md, \"Members\": replace a node)";

/// A fault of this node's storage.
///
/// Callers' mistakes are not in here: a reader that asks for what is purged gets
/// [`HistoryError`](super::log::HistoryError), a peer that sends a wrong chunk gets
/// [`ReceiveError`](super::snapshot::ReceiveError).
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The operating system refused a call on a file or folder.
    #[error("cannot {action} {}{}", path.display(), advice(source))]
    Io {
        /// What was attempted, as in "cannot … PATH".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// sled refused a call.
    #[error("cannot {action} the database {}", dir.display())]
    Database {
        /// What was attempted.
        action: &'static str,
        /// The database's folder.
        dir: PathBuf,
        /// sled's reason.
        source: sled::Error,
    },
    /// sled panicked, as it does on much of what it can't read.
    #[error("the database {} can't be read: sled panicked: {said}; {REPLACE}", dir.display())]
    Panicked {
        /// The database's folder.
        dir: PathBuf,
        /// What it said.
        said: String,
    },
    /// The log does not hold what it must hold.
    #[error("the log is corrupt: database {}, key {key}: {what}; {REPLACE}", dir.display())]
    CorruptLog {
        /// The database's folder.
        dir: PathBuf,
        /// The key of the block, as the index of its first entry (and the number of the part), or of the record.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// A file does not hold what it must hold.
    #[error("{} is corrupt at byte {offset}: {what}; {REPLACE}", path.display())]
    CorruptFile {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A file was written by a version of this program that came later.
    #[error(
        "{} has format version {found}, but this version of sandkeeper reads versions up to {supported}; \
         start the version that wrote it, or a later one",
        path.display()
    )]
    NewerFormat {
        /// The file or folder.
        path: PathBuf,
        /// The version that it names.
        found: u64,
        /// The newest version that can be read.
        supported: u64,
    },
    /// `node.toml` can't be understood.
    #[error("{} cannot be read as a node's identity: {what}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Another process holds the data directory.
    #[error("data directory {} is in use by another process (pid {pid})", dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// What the other process wrote of itself, or "unknown".
        pid: String,
    },
    /// An earlier write failed, so the log store takes nothing more.
    #[error("the log store stopped: {cause}")]
    Stopped {
        /// The first failure.
        cause: String,
    },
    /// An entry is larger than the store takes. The decider bounds entries, so this is a defect of its caller.
    #[error("entry {index} has {bytes} encoded bytes, and the log takes {limit} at most")]
    EntryTooLarge {
        /// The index of the entry.
        index: u64,
        /// Its encoded length.
        bytes: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// Entries were appended that do not follow the last one.
    #[error("entry {found} was appended where {expected} comes next")]
    NotContiguous {
        /// The index that comes next.
        expected: u64,
        /// The index that came.
        found: u64,
    },
}

/// What to do about a disk that has no room, or may not be written.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            " (make room there, and start the node again: nothing that was acknowledged is lost)"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            " (the kernel does this to a file system after an error: look at its log, repair the disk or replace it, \
             and start the node again)"
        }
        _ => "",
    }
}

/// An error and all its causes in one line, for places that keep no error values (openraft, a status message).
pub fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a `String` can't fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

impl From<StorageError> for io::Error {
    /// openraft speaks `io::Error` and prints only its `Display`, so the causes go into the message.
    fn from(error: StorageError) -> Self {
        Self::other(describe(&error))
    }
}
