//! Callers, and what they measure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use sandkeeper_client::ClientError;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::error::CliError;
use crate::output::with_progress;

/// Three digits: a thousandth of what is measured.
const DIGITS: u8 = 3;

/// How much is asked for, and how long.
#[derive(Debug)]
pub struct Load {
    /// Callers at a time.
    pub callers: u16,
    /// For how long.
    pub duration: Duration,
    /// Requests a second, if not as many as are answered.
    pub rate: Option<u32>,
    /// For the user: what is going on.
    pub what: String,
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

impl Found {
    /// Nothing yet.
    pub fn new() -> Self {
        let latency = Histogram::new(DIGITS).expect("a precision that it can have");
        Self { done: 0, took: Duration::ZERO, latency, errors: BTreeMap::new() }
    }

    /// Takes note of a request that was to begin at `began`, and of what came of it.
    pub fn note(&mut self, began: Instant, result: Result<u64, ClientError>) {
        match result {
            Ok(done) => {
                self.done += done;
                let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.latency.record(micros).expect("it grows as it must");
            }
            Err(error) => *self.errors.entry(code(&error).to_owned()).or_default() += 1,
        }
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
    /// says how much it has done.
    pub async fn run<F, R>(&self, request: F) -> Result<Found, CliError>
    where
        F: Fn(u16, u64) -> R + Send + Sync + 'static,
        R: Future<Output = Result<u64, ClientError>> + Send,
    {
        let start = Instant::now();
        let ticket = Ticket { start, end: start + self.duration, rate: self.rate, taken: AtomicU64::new(0) };
        let shared = Arc::new((request, ticket));
        let mut callers = JoinSet::new();
        for caller in 0..self.callers {
            let shared = Arc::clone(&shared);
            callers.spawn(async move {
                let (request, ticket) = &*shared;
                let mut found = Found::new();
                let mut number = 0;
                while let Some(due) = ticket.next().await {
                    found.note(due, request(caller, number).await);
                    number += 1;
                }
                found
            });
        }
        let mut found = self.gather(callers).await?;
        found.took = start.elapsed();
        Ok(found)
    }

    /// Adds up what all callers found.
    pub async fn gather(&self, mut callers: JoinSet<Found>) -> Result<Found, CliError> {
        let gathered = async {
            let mut all = Found::new();
            while let Some(found) = callers.join_next().await {
                all.take_in(&found.map_err(anyhow::Error::from)?);
            }
            Ok(all)
        };
        with_progress(&self.what, gathered).await
    }
}

fn code(error: &ClientError) -> &'static str {
    match error {
        ClientError::Refused(refusal) => refusal.code_name(),
        ClientError::Unreachable(_) => "UNREACHABLE",
        ClientError::Deadline { .. } => "DEADLINE_EXCEEDED",
        ClientError::Config(_) => "INVALID_ARGUMENT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(rate: Option<u32>) -> Load {
        Load { callers: 2, duration: Duration::from_secs(1), rate, what: "a test".to_owned() }
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
            if caller == 0 && number == 0 { Err(ClientError::Unreachable(Vec::new())) } else { Ok(3) }
        });
        let found = found.await.unwrap();
        assert_eq!((found.done, found.latency.len()), (27, 9));
        assert!(found.latency.max() < 210_000, "{}", found.latency.max());
        assert_eq!(found.errors.values().sum::<u64>(), 1);
    }
}
