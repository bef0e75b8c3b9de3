//! Many sandboxes come and go, and nothing of them stays: creates them all on simulated agents, terminates them all,
//! waits until even their requests are forgotten, and compares every table of every node with what it was before.
//! Ends with 1 if one has not come back, or if a process keeps more memory than its caches may take.
//!
//! ```text
//! cargo run --release -p cluster-tests --features jemalloc --bin soak -- --sandboxes 100000 --agents 50
//! ```
#![allow(clippy::print_stdout, reason = "a program that reports")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use cluster_tests::{
    Cluster, ClusterOptions, by_id, open_files, peak_resident_bytes, resident_bytes, scrape, shell,
};
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use sandkeeper_client::{Client, v1};
use serde::Serialize;

/// Gauges of what grows and shrinks with the work, by the beginning of their names.
const TABLES: [&str; 8] = [
    "sandkeeper_sandboxes",
    "sandkeeper_requests_remembered",
    "sandkeeper_capacity_allocated",
    "sandkeeper_capacity_free",
    "sandkeeper_agents",
    "sandkeeper_agent_sessions",
    "sandkeeper_decider_queue_commands",
    "sandkeeper_watchers",
];
/// The most slots that an agent may have.
const MAX_SLOTS: u64 = 4096;
/// Between two looks at the gauges.
const LOOK: Duration = Duration::from_millis(250);
/// A gauge that has not moved for this long, and is not where it should be, is not going to be.
const STUCK: Duration = Duration::from_secs(60);
/// Memory that has not fallen for this long is not going to: longer than allocators wait (jemalloc: 10 s).
const SETTLED: Duration = Duration::from_secs(15);
/// Less than this is not worth another wait.
const NOTICEABLE: u64 = 1024 * 1024;

/// Create and terminate many sandboxes on simulated agents, and show that nothing of them stays
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Args {
    /// How many sandboxes at once
    #[arg(long, default_value_t = 100_000)]
    sandboxes: u64,
    /// How many simulated agents, in one process
    #[arg(long, default_value_t = 50)]
    agents: u64,
    /// How often they all come and go: what grows from round to round is a leak, what does not is the allocator's store
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Calls in flight
    #[arg(long, default_value_t = 128)]
    concurrency: usize,
    /// How long the servers remember requests after their sandbox is gone, seconds
    #[arg(long, default_value_t = 10)]
    request_retention: u64,
    /// How much more memory than before a process may keep, MiB: its caches of a bounded size, and what the allocator
    /// has not given back. Without the feature `jemalloc` that is more
    #[arg(long, default_value_t = 192)]
    keeps_at_most: u64,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// One process at one moment.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    resident_bytes: u64,
    open_files: usize,
}

/// What one process took over time.
#[derive(Debug, Serialize)]
struct Memory {
    process: String,
    /// At each of the report's moments.
    samples: Vec<Sample>,
    peak_bytes: u64,
}

impl Memory {
    /// What is wrong, if it keeps more than `at_most` MiB more than it had at first.
    fn kept(&self, at_most: u64) -> Option<String> {
        let (first, last) = (self.samples.first()?, self.samples.last()?);
        let more = last.resident_bytes.saturating_sub(first.resident_bytes) / (1024 * 1024);
        (more > at_most)
            .then(|| format!("{} keeps {more} MiB more than before, allowed are {at_most}", self.process))
    }
}

/// How one round went.
#[derive(Debug, Serialize)]
struct Round {
    creates_per_second: f64,
    terminates_per_second: f64,
    /// From the last terminate's answer until no node knew of a sandbox.
    gone_after_seconds: f64,
    /// From then until no request was remembered.
    forgotten_after_seconds: f64,
}

/// A table that is not what it was.
#[derive(Debug, Serialize)]
struct Leftover {
    node: String,
    table: String,
    before: u64,
    after: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    sandboxes: u64,
    agents: u64,
    concurrency: usize,
    rounds: Vec<Round>,
    /// When samples were taken.
    moments: Vec<String>,
    memory: Vec<Memory>,
    left_over: Vec<Leftover>,
    /// What is wrong with the memory, in words.
    kept: Vec<String>,
}

