//! What an agent is told at its start.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How often heartbeats go to every control node, unless told otherwise (design.md, "Agents").
pub const DEFAULT_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a sandbox has between SIGTERM and SIGKILL, unless told otherwise.
pub const DEFAULT_TERMINATE_GRACE: Duration = Duration::from_secs(10);
/// The pool of an agent that names none.
pub const DEFAULT_POOL: &str = "default";

/// The settings of one agent.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Who it is, for the whole cluster. [`default_agent_id`] if the operator names none.
    pub agent_id: String,
    /// Where the ledger, the sandboxes' records, their working directories and logs are.
    pub data_dir: PathBuf,
    /// `host:port` of control nodes. A name may stand for several addresses; it is looked up again every 10 s.
    pub servers: Vec<String>,
    /// How sandboxes are run.
    pub runtime: RuntimeConfig,
    /// What it can hold. It refuses what does not fit, whatever a leader says.
    pub capacity: Capacity,
    /// What placement may ask for.
    pub labels: BTreeMap<String, String>,
    /// The pool that it belongs to.
    pub pool: String,
    /// The address under which its sandboxes' ports are reached.
    pub host: String,
    /// How often heartbeats go out.
    pub heartbeat_interval: Duration,
    /// The time between SIGTERM and SIGKILL when a sandbox is ended.
    pub terminate_grace: Duration,
}

impl AgentConfig {
    /// Settings with every default; `servers` and `data_dir` have none.
    pub fn new(agent_id: String, data_dir: PathBuf, servers: Vec<String>) -> Self {
        Self {
            agent_id,
            data_dir,
            servers,
            runtime: RuntimeConfig::Process(ProcessConfig::default()),
            capacity: Capacity::default(),
            labels: BTreeMap::new(),
            pool: DEFAULT_POOL.to_owned(),
            host: "127.0.0.1".to_owned(),
            heartbeat_interval: DEFAULT_HEARTBEAT_INTERVAL,
            terminate_grace: DEFAULT_TERMINATE_GRACE,
        }
    }
}

/// The runtime of an agent and its settings.
#[derive(Clone, Debug)]
pub enum RuntimeConfig {
    /// Real processes of this machine, each under a shim.
    Process(ProcessConfig),
    /// No processes: for capacity planning and load tests.
    Simulated(SimulatedConfig),
}

impl RuntimeConfig {
    /// The name that the hello carries.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Process(_) => "process",
            Self::Simulated(_) => "simulated",
        }
    }
}

/// Settings of the runtime `process`.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// The program that becomes the shim when its first argument is `shim`; `None`: this very program, also after its
    /// file was replaced by a newer one.
    pub shim_program: Option<PathBuf>,
    /// The most open files of a sandbox's process (RLIMIT_NOFILE).
    pub open_files: u64,
    /// The most processes and threads of a sandbox, where there are cgroups.
    pub processes: u64,
}

impl Default for ProcessConfig {
    fn default() -> Self {
        Self { shim_program: None, open_files: 4_096, processes: 4_096 }
    }
}

/// Settings of the runtime `simulated`.
#[derive(Clone, Debug)]
pub struct SimulatedConfig {
    /// How long a start takes.
    pub start_time: Duration,
    /// The share of starts that fail, 0 to 1.
    pub failure_rate: f64,
    /// How many agents this process plays. With more than one, agent i is `{agent_id}-{i}`.
    pub count: usize,
    /// Which starts fail follows from this number alone.
    pub seed: u64,
}

impl Default for SimulatedConfig {
    fn default() -> Self {
        Self { start_time: Duration::ZERO, failure_rate: 0.0, count: 1, seed: 0 }
    }
}

/// What an agent can hold, or holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// How many sandboxes.
    pub slots: u64,
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// The name of this machine: the agent id when the operator gives none. `None` if the machine has no usable name.
pub fn default_agent_id() -> Option<String> {
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
    (!name.is_empty()).then_some(name)
}
