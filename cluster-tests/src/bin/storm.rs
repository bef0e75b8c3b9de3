//! A thousand agents lose their sessions at once: how long until all are back, and what callers feel meanwhile.
//!
//! ```text
//! cargo run --release -p cluster-tests --bin storm
//! ```
#![allow(clippy::print_stdout, reason = "a program that reports")]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use cluster_tests::{Cluster, ClusterOptions, by_id, eventually_for, scrape, shell};
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use nix::sys::signal::Signal;
use nix::unistd::{SysconfVar, sysconf};
use sandkeeper_client::{Client, v1};
use serde::Serialize;

/// Between two creates of the caller.
const PAUSE: Duration = Duration::from_millis(20);
/// A storm that is not over by then never is.
const STUCK: Duration = Duration::from_mins(5);

/// Have many agents lose their sessions at once, and measure how they come back
#[derive(Debug, Parser)]
#[command(name = "storm")]
struct Args {
    /// Simulated agents, all of one process
    #[arg(long, default_value_t = 1_000)]
    agents: u64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// What happened, and what it was like.
#[derive(Debug, Serialize)]
struct Storm {
    what: &'static str,
    /// From the deed (of stopped agents: from their waking) until every node that runs has a session with every agent, and
    /// all of them are READY.
    back_after_seconds: f64,
    /// By how much the term grew.
    elections: u64,
    creates: usize,
    median_millis: f64,
    p99_millis: f64,
    max_millis: f64,
    /// Processor time of all control nodes together.
    cpu_seconds: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let options = ClusterOptions {
        agents: 1,
        slots: 16,
        agent_flags: format!("--runtime simulated --count {}", args.agents)
            .split(' ')
            .map(Into::into)
            .collect(),
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::start_with(options).await;
    whole(&cluster, args.agents).await;
    let mut storms = Vec::new();
    storms.push(weather(&mut cluster, args.agents, "nothing, for 5 s", Deed::Nothing).await?);
    let leader = cluster.wait_leader().await;
    storms.push(weather(&mut cluster, args.agents, "the leader is killed", Deed::Kill(leader)).await?);
    storms.push(weather(&mut cluster, args.agents, "it is started again", Deed::Start(leader)).await?);
    let follower = cluster.follower().await;
    cluster.kill_node(follower);
    storms.push(weather(&mut cluster, args.agents, "a follower, too", Deed::Start(follower)).await?);
    storms.push(weather(&mut cluster, args.agents, "all agents stop until lost", Deed::StopAgents).await?);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&storms)?);
    } else {
        println!("{}", table(&storms));
    }
    Ok(())
}

/// What is done.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Nothing,
    Kill(usize),
    Start(usize),
    StopAgents,
}

/// Waits until every node that runs has a session with every agent, and knows all as READY.
async fn whole(cluster: &Cluster, agents: u64) {
    eventually_for(STUCK, "all agents are back", || async {
        for index in cluster.running() {
            let metrics = scrape(&cluster.nodes[index].http).await?;
            let value = |name: &str| metrics.get(name).copied().unwrap_or_default() as u64;
            let found = (value("sandkeeper_agent_sessions"), value(r#"sandkeeper_agents{status="READY"}"#));
            if found != (agents, agents) {
                return Err(format!("n{index} has sessions with {}, and {} are READY", found.0, found.1));
            }
        }
        Ok(())
    })
    .await;
}

/// Does it, and looks until all is well again.
async fn weather(
    cluster: &mut Cluster,
    agents: u64,
    what: &'static str,
    deed: Deed,
) -> anyhow::Result<Storm> {
    cluster.wait_identical().await;
    let client = cluster.client();
    let (over, term, cpu) = (Arc::new(AtomicBool::new(false)), term(&client).await?, cpu_seconds(cluster));
    let caller = tokio::spawn(create_again_and_again(client.clone(), Arc::clone(&over)));
    let mut began = Instant::now();
    match deed {
        Deed::Nothing => tokio::time::sleep(Duration::from_secs(5)).await,
        Deed::Kill(node) => {
            cluster.kill_node(node);
            cluster.wait_leader().await;
        }
        Deed::Start(node) => cluster.start_node(node),
        Deed::StopAgents => {
            let process = cluster.agents[0].process.as_ref().context("the agents run")?;
            process.signal(Signal::SIGSTOP);
            eventually_for(STUCK, "all agents are lost", || async {
                let metrics = scrape(&cluster.nodes[0].http).await?;
                let ready = metrics.get(r#"sandkeeper_agents{status="READY"}"#).copied().unwrap_or_default();
                if ready == 0.0 { Ok(()) } else { Err(format!("{ready} are READY")) }
            })
            .await;
            process.signal(Signal::SIGCONT);
            began = Instant::now();
        }
    }
    whole(cluster, agents).await;
    let back_after_seconds = began.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    let mut millis = caller.await??;
    millis.sort_by(f64::total_cmp);
    let at = |share: f64| millis[((millis.len() - 1) as f64 * share) as usize];
    let ticks = cpu_seconds(cluster);
    Ok(Storm {
        what,
        back_after_seconds,
        elections: self::term(&client).await?.saturating_sub(term),
        creates: millis.len(),
        median_millis: at(0.5),
        p99_millis: at(0.99),
        max_millis: at(1.0),
        // A node that was killed takes its time with it, and one that is started begins at nothing.
        cpu_seconds: ticks
            .iter()
            .zip(&cpu)
            .map(|(now, before)| if now < before { *now } else { now - before })
            .sum(),
    })
}

/// Creates and terminates a sandbox again and again; how long each create took, milliseconds. One that no agent has room
/// for, because none is READY, took as long as its refusal.
async fn create_again_and_again(client: Client, over: Arc<AtomicBool>) -> anyhow::Result<Vec<f64>> {
    let mut millis = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        let created = client.create(shell(&format!("storm-{}", uuid::Uuid::new_v4()), "sleep 600")).await;
        millis.push(began.elapsed().as_secs_f64() * 1_000.0);
        match created {
            Ok(created) => {
                let sandbox_id = created.sandbox.context("a create is answered with a sandbox")?.sandbox_id;
                let r#ref = Some(by_id(&sandbox_id));
                client.terminate(v1::TerminateSandboxRequest { r#ref, ..Default::default() }).await?;
            }
            Err(error) if error.code() == Some(sandkeeper_client::Code::ResourceExhausted) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(millis)
}

async fn term(client: &Client) -> anyhow::Result<u64> {
    Ok(client.status().await?.term)
}

/// The processor time that each control node has used; zero of one that does not run.
fn cpu_seconds(cluster: &Cluster) -> Vec<f64> {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
    let of = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Behind the name, which may have blanks: utime and stime are the 12th and 13th from there.
        let rest = stat.rsplit_once(')').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        let fields = rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
        fields.sum::<f64>() / ticks
    };
    cluster.nodes.iter().map(|node| node.process.as_ref().map_or(0.0, |process| of(process.pid()))).collect()
}

fn table(storms: &[Storm]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header([
        "",
        "all back after",
        "elections",
        "creates",
        "median",
        "p99",
        "max",
        "CPU of the nodes",
    ]);
    for storm in storms {
        table.add_row([
            storm.what.to_owned(),
            format!("{:.1} s", storm.back_after_seconds),
            storm.elections.to_string(),
            storm.creates.to_string(),
            format!("{:.0} ms", storm.median_millis),
            format!("{:.0} ms", storm.p99_millis),
            format!("{:.0} ms", storm.max_millis),
            format!("{:.1} s", storm.cpu_seconds),
        ]);
    }
    table
}
