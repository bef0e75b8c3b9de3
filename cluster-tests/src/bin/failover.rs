//! How long callers wait when a leader dies: kills it with -9, and takes the time to the next create that the
//! product's client gets acknowledged, while others create and terminate. Between two kills the cluster is whole again.
//!
//! ```text
//! cargo run --release -p cluster-tests --bin failover -- --kills 100 --writers 16
//! ```
#![allow(clippy::print_stdout, reason = "a program that reports")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use cluster_tests::{Cluster, ClusterOptions, by_id, eventually, scrape, shell};
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use sandkeeper_client::{Client, v1};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Slots for the creates that are timed.
const SPARE_SLOTS: u64 = 16;
/// Slots for each writer: what it has terminated takes a moment to go.
const WRITER_SLOTS: u64 = 64;
/// Creates in flight while the cluster is filled.
const CONCURRENCY: usize = 64;

/// Kill the leader of a cluster with default settings again and again, and time the next acknowledged create
#[derive(Debug, Parser)]
#[command(name = "failover")]
struct Args {
    /// How many leaders are killed
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Control nodes
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Sandboxes that run all the while: what a new leader has to look after
    #[arg(long, default_value_t = 0)]
    sandboxes: u64,
    /// Callers that create and terminate without a pause while the leader is killed
    #[arg(long, default_value_t = 0)]
    writers: u64,
    /// Simulated agents, in one process
    #[arg(long, default_value_t = 2)]
    agents: u64,
    /// More flags for the servers, as one text; none: default settings
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    server_flags: String,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// One kill.
#[derive(Clone, Debug, Serialize)]
struct Kill {
    number: usize,
    leader: String,
    /// The node that the client was talking to when the leader died.
    client_of: String,
    /// From just before the signal to the answer.
    millis: f64,
    /// What the writers got done around it: sandboxes created and terminated.
    written: u64,
}

/// All kills.
#[derive(Debug, Serialize)]
struct Report {
    nodes: usize,
    sandboxes: u64,
    writers: u64,
    agents: u64,
    server_flags: String,
    kills: Vec<Kill>,
    min_millis: f64,
    median_millis: f64,
    p90_millis: f64,
    p99_millis: f64,
    max_millis: f64,
}

/// Callers that create and terminate without a pause.
struct Writers {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<anyhow::Result<u64>>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(args.kills > 0, "--kills has to be at least 1");
    ensure!(args.nodes >= 3, "--nodes has to be at least 3: fewer have no majority without their leader");
    ensure!(args.agents > 0, "--agents has to be at least 1");
    let words = |flags: &str| flags.split_whitespace().map(str::to_owned).collect();
    let options = ClusterOptions {
        nodes: args.nodes,
        agents: 1,
        slots: (args.sandboxes + args.writers * WRITER_SLOTS).div_ceil(args.agents) + SPARE_SLOTS,
        server_flags: words(&args.server_flags),
        agent_flags: words(&format!("--runtime simulated --count {}", args.agents)),
        ..ClusterOptions::default()
    };
    let bar = progress(args.kills as u64);
    bar.set_message("starting a cluster");
    let mut cluster = Cluster::start_with(options).await;
    fill(&cluster, &args, &bar).await?;
    let mut kills = Vec::new();
    for number in 1..=args.kills {
        let kill = kill_leader(&mut cluster, &args, number, &bar).await?;
        if !args.json {
            let Kill { leader, client_of, millis, .. } = &kill;
            bar.suspend(|| {
                println!("{number:>3}  {leader} killed, the client was at {client_of}: {millis:>7.1} ms");
            });
        }
        kills.push(kill);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = Report::new(&args, kills);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.table());
    }
    Ok(())
}

fn progress(steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}")
        .expect("the template is a constant that is well-formed");
    ProgressBar::new(steps).with_style(style)
}

/// Creates what is to run all the while.
async fn fill(cluster: &Cluster, args: &Args, bar: &ProgressBar) -> anyhow::Result<()> {
    whole(cluster, args).await;
    bar.set_message(format!("creating {} sandboxes", args.sandboxes));
    let client = &cluster.client();
    let creates = stream::iter(0..args.sandboxes)
        .map(|index| async move { client.create(shell(&format!("stays-{index}"), "sleep 600")).await });
    creates.buffer_unordered(CONCURRENCY).try_collect::<Vec<_>>().await?;
    Ok(())
}

/// Waits until all nodes follow one leader, and have sessions with all agents.
async fn whole(cluster: &Cluster, args: &Args) {
    cluster.wait_ready().await;
    eventually("all agents have sessions with all nodes", || async {
        for node in &cluster.nodes {
            let sessions = scrape(&node.http).await?.get("sandkeeper_agent_sessions").copied();
            if sessions.map(|count| count as u64) != Some(args.agents) {
                return Err(format!("{} has {sessions:?} of {}", node.name, args.agents));
            }
        }
        Ok(())
    })
    .await;
}

