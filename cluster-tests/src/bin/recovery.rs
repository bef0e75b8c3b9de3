//! Agents die, stop, and are cut off, again and again, and what they ran runs elsewhere: never two generations at once.
//! The sandboxes write down themselves when they lived, by the kernel's clock since boot. Ends with 1 if two lives overlap.
//!
//! ```text
//! cargo run --release -p cluster-tests --bin recovery -- --rounds 100
//! ```
#![allow(clippy::print_stdout, reason = "a program that reports")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Parser, ValueEnum};
use cluster_tests::{Cluster, ClusterOptions, Cut, diary, shell};
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sandkeeper_client::{Client, v1};
use serde::Serialize;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// A sandbox that is not back by then will not be.
const STUCK: Duration = Duration::from_mins(3);

/// Kill, stop and cut off agents that run AUTO_RECREATE sandboxes, and show that no two generations ever run at once
#[derive(Debug, Parser)]
#[command(name = "recovery")]
struct Args {
    /// How many times something is done to an agent
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Agents. Fewer than half are down at a time
    #[arg(long, default_value_t = 7)]
    agents: usize,
    /// Sandboxes
    #[arg(long, default_value_t = 8)]
    sandboxes: usize,
    /// The recovery timeout of the sandboxes, which is their lease too, seconds
    #[arg(long, default_value_t = 5)]
    recovery_timeout: u32,
    /// An agent is lost after this time, seconds
    #[arg(long, default_value_t = 2)]
    lost_after: u64,
    /// The leader is killed with every so manieth agent; 0: never
    #[arg(long, default_value_t = 5)]
    kill_leader_every: usize,
    /// Only these are done to agents
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Fault::ALL)]
    faults: Vec<Fault>,
    /// The choice of victims follows from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// What is done to an agent. Its sandboxes' shims are left alone: they are the guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Fault {
    /// kill -9, and a new start.
    Killed,
    /// SIGSTOP, and SIGCONT.
    Stopped,
    /// Nothing gets through between it and the control nodes.
    CutOff,
    /// Nothing that it says gets through.
    Unheard,
    /// Nothing that it is told gets through.
    Deaf,
}

impl Fault {
    const ALL: [Self; 5] = [Self::Killed, Self::Stopped, Self::CutOff, Self::Unheard, Self::Deaf];

    fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Stopped => "stopped",
            Self::CutOff => "cut off",
            Self::Unheard => "unheard",
            Self::Deaf => "deaf",
        }
    }
}

/// An agent that is down.
#[derive(Debug)]
struct Down {
    agent: usize,
    fault: Fault,
    since: Instant,
    /// What it ran: sandbox and generation.
    ran: BTreeMap<String, u64>,
}

/// Two lives of one sandbox at once.
#[derive(Debug, Serialize)]
struct Overlap {
    sandbox: String,
    /// Hundredths of a second since boot.
    first_lived_until: u64,
    second_lived_from: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    rounds: usize,
    faults: BTreeMap<Fault, usize>,
    leaders_killed: usize,
    recoveries: usize,
    lives: usize,
    /// From the fault until it was seen running elsewhere.
    median_seconds: f64,
    p99_seconds: f64,
    max_seconds: f64,
    overlaps: Vec<Overlap>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    ensure!(args.rounds > 0 && args.sandboxes > 0, "nothing to do");
    ensure!(args.agents >= 3, "--agents has to be at least 3: fewer than half are down at a time");
    let mut campaign = Campaign::start(&args).await?;
    let result = campaign.run(&args).await;
    campaign.bar.finish_and_clear();
    let report = result.inspect_err(|_| campaign.cluster.keep())?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.table());
        for Overlap { sandbox, first_lived_until, second_lived_from } in &report.overlaps {
            println!(
                "TWO AT ONCE: {sandbox}: one lived until {first_lived_until}, another from {second_lived_from}"
            );
        }
    }
    if report.overlaps.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    campaign.cluster.keep();
    Ok(ExitCode::FAILURE)
}

