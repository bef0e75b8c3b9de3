//! How long callers waited for another leader.

use std::time::Duration;

use serde::Serialize;

/// All kills of one of the two.
#[derive(Debug, Default)]
pub struct Failovers(Vec<Duration>);

/// What is told of them, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct FailoverSummary {
    /// How often a leader was killed.
    pub kills: usize,
    /// Half of the times it took no longer.
    pub p50_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Failovers {
    /// One more.
    pub fn note(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// None if no leader was killed.
    pub fn summary(&self) -> Option<FailoverSummary> {
        let mut sorted = self.0.clone();
        sorted.sort();
        let millis = |duration: &Duration| duration.as_secs_f64() * 1e3;
        Some(FailoverSummary {
            kills: sorted.len(),
            p50_ms: sorted.get(sorted.len() / 2).map(millis)?,
            max_ms: sorted.last().map(millis)?,
        })
    }
}
