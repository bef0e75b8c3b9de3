//! One campaign of faults against a cluster under load, judged by an oracle. Ends with 1 if anything is violated.
//!
//! ```text
//! cargo run --release -p cluster-tests --bin campaign -- --seed 7 --duration 10m
//! ```
#![allow(clippy::print_stdout, reason = "a program that reports")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Parser;
use cluster_tests::chaos::violation::Invariant;
use cluster_tests::chaos::{self, Options};
use tokio::signal::unix::{SignalKind, signal};

/// Attack a cluster under load with every fault, and show that it stays true to its word
///
/// Control nodes and agents are processes of this machine. As root each node has a file system of its own, which can be full,
/// hang, or lose power, and fsyncs can be made slow or fail; without root these faults are skipped, and the report says so.
#[derive(Debug, Parser)]
#[command(name = "campaign")]
struct Args {
    /// Workload and faults follow from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long faults are done
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Control nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=5))]
    nodes: u16,
    /// Only these faults, NAME,…; a name that is none is answered with all that are
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// Where everything is kept if something is violated [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Go on after a violation
    #[arg(long)]
    keep_going: bool,
    /// The cluster has to work again within this time after a fault. More than the default is for machines that others use too
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    within: Duration,
    /// End at the first violation of one of these invariants only, I1,… [default: of any]
    #[arg(long, value_delimiter = ',', value_name = "I1,…")]
    stop_at: Vec<Invariant>,
    /// Only what needs no root
    #[arg(long)]
    without_root: bool,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let options = Options {
        seed: args.seed,
        duration: args.duration,
        nodes: usize::from(args.nodes),
        faults: args.faults,
        keep: args.keep,
        keep_going: args.keep_going,
        stop_at: args.stop_at,
        without_root: args.without_root,
        within: args.within,
        quiet: args.json,
    };
    // Whoever interrupts it leaves nothing behind: no process, no mount.
    let mut asked_to_end = signal(SignalKind::terminate())?;
    let report = tokio::select! {
        report = chaos::run(&options) => report?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = asked_to_end.recv() => bail!("asked to end"),
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.show());
    }
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
