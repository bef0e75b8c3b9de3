//! Many sandboxes come and go, and nothing of them stays: creates them all on simulated agents, terminates them all,
//! waits until even their requests are forgotten, and compares every table of every node with what it was before.
//! Ends with 1 if one has not come back.
//!
//! ```text
//! cargo run --release -p cluster-tests --bin soak -- --sandboxes 100000 --agents 50
//! ```
#![allow(clippy::print_stdout, reason = "a program that reports")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use cluster_tests::{Cluster, ClusterOptions, by_id, open_files, peak_resident_bytes, resident_bytes, scrape, shell};
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

/// Create and terminate many sandboxes on simulated agents, and show that nothing of them stays
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Args {
    /// How many sandboxes
    #[arg(long, default_value_t = 100_000)]
    sandboxes: u64,
    /// How many simulated agents, in one process
    #[arg(long, default_value_t = 50)]
    agents: u64,
    /// Calls in flight
    #[arg(long, default_value_t = 128)]
    concurrency: usize,
    /// How long the servers remember requests, seconds
    #[arg(long, default_value_t = 10)]
    request_retention: u64,
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
    before: Sample,
    all_running: Sample,
    peak_bytes: u64,
    all_gone: Sample,
    all_forgotten: Sample,
}

/// A table that is not what it was.
#[derive(Debug, Serialize)]
struct Leftover {
    node: String,
    table: String,
    before: f64,
    after: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    sandboxes: u64,
    agents: u64,
    concurrency: usize,
    creates_per_second: f64,
    terminates_per_second: f64,
    /// From the last terminate's answer until no node knew of a sandbox.
    gone_after_seconds: f64,
    /// From then until no request was remembered.
    forgotten_after_seconds: f64,
    memory: Vec<Memory>,
    left_over: Vec<Leftover>,
}

type Tables = BTreeMap<String, f64>;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    ensure!(args.sandboxes > 0 && args.agents > 0 && args.concurrency > 0, "nothing to do");
    let slots = args.sandboxes.div_ceil(args.agents);
    ensure!(slots <= MAX_SLOTS, "{slots} sandboxes for each agent are more than {MAX_SLOTS}: more --agents");
    let report = Soak::start(&args, slots).await?.run(&args).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.text());
    }
    Ok(if report.left_over.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Soak {
    cluster: Cluster,
    bar: ProgressBar,
    /// A line for each step, unless the output is JSON.
    talks: bool,
}

impl Soak {
    async fn start(args: &Args, slots: u64) -> anyhow::Result<Self> {
        let style = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} {per_sec} {elapsed} {msg}")?;
        let bar = ProgressBar::new(args.sandboxes).with_style(style);
        bar.set_message("starting a cluster");
        let text = |flags: &str| flags.split_whitespace().map(str::to_owned).collect();
        let options = ClusterOptions {
            agents: 1,
            slots,
            server_flags: text(&format!("--request-retention {}s", args.request_retention)),
            agent_flags: text(&format!("--runtime simulated --count {}", args.agents)),
            ..ClusterOptions::default()
        };
        let soak = Self { cluster: Cluster::start_with(options).await, bar, talks: !args.json };
        let (sessions, ready) = ("sandkeeper_agent_sessions", "sandkeeper_agents{status=\"READY\"}");
        let agents = args.agents as f64;
        soak.until("all agents are here", |tables| tables[sessions] == agents && tables[ready] == agents).await?;
        Ok(soak)
    }

    async fn run(self, args: &Args) -> anyhow::Result<Report> {
        let client = self.cluster.client();
        let tables = self.tables().await?;
        let before = self.samples();
        self.say("the cluster is ready");

        let began = Instant::now();
        let ids = self.create_all(&client, args).await?;
        let creates_per_second = per_second(args, began);
        self.say(&format!("all created, {creates_per_second:.0}/s"));
        let all = args.sandboxes as f64;
        self.until("all run", |tables| tables["sandkeeper_sandboxes{phase=\"RUNNING\"}"] == all).await?;
        let all_running = self.samples();
        self.say("all run");

        let began = Instant::now();
        self.terminate_all(&client, args, ids).await?;
        let terminates_per_second = per_second(args, began);
        self.say(&format!("all terminated, {terminates_per_second:.0}/s"));
        let began = Instant::now();
        self.until("all are gone", |tables| of(tables, "sandkeeper_sandboxes").all(|count| count == 0.0)).await?;
        let gone_after_seconds = began.elapsed().as_secs_f64();
        let all_gone = self.samples();
        self.say("all are gone");

        let began = Instant::now();
        // What has not come back is told by its name, below.
        let forgotten = self.until("all is forgotten", |now| tables.values().all(|before| *before == only(now))).await;
        let forgotten_after_seconds = began.elapsed().as_secs_f64();
        self.bar.finish_and_clear();
        if let Err(why) = forgotten {
            self.say(&format!("{why:#}"));
        }
        let left_over = self.left_over(&tables).await?;
        let after = self.samples();
        let samples = before.into_iter().zip(all_running).zip(all_gone.into_iter().zip(after));
        let memory = samples.map(|(((process, pid, before), (_, _, running)), ((_, _, gone), (_, _, after)))| Memory {
            process,
            before,
            all_running: running,
            peak_bytes: peak_resident_bytes(pid),
            all_gone: gone,
            all_forgotten: after,
        });
        Ok(Report {
            sandboxes: args.sandboxes,
            agents: args.agents,
            concurrency: args.concurrency,
            creates_per_second,
            terminates_per_second,
            gone_after_seconds,
            forgotten_after_seconds,
            memory: memory.collect(),
            left_over,
        })
    }
}
