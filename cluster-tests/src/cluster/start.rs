//! Starting the processes of a cluster, the first time and again.

use std::path::PathBuf;
use std::process::Command;

use test_ports::Ports;

use super::{Cluster, NodeProcess};
use crate::{Party, Process, binary, faketime};

/// The name of the file that an agent's output goes to.
pub(crate) fn log_of_agent(index: usize) -> String {
    format!("a{index}.log")
}

impl Cluster {
    /// Starts a control node (again).
    pub fn start_node(&mut self, index: usize) {
        self.start_node_with(index, &[]);
    }

    /// Starts a control node (again), with more variables in its environment.
    pub fn start_node_with(&mut self, index: usize, environment: &[(&str, &str)]) {
        let peers: Vec<_> = self.nodes.iter().map(|node| node.advertised_peer().to_owned()).collect();
        let mut command = self.server_command(index);
        command.args(["--join", &peers.join(","), "--bootstrap-expect", &self.options.nodes.to_string()]);
        if self.options.proxies {
            // Agents learn this address from the cluster, and would go past their proxies: nobody listens there.
            command.args(["--advertise-api", &format!("127.0.0.1:{}", index + 1)]);
        }
        command.args(&self.options.server_flags).envs(environment.iter().copied());
        self.run_node(index, command);
    }

    fn run_node(&mut self, index: usize, command: Command) {
        let log = self.folder().join(format!("{}.log", self.nodes[index].name));
        let process = Process::start(command, &log);
        if let Some(links) = &self.links {
            links.introduce(process.pid(), Party::Node(index));
        }
        self.nodes[index].process = Some(process);
    }

    /// Starts an agent (again).
    pub fn start_agent(&mut self, index: usize) {
        let agent = &self.agents[index];
        let servers = match &agent.proxy {
            Some(proxy) => proxy.addresses.clone(),
            None => self.nodes.iter().map(|node| node.advertised_api().to_owned()).collect(),
        };
        let log = self.folder().join(log_of_agent(index));
        let mut command = Command::new(binary());
        command.arg("agent").args(["--agent-id", &agent.name]).arg("--data-dir").arg(&agent.data_dir);
        command.args(["--servers", &servers.join(",")]).args(&agent.flags).env("RUST_BACKTRACE", "1");
        let process = Process::start(command, &log);
        if let Some(links) = &self.links {
            links.introduce(process.pid(), Party::Agent(index));
        }
        self.agents[index].process = Some(process);
    }

    /// Starts one more control node, with an empty data directory, that is to join.
    pub async fn add_node(&mut self) {
        let ports = Ports::take(3);
        let addresses = [0, 1, 2].map(|index| ports.addresses()[index].clone());
        self.ports.push(ports);
        let index = self.nodes.len();
        let data_dirs = self.options.data_dirs.as_deref().unwrap_or(self.folder()).to_owned();
        self.nodes.push(NodeProcess::new(index, addresses, &data_dirs, self.links.as_mut()).await);
        self.join_node(index);
    }

    /// Starts a control node that has no data (any more), and is to join the others.
    pub fn join_node(&mut self, index: usize) {
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != index);
        let joins: Vec<_> = others.map(|(_, node)| node.advertised_peer().to_owned()).collect();
        let mut command = self.server_command(index);
        command.args(["--join", &joins.join(",")]).args(&self.options.server_flags);
        self.run_node(index, command);
    }

    /// Sets a node's wall clock, which runs on from there, so many seconds off the true time.
    ///
    /// # Panics
    /// If the options do not ask for clocks.
    pub fn set_clock(&self, index: usize, seconds: i64) {
        assert!(self.options.clocks, "the options ask for clocks that can be set");
        faketime::set(&self.clock_of(index), seconds);
    }

    /// The file that says how far a node's wall clock is off.
    pub fn clock_of(&self, index: usize) -> PathBuf {
        self.folder().join(format!("{}.clock", self.nodes[index].name))
    }

    fn server_command(&self, index: usize) -> Command {
        let node = &self.nodes[index];
        let mut command = Command::new(binary());
        command.arg("server").args(["--name", &node.name]).arg("--data-dir").arg(&node.data_dir);
        command.args(["--listen-api", &node.api, "--listen-peer", &node.peer, "--listen-http", &node.http]);
        if let Some((api, peer)) = &node.doors {
            command.args(["--advertise-api", api, "--advertise-peer", peer]);
        }
        if self.options.clocks {
            faketime::prepare(&mut command, &self.clock_of(index));
        }
        command.env("RUST_BACKTRACE", "1");
        command
    }
}
