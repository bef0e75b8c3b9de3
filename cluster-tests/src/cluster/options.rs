//! What a cluster is made of.

use std::path::PathBuf;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Control nodes.
    pub nodes: usize,
    /// Agents, each a process.
    pub agents: usize,
    /// Slots of each agent.
    pub slots: u64,
    /// More flags for each server.
    pub server_flags: Vec<String>,
    /// More flags for each agent.
    pub agent_flags: Vec<String>,
    /// Whether each agent reaches the control nodes through a [`Proxy`] of its own, which can be cut.
    pub proxies: bool,
    /// The folder that the nodes' data directories are in, instead of the cluster's own.
    pub data_dirs: Option<PathBuf>,
    /// More agents, each with flags of its own instead of those above.
    pub fleet: Vec<AgentOptions>,
    /// Whether nodes and agents reach the nodes through [`Links`], each of which can be cut and slowed down.
    pub links: bool,
    /// Whether the nodes' wall clocks can be set, each by itself: see [`Cluster::set_clock`]. Needs libfaketime.
    pub clocks: bool,
}

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Its name.
    pub name: String,
    /// Its flags.
    pub flags: Vec<String>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            nodes: 3,
            agents: 2,
            slots: 4,
            server_flags: Vec::new(),
            agent_flags: Vec::new(),
            proxies: false,
            data_dirs: None,
            fleet: Vec::new(),
            links: false,
            clocks: false,
        }
    }
}

impl ClusterOptions {
    /// Those that are all alike, and the others.
    pub(super) fn all_agents(&self) -> impl Iterator<Item = AgentOptions> {
        let words = format!("--slots {} --cpu 8 --memory 8GiB --terminate-grace 1s", self.slots);
        let mut flags: Vec<_> = words.split(' ').map(str::to_owned).collect();
        flags.extend(self.agent_flags.iter().cloned());
        let alike = (0..self.agents)
            .map(move |index| AgentOptions { name: format!("a{index}"), flags: flags.clone() });
        alike.chain(self.fleet.iter().cloned())
    }
}
