//! Where everything of a `dev` cluster is: folders, ports, and the arguments of its processes.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::DevArgs;
use super::launcher::{EXIT_WITH_PARENT, Program};
use crate::cmd::agent::Runtime;
use crate::error::CliError;
use crate::machine;

/// Where the first node listens, if nothing else is said and it is free.
const DEFAULT_BASE_PORT: u16 = 7600;
/// From one node's first port to the next one's.
const PORTS_A_NODE: u16 = 10;
/// When the default ports are taken, blocks of ports from here on are tried, below the range from which the kernel
/// takes ports for outgoing connections.
const OTHER_BASE_PORTS: std::ops::Range<u16> = 17_600..32_000;
/// What a data directory that is kept was made with.
const MADE_WITH: &str = "dev.json";

/// A control node's place.
#[derive(Clone, Debug)]
pub struct NodePlace {
    /// `node-1`, `node-2` …
    pub name: String,
    /// Clients and agents.
    pub api: SocketAddr,
    /// Other nodes.
    pub peer: SocketAddr,
    /// Health and metrics.
    pub http: SocketAddr,
    /// All that it keeps.
    pub data_dir: PathBuf,
}

/// The whole cluster's place on this machine.
#[derive(Debug)]
pub struct Layout {
    /// The control nodes.
    pub nodes: Vec<NodePlace>,
    /// The ids of the agents.
    pub agents: Vec<String>,
    /// Slots of each agent.
    pub slots: u64,
    runtime: Runtime,
    root: PathBuf,
    /// Removes the folder when it is dropped.
    temporary: Option<TempDir>,
    /// Set if the default ports were taken.
    moved_to: Option<u16>,
    /// See [`reserve`].
    _guard: TcpListener,
    log_level: String,
}

/// What may not change between two runs in one folder: the nodes remember each other's addresses.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MadeWith {
    base_port: u16,
    nodes: u16,
}