struct Campaign {
    cluster: Cluster,
    client: Client,
    dice: StdRng,
    bar: ProgressBar,
    down: Vec<Down>,
    faults: BTreeMap<Fault, usize>,
    leaders_killed: usize,
    /// A control node that is to be started again.
    dead_node: Option<usize>,
    recovered_after: Vec<f64>,
}

impl Campaign {
    async fn start(args: &Args) -> anyhow::Result<Self> {
        let style = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} {elapsed} {msg}")?;
        let bar = ProgressBar::new(args.rounds as u64).with_style(style);
        bar.set_message("starting a cluster");
        let options = ClusterOptions {
            agents: args.agents,
            slots: args.sandboxes as u64,
            proxies: true,
            server_flags: vec!["--lost-after".into(), format!("{}s", args.lost_after)],
            ..ClusterOptions::default()
        };
        let cluster = Cluster::start_with(options).await;
        let client = cluster.client();
        for number in 0..args.sandboxes {
            let name = format!("diary-{number}");
            let envs = [("DIARY".to_owned(), path_of(&cluster, &name).to_string_lossy().into_owned())];
            let request = v1::CreateSandboxRequest {
                failure_policy: v1::FailurePolicy::AutoRecreate.into(),
                recovery_timeout_seconds: args.recovery_timeout,
                envs: envs.into(),
                ..shell(&name, diary::SCRIPT)
            };
            client.create(request).await?;
        }
        let dice = StdRng::seed_from_u64(args.seed);
        let (faults, down, recovered_after) = (BTreeMap::new(), Vec::new(), Vec::new());
        Ok(Self {
            cluster,
            client,
            dice,
            bar,
            down,
            faults,
            leaders_killed: 0,
            dead_node: None,
            recovered_after,
        })
    }

    async fn run(&mut self, args: &Args) -> anyhow::Result<Report> {
        let mut begun = 0;
        let mut moved = Instant::now();
        while begun < args.rounds || !self.down.is_empty() {
            tokio::time::sleep(LOOK).await;
            // While there is no leader nobody answers; the next look asks again.
            let Ok(sandboxes) = self.sandboxes().await else { continue };
            self.heal(&sandboxes);
            let most = (args.agents - 1) / 2;
            if begun < args.rounds && self.down.len() < most && self.hurt(args, &sandboxes) {
                begun += 1;
                moved = Instant::now();
                self.bar.inc(1);
                if args.kill_leader_every > 0 && begun % args.kill_leader_every == 0 {
                    self.kill_leader().await;
                }
            }
            let (down, back) = (self.down.len(), self.recovered_after.len());
            self.bar.set_message(format!("{down} agents are down, {back} sandboxes were recovered"));
            if moved.elapsed() > STUCK {
                bail!("nothing moves any more: down are {:#?}, and there are {sandboxes:#?}", self.down);
            }
        }
        self.report(args)
    }

    async fn sandboxes(&self) -> anyhow::Result<Vec<v1::Sandbox>> {
        let client = self.client.with_deadline(Duration::from_secs(2));
        Ok(client.list(v1::ListSandboxesRequest::default()).await?.sandboxes)
    }

    /// Does something to an agent that is up and runs something; if there is one.
    fn hurt(&mut self, args: &Args, sandboxes: &[v1::Sandbox]) -> bool {
        let running = |agent: usize| {
            let id = &self.cluster.agents[agent].name;
            let here = sandboxes.iter().filter(|found| found.agent_id == *id);
            let here = here.filter(|found| found.phase() == v1::Phase::Running);
            here.map(|found| (found.sandbox_id.clone(), found.generation)).collect::<BTreeMap<_, _>>()
        };
        let up =
            (0..self.cluster.agents.len()).filter(|agent| self.down.iter().all(|down| down.agent != *agent));
        let victims: Vec<_> =
            up.map(|agent| (agent, running(agent))).filter(|(_, ran)| !ran.is_empty()).collect();
        if victims.is_empty() {
            return false;
        }
        let (agent, ran) = victims[self.dice.random_range(0..victims.len())].clone();
        let fault = args.faults[self.dice.random_range(0..args.faults.len())];
        match fault {
            Fault::Killed => self.cluster.kill_agent(agent),
            Fault::Stopped => self.signal(agent, Signal::SIGSTOP),
            Fault::CutOff => self.cluster.cut(agent, Cut::Both),
            Fault::Unheard => self.cluster.cut(agent, Cut::FromAgent),
            Fault::Deaf => self.cluster.cut(agent, Cut::ToAgent),
        }
        *self.faults.entry(fault).or_default() += 1;
        self.down.push(Down { agent, fault, since: Instant::now(), ran });
        true
    }

    fn signal(&self, agent: usize, signal: Signal) {
        if let Some(process) = &self.cluster.agents[agent].process {
            process.signal(signal);
        }
    }

    /// Takes note of what runs elsewhere by now, and wakes agents of which nothing is missing any more.
    fn heal(&mut self, sandboxes: &[v1::Sandbox]) {
        let mut healed = Vec::new();
        for down in &mut self.down {
            down.ran.retain(|id, generation| {
                let now = sandboxes.iter().find(|found| found.sandbox_id == *id);
                let back =
                    now.is_some_and(|now| now.generation > *generation && now.phase() == v1::Phase::Running);
                if back {
                    self.recovered_after.push(down.since.elapsed().as_secs_f64());
                }
                !back
            });
            if down.ran.is_empty() {
                healed.push((down.agent, down.fault));
            }
        }
        self.down.retain(|down| !down.ran.is_empty());
        for (agent, fault) in healed {
            match fault {
                Fault::Killed => self.cluster.start_agent(agent),
                Fault::Stopped => self.signal(agent, Signal::SIGCONT),
                Fault::CutOff | Fault::Unheard | Fault::Deaf => self.cluster.cut(agent, Cut::Nothing),
            }
        }
    }

    /// Kills the leader, and starts the one that was killed before it.
    async fn kill_leader(&mut self) {
        if let Some(node) = self.dead_node.take() {
            self.cluster.start_node(node);
        }
        let leader = self.cluster.wait_leader().await;
        self.cluster.kill_node(leader);
        self.dead_node = Some(leader);
        self.leaders_killed += 1;
    }

    fn report(&self, args: &Args) -> anyhow::Result<Report> {
        let (mut overlaps, mut count) = (Vec::new(), 0);
        for number in 0..args.sandboxes {
            let name = format!("diary-{number}");
            let path = path_of(&self.cluster, &name);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let lives = diary::lives(&text);
            count += lives.len();
            let found = diary::overlaps(&lives).into_iter();
            overlaps.extend(found.map(|(first_lived_until, second_lived_from)| Overlap {
                sandbox: name.clone(),
                first_lived_until,
                second_lived_from,
            }));
        }
        let mut times = self.recovered_after.clone();
        times.sort_by(f64::total_cmp);
        let at =
            |part: f64| times.get(((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1)));
        let at = |part| at(part).copied().unwrap_or_default();
        Ok(Report {
            rounds: args.rounds,
            faults: self.faults.clone(),
            leaders_killed: self.leaders_killed,
            recoveries: times.len(),
            lives: count,
            median_seconds: at(0.5),
            p99_seconds: at(0.99),
            max_seconds: at(1.0),
            overlaps,
        })
    }
}

fn path_of(cluster: &Cluster, name: &str) -> PathBuf {
    Path::new(cluster.folder()).join(name)
}

impl Report {
    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        table.set_header([
            "agents",
            "leaders killed",
            "recovered",
            "lives",
            "two at once",
            "recovered after: median",
            "p99",
            "max",
        ]);
        let faults = self.faults.iter().map(|(fault, count)| format!("{count} {}", fault.name()));
        let seconds = |seconds: f64| format!("{seconds:.1} s");
        table.add_row([
            faults.collect::<Vec<_>>().join("\n"),
            self.leaders_killed.to_string(),
            self.recoveries.to_string(),
            self.lives.to_string(),
            self.overlaps.len().to_string(),
            seconds(self.median_seconds),
            seconds(self.p99_seconds),
            seconds(self.max_seconds),
        ]);
        table
    }
}
