//! Why a data directory can't be inspected.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sandkeeper_statemachine::Revision;
use tokio::task::JoinError;

use crate::storage::StorageError;
use crate::storage::log::HistoryError;

/// Why a state can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// There is no identity of a control node in it.
    #[error("{} is not the data directory of a control node: it has no node.toml{}", dir.display(), instead(near))]
    NotADataDirectory {
        /// The folder.
        dir: PathBuf,
        /// Data directories of control nodes directly below it.
        near: Vec<PathBuf>,
    },
    /// A process uses it.
    #[error(
        "data directory {} is in use by another process (pid {pid}): stop the node first, or inspect a copy of the \
         directory", dir.display()
    )]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// What the process wrote of itself, or "unknown".
        pid: String,
    },
    /// A file or folder of the data directory can't be read.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was attempted, as in "cannot … PATH".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The log, which is read from a copy, can't be copied.
    #[error("cannot copy {} to {} (TMPDIR names the folder for copies)", from.display(), to.display())]
    Copy {
        /// In the data directory.
        from: PathBuf,
        /// In the folder for temporary files.
        to: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Identity, snapshots or the bounds of the log can't be read.
    #[error("the data directory can't be read")]
    Storage(#[from] StorageError),
    /// The log can't be read to the end.
    #[error("the log can't be read{}", up_to(*reached))]
    Log {
        /// The last revision before that.
        reached: Option<Revision>,
        /// Why not.
        source: StorageError,
    },
    /// An entry of the log can't be applied: the history is corrupt.
    #[error("log entry {index} (term {term}) can't be applied: {what}{}", up_to(Some(*reached)))]
    Entry {
        /// The index of the entry.
        index: u64,
        /// Its term.
        term: u64,
        /// Why not.
        what: String,
        /// The revision before it.
        reached: Revision,
    },
    /// Log entries that lead to the revision are missing.
    #[error("log entries {from} to {} are neither in the log nor in a snapshot that can be read{}", end - 1, listed(problems))]
    Gap {
        /// The first entry that is missing.
        from: u64,
        /// The one behind the last.
        end: u64,
        /// What is wrong with the snapshots.
        problems: Vec<String>,
    },
    /// The revision is older than what is kept.
    #[error("revision {at} is not kept any more: the oldest revision that can be shown is {oldest}")]
    TooOld {
        /// The revision that was asked for.
        at: Revision,
        /// The oldest that can be shown.
        oldest: Revision,
    },
    /// The revision is not there yet, as far as this disk knows.
    #[error(
        "revision {at} is not there: the newest revision that this disk knows to be committed is {newest}{}",
        more(*not_known_committed)
    )]
    TooNew {
        /// The revision that was asked for.
        at: Revision,
        /// The newest that can be shown.
        newest: Revision,
        /// Entries behind it, of which this disk does not know whether they are committed.
        not_known_committed: u64,
    },
    /// It was cancelled.
    #[error("interrupted")]
    Cancelled,
    /// A part of this program failed.
    #[error("reading the data directory failed: {0}")]
    Failed(String),
}

fn instead(near: &[PathBuf]) -> String {
    if near.is_empty() {
        return String::new();
    }
    let near: Vec<_> = near.iter().map(|path| path.display().to_string()).collect();
    format!("; below it are such: {}", near.join(", "))
}

fn up_to(reached: Option<Revision>) -> String {
    reached.map_or_else(String::new, |reached| format!(" (up to revision {reached} the state can be shown)"))
}

fn listed(problems: &[String]) -> String {
    problems.iter().flat_map(|problem| ["; ", problem]).collect()
}

fn more(entries: u64) -> String {
    match entries {
        0 => String::new(),
        1 => "; 1 log entry behind it is not known to be committed".to_owned(),
        entries => format!("; {entries} log entries behind it are not known to be committed"),
    }
}

/// The folder has no identity. Says where there is one, for those who named the folder of a whole cluster.
pub(super) fn no_identity(dir: &Path) -> InspectError {
    if let Err(source) = fs::read_dir(dir) {
        return InspectError::Io { action: "read", path: dir.to_owned(), source };
    }
    // Only a hint: what can't be listed is not in it.
    let below = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let mut near: Vec<_> = below.filter(|path| path.join("node.toml").is_file()).collect();
    near.sort();
    InspectError::NotADataDirectory { dir: dir.to_owned(), near }
}

/// A task ended without an answer. sled panics on some errors.
pub(super) fn panicked(error: JoinError) -> InspectError {
    let text = error.to_string();
    let Ok(panic) = error.try_into_panic() else { return InspectError::Failed(text) };
    let said = panic.downcast_ref::<String>().map(String::as_str);
    let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
    InspectError::Failed(said.unwrap_or("it panicked").to_owned())
}

/// openraft's store trait speaks `io::Error`; what is asked through it is in memory by then.
pub(super) fn log_state(error: &io::Error) -> InspectError {
    InspectError::Failed(error.to_string())
}

pub(super) fn log(error: HistoryError, reached: Option<Revision>) -> InspectError {
    match error {
        HistoryError::Fault(source) => InspectError::Log { reached, source },
        HistoryError::Purged { .. } => InspectError::Failed(error.to_string()),
    }
}
