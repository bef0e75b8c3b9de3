//! Reads a replica's whole history as it is made: what it purges later was heard before.

use std::sync::Arc;
use std::time::Duration;

use sandkeeper_client::v1;
use tokio::time::{sleep, timeout};
use tonic::Code;

use crate::Raw;
use crate::chaos::invariants::durable::Heard;
use crate::chaos::oracle::Oracle;

/// After each reconnect so many events are read again: a replica that lost its memory tells others.
const AGAIN: u64 = 200;
/// Before a node that ended the stream is asked again.
const PAUSE: Duration = Duration::from_millis(100);
/// A stream is opened within this time, or by another connection.
const OPENING: Duration = Duration::from_secs(3);
/// Nodes send bookmarks while nothing happens: after this time without a word the connection is made anew.
const SILENCE: Duration = Duration::from_secs(10);

/// Reads until it is dropped.
pub(super) async fn tail(node: usize, api: String, oracle: Arc<Oracle>) {
    let mut next: u64 = 1;
    loop {
        let from = next.saturating_sub(AGAIN).max(1);
        // A connection of its own each time: one to a node that is gone would be waited for.
        next = read(node, &Raw::new(&api), from, next, &oracle).await;
        sleep(PAUSE).await;
    }
}

/// Reads from a revision on until the stream ends; the revision that comes next.
async fn read(node: usize, raw: &Raw, from: u64, mut next: u64, oracle: &Oracle) -> u64 {
    let request = v1::WatchEventsRequest { from_revision: from, filter: None };
    let mut events = raw.events().max_decoding_message_size(64 << 20);
    let mut stream = match timeout(OPENING, events.watch_events(request)).await {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) if status.code() == Code::OutOfRange && from < next => return next + AGAIN,
        Ok(Err(status)) if status.code() == Code::OutOfRange => return oracle.head() + 1,
        _ => return next,
    };
    while let Ok(Ok(Some(message))) = timeout(SILENCE, stream.message()).await {
        if oracle.hear(node, &message.events) == Heard::Early {
            return oracle.head() + 1;
        }
        next = next.max(message.events.last().map_or(0, |event| event.revision) + 1);
    }
    next
}
