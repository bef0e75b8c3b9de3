//! The task that builds the index: it follows the history, and fills what is missing of it.

use std::io;
use std::time::Duration;

use sandkeeper_statemachine::Revision;
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::{Instant, sleep};

use super::SubjectIndex;
use super::section::Open;
use crate::history::{History, HistoryError};
use crate::storage::StorageError;
use crate::storage::files::failed;

/// Encoded entries that are read at a time, bytes.
const READ_BYTES: usize = 256 * 1024;
/// Without news it looks this often whether the history reaches further back than before.
const IDLE: Duration = Duration::from_secs(1);

/// Keeps the index up to date, for as long as it is polled.
///
/// # Errors
/// If this node's disk fails.
pub(crate) async fn run(history: History, index: SubjectIndex) -> Result<(), StorageError> {
    loop {
        let (oldest, newest) = (history.oldest_revision(), history.newest_revision());
        let pruned = index.clone();
        blocking(&index, move || pruned.prune(oldest)).await?;
        let Some((from, to)) = index.gap(oldest, newest) else {
            // Whether there is news, or the time is over, or the node stops: it looks again.
            if history.wait_newer(newest, Instant::now() + IDLE).await.is_err() {
                sleep(IDLE / 100).await;
            }
            continue;
        };
        let done = if to == newest {
            follow(&history, &index, from).await
        } else {
            fill(&history, &index, from, to).await
        };
        match done {
            Err(Stop::Disk(fault)) => return Err(fault),
            Err(Stop::History(HistoryError::Fault(why))) => {
                tracing::error!(%why, "the index can't be built: the history can't be read");
                sleep(IDLE).await;
            }
            // It was purged meanwhile.
            Ok(()) | Err(Stop::History(_)) => {}
        }
    }
}

enum Stop {
    Disk(StorageError),
    History(HistoryError),
}

impl From<StorageError> for Stop {
    fn from(fault: StorageError) -> Self {
        Self::Disk(fault)
    }
}

impl From<HistoryError> for Stop {
    fn from(error: HistoryError) -> Self {
        Self::History(error)
    }
}

/// Adds what comes next to the newest section.
async fn follow(history: &History, index: &SubjectIndex, from: Revision) -> Result<(), Stop> {
    for applied in history.read_here(from, READ_BYTES).await? {
        index.append(std::slice::from_ref(&applied));
        let full =
            index.read(|sections| sections.open.as_ref().filter(|open| open.is_full(applied.index)).cloned());
        if let Some(open) = full {
            let closing = index.clone();
            blocking(index, move || closing.close(&open)).await?;
        }
        // An entry can hold thousands of events.
        yield_now().await;
    }
    Ok(())
}

/// Builds one section of what is missing before others.
async fn fill(history: &History, index: &SubjectIndex, from: Revision, to: Revision) -> Result<(), Stop> {
    let mut section: Option<Open> = None;
    let mut next = from;
    'section: while next <= to {
        let entries = history.read_here(next, READ_BYTES).await?;
        if entries.is_empty() {
            break;
        }
        for applied in entries.iter().take_while(|applied| applied.first_revision <= to) {
            let open = section.get_or_insert_with(|| Open::new(applied));
            open.add(applied);
            next = open.next();
            if open.is_full(applied.index) {
                break 'section;
            }
            yield_now().await;
        }
    }
    if let Some(section) = section {
        let closing = index.clone();
        blocking(index, move || closing.close(&section)).await?;
    }
    Ok(())
}

async fn blocking(
    index: &SubjectIndex,
    work: impl FnOnce() -> Result<(), StorageError> + Send + 'static,
) -> Result<(), StorageError> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(failed("build the index in", &index.folder)(io::Error::other(error))),
    }
}