async fn kill_leader(
    cluster: &mut Cluster,
    args: &Args,
    number: usize,
    bar: &ProgressBar,
) -> anyhow::Result<Kill> {
    bar.set_message("waiting until the cluster is whole");
    whole(cluster, args).await;
    cluster.wait_identical().await;
    let leader = cluster.wait_leader().await;
    // By turns the client's own node is the leader, or another one. It is a new client, with a connection to it.
    let count = cluster.nodes.len();
    let order: Vec<usize> = (0..count).map(|index| (leader + number + index) % count).collect();
    let client = cluster.client_of(&order);
    create_and_terminate(&client, format!("before-{number}")).await.context("before the kill")?;
    let writers = Writers::start(cluster, args.writers, number).await?;
    bar.set_message(format!("killing {}", cluster.nodes[leader].name));
    let began = Instant::now();
    cluster.kill_node(leader);
    let name = format!("after-{number}");
    let created = client.create(shell(&name, "sleep 600")).await.context("after the kill")?;
    let took = began.elapsed();
    let sandbox = created.sandbox.context("a create is answered with a sandbox")?;
    end(&client, &sandbox.sandbox_id).await?;
    let written = writers.stop().await?;
    cluster.start_node(leader);
    Ok(Kill {
        number,
        leader: cluster.nodes[leader].name.clone(),
        client_of: cluster.nodes[order[0]].name.clone(),
        millis: millis(took),
        written,
    })
}

impl Writers {
    /// Returns when each of them has written once.
    async fn start(cluster: &Cluster, count: u64, kill: usize) -> anyhow::Result<Self> {
        let (stop, wrote) = (Arc::new(AtomicBool::new(false)), Arc::new(Semaphore::new(0)));
        let mut tasks = JoinSet::new();
        for writer in 0..count {
            let (client, stop, wrote) = (cluster.client(), Arc::clone(&stop), Arc::clone(&wrote));
            tasks.spawn(async move {
                let mut written = 0;
                while !stop.load(Ordering::Relaxed) {
                    create_and_terminate(&client, format!("load-{kill}-{writer}-{written}")).await?;
                    written += 1;
                    if written == 1 {
                        wrote.add_permits(1);
                    }
                }
                Ok(written)
            });
        }
        let mut writers = Self { stop, tasks };
        let all = u32::try_from(count).context("--writers is too high")?;
        tokio::select! {
            permits = wrote.acquire_many(all) => drop(permits?),
            // One that ends before it is told to has failed.
            Some(ended) = writers.tasks.join_next() => {
                ended??;
            }
        }
        Ok(writers)
    }

    /// Ends them; how much they have written.
    async fn stop(mut self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut written = 0;
        while let Some(ended) = self.tasks.join_next().await {
            written += ended?.context("a writer")?;
        }
        Ok(written)
    }
}

async fn create_and_terminate(client: &Client, name: String) -> anyhow::Result<()> {
    let created = client.create(shell(&name, "sleep 600")).await?;
    let sandbox = created.sandbox.context("a create is answered with a sandbox")?;
    end(client, &sandbox.sandbox_id).await
}

async fn end(client: &Client, sandbox_id: &str) -> anyhow::Result<()> {
    let request = v1::TerminateSandboxRequest {
        r#ref: Some(by_id(sandbox_id)),
        ..v1::TerminateSandboxRequest::default()
    };
    client.terminate(request).await?;
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The smallest value that is not below this share of all: the nearest rank.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

impl Report {
    fn new(args: &Args, kills: Vec<Kill>) -> Self {
        let mut sorted: Vec<f64> = kills.iter().map(|kill| kill.millis).collect();
        sorted.sort_by(f64::total_cmp);
        Self {
            nodes: args.nodes,
            sandboxes: args.sandboxes,
            writers: args.writers,
            agents: args.agents,
            server_flags: args.server_flags.clone(),
            min_millis: quantile(&sorted, 0.0),
            median_millis: quantile(&sorted, 0.5),
            p90_millis: quantile(&sorted, 0.9),
            p99_millis: quantile(&sorted, 0.99),
            max_millis: quantile(&sorted, 1.0),
            kills,
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        table.set_header(["kills of the leader", "min", "median", "p90", "p99", "max"]);
        let text = |millis: f64| format!("{millis:.0} ms");
        table.add_row([
            self.kills.len().to_string(),
            text(self.min_millis),
            text(self.median_millis),
            text(self.p90_millis),
            text(self.p99_millis),
            text(self.max_millis),
        ]);
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let sorted: Vec<f64> = (1..=20).map(f64::from).collect();
        let found = [0.0, 0.5, 0.9, 1.0].map(|share| quantile(&sorted, share) as u32);
        assert_eq!(found, [1, 10, 18, 20]);
        assert!((quantile(&[7.0], 0.9) - 7.0).abs() < f64::EPSILON);
    }
}
