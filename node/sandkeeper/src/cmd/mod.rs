//! The subcommands, one file each.

pub mod agent;
pub mod agents;
mod backup;
pub mod bench;
pub mod capacity;
pub mod cluster;
mod comparison;
pub mod completion;
pub mod create;
mod create_many;
pub mod dev;
mod drain;
pub mod get;
pub mod history;
pub mod inspect;
pub mod list;
pub mod logs;
mod nodes;
pub mod reset;
pub mod server;
mod service;
mod settings;
mod target;
pub mod terminate;
mod unknown;
pub mod update;
mod verification;
pub mod wait;
pub mod watch;

use std::process::ExitCode;

use clap::FromArgMatches;
use tokio::runtime::{Builder, Runtime};

use crate::cli::{self, Cli, Command, Context, Globals};
use crate::error::CliError;

/// Parses the command line, does what it says, and gives the exit code.
pub fn run() -> ExitCode {
    let matches = cli::command().get_matches();
    // Not a wrong command line, which has ended the program already.
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

fn dispatch(Cli { globals, command }: Cli) -> Result<(), CliError> {
    match command {
        Command::Completion(args) => completion::run(&args),
        Command::Server(args) => {
            let runtime = threaded()?;
            let ended = runtime.block_on(server::run(args));
            // A call on a disk that hangs never ends, and nobody waits for it.
            runtime.shutdown_background();
            ended
        }
        Command::Agent(args) => threaded()?.block_on(agent::run(args, &globals)),
        Command::Dev(args) => threaded()?.block_on(dev::run(args)),
        Command::Bench(args) => threaded()?.block_on(bench::run(args, globals)),
        Command::Inspect(args) => threaded()?.block_on(inspect::run(&args, &globals)),
        command => ask(globals, command),
    }
}

/// The commands that ask a cluster.
fn ask(globals: Globals, command: Command) -> Result<(), CliError> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let context = Context::new(globals)?;
        match command {
            Command::Create(args) => create::run(args, &context).await,
            Command::Get(args) => get::run(&args, &context).await,
            Command::List(args) => list::run(args, &context).await,
            Command::Update(args) => update::run(args, &context).await,
            Command::Reset(args) => reset::run(args, &context).await,
            Command::Terminate(args) => terminate::run(args, &context).await,
            Command::Wait(args) => wait::run(&args, &context).await,
            Command::Logs(args) => logs::run(&args, &context).await,
            Command::History(args) => history::run(args, &context).await,
            Command::Watch(args) => watch::run(args, &context).await,
            Command::Agents(args) => agents::run(args, &context).await,
            Command::Capacity(args) => capacity::run(&args, &context).await,
            Command::Cluster(args) => cluster::run(args, &context).await,
            Command::Completion(_)
            | Command::Server(_)
            | Command::Agent(_)
            | Command::Dev(_)
            | Command::Inspect(_)
            | Command::Bench(_) => unreachable!("dispatched before"),
        }
    })
}

fn threaded() -> Result<Runtime, CliError> {
    Ok(Builder::new_multi_thread().enable_all().build()?)
}
