//! `sandkeeper agent`: runs sandboxes on this machine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Error;
use clap::{Args, ValueEnum};
use sandkeeper_agent::config::{Capacity, DEFAULT_POOL, DEFAULT_TERMINATE_GRACE, default_agent_id};
use sandkeeper_agent::{AgentConfig, ProcessConfig, RuntimeConfig, SimulatedConfig};
use serde::Deserialize;

use super::service::{self, ServiceArgs};
use super::settings;
use crate::cli::Globals;
use crate::error::CliError;
use crate::{machine, parse};

/// Run an agent: it keeps a session with every control node, and runs the sandboxes that the leader gives it
///
/// Settings come from flags, then SANDKEEPER_* variables, then the settings file, then defaults. The file is TOML; its
/// keys are the long flags with _ for -, servers is a list, and labels are the table [labels].
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    sandkeeper agent --data-dir /var/lib/sandkeeper-agent --servers node-1:7600,node-2:7600,node-3:7600 --slots 16\n  \
    sandkeeper agent --data-dir D --label zone=a --pool gpu --cpu 8 --memory 32GiB --host 10.0.0.9\n  \
    sandkeeper agent --data-dir D --runtime simulated --count 1000 --start-time 20ms --failure-rate 0.01\n\n\
    Sandboxes outlive the agent: when it comes back it takes them up again.")]
pub struct AgentArgs {
    /// Settings file
    #[arg(long, env = "SANDKEEPER_CONFIG", value_name = "FILE", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Who it is, for the whole cluster [default: the host's name]
    #[arg(long, env = "SANDKEEPER_AGENT_ID", value_name = "ID", hide_env_values = true)]
    agent_id: Option<String>,
    /// Where its ledger, and the sandboxes' records, working directories and logs are kept
    #[arg(long, env = "SANDKEEPER_DATA_DIR", value_name = "DIR", hide_env_values = true)]
    data_dir: Option<PathBuf>,
    /// How sandboxes are run [default: process]
    #[arg(long, env = "SANDKEEPER_RUNTIME", value_enum, hide_env_values = true)]
    runtime: Option<Runtime>,
    /// How many sandboxes it holds at most [default: 4 a CPU]
    #[arg(long, env = "SANDKEEPER_SLOTS", value_name = "N", hide_env_values = true)]
    slots: Option<u64>,
    /// CPU that it gives away: 500m, 0.5 or 2 [default: what this machine has]
    #[arg(long, env = "SANDKEEPER_CPU", value_parser = parse::cpu, hide_env_values = true)]
    cpu: Option<u64>,
    /// Memory that it gives away: 64MiB, 1GiB [default: what this machine has]
    #[arg(long, env = "SANDKEEPER_MEMORY", value_parser = parse::bytes, hide_env_values = true)]
    memory: Option<u64>,
    /// Label that placement may ask for; may be repeated
    #[arg(long = "label", short = 'l', env = "SANDKEEPER_LABELS", value_name = "KEY=VALUE", value_parser = parse::pair, value_delimiter = ',', hide_env_values = true)]
    labels: Vec<(String, String)>,
    /// Pool that it belongs to [default: default]
    #[arg(long, env = "SANDKEEPER_POOL", hide_env_values = true)]
    pool: Option<String>,
    /// Address under which the ports of its sandboxes are reached [default: 127.0.0.1]
    #[arg(long, env = "SANDKEEPER_HOST", hide_env_values = true)]
    host: Option<String>,
    /// Time between SIGTERM and SIGKILL when a sandbox is ended [default: 10s]
    #[arg(long, env = "SANDKEEPER_TERMINATE_GRACE", value_name = "DURATION", value_parser = parse::duration, hide_env_values = true)]
    terminate_grace: Option<Duration>,
    /// Simulated: how many agents this process plays
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Simulated runtime")]
    count: usize,
    /// Simulated: how long a start takes
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, default_value = "0s", help_heading = "Simulated runtime")]
    start_time: Duration,
    /// Simulated: share of starts that fail, 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = parse::share, default_value = "0", help_heading = "Simulated runtime")]
    failure_rate: f64,
    /// Simulated: which starts fail follows from this number
    #[arg(long, default_value_t = 0, help_heading = "Simulated runtime")]
    seed: u64,
    #[command(flatten)]
    service: ServiceArgs,
}

/// How sandboxes are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// As processes of this machine.
    #[default]
    Process,
    /// Not at all: for capacity planning and load tests.
    Simulated,
}

