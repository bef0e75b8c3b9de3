//! `sandkeeper dev`: a whole cluster on this machine, from child processes of this binary.

mod cluster;
mod demo;
mod launcher;
mod layout;
mod processes;
mod ready;
mod story;

use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use self::cluster::Cluster;
use self::layout::Layout;
use self::story::Story;
use super::agent::Runtime;
use super::service::DEFAULT_LOG_FILTER;
use crate::error::CliError;
use crate::output::{self, note};

/// Run a whole cluster on this machine: control nodes and agents, from this one binary
///
/// Node i (0, 1, 2) listens on the ports P+10i (clients and agents), P+10i+1 (other nodes) and P+10i+2 (HTTP). A process
/// that ends is reported, with the command that starts it again; the rest goes on as long as a majority of the control
/// nodes runs. Ctrl-C ends the sandboxes and stops everything.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  sandkeeper dev\n  sandkeeper dev --data-dir ./cluster --base-port 8600\n  \
    sandkeeper dev --demo"
)]
pub struct DevArgs {
    /// Control nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Agents
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=64))]
    agents: u16,
    /// Slots of each agent
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    slots: u64,
    /// How sandboxes are run
    #[arg(long, value_enum, default_value_t)]
    runtime: Runtime,
    /// Keep the data in this folder [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// First port [default: 7600, or free ones if those are taken]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=65000))]
    base_port: Option<u16>,
    /// Tell the story of a cluster, check each step of it, and stop
    #[arg(long)]
    demo: bool,
    /// What the nodes and agents log, as RUST_LOG has it
    #[arg(long, value_name = "FILTER", default_value = DEFAULT_LOG_FILTER)]
    log_level: String,
}

/// Agents of a cluster for benchmarks.
const BENCH_AGENTS: u16 = 64;
/// Slots of each: the most that an agent can have.
const BENCH_SLOTS: u64 = 4096;

/// Starts a cluster that is there to be measured: its sandboxes are only simulated, and there is room for a quarter of a million.
pub async fn simulated() -> Result<Cluster, CliError> {
    let args = DevArgs {
        nodes: 3,
        agents: BENCH_AGENTS,
        slots: BENCH_SLOTS,
        runtime: Runtime::Simulated,
        data_dir: None,
        base_port: None,
        demo: false,
        log_level: "warn".to_owned(),
    };
    let mut cluster = Cluster::new(Layout::new(&args)?)?;
    note(cluster.layout().announcement());
    match cluster.start().await {
        Ok(_) => Ok(cluster),
        Err(error) => {
            cluster.keep_data();
            cluster.shut_down().await?;
            Err(error)
        }
    }
}

/// Runs the cluster until it is interrupted, or until the demo is told.
pub async fn run(args: DevArgs) -> Result<(), CliError> {
    if args.demo && (args.nodes < 3 || args.agents < 2 || args.slots < 3 || args.runtime != Runtime::Process)
    {
        let message = "--demo needs at least 3 nodes, 2 agents, 3 slots, and the process runtime";
        return Err(CliError::Usage(message.to_owned()));
    }
    let mut interrupts = Interrupts::new()?;
    let mut cluster = Cluster::new(Layout::new(&args)?)?;
    let mut story = Story::new();
    let mut interrupted = false;
    let told = tokio::select! {
        told = session(&args, &mut cluster, &mut story) => told,
        name = interrupts.next() => {
            note(format!("{name}: stopping"));
            interrupted = true;
            if args.demo { Err(CliError::Shown) } else { Ok(()) }
        }
    };
    if !interrupted && !matches!(told, Ok(()) | Err(CliError::PipeClosed)) {
        cluster.keep_data();
    }
    let stopped = tokio::select! {
        stopped = cluster.shut_down() => stopped,
        _ = interrupts.next() => {
            note("stopped at once at a second signal; sandboxes may still run");
            Err(CliError::Shown)
        }
    };
    told.and(stopped)?;
    if args.demo { story.end(&cluster) } else { Ok(()) }
}

async fn session(args: &DevArgs, cluster: &mut Cluster, story: &mut Story) -> Result<(), CliError> {
    if args.demo {
        return demo::tell(cluster, story).await;
    }
    note(cluster.layout().announcement());
    let took = cluster.start().await?;
    output::text(&cluster.welcome(took).await?)?;
    loop {
        note(cluster.unexpected_exit().await?);
    }
}

/// SIGINT and SIGTERM, as they come.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> Result<Self, CliError> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "terminated",
        }
    }
}
