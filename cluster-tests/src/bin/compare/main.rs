//! Sandkeeper beside etcd, in turns, on the same machine: the same work, by the same callers, on three members each, with
//! default settings and everything on disk before it is answered.
//!
//! ```text
//! cargo run --release -p cluster-tests --features etcd --bin compare -- --rounds 5 --write docs/benchmarks.md
//! ```
//!
//! It needs Debian's `etcd-server` (or any `etcd` in PATH, or ETCD), and `protobuf-compiler` and `libprotobuf-dev` to be built.
#![allow(clippy::print_stdout, reason = "a program that reports")]

mod etcd;
mod etcd_work;
mod failover;
mod machine;
mod ours;
mod page;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use sandkeeper_load::{Found, Load, Row};

use crate::etcd::Etcd;
use crate::failover::Failovers;
use crate::ours::Ours;
use crate::page::Report;

/// The agents that creates are spread over, in both.
const AGENTS: u64 = 100;
/// Slots of each: more than a round makes on it. As many as an agent may have.
const SLOTS: u64 = 4_096;

/// Measure Sandkeeper beside etcd, in turns
#[derive(Debug, Parser)]
#[command(name = "compare")]
struct Args {
    /// How often everything is measured; medians are told
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How long each work is measured in a round
    #[arg(long, default_value = "4s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Callers at a time
    #[arg(long, value_delimiter = ',', value_name = "N", default_values_t = [1, 16, 64, 256])]
    concurrency: Vec<u16>,
    /// Leaders that are killed with -9 in each round
    #[arg(long, default_value_t = 4)]
    kills: u16,
    /// Print one JSON object instead of the page
    #[arg(long)]
    json: bool,
    /// Write the page there too
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// One of the two: a new cluster, which ends with this.
trait Contestant: Sized {
    /// Its name.
    const NAME: &'static str;
    /// Kinds of work.
    type Work: Copy + 'static;
    /// All of them, with their names in the tables.
    const WORKS: &'static [(Self::Work, &'static str)];

    /// A new cluster that is ready.
    ///
    /// # Errors
    /// If it does not come up.
    async fn start() -> anyhow::Result<Self>;

    /// One round of some work.
    ///
    /// # Errors
    /// If the cluster can't be reached.
    async fn run(&mut self, work: Self::Work, load: Load) -> anyhow::Result<Found>;

    /// Kills the leader with -9: how long it takes until a caller that asks the others has written again. Returns with all members
    /// started.
    ///
    /// # Errors
    /// If nobody takes over.
    async fn failover(&mut self, number: u16) -> anyhow::Result<Duration>;
}

/// What was measured of one of the two.
#[derive(Debug, Default)]
struct Measured {
    rows: Vec<Row>,
    failovers: Failovers,
}

impl Measured {
    fn note(&mut self, work: &str, callers: u16, found: Found) {
        match self.rows.iter_mut().find(|row| row.is(work, callers)) {
            Some(row) => row.add(found),
            None => self.rows.push(Row::new(work, callers, found)),
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(args.concurrency.iter().all(|callers| *callers > 0), "--concurrency has to be at least 1");
    let etcd_version = etcd::version().await?;
    let (mut ours, mut theirs) = (Measured::default(), Measured::default());
    let bar = progress(&args);
    for round in 1..=args.rounds {
        let mut turns = [true, false];
        // Whoever comes second finds a warmer machine.
        turns.rotate_left(usize::from(round % 2));
        for is_ours in turns {
            if is_ours {
                measure::<Ours>(&args, &mut ours, &bar).await.context(Ours::NAME)?;
            } else {
                measure::<Etcd>(&args, &mut theirs, &bar).await.context(Etcd::NAME)?;
            }
        }
    }
    bar.finish_and_clear();
    let report = Report::new(&args, etcd_version, &ours, &theirs);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.page());
    }
    if let Some(path) = &args.write {
        std::fs::write(path, report.page()).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

async fn measure<C: Contestant>(
    args: &Args,
    measured: &mut Measured,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    bar.set_message(format!("{}: starting", C::NAME));
    let mut contestant = C::start().await?;
    for (work, name) in C::WORKS {
        for callers in &args.concurrency {
            bar.set_message(format!("{}: {name} by {callers}", C::NAME));
            measured.note(name, *callers, contestant.run(*work, load(args, *callers)).await?);
            bar.inc(1);
        }
    }
    for kill in 0..args.kills {
        bar.set_message(format!("{}: killing the leader", C::NAME));
        measured.failovers.note(contestant.failover(kill).await?);
        bar.inc(1);
    }
    Ok(())
}

fn load(args: &Args, callers: u16) -> Load {
    Load { callers, duration: args.duration, rate: None }
}

fn progress(args: &Args) -> ProgressBar {
    let works = (Ours::WORKS.len() + Etcd::WORKS.len()) * args.concurrency.len();
    let steps = u64::from(args.rounds) * (works as u64 + 2 * u64::from(args.kills));
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}")
        .expect("the template is a constant that is well-formed");
    ProgressBar::new(steps).with_style(style)
}
