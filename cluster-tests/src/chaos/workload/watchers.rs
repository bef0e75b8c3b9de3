//! Watchers as callers have them: with a filter or without, and again and again at another replica.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sandkeeper_client::v1;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::{Code, Status};

use crate::Raw;
use crate::chaos::invariants::watches::Watcher;
use crate::chaos::oracle::Oracle;

/// It stays with one replica for at most this long.
const STAYS_MILLIS: u64 = 4_000;
/// A stream is opened within this time.
const OPENING: Duration = Duration::from_secs(2);
/// Before the next replica is tried.
const PAUSE: Duration = Duration::from_millis(50);

/// Watches until it is dropped.
pub(super) async fn watch(
    name: String,
    namespace: Option<String>,
    seed: u64,
    apis: Vec<String>,
    oracle: Arc<Oracle>,
    looks_back: bool,
) {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut watcher = Watcher::new(name.clone(), namespace.clone(), 1);
    loop {
        if looks_back {
            // What it asks for may be purged by now: then it is told so.
            let from = dice.random_range(0..=oracle.head()) / 2 + 1;
            watcher = Watcher::new(name.clone(), namespace.clone(), from);
        }
        let api = &apis[dice.random_range(0..apis.len())];
        let stays = Duration::from_millis(dice.random_range(0..STAYS_MILLIS));
        if let Err(status) = stay(&Raw::new(api), &mut watcher, stays, &oracle).await
            && status.code() == Code::OutOfRange
        {
            // It was away for longer than the history is kept, and is told so: it begins anew.
            watcher.skip_to(oracle.head() + 1);
        }
        sleep(PAUSE).await;
    }
}

async fn stay(raw: &Raw, watcher: &mut Watcher, stays: Duration, oracle: &Oracle) -> Result<(), Status> {
    let filter = watcher
        .namespace()
        .map(|namespace| v1::EventFilter { namespace: namespace.to_owned(), ..v1::EventFilter::default() });
    let request = v1::WatchEventsRequest { from_revision: watcher.next(), filter };
    let until = Instant::now() + stays;
    let mut events = raw.events().max_decoding_message_size(64 << 20);
    let opened = timeout(OPENING, events.watch_events(request)).await;
    let mut stream = opened.map_err(|_| Status::deadline_exceeded("not opened"))??.into_inner();
    while let Ok(message) = timeout_at(until, stream.message()).await {
        match message? {
            Some(message) => oracle.watched(watcher, &message),
            None => break,
        }
    }
    Ok(())
}
