//! A leader whose disk hangs lets another one lead.
//!
//! openraft does not notice: heartbeats need no disk, and entries are committed by the followers' disks alone. So such a
//! leader goes on, with one copy less than there seem to be, and keeps in memory what its disk does not take, until the
//! log's queue is full; then it falls silent. Or, if it has to write a vote or a purge before, it is silent at once. Here
//! it hands over before that, in order, and stays as a follower that answers when its disk does. Nothing that it might
//! have got wrong is kept: an fsync that ends late is as good as any, and one that fails stops the node.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use super::RaftNode;

/// Longer than any fsync of a disk that works takes (a bad one: half a second), and within the patience of callers.
pub(super) const HUNG_AFTER: Duration = Duration::from_secs(3);
/// Between two looks, of one lock each.
const LOOK: Duration = Duration::from_millis(250);
/// How long the next leader may take; if it does not come, the silence of this one has the others elect one.
const HAND_OVER: Duration = Duration::from_secs(2);

/// Looks until it is cancelled.
pub(super) async fn watch(node: RaftNode) {
    let mut hangs_since: Option<Instant> = None;
    let mut handed_over_in = None;
    loop {
        sleep(LOOK).await;
        let unfinished = node.inner.log.unfinished_for().filter(|unfinished| *unfinished >= HUNG_AFTER);
        let Some(unfinished) = unfinished else {
            if let Some(since) = hangs_since.take() {
                let seconds = since.elapsed().as_secs_f64();
                info!(seconds, "the disk of this node's log answers again");
            }
            continue;
        };
        if hangs_since.is_none() {
            hangs_since = Some(Instant::now() - unfinished);
            error!(
                path = %node.inner.log.folder().display(),
                "the disk of this node's log hangs: for {HUNG_AFTER:?} no write to it has ended. The node waits for it"
            );
        }
        let term = node.status().term;
        // Once in a term: from then on this node is silent, or leads no more.
        if node.leads() && handed_over_in != Some(term) {
            handed_over_in = Some(term);
            warn!(term, "this node leads, and its disk hangs: it hands the leadership over");
            if let Err(why) = node.hand_over(Instant::now() + HAND_OVER).await {
                warn!(why, "leadership was not handed over");
            }
        }
    }
}
