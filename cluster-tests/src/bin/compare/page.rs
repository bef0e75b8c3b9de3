//! What is told: `docs/benchmarks.md`, or JSON.

use std::fmt::Write;

use sandkeeper_load::{Row, Summary};
use serde::Serialize;

use crate::failover::FailoverSummary;
use crate::machine::Machine;
use crate::{Args, Measured};

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: Machine,
    date: String,
    sandkeeper: String,
    etcd: String,
    command: String,
    rounds: u16,
    seconds: f64,
    ours: Vec<Summary>,
    theirs: Vec<Summary>,
    our_failover: Option<FailoverSummary>,
    their_failover: Option<FailoverSummary>,
}

/// Which of our works stands beside which of etcd's.
const PAIRS: [(&str, &str); 5] = [
    ("create", "create"),
    ("create", "create-alone"),
    ("create", "put"),
    ("get", "get"),
    ("get-local", "get-local"),
];

impl Report {
    /// Of both.
    pub fn new(args: &Args, etcd: String, ours: &Measured, theirs: &Measured) -> Self {
        let summaries = |measured: &Measured| measured.rows.iter().map(Row::summary).collect();
        let rest: Vec<_> = std::env::args().skip(1).collect();
        let command = "cargo run --release -p cluster-tests --features etcd --bin compare --";
        Self {
            machine: Machine::this(),
            date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            sandkeeper: env!("CARGO_PKG_VERSION").to_owned(),
            etcd,
            command: format!("{command} {}", rest.join(" ")),
            rounds: args.rounds,
            seconds: args.duration.as_secs_f64(),
            ours: summaries(ours),
            theirs: summaries(theirs),
            our_failover: ours.failovers.summary(),
            their_failover: theirs.failovers.summary(),
        }
    }

    /// In Markdown.
    pub fn page(&self) -> String {
        let mut page = self.head();
        for (ours, theirs) in PAIRS {
            page.push_str(&self.pair(ours, theirs));
        }
        if let (Some(ours), Some(theirs)) = (&self.our_failover, &self.their_failover) {
            let _ = write!(
                page,
                "## Failover: from `kill -9` of the leader to the next write that is acknowledged\n\n\
                 | | kills | p50 ms | max ms |\n| --- | ---: | ---: | ---: |\n\
                 | Sandkeeper | {} | {:.0} | {:.0} |\n| etcd | {} | {:.0} | {:.0} |\n",
                ours.kills, ours.p50_ms, ours.max_ms, theirs.kills, theirs.p50_ms, theirs.max_ms
            );
        }
        page
    }

    fn head(&self) -> String {
        format!(
            "# Benchmarks\n\nWritten by one command:\n\n```console\n$ {}\n```\n\n\
             Sandkeeper {} beside etcd {}, {}, on {}.\n\n\
             Three nodes of each, on one disk, with default settings; each answer is on the disks of a majority before it is given. Callers and servers share \
             the machine. In turns, {} rounds, each on a new cluster, {} s for each line; medians over the rounds, with the slowest and the quickest. The callers \
             are the same (closed loop, latency by HdrHistogram), through the Rust client of each. Read ratios, not numbers: machines differ, and drift.\n\n\
             What etcd is asked to do:\n\n\
             - `create`: read one of 100 agents, then a transaction that puts sandbox and agent if the agent's revision is what was read and the name is free; again with what the answer brings if not. What each \
             of several API servers before etcd has to do.\n\
             - `create-alone`: the same without the read and without conflicts, by one process that knows every agent from its own writes. It works only while there is one such process.\n\
             - `put`: one key, nothing compared.\n\n\
             Sandkeeper's `create` checks quota of slots, CPU, memory and ports, places, remembers the request for retries, and writes the history.\n\n",
            self.command,
            self.sandkeeper,
            self.etcd,
            self.date,
            self.machine.told(),
            self.rounds,
            self.seconds
        )
    }

    fn pair(&self, ours: &str, theirs: &str) -> String {
        let mut text = format!(
            "## {ours} beside etcd's {theirs}\n\n\
             | callers | Sandkeeper /s | slowest-quickest | p50 ms | p99 ms | etcd /s | slowest-quickest | p50 ms | p99 ms | ratio |\n\
             | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        );
        for mine in self.ours.iter().filter(|row| row.work == ours) {
            let other =
                self.theirs.iter().find(|row| row.work == theirs && row.concurrency == mine.concurrency);
            let Some(other) = other else { continue };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.1} |",
                mine.concurrency,
                cells(mine),
                cells(other),
                mine.per_second / other.per_second
            );
        }
        text.push('\n');
        text.push_str(&errors("Sandkeeper", self.ours.iter().filter(|row| row.work == ours)));
        text.push_str(&errors("etcd", self.theirs.iter().filter(|row| row.work == theirs)));
        text
    }
}

fn cells(row: &Summary) -> String {
    let Summary { per_second, per_second_min, per_second_max, p50_ms, p99_ms, .. } = row;
    format!("{per_second:.0} | {per_second_min:.0}-{per_second_max:.0} | {p50_ms:.2} | {p99_ms:.2}")
}

fn errors<'a>(whose: &str, rows: impl Iterator<Item = &'a Summary>) -> String {
    let mut text = String::new();
    for row in rows.filter(|row| !row.errors.is_empty()) {
        let count: u64 = row.errors.values().sum();
        let first = row.errors.keys().next().map(String::as_str).unwrap_or_default();
        let _ = writeln!(
            text,
            "{whose}, {} callers: {count} requests failed, such as: {first}\n",
            row.concurrency
        );
    }
    text
}