/// The settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AgentFile {
    agent_id: Option<String>,
    data_dir: Option<PathBuf>,
    servers: Vec<String>,
    runtime: Option<Runtime>,
    slots: Option<u64>,
    #[serde(deserialize_with = "settings::cpu")]
    cpu: Option<u64>,
    #[serde(deserialize_with = "settings::bytes")]
    memory: Option<u64>,
    labels: BTreeMap<String, String>,
    pool: Option<String>,
    host: Option<String>,
    #[serde(deserialize_with = "settings::duration")]
    terminate_grace: Option<Duration>,
}

/// Runs an agent until a signal comes.
pub async fn run(args: AgentArgs, globals: &Globals) -> Result<(), CliError> {
    let service_args = args.service.clone();
    let config = resolve(args, globals)?;
    let token = service::start(&service_args)?;
    sandkeeper_agent::run(config, token).await.map_err(|error| CliError::Failed(Error::new(error)))
}

/// Flags and environment over the file over defaults.
fn resolve(args: AgentArgs, globals: &Globals) -> Result<AgentConfig, CliError> {
    let file: AgentFile = settings::read(args.config.as_deref())?;
    let data_dir = args.data_dir.or(settings::beside(args.config.as_deref(), file.data_dir));
    let data_dir = settings::required(data_dir, "data_dir")?;
    let agent_id = settings::required(args.agent_id.or(file.agent_id).or_else(default_agent_id), "agent_id")?;
    let servers =
        if globals.servers.is_empty() && !file.servers.is_empty() { file.servers } else { globals.servers() };
    let runtime = match args.runtime.or(file.runtime).unwrap_or_default() {
        Runtime::Process => RuntimeConfig::Process(ProcessConfig::default()),
        Runtime::Simulated => RuntimeConfig::Simulated(SimulatedConfig {
            start_time: args.start_time,
            failure_rate: args.failure_rate,
            count: args.count,
            seed: args.seed,
        }),
    };
    let capacity = Capacity {
        slots: args.slots.or(file.slots).unwrap_or_else(machine::slots),
        cpu_millis: args.cpu.or(file.cpu).unwrap_or_else(machine::cpu_millis),
        memory_bytes: settings::required(
            args.memory.or(file.memory).or_else(machine::memory_bytes),
            "memory",
        )?,
    };
    let labels = if args.labels.is_empty() { file.labels } else { args.labels.into_iter().collect() };
    let defaults = AgentConfig::new(agent_id, data_dir, servers);
    Ok(AgentConfig {
        runtime,
        capacity,
        labels,
        pool: args.pool.or(file.pool).unwrap_or_else(|| DEFAULT_POOL.to_owned()),
        host: args.host.or(file.host).unwrap_or_else(|| defaults.host.clone()),
        terminate_grace: args.terminate_grace.or(file.terminate_grace).unwrap_or(DEFAULT_TERMINATE_GRACE),
        ..defaults
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn resolved(line: &[&str]) -> Result<AgentConfig, CliError> {
        let cli = Cli::try_parse_from([&["sandkeeper", "agent"], line].concat()).unwrap();
        let Command::Agent(args) = cli.command else { panic!("not an agent") };
        resolve(args, &cli.globals)
    }

    #[test]
    fn defaults_are_what_the_machine_has() {
        let config = resolved(&["--data-dir", "d"]).unwrap();
        assert_eq!(config.servers, ["127.0.0.1:7600"]);
        assert_eq!(config.capacity.cpu_millis, machine::cpu_millis());
        assert!(config.capacity.memory_bytes > 0 && config.capacity.slots >= 4);
        assert_eq!((config.pool.as_str(), config.runtime.name()), ("default", "process"));
    }

    #[test]
    fn a_flag_is_before_the_file_and_the_file_before_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        std::fs::write(
            &path,
            "servers = ['a:1', 'b:2']\ndata_dir = '/d'\nslots = 3\ncpu = '1.5'\nmemory = '1GiB'\n\
            runtime = 'simulated'\npool = 'gpu'\nterminate_grace = '1s'\n[labels]\nzone = 'a'\n",
        )
        .unwrap();
        let path = path.to_str().unwrap();
        let config = resolved(&["--config", path, "--slots", "5"]).unwrap();
        assert_eq!(config.servers, ["a:1", "b:2"]);
        assert_eq!(config.capacity, Capacity { slots: 5, cpu_millis: 1500, memory_bytes: 1 << 30 });
        assert_eq!((config.pool.as_str(), config.runtime.name()), ("gpu", "simulated"));
        assert_eq!(config.labels["zone"], "a");
        assert_eq!((config.terminate_grace, config.data_dir), (Duration::from_secs(1), PathBuf::from("/d")));
        let config = resolved(&["--config", path, "--servers", "c:3"]).unwrap();
        assert_eq!(config.servers, ["c:3"]);
    }
}
