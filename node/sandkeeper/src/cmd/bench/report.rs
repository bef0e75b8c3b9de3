//! Rounds, and what is told of them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::load::Found;
use super::work::Work;
use crate::output;

/// One kind of work at one concurrency.
#[derive(Debug)]
pub struct Row {
    work: Work,
    callers: u16,
    rounds: Vec<Found>,
}

/// What is told of it: medians over the rounds. Latencies in milliseconds.
#[derive(Debug, Serialize)]
pub struct Summary {
    work: &'static str,
    concurrency: u16,
    rounds: usize,
    per_second: f64,
    per_second_min: f64,
    per_second_max: f64,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    max_ms: f64,
    errors: BTreeMap<String, u64>,
}

impl Row {
    /// With its first round.
    pub fn new(work: Work, callers: u16, found: Found) -> Self {
        Self { work, callers, rounds: vec![found] }
    }

    /// Whether it is of this work, at this concurrency.
    pub fn is(&self, work: Work, callers: u16) -> bool {
        self.work == work && self.callers == callers
    }

    /// One more round.
    pub fn add(&mut self, found: Found) {
        self.rounds.push(found);
    }

    /// Whether anything was refused or failed.
    pub fn has_errors(&self) -> bool {
        self.rounds.iter().any(|round| !round.errors.is_empty())
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
            work: self.work.name(),
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

/// The table for people.
pub fn table(rows: &[Row]) -> String {
    let header = ["WORK", "CALLERS", "/S", "SLOWEST-QUICKEST", "P50 MS", "P99", "P99.9", "MAX", "ERRORS"];
    let lines = rows.iter().map(|row| {
        let told = row.summary();
        let millis = |value: f64| format!("{value:.2}");
        vec![
            told.work.to_owned(),
            told.concurrency.to_string(),
            format!("{:.0}", told.per_second),
            format!("{:.0}-{:.0}", told.per_second_min, told.per_second_max),
            millis(told.p50_ms),
            millis(told.p99_ms),
            millis(told.p999_ms),
            millis(told.max_ms),
            told.errors.values().sum::<u64>().to_string(),
        ]
    });
    output::table(&header, lines)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn medians_over_the_rounds() {
        let round = |done: u64, micros: u64| {
            let mut found = Found { done, took: Duration::from_secs(2), ..Found::new() };
            found.latency.record(micros).unwrap();
            found
        };
        let mut row = Row::new(Work::Create, 16, round(200, 1_000));
        row.add(round(800, 4_000));
        row.add(round(400, 2_000));
        insta::assert_snapshot!(table(&[row]), @r"
        WORK     CALLERS   /S    SLOWEST-QUICKEST   P50 MS   P99    P99.9   MAX    ERRORS
        create   16        200   100-400            2.00     2.00   2.00    2.00   0
        ");
    }
}
