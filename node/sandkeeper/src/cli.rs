//! The command line: globals and the list of subcommands. Each subcommand's own arguments are in its file.

use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use sandkeeper_client::{Client, DEFAULT_DEADLINE, v1};

use crate::cmd;
use crate::error::CliError;
use crate::output::{Format, Output};
use crate::parse;

/// Where a control node listens on this machine, if nothing else is said.
const DEFAULT_SERVER: &str = "127.0.0.1:7600";
/// A person waits no longer than this for a cluster of which no node takes a connection.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(2);

/// The control plane for sandboxes: control nodes that agree through Raft, agents that run the work.
#[derive(Debug, Parser)]
#[command(name = "sandkeeper", version, max_term_width = 110)]
#[command(after_help = "Try it: `sandkeeper dev` starts a whole cluster on this machine.\n\
    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 cluster not reachable.")]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Control nodes, HOST:PORT,…; any of the cluster will do [default: 127.0.0.1:7600]
    #[arg(
        long,
        global = true,
        env = "SANDKEEPER_SERVERS",
        value_delimiter = ',',
        value_name = "HOST:PORT",
        hide_env_values = true
    )]
    pub servers: Vec<String>,
    /// Namespace of the sandboxes that are named [default: default]
    #[arg(short, long, global = true, env = "SANDKEEPER_NAMESPACE", hide_env_values = true)]
    pub namespace: Option<String>,
    /// Form of results: table; or json, yaml: the fields of the API, in protobuf's canonical form
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    pub output: Format,
    /// How fresh a read has to be: linearizable, or local: as the node that is asked has it
    #[arg(long, global = true, value_enum, default_value_t, hide_possible_values = true)]
    pub consistency: Consistency,
    /// Time for the whole command, retries included [default: 10s; what waits by its nature: longer]
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse::duration)]
    pub deadline: Option<Duration>,
}

/// The global options that mean nothing to a subcommand: its help does not show them.
const MEANINGLESS: [(&str, &[&str]); 6] = [
    ("dev", &["servers", "namespace", "output", "consistency", "deadline"]),
    ("server", &["servers", "namespace", "output", "consistency", "deadline"]),
    ("agent", &["namespace", "output", "consistency", "deadline"]),
    ("inspect", &["servers", "consistency", "deadline"]),
    ("bench", &["consistency"]),
    ("completion", &["servers", "namespace", "output", "consistency", "deadline"]),
];

/// The whole command line, each help with what has a meaning there.
pub fn command() -> clap::Command {
    let mut root = Cli::command();
    let globals: Vec<_> = root.get_arguments().filter(|arg| arg.is_global_set()).cloned().collect();
    for (name, meaningless) in MEANINGLESS {
        let hidden = globals.iter().filter(|arg| meaningless.contains(&arg.get_id().as_str()));
        // A subcommand that has a global option itself does not get it from above.
        let hidden: Vec<_> = hidden.map(|arg| arg.clone().hide(true)).collect();
        root = root.mut_subcommand(name, |subcommand| subcommand.args(hidden));
    }
    root
}

/// How fresh a read has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Consistency {
    /// It reflects every write that was acknowledged before it began.
    #[default]
    Linearizable,
    /// The state of the node that is asked, as it is.
    Local,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    Dev(cmd::dev::DevArgs),
    Server(cmd::server::ServerArgs),
    Agent(cmd::agent::AgentArgs),
    Create(cmd::create::CreateArgs),
    Get(cmd::get::GetArgs),
    List(cmd::list::ListArgs),
    Update(cmd::update::UpdateArgs),
    Reset(cmd::reset::ResetArgs),
    Terminate(cmd::terminate::TerminateArgs),
    Wait(cmd::wait::WaitArgs),
    Logs(cmd::logs::LogsArgs),
    History(cmd::history::HistoryArgs),
    Watch(cmd::watch::WatchArgs),
    Agents(cmd::agents::AgentsArgs),
    Capacity(cmd::capacity::CapacityArgs),
    Cluster(cmd::cluster::ClusterArgs),
    Inspect(cmd::inspect::InspectArgs),
    Bench(cmd::bench::BenchArgs),
    Completion(cmd::completion::CompletionArgs),
}

/// What a command that asks the cluster works with.
pub struct Context {
    /// The client, with the deadline of the command line or of the command.
    pub client: Client,
    /// Prints results.
    pub output: Output,
    globals: Globals,
}

