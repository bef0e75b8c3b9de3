//! Callers, and what they measure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

/// Three digits: a thousandth of what is measured.
const DIGITS: u8 = 3;

/// Callers that share one connection: HTTP/2 has room for more, but one task works off each connection.
const CALLERS_A_CONNECTION: usize = 32;

/// How many connections so many callers need: one to each server at least.
pub fn connections(callers: u16, servers: usize) -> usize {
    usize::from(callers).div_ceil(CALLERS_A_CONNECTION).max(servers)
}

/// How much is asked for, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Callers at a time.
    pub callers: u16,
    /// For how long.
    pub duration: Duration,
    /// Requests a second that begin, whatever comes of them (an open loop); None: each caller asks again as soon as it is
    /// answered (a closed one).
    pub rate: Option<u32>,
}

/// What one round found.
#[derive(Debug)]
pub struct Found {
    /// Done, of what is counted (a batch counts what it has made).
    pub done: u64,
    /// How long it took.
    pub took: Duration,
    /// Microseconds of each request.
    pub latency: Histogram<u64>,
    /// Requests that were not done, by code.
    pub errors: BTreeMap<String, u64>,
}

impl Default for Found {
    fn default() -> Self {
        let latency = Histogram::new(DIGITS).expect("a precision that it can have");
        Self { done: 0, took: Duration::ZERO, latency, errors: BTreeMap::new() }
    }
}

impl Found {
    /// Takes note of a request that was to begin at `began`, and of what came of it: how much it has done, or the code of its error.
    ///
    /// # Panics
    /// If there is no memory for the histogram to grow.
    pub fn note(&mut self, began: Instant, result: Result<u64, String>) {
        match result {
            Ok(done) => {
                self.done += done;
                let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.latency.record(micros).expect("it grows as it must");
            }
            Err(code) => *self.errors.entry(code).or_default() += 1,
        }
    }

    /// Of `callers`: adds up what each of them found.
    ///
    /// # Errors
    /// If one of them panicked.
    pub async fn gather(mut callers: JoinSet<Self>) -> Result<Self, JoinError> {
        let mut all = Self::default();
        while let Some(found) = callers.join_next().await {
            all.take_in(&found?);
        }
        Ok(all)
    }

    fn take_in(&mut self, other: &Self) {
        self.done += other.done;
        self.latency += &other.latency;
        for (code, count) in &other.errors {
            *self.errors.entry(code.clone()).or_default() += count;
        }
    }
}

/// When the next request begins.
#[derive(Debug)]
struct Ticket {
    start: Instant,
    end: Instant,
    rate: Option<u32>,
    taken: AtomicU64,
}

impl Ticket {
    /// When the next one begins; None: not any more. In an open loop that may be in the past: the request is late, and that counts.
    async fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        let due = match self.rate {
            None => now,
            Some(rate) => {
                let number = self.taken.fetch_add(1, Ordering::Relaxed);
                self.start + Duration::from_secs_f64(number as f64 / f64::from(rate))
            }
        };
        if due >= self.end || now >= self.end {
            return None;
        }
        sleep_until(due).await;
        Some(due)
    }
}

impl Load {
    /// Lets so many callers do `request` (given the caller's number, and the request's) for as long as it is to last. A request
    /// says how much it has done, or the code of its error.
    ///
    /// # Errors
    /// If `request` panics.
    pub async fn run<F, R>(&self, request: F) -> Result<Found, JoinError>
    where
        F: Fn(u16, u64) -> R + Send + Sync + 'static,
        R: Future<Output = Result<u64, String>> + Send,
    {
        let start = Instant::now();
        let ticket = Ticket { start, end: start + self.duration, rate: self.rate, taken: AtomicU64::new(0) };
        let shared = Arc::new((request, ticket));
        let mut callers = JoinSet::new();
        for caller in 0..self.callers {
            let shared = Arc::clone(&shared);
            callers.spawn(async move {
                let (request, ticket) = &*shared;
                let mut found = Found::default();
                let mut number = 0;
                while let Some(due) = ticket.next().await {
                    found.note(due, request(caller, number).await);
                    number += 1;
                }
                found
            });
        }
        let mut found = Found::gather(callers).await?;
        found.took = start.elapsed();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(rate: Option<u32>) -> Load {
        Load { callers: 2, duration: Duration::from_secs(1), rate }
    }

    #[test]
    fn every_server_has_a_connection_and_none_has_too_many_callers() {
        assert_eq!([1, 64, 97, 256].map(|callers| connections(callers, 3)), [3, 3, 4, 8]);
    }

    #[tokio::test(start_paused = true)]
    async fn in_an_open_loop_requests_that_wait_for_others_are_measured_from_when_they_were_due() {
        // 20 a second are due, and 2 callers that take 0.2 s do 10 a second.
        let load = load(Some(20));
        let found = load.run(|_, _| async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            Ok(1)
        });
        let found = found.await.unwrap();
        assert!((10..=12).contains(&found.done), "{}", found.done);
        assert!(found.latency.max() >= 500_000, "{}", found.latency.max());
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_closed_loop_each_is_measured_alone() {
        let load = load(None);
        let found = load.run(|caller, number| async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if caller == 0 && number == 0 { Err("UNREACHABLE".to_owned()) } else { Ok(3) }
        });
        let found = found.await.unwrap();
        assert_eq!((found.done, found.latency.len()), (27, 9));
        assert!(found.latency.max() < 210_000, "{}", found.latency.max());
        assert_eq!(found.errors, [("UNREACHABLE".to_owned(), 1)].into());
    }
}