/// The tables of one node: how much is in each.
type Tables = BTreeMap<String, u64>;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    ensure!(
        args.sandboxes > 0 && args.agents > 0 && args.concurrency > 0 && args.rounds > 0,
        "nothing to do"
    );
    let slots = args.sandboxes.div_ceil(args.agents);
    ensure!(slots <= MAX_SLOTS, "{slots} sandboxes for each agent are more than {MAX_SLOTS}: more --agents");
    let mut soak = Soak::start(&args, slots).await?;
    let report = soak.run(&args).await.inspect_err(|_| soak.cluster.keep())?;
    let is_back = report.left_over.is_empty() && report.kept.is_empty();
    if !is_back {
        soak.cluster.keep();
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.memory_table());
        for Leftover { node, table, before, after } in &report.left_over {
            println!("NOT BACK: {table} of {node} was {before} and is {after}");
        }
        for kept in &report.kept {
            println!("NOT BACK: {kept}");
        }
    }
    Ok(if is_back { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Soak {
    cluster: Cluster,
    bar: ProgressBar,
    /// A line for each step, unless the output is JSON.
    talks: bool,
}

impl Soak {
    async fn start(args: &Args, slots: u64) -> anyhow::Result<Self> {
        let style =
            ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} {per_sec} {elapsed} {msg}")?;
        let bar = ProgressBar::new(args.sandboxes).with_style(style);
        bar.set_message("starting a cluster");
        let words = |flags: String| flags.split_whitespace().map(str::to_owned).collect();
        let options = ClusterOptions {
            agents: 1,
            slots,
            server_flags: words(format!("--request-retention {}s", args.request_retention)),
            agent_flags: words(format!("--runtime simulated --count {}", args.agents)),
            ..ClusterOptions::default()
        };
        let soak = Self { cluster: Cluster::start_with(options).await, bar, talks: !args.json };
        let (sessions, ready) = ("sandkeeper_agent_sessions", "sandkeeper_agents{status=\"READY\"}");
        soak.until("all agents are here", |tables| {
            tables.get(sessions) == Some(&args.agents) && tables.get(ready) == Some(&args.agents)
        })
        .await?;
        Ok(soak)
    }

    async fn run(&self, args: &Args) -> anyhow::Result<Report> {
        let client = self.cluster.client();
        let tables = self.tables().await?;
        let mut samples = vec![("before".to_owned(), self.samples())];
        self.say("the cluster is ready");
        let mut rounds = Vec::new();
        for number in 1..=args.rounds {
            rounds.push(self.round(&client, args, number, &mut samples).await?);
        }
        let left_over = left_over(&tables, &self.tables().await?);
        self.settle().await;
        samples.push(("settled".to_owned(), self.samples()));
        self.bar.finish_and_clear();
        let memory = self.processes().into_iter().enumerate().map(|(index, (process, pid))| Memory {
            process,
            samples: samples.iter().map(|(_, all)| all[index].clone()).collect(),
            peak_bytes: peak_resident_bytes(pid),
        });
        let memory: Vec<_> = memory.collect();
        Ok(Report {
            sandboxes: args.sandboxes,
            agents: args.agents,
            concurrency: args.concurrency,
            rounds,
            kept: memory.iter().filter_map(|memory| memory.kept(args.keeps_at_most)).collect(),
            memory,
            moments: samples.into_iter().map(|(moment, _)| moment).collect(),
            left_over,
        })
    }

    /// All come, and all go.
    async fn round(
        &self,
        client: &Client,
        args: &Args,
        number: u32,
        samples: &mut Vec<(String, Vec<Sample>)>,
    ) -> anyhow::Result<Round> {
        let began = Instant::now();
        let ids = self.create_all(client, args, number).await?;
        let creates_per_second = per_second(args, began);
        self.say(&format!("all created, {creates_per_second:.0} a second"));
        let running = "sandkeeper_sandboxes{phase=\"RUNNING\"}";
        self.until("all run", |tables| tables.get(running) == Some(&args.sandboxes)).await?;
        samples.push((format!("{number}: run"), self.samples()));

        let began = Instant::now();
        self.terminate_all(client, args, ids).await?;
        let terminates_per_second = per_second(args, began);
        self.say(&format!("all run, and all were terminated, {terminates_per_second:.0} a second"));
        let began = Instant::now();
        let sandboxes = |tables: &Tables| sum_of(tables, "sandkeeper_sandboxes{");
        self.until("all are gone", |tables| sandboxes(tables) == 0).await?;
        let gone_after_seconds = began.elapsed().as_secs_f64();
        samples.push((format!("{number}: gone"), self.samples()));
        self.say(&format!("all are gone, {gone_after_seconds:.1} s later"));

        let began = Instant::now();
        let requests = |tables: &Tables| sum_of(tables, "sandkeeper_requests_remembered");
        match self.until("all requests are forgotten", |tables| requests(tables) == 0).await {
            Ok(()) => self.say("all requests are forgotten"),
            // What has not come back is named in the report.
            Err(why) => self.say(&format!("{why:#}")),
        }
        samples.push((format!("{number}: forgotten"), self.samples()));
        let forgotten_after_seconds = began.elapsed().as_secs_f64();
        Ok(Round { creates_per_second, terminates_per_second, gone_after_seconds, forgotten_after_seconds })
    }

    fn say(&self, what: &str) {
        if self.talks {
            self.bar.suspend(|| println!("{what}"));
        }
        self.bar.set_message(what.to_owned());
    }

    async fn create_all(&self, client: &Client, args: &Args, round: u32) -> anyhow::Result<Vec<String>> {
        self.bar.reset();
        let creates = stream::iter(0..args.sandboxes).map(|index| async move {
            let created = client.create(shell(&format!("soak-{round}-{index}"), "sleep 600")).await?;
            self.bar.inc(1);
            Ok::<_, anyhow::Error>(created.sandbox.context("a create is answered with a sandbox")?.sandbox_id)
        });
        creates.buffer_unordered(args.concurrency).try_collect().await
    }

    async fn terminate_all(&self, client: &Client, args: &Args, ids: Vec<String>) -> anyhow::Result<()> {
        self.bar.reset();
        let terminates = stream::iter(ids).map(|id| async move {
            let target = Some(by_id(&id));
            let request =
                v1::TerminateSandboxRequest { r#ref: target, ..v1::TerminateSandboxRequest::default() };
            client.terminate(request).await?;
            self.bar.inc(1);
            Ok::<_, anyhow::Error>(())
        });
        terminates.buffer_unordered(args.concurrency).try_collect().await
    }

    /// The tables of every node.
    async fn tables(&self) -> anyhow::Result<Vec<(String, Tables)>> {
        let mut found = Vec::new();
        for node in &self.cluster.nodes {
            let samples = scrape(&node.http).await.map_err(anyhow::Error::msg)?;
            let wanted = |name: &String| TABLES.iter().any(|table| name.starts_with(table));
            // Gauges are whole numbers, and never negative.
            let tables: Tables = samples
                .into_iter()
                .filter(|(name, _)| wanted(name))
                .map(|(name, value)| (name, value as u64))
                .collect();
            ensure!(tables.len() >= TABLES.len(), "{} does not tell all its tables: {tables:?}", node.name);
            found.push((node.name.clone(), tables));
        }
        Ok(found)
    }

    /// Waits until every node is as it should be; gives up when nothing has moved for [`STUCK`].
    async fn until(&self, what: &str, holds: impl Fn(&Tables) -> bool) -> anyhow::Result<()> {
        let mut last = Vec::new();
        let mut moved = Instant::now();
        loop {
            let now = self.tables().await?;
            if now.iter().all(|(_, tables)| holds(tables)) {
                return Ok(());
            }
            if now != last {
                (last, moved) = (now, Instant::now());
            } else if moved.elapsed() > STUCK {
                bail!("not so, and nothing moves any more: {what}: {now:#?}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until no process gives memory back any more: allocators take some seconds.
    async fn settle(&self) {
        self.bar.set_message("waiting until no memory is given back any more");
        let resident = || self.samples().iter().map(|sample| sample.resident_bytes).sum::<u64>();
        let (mut least, mut since) = (resident(), Instant::now());
        while since.elapsed() < SETTLED {
            tokio::time::sleep(LOOK).await;
            let now = resident();
            if now + NOTICEABLE < least {
                (least, since) = (now, Instant::now());
            }
        }
    }

    /// Every process and its id, always in the same order.
    fn processes(&self) -> Vec<(String, u32)> {
        let nodes = self.cluster.nodes.iter().map(|node| (&node.name, &node.process));
        let agents = self.cluster.agents.iter().map(|agent| (&agent.name, &agent.process));
        nodes
            .chain(agents)
            .filter_map(|(name, process)| Some((name.clone(), process.as_ref()?.pid())))
            .collect()
    }

    fn samples(&self) -> Vec<Sample> {
        let sample = |(_, pid)| Sample { resident_bytes: resident_bytes(pid), open_files: open_files(pid) };
        self.processes().into_iter().map(sample).collect()
    }
}

fn per_second(args: &Args, began: Instant) -> f64 {
    args.sandboxes as f64 / began.elapsed().as_secs_f64()
}

/// What is in all tables whose names begin so.
fn sum_of(tables: &Tables, prefix: &str) -> u64 {
    tables.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, count)| count).sum()
}

/// Every table that is not what it was.
fn left_over(before: &[(String, Tables)], after: &[(String, Tables)]) -> Vec<Leftover> {
    let mut found = Vec::new();
    for ((node, before), (_, after)) in before.iter().zip(after) {
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        for table in names {
            let count = |tables: &Tables| tables.get(table).copied().unwrap_or(0);
            let (before, after) = (count(before), count(after));
            if before != after {
                found.push(Leftover { node: node.clone(), table: table.clone(), before, after });
            }
        }
    }
    found
}

impl Report {
    fn memory_table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        let moments = self.moments.iter().map(String::as_str);
        table.set_header(["resident MiB"].into_iter().chain(moments).chain(["peak", "open files"]));
        let mib = |bytes: u64| format!("{:.0}", bytes as f64 / (1024.0 * 1024.0));
        for Memory { process, samples, peak_bytes } in &self.memory {
            let mut row = vec![process.clone()];
            row.extend(samples.iter().map(|sample| mib(sample.resident_bytes)));
            row.push(mib(*peak_bytes));
            let files: Vec<_> = [samples.first(), samples.last()]
                .into_iter()
                .flatten()
                .map(|sample| sample.open_files.to_string())
                .collect();
            row.push(files.join(" → "));
            table.add_row(row);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_kept_is_named() {
        let sample = |mib: u64| Sample { resident_bytes: mib * 1024 * 1024, open_files: 1 };
        let memory = |after| Memory {
            process: "n0".to_owned(),
            samples: vec![sample(50), sample(400), sample(after)],
            peak_bytes: 0,
        };
        assert_eq!(memory(150).kept(100), None);
        let kept = memory(151).kept(100).unwrap();
        assert_eq!(kept, "n0 keeps 101 MiB more than before, allowed are 100");
    }

    #[test]
    fn what_is_left_over_is_named() {
        let tables =
            |count| vec![("n0".to_owned(), Tables::from([("a".to_owned(), 1), ("b".to_owned(), count)]))];
        assert!(left_over(&tables(0), &tables(0)).is_empty());
        let found = left_over(&tables(0), &tables(7));
        assert_eq!((found.len(), found[0].table.as_str(), found[0].before, found[0].after), (1, "b", 0, 7));
        let new = left_over(&[("n0".to_owned(), Tables::new())], &tables(0));
        assert_eq!(new.len(), 1, "a table that is new, and not empty");
        assert_eq!(sum_of(&tables(7)[0].1, "b"), 7);
    }
}