impl Layout {
    /// Chooses folders and ports, and makes the folders.
    pub fn new(args: &DevArgs) -> Result<Self, CliError> {
        let temporary = match args.data_dir {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("sandkeeper-dev-").tempdir()?),
        };
        let root = match (&args.data_dir, &temporary) {
            (Some(root), _) => root.clone(),
            (None, Some(folder)) => folder.path().to_owned(),
            (None, None) => unreachable!("without a folder of the user's there is a temporary one"),
        };
        fs::create_dir_all(root.join("logs"))
            .with_context(|| format!("the folder {} can't be made", root.display()))?;
        let root = fs::canonicalize(&root)?;
        let before = made_with(&root)?;
        let Ports { base: base_port, moved, guard } = find_ports(args, before.as_ref())?;
        let now = MadeWith { base_port, nodes: args.nodes };
        if let Some(before) = before.filter(|before| *before != now) {
            return Err(CliError::Usage(format!(
                "the cluster in {} was made with --nodes {} --base-port {}, and its nodes know each other by these",
                root.display(),
                before.nodes,
                before.base_port
            )));
        }
        let text = serde_json::to_string(&now).map_err(anyhow::Error::from)?;
        fs::write(root.join(MADE_WITH), text)?;
        let nodes = (0..args.nodes).map(|index| node(&root, base_port, index)).collect();
        Ok(Self {
            nodes,
            agents: (1..=args.agents).map(|number| format!("agent-{number}")).collect(),
            slots: args.slots,
            runtime: args.runtime,
            root,
            temporary,
            moved_to: moved.then_some(base_port),
            _guard: guard,
            log_level: args.log_level.clone(),
        })
    }

    /// All data of this cluster is below this folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where each process's log is.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Whether the data is removed at the end.
    pub fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// Leaves a temporary folder where it is, for whoever has to find out what went wrong.
    pub fn keep(&mut self) {
        if let Some(folder) = &mut self.temporary {
            folder.disable_cleanup(true);
        }
    }

    /// The API addresses of all nodes.
    pub fn servers(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.api.to_string()).collect()
    }

    /// Slots of all agents.
    pub fn total_slots(&self) -> u64 {
        self.slots * self.agents.len() as u64
    }

    /// What is about to be started.
    pub fn announcement(&self) -> String {
        let nodes = count(self.nodes.len(), "control node");
        let moved = self.moved_to.map_or_else(String::new, |port| {
            format!("\nPort {DEFAULT_BASE_PORT}, or one of those after it, is taken: using {port} and those after it.")
        });
        format!("Starting {nodes} and {} on this machine.{moved}", self.agents())
    }

    /// `2 agents with 4 slots each`.
    pub fn agents(&self) -> String {
        format!("{} with {} each", count(self.agents.len(), "agent"), count(self.slots as usize, "slot"))
    }

    /// The process of a control node.
    pub fn server_program(&self, node: &NodePlace) -> Program {
        let peers: Vec<_> = self.nodes.iter().map(|node| node.peer.to_string()).collect();
        let mut program = Program::new(&node.name, "server");
        program.arg("--name", &node.name).arg("--data-dir", node.data_dir.display());
        program.arg("--listen-api", node.api).arg("--listen-peer", node.peer).arg("--listen-http", node.http);
        program.arg("--join", peers.join(",")).arg("--bootstrap-expect", self.nodes.len());
        self.common(program)
    }

    /// The process of a node or an agent, by its name.
    pub fn program(&self, name: &str) -> Program {
        match self.nodes.iter().find(|node| node.name == name) {
            Some(node) => self.server_program(node),
            None => self.agent_program(name),
        }
    }

    /// The process of an agent. The machine is shared out among all of them.
    pub fn agent_program(&self, agent_id: &str) -> Program {
        let agents = self.agents.len() as u64;
        let runtime = match self.runtime {
            Runtime::Process => "process",
            Runtime::Simulated => "simulated",
        };
        let mut program = Program::new(agent_id, "agent");
        program.arg("--agent-id", agent_id).arg("--data-dir", self.root.join(agent_id).display());
        program
            .arg("--servers", self.servers().join(","))
            .arg("--runtime", runtime)
            .arg("--slots", self.slots);
        program.arg("--cpu", format!("{}m", machine::cpu_millis() / agents));
        if let Some(memory) = machine::memory_bytes() {
            program.arg("--memory", memory / agents);
        }
        self.common(program)
    }

    fn common(&self, mut program: Program) -> Program {
        program.arg("--log-level", &self.log_level).arg(EXIT_WITH_PARENT, std::process::id());
        program
    }
}

fn node(root: &Path, base_port: u16, index: u16) -> NodePlace {
    let name = format!("node-{}", index + 1);
    let address = |offset| SocketAddr::from((Ipv4Addr::LOCALHOST, base_port + PORTS_A_NODE * index + offset));
    NodePlace { api: address(0), peer: address(1), http: address(2), data_dir: root.join(&name), name }
}

