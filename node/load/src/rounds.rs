//! Rounds, and what is told of them.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::load::Found;

/// One kind of work at one concurrency.
#[derive(Debug)]
pub struct Row {
    work: String,
    callers: u16,
    rounds: Vec<Found>,
}

/// What is told of it: medians over the rounds. Latencies in milliseconds.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Which work.
    pub work: String,
    /// Callers at a time.
    pub concurrency: u16,
    /// How often it was measured.
    pub rounds: usize,
    /// Done a second.
    pub per_second: f64,
    /// In the slowest round.
    pub per_second_min: f64,
    /// In the quickest round.
    pub per_second_max: f64,
    /// Half of the requests took no longer.
    pub p50_ms: f64,
    /// 99 % of them.
    pub p99_ms: f64,
    /// 99.9 % of them.
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// Requests that were not done, by code, in all rounds.
    pub errors: BTreeMap<String, u64>,
}

impl Row {
    /// With its first round.
    pub fn new(work: &str, callers: u16, found: Found) -> Self {
        Self { work: work.to_owned(), callers, rounds: vec![found] }
    }

    /// Whether it is of this work, at this concurrency.
    pub fn is(&self, work: &str, callers: u16) -> bool {
        self.work == work && self.callers == callers
    }

    /// One more round.
    pub fn add(&mut self, found: Found) {
        self.rounds.push(found);
    }

    /// The medians.
    pub fn summary(&self) -> Summary {
        let speeds = self.sorted(|round| round.done as f64 / round.took.as_secs_f64());
        let millis = |quantile: f64| {
            median(&self.sorted(|round| round.latency.value_at_quantile(quantile) as f64 / 1e3))
        };
        let mut errors = BTreeMap::new();
        for (code, count) in self.rounds.iter().flat_map(|round| &round.errors) {
            *errors.entry(code.clone()).or_default() += count;
        }
        Summary {
            work: self.work.clone(),
            concurrency: self.callers,
            rounds: self.rounds.len(),
            per_second: median(&speeds),
            per_second_min: speeds.first().copied().unwrap_or_default(),
            per_second_max: speeds.last().copied().unwrap_or_default(),
            p50_ms: millis(0.5),
            p99_ms: millis(0.99),
            p999_ms: millis(0.999),
            max_ms: millis(1.0),
            errors,
        }
    }

    fn sorted(&self, measure: impl Fn(&Found) -> f64) -> Vec<f64> {
        let mut values: Vec<f64> = self.rounds.iter().map(measure).collect();
        values.sort_by(f64::total_cmp);
        values
    }
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn medians_over_the_rounds() {
        let round = |done: u64, micros: u64| {
            let mut found = Found { done, took: Duration::from_secs(2), ..Found::default() };
            found.latency.record(micros).unwrap();
            found
        };
        let mut row = Row::new("create", 16, round(200, 1_000));
        row.add(round(800, 4_000));
        row.add(round(400, 2_000));
        let told = row.summary();
        assert_eq!(
            (told.rounds, told.per_second, told.per_second_min, told.per_second_max),
            (3, 200.0, 100.0, 400.0)
        );
        assert!((told.p50_ms - 2.0).abs() < 0.01, "{}", told.p50_ms);
        assert!(row.is("create", 16) && !row.is("create", 1) && !row.is("get", 16));
    }
}
