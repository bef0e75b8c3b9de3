//! Deletes the files of databases that are no longer part of the log, off the writer's path.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::databases::Removed;
use super::stats::Counters;

/// How many removed databases may wait. Beyond it the writer waits too: then the disk can't keep up anyway.
const QUEUE: usize = 256;

/// Starts the thread. It ends when the sender is dropped, after it has deleted what waited.
pub(super) fn start(counters: Arc<Counters>) -> io::Result<(SyncSender<Removed>, JoinHandle<()>)> {
    let (sender, receiver) = sync_channel(QUEUE);
    let thread =
        thread::Builder::new().name("log-reaper".to_owned()).spawn(move || run(&receiver, &counters))?;
    Ok((sender, thread))
}

fn run(removals: &Receiver<Removed>, counters: &Counters) {
    for removed in removals {
        let dir = removed.dir;
        // A reader that still has the database keeps its files alive, deleted or not.
        drop(removed.database);
        match fs::remove_dir_all(&dir) {
            Ok(()) => counters.removed(),
            // It is not part of the log any more, so nothing is wrong but the space; the next start tries again.
            Err(error) => {
                tracing::error!(path = %dir.display(), %error, "cannot delete a purged log database");
            }
        }
    }
}