fn made_with(root: &Path) -> Result<Option<MadeWith>, CliError> {
    let path = root.join(MADE_WITH);
    match fs::read_to_string(&path) {
        Ok(text) => {
            Ok(Some(serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(CliError::Failed(anyhow!(error).context(format!("{} can't be read", path.display()))))
        }
    }
}

/// The cluster's ports.
struct Ports {
    base: u16,
    /// They are others than the default ones because those are taken.
    moved: bool,
    guard: TcpListener,
}

/// Finds ports that are free.
fn find_ports(args: &DevArgs, before: Option<&MadeWith>) -> Result<Ports, CliError> {
    if let Some(base) = args.base_port.or(before.map(|before| before.base_port)) {
        return match reserve(base, args.nodes) {
            Ok(guard) => Ok(Ports { base, moved: false, guard }),
            Err(taken) => Err(CliError::Failed(anyhow!(
                "port {taken} is taken: stop what listens there, or choose another --base-port"
            ))),
        };
    }
    // Begins at a place of its own, so that two clusters that start at once seldom want the same ports.
    let blocks: Vec<u16> = OTHER_BASE_PORTS.step_by(100).collect();
    let first = std::process::id() as usize % blocks.len();
    let others = blocks.iter().copied().cycle().skip(first).take(blocks.len());
    let ports = std::iter::once(DEFAULT_BASE_PORT).chain(others).find_map(|base| {
        let guard = reserve(base, args.nodes).ok()?;
        Some(Ports { base, moved: base != DEFAULT_BASE_PORT, guard })
    });
    Ok(ports.context("no free ports were found: choose a --base-port")?)
}

/// Reserves a block of ports, by listening on one that no node uses: between this look and the start of the nodes no
/// other `dev` takes them. The error is the first port that can't be had.
fn reserve(base: u16, nodes: u16) -> Result<TcpListener, u16> {
    let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|_| port);
    let guard = listen(base + PORTS_A_NODE - 1)?;
    let ports = (0..nodes).flat_map(|index| (0..3).map(move |offset| base + PORTS_A_NODE * index + offset));
    for port in ports {
        listen(port)?;
    }
    Ok(guard)
}

fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn layout(line: &[&str]) -> Result<Layout, CliError> {
        let cli = Cli::try_parse_from([&["sandkeeper", "dev"], line].concat()).unwrap();
        let Command::Dev(args) = cli.command else { panic!("not dev") };
        Layout::new(&args)
    }

    #[test]
    fn ports_follow_the_base_port_and_are_kept_with_the_data() {
        let folder = tempfile::tempdir().unwrap();
        // Below the ports that the kernel gives to clients, above those that the cluster tests take.
        let (data, base) = (folder.path().to_str().unwrap(), 32_560);
        let made = layout(&["--data-dir", data, "--base-port", &base.to_string(), "--nodes", "2"]).unwrap();
        let ports: Vec<_> =
            made.nodes.iter().map(|node| [node.api, node.peer, node.http].map(|a| a.port())).collect();
        assert_eq!(ports, [[base, base + 1, base + 2], [base + 10, base + 11, base + 12]]);
        drop(made);
        let again = layout(&["--data-dir", data, "--nodes", "2"]).unwrap();
        assert_eq!(again.nodes[0].api.port(), base);
        assert!(!again.is_temporary());
        drop(again);
        let other = layout(&["--data-dir", data, "--nodes", "3"]);
        assert!(matches!(other, Err(CliError::Usage(message)) if message.contains("--nodes 2")));
    }

    #[test]
    fn a_port_that_is_taken_is_refused_if_it_was_asked_for() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(reserve(port, 1).unwrap_err(), port);
        let error = layout(&["--base-port", &port.to_string()]).unwrap_err();
        assert!(matches!(error, CliError::Failed(error) if error.to_string().contains("is taken")));
    }

    #[test]
    fn two_clusters_that_start_at_once_get_different_ports() {
        let (one, two) = (layout(&[]).unwrap(), layout(&[]).unwrap());
        assert_ne!(one.nodes[0].api, two.nodes[0].api);
    }

    #[test]
    fn what_has_ended_can_be_started_by_hand() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("my cluster");
        let made = layout(&["--data-dir", data.to_str().unwrap(), "--nodes", "1", "--agents", "1"]).unwrap();
        let node = made.program("node-1").arguments();
        assert!(node.starts_with("server --name node-1 --data-dir '") && !node.contains("parent"), "{node}");
        assert!(made.program("agent-1").arguments().starts_with("agent --agent-id agent-1"));
    }

    #[test]
    fn without_a_folder_it_is_temporary() {
        let made = layout(&["--agents", "1", "--slots", "1"]).unwrap();
        let root = made.root().to_owned();
        assert!(made.is_temporary() && root.is_dir());
        assert_eq!(made.agents(), "1 agent with 1 slot each");
        drop(made);
        assert!(!root.exists());
    }
}
