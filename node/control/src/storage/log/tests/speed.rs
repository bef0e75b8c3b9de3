//! How fast the log is on this disk; nothing is claimed about it. See docs/testing.md, "Measuring programs".
//! `cargo test -p sandkeeper-control --lib appends_a_second -- --ignored --nocapture`

use std::io::Write as _;
use std::time::{Duration, Instant};

use super::*;

const FOR: Duration = Duration::from_secs(3);
const ROUNDS: usize = 3;

/// Appends entries of 256 bytes, each by itself, with so many under way, and returns how many a second were durable.
async fn rate(writers: usize) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let mut store = LogStore::open(dir.path(), LogOptions::default()).unwrap();
    let (begun, mut next, mut told) = (Instant::now(), 0, std::collections::VecDeque::new());
    while begun.elapsed() < FOR {
        while told.len() < writers {
            told.push_back(start_append(&mut store, [entry(1, next, 256)]).await);
            next += 1;
        }
        told.pop_front().unwrap().await.unwrap();
    }
    let done = (next - told.len() as u64) as f64 / begun.elapsed().as_secs_f64();
    for told in told {
        told.await.unwrap();
    }
    store.shutdown().await.unwrap();
    done
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures, and takes half a minute"]
async fn appends_a_second() {
    for _ in 0..ROUNDS {
        for writers in [1, 16, 64] {
            let rate = rate(writers).await;
            writeln!(io::stdout(), "{writers:>3} under way: {rate:.0} appends a second").unwrap();
        }
    }
}
