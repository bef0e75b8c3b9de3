//! What a campaign has found.

use std::collections::BTreeMap;
use std::path::PathBuf;

use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use serde::Serialize;

use super::violation::{Invariant, Violation};

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Control nodes.
    pub nodes: usize,
    /// How long it took.
    pub seconds: f64,
    /// Operations that were answered with what was asked for, and changed something.
    pub acknowledged: u64,
    /// Operations that were answered, and read something.
    pub read: u64,
    /// Operations that were refused.
    pub refused: u64,
    /// Calls of which nothing was known at first.
    pub unknown: u64,
    /// The length of the history.
    pub events: u64,
    /// How often each fault is proved to have happened.
    pub faults: BTreeMap<String, u64>,
    /// How often it was tried in vain.
    pub faults_without_proof: BTreeMap<String, u64>,
    /// What this machine can't do.
    pub skipped: Vec<String>,
    /// Each invariant, in the order of their numbers.
    pub invariants: Vec<Checks>,
    /// From the kill of a leader to the next acknowledged create.
    pub failover: Failover,
    /// What must not be, and was.
    pub violations: Vec<Violation>,
    /// Where everything is kept.
    pub kept: Option<PathBuf>,
}

/// How an invariant has fared.
#[derive(Clone, Debug, Serialize)]
pub struct Checks {
    /// `I1` to `I9`, and what it says.
    pub invariant: String,
    /// How often it was checked.
    pub checks: u64,
    /// How often it did not hold.
    pub violations: usize,
}

/// Milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Failover {
    /// How many leaders were killed.
    pub kills: usize,
    /// The median.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
    /// All of them, in order of length.
    pub all: Vec<f64>,
}

impl Failover {
    /// Of these times.
    pub fn of(mut all: Vec<f64>) -> Self {
        all.sort_by(f64::total_cmp);
        // The nearest rank.
        let at = |share: f64| {
            let rank = (all.len() as f64 * share).ceil() as usize;
            all.get(rank.clamp(1, all.len().max(1)) - 1).copied().unwrap_or_default()
        };
        Self { kills: all.len(), p50: at(0.5), p99: at(0.99), max: at(1.0), all }
    }
}

/// Each invariant's line.
pub fn checks(counts: &BTreeMap<Invariant, u64>, violations: &[Violation]) -> Vec<Checks> {
    let line = |invariant: &Invariant| Checks {
        invariant: invariant.title().to_owned(),
        checks: counts.get(invariant).copied().unwrap_or(0),
        violations: violations.iter().filter(|violation| violation.invariant == *invariant).count(),
    };
    Invariant::ALL.iter().map(line).collect()
}

impl Report {
    /// For people.
    pub fn show(&self) -> String {
        let mut parts = vec![self.operations().to_string(), self.fault_counts().to_string()];
        parts.push(self.invariant_counts().to_string());
        for skipped in &self.skipped {
            parts.push(format!("SKIPPED: {skipped} (not root, or a tool is missing)"));
        }
        for violation in &self.violations {
            let Violation { invariant, what, seconds, .. } = violation;
            parts.push(format!("VIOLATION after {seconds:.1} s of {invariant}: {what}"));
        }
        if let Some(kept) = &self.kept {
            parts.push(format!("logs, data, history and timeline.txt are in {}", kept.display()));
        }
        parts.join("\n")
    }

    fn operations(&self) -> Table {
        let mut table = table([
            "seed",
            "nodes",
            "time",
            "acknowledged",
            "read",
            "refused",
            "unknown at first",
            "events",
            "failover p50",
            "p99",
            "max",
        ]);
        let millis = |millis: f64| format!("{millis:.0} ms");
        table.add_row([
            self.seed.to_string(),
            self.nodes.to_string(),
            format!("{:.0} s", self.seconds),
            self.acknowledged.to_string(),
            self.read.to_string(),
            self.refused.to_string(),
            self.unknown.to_string(),
            self.events.to_string(),
            millis(self.failover.p50),
            millis(self.failover.p99),
            millis(self.failover.max),
        ]);
        table
    }

    fn fault_counts(&self) -> Table {
        let mut table = table(["fault", "happened", "in vain"]);
        let names: std::collections::BTreeSet<_> =
            self.faults.keys().chain(self.faults_without_proof.keys()).collect();
        for name in names {
            let count = |of: &BTreeMap<String, u64>| of.get(name).copied().unwrap_or(0).to_string();
            table.add_row([name.clone(), count(&self.faults), count(&self.faults_without_proof)]);
        }
        table
    }

    fn invariant_counts(&self) -> Table {
        let mut table = table(["invariant", "checks", "violations"]);
        for checks in &self.invariants {
            table.add_row([
                checks.invariant.clone(),
                checks.checks.to_string(),
                checks.violations.to_string(),
            ]);
        }
        table
    }
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(header);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let failover = Failover::of((1..=100).rev().map(f64::from).collect());
        assert_eq!((failover.p50, failover.p99, failover.max), (50.0, 99.0, 100.0));
        assert_eq!(Failover::of(Vec::new()).max.to_bits(), 0.0_f64.to_bits());
    }
}
