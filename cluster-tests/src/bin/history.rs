//! How long the history of one sandbox, name or agent takes when the whole one is long: makes so many events with
//! simulated agents, then asks one node for the histories of random subjects, as its callers do; and once more after the
//! node was started again. Ends with 1 if one took longer than allowed.
//!
//! ```text
//! cargo run --release -p cluster-tests --bin history -- --events 1000000
//! ```
#![allow(clippy::print_stdout, reason = "a program that reports")]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use cluster_tests::{Cluster, ClusterOptions, by_id, eventually_for, resident_bytes, shell};
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use futures::future::try_join_all;
use rand::seq::IndexedRandom as _;
use sandkeeper_client::{Client, v1};
use serde::Serialize;

/// Simulated agents, in one process.
const AGENTS: usize = 20;
/// Of so many sandboxes one stays.
const ONE_STAYS: u64 = 40;
/// Of so many sandboxes one gets a name that others had.
const ONE_AGAIN: u64 = 10;
/// How many such names there are.
const NAMES_AGAIN: u64 = 500;

/// Measure how long the history of one subject takes
#[derive(Debug, Parser)]
#[command(name = "history")]
struct Args {
    /// How many events
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// Callers at once
    #[arg(long, default_value_t = 128)]
    concurrency: u64,
    /// Histories of each kind that are asked for
    #[arg(long, default_value_t = 500)]
    samples: usize,
    /// The history of a sandbox or a name may take so long at most, milliseconds
    #[arg(long, default_value_t = 10.0)]
    at_most_ms: f64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// Who was made.
#[derive(Default)]
struct Made {
    live: Vec<v1::Sandbox>,
    gone: Vec<v1::Sandbox>,
}

/// What one kind of history took.
#[derive(Debug, Serialize)]
struct Measured {
    when: &'static str,
    whose: &'static str,
    events: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// Whether it is a history that must be quick.
    bounded: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    events: u64,
    log_bytes: u64,
    index_bytes: u64,
    resident_bytes: u64,
    measured: Vec<Measured>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    ensure!(args.events > 0 && args.concurrency > 0 && args.samples > 0, "nothing to do");
    let options = ClusterOptions {
        nodes: 1,
        agents: 1,
        slots: 4096,
        agent_flags: format!("--runtime simulated --count {AGENTS}").split(' ').map(str::to_owned).collect(),
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::start_with(options).await;
    let client = cluster.client();
    let made = make(&client, &args).await?;
    let mut measured = measure(&client, &made, &args, "running").await?;
    cluster.kill_node(0);
    cluster.start_node(0);
    cluster.wait_ready().await;
    measured.extend(measure(&client, &made, &args, "restarted").await?);
    let status = client.status().await?;
    let node = &cluster.nodes[0];
    let pid = node.process.as_ref().context("the node runs")?.pid();
    let report = Report {
        events: status.header.unwrap_or_default().revision,
        log_bytes: bytes_in(&node.data_dir.join("log"))?,
        index_bytes: bytes_in(&node.data_dir.join("index"))?,
        resident_bytes: resident_bytes(pid),
        measured,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.table());
        let per_event = |bytes: u64| bytes as f64 / report.events as f64;
        println!(
            "{} events; on disk: log {:.0} and index {:.1} bytes for each; resident {} MiB",
            report.events,
            per_event(report.log_bytes),
            per_event(report.index_bytes),
            report.resident_bytes >> 20
        );
    }
    let slow = report.measured.iter().any(|kind| kind.bounded && kind.max_ms > args.at_most_ms);
    Ok(if slow { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Sandboxes come and go until there are as many events.
async fn make(client: &Client, args: &Args) -> anyhow::Result<Made> {
    let (made, next, revision) = (Mutex::new(Made::default()), AtomicU64::new(0), AtomicU64::new(0));
    let caller = |_| async {
        while revision.load(Ordering::Relaxed) < args.events {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let name = if number.is_multiple_of(ONE_AGAIN) {
                format!("again-{}", number / ONE_AGAIN % NAMES_AGAIN)
            } else {
                format!("once-{number}")
            };
            let stays = number % ONE_STAYS == 1;
            let answer = client.create(shell(&name, "sleep 600")).await?;
            let sandbox = answer.sandbox.context("a create is answered with a sandbox")?;
            let at = answer.header.map_or(0, |header| header.revision);
            revision.fetch_max(at, Ordering::Relaxed);
            if number.is_multiple_of(20_000) && !args.json {
                println!("{at} events");
            }
            if !stays {
                let target = v1::TerminateSandboxRequest {
                    r#ref: Some(by_id(&sandbox.sandbox_id)),
                    ..v1::TerminateSandboxRequest::default()
                };
                client.terminate(target).await?;
            }
            let mut made = made.lock().expect("no caller panics in here");
            if stays { &mut made.live } else { &mut made.gone }.push(sandbox);
        }
        Ok::<_, anyhow::Error>(())
    };
    try_join_all((0..args.concurrency).map(caller)).await?;
    eventually_for(Duration::from_secs(120), "what is to go is gone", || async {
        let request = v1::ListSandboxesRequest {
            phases: vec![v1::Phase::Terminating.into()],
            ..v1::ListSandboxesRequest::default()
        };
        let left = client.list_all(request).await.map_err(|error| error.to_string())?.sandboxes.len();
        if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
    })
    .await;
    Ok(made.into_inner().expect("no caller panicked"))
}

async fn measure(
    client: &Client,
    made: &Made,
    args: &Args,
    when: &'static str,
) -> anyhow::Result<Vec<Measured>> {
    let id = |sandbox: &v1::Sandbox| v1::EventFilter {
        sandbox_id: sandbox.sandbox_id.clone(),
        ..v1::EventFilter::default()
    };
    let name = |sandbox: &v1::Sandbox| v1::EventFilter {
        namespace: sandbox.namespace.clone(),
        name: sandbox.name.clone(),
        ..v1::EventFilter::default()
    };
    let agent = |sandbox: &v1::Sandbox| v1::EventFilter {
        agent_id: sandbox.agent_id.clone(),
        ..v1::EventFilter::default()
    };
    let is_again = |sandbox: &&v1::Sandbox| sandbox.name.starts_with("again");
    let (live, gone): (Vec<_>, Vec<_>) = (made.live.iter().collect(), made.gone.iter().collect());
    let (again, once): (Vec<_>, Vec<_>) = gone.iter().copied().partition(is_again);
    let mut measured = Vec::new();
    let mut kind =
        async |whose, of: &[&v1::Sandbox], filter: &dyn Fn(&v1::Sandbox) -> v1::EventFilter, bounded| {
            let found = ask(client, of, filter, args.samples).await?;
            measured.push(found.measured(when, whose, bounded));
            Ok::<_, anyhow::Error>(())
        };
    kind("a live sandbox, by id", &live, &id, true).await?;
    kind("a gone sandbox, by id", &gone, &id, true).await?;
    kind("a live sandbox, by name", &live, &name, true).await?;
    kind("a gone sandbox, by name", &once, &name, true).await?;
    kind("a name with many lives", &again, &name, false).await?;
    kind("an agent, its last 1,000", &live, &agent, false).await?;
    Ok(measured)
}

/// How long each took, sorted, and how many events it had on average.
struct Asked {
    took: Vec<Duration>,
    events: f64,
}

async fn ask(
    client: &Client,
    of: &[&v1::Sandbox],
    filter: &dyn Fn(&v1::Sandbox) -> v1::EventFilter,
    samples: usize,
) -> anyhow::Result<Asked> {
    let (mut took, mut events) = (Vec::new(), 0);
    for _ in 0..samples {
        let sandbox = of.choose(&mut rand::rng()).context("there are such sandboxes")?;
        let filter = filter(sandbox);
        let whole = filter.agent_id.is_empty();
        let local = v1::ReadOptions { consistency: v1::Consistency::Local.into(), min_revision: 0 };
        let request = v1::ListEventsRequest { filter: Some(filter), read: Some(local), limit: 0 };
        let began = Instant::now();
        let answer = client.events(request).await?;
        took.push(began.elapsed());
        events += answer.events.len();
        let first = answer.events.first().map(v1::Event::r#type);
        let created = first == Some(v1::EventType::SandboxCreated);
        ensure!(!whole || (created && !answer.truncated), "the history of {} is not whole", sandbox.name);
    }
    took.sort_unstable();
    Ok(Asked { took, events: events as f64 / samples as f64 })
}

impl Asked {
    fn measured(&self, when: &'static str, whose: &'static str, bounded: bool) -> Measured {
        let at = |share: f64| self.took[((self.took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        let (p50_ms, p99_ms, max_ms) = (at(0.5), at(0.99), at(1.0));
        Measured { when, whose, events: self.events, p50_ms, p99_ms, max_ms, bounded }
    }
}

impl Report {
    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        table.set_header(["node", "history of", "events", "p50 ms", "p99 ms", "max ms"]);
        for Measured { when, whose, events, p50_ms, p99_ms, max_ms, .. } in &self.measured {
            let ms = |value: &f64| format!("{value:.2}");
            table.add_row([
                (*when).to_owned(),
                (*whose).to_owned(),
                format!("{events:.1}"),
                ms(p50_ms),
                ms(p99_ms),
                ms(max_ms),
            ]);
        }
        table
    }
}

fn bytes_in(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { bytes_in(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
