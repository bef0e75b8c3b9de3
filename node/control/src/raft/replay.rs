//! A start: the newest snapshot, and what the log has behind it.
//!
//! openraft would do this itself, one entry after the other, each as if others watched. Here three work at once (one reads,
//! one decodes, one applies), nothing is copied for readers, and the digest of the state is made once, at the end: a
//! third of the time. The last entries are left to openraft, so that the newest history is in memory afterwards.

use std::io;
use std::time::Duration;

use openraft::EntryPayload;
use openraft::storage::{RaftLogStorage as _, RaftStateMachine as _};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::state_machine::StateMachine;
use super::types::LogEntry;
use crate::storage::log::{LogReader, LogStore};

/// Entries that are left to openraft.
const LEFT: u64 = 4096;
/// How much is read at once, bytes.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces that are read, and not applied yet.
const AHEAD: usize = 4;
/// Between two words about how far it is.
const REPORT: Duration = Duration::from_secs(2);

/// A piece of the log, being decoded.
type Piece = io::Result<JoinHandle<Vec<LogEntry>>>;

/// Brings a state machine that has just been opened to what is known to be committed, all but the last entries.
///
/// # Errors
/// If the disk fails, or does not hold what it must.
pub(super) async fn replay(mut machine: StateMachine, log: &LogStore) -> io::Result<StateMachine> {
    if let Some(newest) = machine.get_current_snapshot().await? {
        machine.install_snapshot(&newest.meta, newest.snapshot).await?;
    }
    let reader = log.reader();
    let start = machine.applied().map_or(0, |applied| applied.index + 1);
    let committed = log.clone().read_committed().await?.map_or(0, |committed| committed.index);
    let end = committed.saturating_sub(LEFT);
    // What is missing is openraft's to report.
    if start >= end || start < reader.first_raft_index() {
        return Ok(machine);
    }
    machine.hide();
    let (sender, mut pieces) = mpsc::channel(AHEAD);
    let reading = AbortOnDropHandle::new(tokio::spawn(read(reader, start, end, sender)));
    let mut said = Instant::now();
    while let Some(piece) = pieces.recv().await {
        let piece = piece?.await.map_err(io::Error::other)?;
        let applied = spawn_blocking(move || {
            let mut entries = piece.into_iter();
            entries.try_for_each(|entry| machine.fold_one(entry).map(drop)).map(|()| machine)
        });
        machine = applied.await.map_err(io::Error::other)??;
        if said.elapsed() >= REPORT {
            said = Instant::now();
            let applied = machine.applied().map_or(0, |applied| applied.index + 1);
            tracing::info!(entries = applied - start, of = end - start, "the log is being read");
        }
    }
    reading.await.map_err(io::Error::other)?;
    machine.show()?;
    Ok(machine)
}

/// Reads the log in pieces and lets them be decoded, until nobody wants them any more.
async fn read(reader: LogReader, mut start: u64, end: u64, pieces: mpsc::Sender<Piece>) {
    while start < end {
        let read = reader.entries_from(start, PIECE_BYTES).await.map_err(io::Error::other);
        let decoding = read.and_then(|mut entries| {
            entries.retain(|entry| entry.log_id.index < end);
            let next = entries.last().map(|last| last.log_id.index + 1);
            start = next.ok_or_else(|| io::Error::other(format!("log entry {start} is missing")))?;
            Ok(spawn_blocking(move || entries.into_iter().map(decoded).collect()))
        });
        let failed = decoding.is_err();
        if pieces.send(decoding).await.is_err() || failed {
            return;
        }
    }
}

fn decoded(entry: LogEntry) -> LogEntry {
    match entry.payload {
        EntryPayload::Normal(data) => {
            LogEntry { payload: EntryPayload::Normal(data.into_decoded()), ..entry }
        }
        _ => entry,
    }
}