impl Context {
    /// From the globals. Inside of a tokio runtime.
    pub fn new(globals: Globals) -> Result<Self, CliError> {
        let client = client(globals.servers(), globals.deadline.unwrap_or(DEFAULT_DEADLINE))?;
        Ok(Self { client, output: Output::new(globals.output), globals })
    }

    /// The client for what takes longer by its nature, unless the user set a deadline.
    pub fn patient(&self, deadline: Duration) -> Client {
        self.client.with_deadline(self.globals.deadline.unwrap_or(deadline))
    }

    /// The time for the whole command, if the user gave one.
    pub fn chosen_deadline(&self) -> Option<Duration> {
        self.globals.deadline
    }

    /// A client whose calls take their usual time, whatever the user gave the whole command.
    pub fn prompt(&self) -> Client {
        self.client.with_deadline(DEFAULT_DEADLINE)
    }

    /// The namespace of what is named.
    pub fn namespace(&self) -> String {
        self.globals.namespace.clone().unwrap_or_else(|| "default".to_owned())
    }

    /// The namespace, if the user named one.
    pub fn chosen_namespace(&self) -> Option<String> {
        self.globals.namespace.clone()
    }

    /// How fresh reads have to be.
    pub fn read(&self) -> v1::ReadOptions {
        self.globals.read()
    }

    /// A client of other addresses, with the same deadline.
    pub fn client_of(&self, servers: Vec<String>) -> Result<Client, CliError> {
        client(servers, self.client.deadline())
    }
}

impl Globals {
    /// The servers that were named, or the default.
    pub fn servers(&self) -> Vec<String> {
        if self.servers.is_empty() { vec![DEFAULT_SERVER.to_owned()] } else { self.servers.clone() }
    }

    fn read(&self) -> v1::ReadOptions {
        let consistency = match self.consistency {
            Consistency::Linearizable => v1::Consistency::Linearizable,
            Consistency::Local => v1::Consistency::Local,
        };
        v1::ReadOptions { consistency: consistency.into(), min_revision: 0 }
    }
}

fn client(servers: Vec<String>, deadline: Duration) -> Result<Client, CliError> {
    let builder = Client::builder().servers(servers).deadline(deadline);
    Ok(builder.unreachable_after(UNREACHABLE_AFTER).build()?)
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    /// The help of every command, as `--help` prints it on a terminal of 100 columns.
    #[test]
    fn help_of_every_command() {
        let mut root = command().term_width(100);
        root.build();
        insta::assert_snapshot!("help_sandkeeper", root.render_long_help());
        for command in root.get_subcommands().filter(|command| command.get_name() != "help") {
            let name = command.get_name();
            insta::assert_snapshot!(format!("help_{name}"), command.clone().render_long_help());
            for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
                let name = format!("help_{name}_{}", inner.get_name());
                insta::assert_snapshot!(name, inner.clone().render_long_help());
            }
        }
    }

    #[test]
    fn help_shows_only_what_has_a_meaning() {
        let mut root = command();
        root.build();
        for (name, meaningless) in MEANINGLESS {
            let help = root.find_subcommand(name).unwrap().clone().render_long_help().to_string();
            for option in meaningless {
                assert!(!help.contains(&format!("--{option} <")), "{name} --{option}");
            }
        }
        let agent = ["sandkeeper", "agent", "--servers", "a:1", "--data-dir", "d"];
        let matches = command().try_get_matches_from(agent).unwrap();
        assert_eq!(Cli::from_arg_matches(&matches).unwrap().globals.servers(), ["a:1"]);
    }

    #[test]
    fn globals_may_stand_anywhere() {
        for line in [
            ["sandkeeper", "-n", "prod", "list", "--servers", "a:1,b:2", "-o", "json"],
            ["sandkeeper", "--servers", "a:1,b:2", "-o", "json", "list", "-n", "prod"],
        ] {
            let globals = Cli::try_parse_from(line).unwrap().globals;
            assert_eq!(globals.servers(), ["a:1", "b:2"]);
            assert_eq!((globals.namespace.as_deref(), globals.output), (Some("prod"), Format::Json));
        }
        assert_eq!(Cli::try_parse_from(["sandkeeper", "list"]).unwrap().globals.servers(), [DEFAULT_SERVER]);
    }
}
