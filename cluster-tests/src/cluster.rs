//! A cluster of real processes in a temporary folder.

mod options;
mod processes;
mod start;

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sandkeeper_client::{Client, v1};
use tempfile::TempDir;
use test_ports::Ports;

pub use self::options::{AgentOptions, ClusterOptions};
pub use self::processes::{AgentProcess, NodeProcess};
pub(crate) use self::start::log_of_agent;
use crate::leftovers::kill_shims;
use crate::wait::{LONG, eventually};
use crate::{Cut, Links, Proxy, by_id, get};

/// A cluster. See [`crate`].
pub struct Cluster {
    /// Control nodes.
    pub nodes: Vec<NodeProcess>,
    /// Agents.
    pub agents: Vec<AgentProcess>,
    /// All links, if the options ask for them.
    pub links: Option<Links>,
    options: ClusterOptions,
    folder: Option<TempDir>,
    /// Held, so that a node that was killed finds them again.
    ports: Vec<Ports>,
    /// Whether logs and data stay when it is dropped.
    kept: bool,
}

impl Cluster {
    /// Starts three control nodes and two agents of four slots, and waits until all is ready.
    pub async fn start() -> Self {
        Self::start_with(ClusterOptions::default()).await
    }

    /// Starts a cluster, and waits until all is ready.
    ///
    /// # Panics
    /// If it does not become ready.
    pub async fn start_with(options: ClusterOptions) -> Self {
        let folder =
            tempfile::Builder::new().prefix("sandkeeper-test-").tempdir().expect("a temporary folder");
        let ports = Ports::take(options.nodes * 3);
        let mut addresses = ports.addresses().into_iter();
        let mut address = || addresses.next().expect("as many as were asked for");
        let data_dirs = options.data_dirs.clone().unwrap_or_else(|| folder.path().to_owned());
        let mut links = options.links.then(Links::new);
        let mut nodes = Vec::new();
        for index in 0..options.nodes {
            let addresses = [address(), address(), address()];
            nodes.push(NodeProcess::new(index, addresses, &data_dirs, links.as_mut()).await);
        }
        let apis: Vec<_> = nodes.iter().map(|node: &NodeProcess| node.api.clone()).collect();
        let mut agents = Vec::new();
        for AgentOptions { name, flags } in options.all_agents() {
            let proxy = if options.proxies { Some(Proxy::start(&apis).await) } else { None };
            let data_dir = folder.path().join(&name);
            agents.push(AgentProcess { name, data_dir, process: None, proxy, flags });
        }
        let ports = vec![ports];
        let mut cluster = Self { nodes, agents, links, options, folder: Some(folder), ports, kept: false };
        for index in 0..cluster.nodes.len() {
            cluster.start_node(index);
        }
        for index in 0..cluster.agents.len() {
            cluster.start_agent(index);
        }
        cluster.wait_ready().await;
        cluster
    }

    /// The folder that everything is in.
    ///
    /// # Panics
    /// Never: it is there as long as the cluster.
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().expect("it is taken when the cluster is dropped").path()
    }

    /// Has logs and data stay when this is dropped, as when a test fails.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Waits until a control node ends by itself; its exit code, and what it has written since its last start.
    ///
    /// # Panics
    /// If it does not run, or does not end.
    pub async fn wait_ended(&mut self, index: usize) -> (Option<i32>, String) {
        let mut process = self.nodes[index].process.take().expect("a node that runs can end");
        let deadline = Instant::now() + LONG;
        while !process.has_ended() {
            assert!(Instant::now() < deadline, "n{index} runs on: {}", self.log_of(index));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let log = self.log_of(index);
        let begun = log.rfind(": started ").unwrap_or(0);
        (process.wait(), log[begun..].to_owned())
    }

    /// Kills a control node with -9.
    pub fn kill_node(&mut self, index: usize) {
        self.nodes[index].process = None;
    }

    /// Kills an agent with -9. What it runs goes on.
    pub fn kill_agent(&mut self, index: usize) {
        self.agents[index].process = None;
    }

    /// Cuts an agent's way to the control nodes, or mends it.
    ///
    /// # Panics
    /// If the cluster was not started with proxies.
    pub fn cut(&self, agent: usize, what: Cut) {
        self.agents[agent].proxy.as_ref().expect("the options ask for proxies").cut(what);
    }

    /// Stops a control node without it noticing (SIGSTOP).
    ///
    /// # Panics
    /// If it does not run.
    pub fn pause_node(&self, index: usize) {
        self.nodes[index].process.as_ref().expect("a node that runs is paused").signal(Signal::SIGSTOP);
    }

    /// Wakes a paused control node.
    ///
    /// # Panics
    /// If it does not run.
    pub fn resume_node(&self, index: usize) {
        self.nodes[index].process.as_ref().expect("a node that runs is woken").signal(Signal::SIGCONT);
    }

    /// A client of all nodes.
    pub fn client(&self) -> Client {
        self.client_of(&(0..self.nodes.len()).collect::<Vec<_>>())
    }

    /// A client of some of the nodes.
    ///
    /// # Panics
    /// If none is named.
    pub fn client_of(&self, nodes: &[usize]) -> Client {
        let servers = nodes.iter().map(|index| self.nodes[*index].api.clone());
        Client::builder()
            .servers(servers)
            .deadline(Duration::from_secs(20))
            .build()
            .expect("addresses are good")
    }

    /// Waits until a leader is known to all running nodes, and all running agents are registered and connected to
    /// every one of them.
    pub async fn wait_ready(&self) {
        self.wait_leader().await;
        let agents = self.agents.iter().filter(|agent| agent.process.is_some()).count();
        for index in self.running() {
            let client = self.client_of(&[index]);
            eventually("all agents are ready and connected", || async {
                let list = client.list_agents(v1::ReadOptions::default()).await.map_err(|e| e.to_string())?;
                let ready = |agent: &&v1::Agent| agent.connected && agent.status() == v1::AgentStatus::Ready;
                let found = list.agents.iter().filter(ready).count();
                if found >= agents { Ok(()) } else { Err(format!("{found} of {agents}, seen by n{index}")) }
            })
            .await;
        }
    }

    /// What a control node has written so far, over all its starts.
    pub fn log_of(&self, index: usize) -> String {
        let log = self.folder().join(format!("{}.log", self.nodes[index].name));
        std::fs::read_to_string(log).unwrap_or_default()
    }

    /// Asserts that no control node has found others' digests to differ from its own, whatever happened to it.
    pub fn assert_nobody_diverged(&self) {
        for index in 0..self.nodes.len() {
            let log = self.log_of(index);
            let complains = |line: &&str| line.contains("has other digests") || line.contains("has diverged");
            let complaint = log.lines().find(complains);
            assert!(complaint.is_none(), "n{index}: {complaint:?}");
        }
    }

    /// What answers in place of a node that ended by itself would be another's.
    fn assert_runs(&self, index: usize) {
        let NodeProcess { name, process, .. } = &self.nodes[index];
        let runs = process.as_ref().is_some_and(|process| crate::alive(process.pid().cast_signed()));
        assert!(runs, "{name} has ended by itself: {}", self.log_of(index));
    }

    /// The nodes whose processes run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].process.is_some()).collect()
    }

    /// Waits until all running nodes know one and the same leader, which runs; its index.
    pub async fn wait_leader(&self) -> usize {
        let running = self.running();
        self.wait_leader_among(&running).await
    }

    /// Waits until these nodes know one and the same leader, which is one of them; its index.
    pub async fn wait_leader_among(&self, among: &[usize]) -> usize {
        eventually("a leader", || async {
            let mut leaders = Vec::new();
            for index in among {
                self.assert_runs(*index);
                let client = self.client_of(&[*index]).with_deadline(Duration::from_secs(2));
                leaders.push(client.status().await.map_err(|error| error.to_string())?.leader);
            }
            let leader = among.iter().find(|index| self.nodes[**index].name == leaders[0]);
            match leader {
                Some(leader) if leaders.iter().all(|name| *name == leaders[0]) => Ok(*leader),
                _ => Err(format!("leaders are {leaders:?}")),
            }
        })
        .await
    }

    /// A running node that does not lead.
    ///
    /// # Panics
    /// If there is none.
    pub async fn follower(&self) -> usize {
        let leader = self.wait_leader().await;
        self.running().into_iter().find(|index| *index != leader).expect("a cluster has followers")
    }

    /// Waits until all running nodes are at one revision, and asserts that their digests are equal; the capacity that
    /// all of them see.
    pub async fn wait_identical(&self) -> v1::GetCapacityResponse {
        let views = eventually("all nodes are at one revision", || async {
            let mut views = Vec::new();
            for index in self.running() {
                let local = v1::ReadOptions { consistency: v1::Consistency::Local.into(), min_revision: 0 };
                let client = self.client_of(&[index]);
                views.push(client.capacity(local).await.map_err(|error| error.to_string())?);
            }
            let revisions: Vec<_> = views.iter().map(|view| view.revision).collect();
            if revisions.iter().all(|revision| *revision == revisions[0]) {
                Ok(views)
            } else {
                Err(format!("revisions are {revisions:?}"))
            }
        })
        .await;
        for view in &views {
            assert_eq!(
                view.state_digest, views[0].state_digest,
                "state digests at revision {}",
                view.revision
            );
            assert_eq!(view.history_digest, views[0].history_digest, "history digests at {}", view.revision);
            assert_eq!(view.total, views[0].total);
            assert_eq!(view.allocated, views[0].allocated);
        }
        views.into_iter().next().expect("some node runs")
    }

    /// Waits until a sandbox is in a phase; its record.
    pub async fn wait_phase(&self, sandbox_id: &str, phase: v1::Phase) -> v1::Sandbox {
        let client = self.client();
        eventually(&format!("sandbox {sandbox_id} is {}", phase.as_str_name()), || async {
            let sandbox = get(&client, sandbox_id).await.map_err(|error| error.to_string())?;
            let found = sandbox.as_ref().map_or(v1::Phase::Gone, v1::Sandbox::phase);
            if found == phase {
                Ok(sandbox.unwrap_or_default())
            } else {
                let why = sandbox.map(|sandbox| sandbox.reason).unwrap_or_default();
                Err(format!("it is {} {why}", found.as_str_name()))
            }
        })
        .await
    }

    /// Terminates everything, and waits until it is gone from the state.
    pub async fn terminate_all(&self) {
        let client = self.client();
        eventually("everything is gone", || async {
            let list =
                client.list(v1::ListSandboxesRequest::default()).await.map_err(|error| error.to_string())?;
            for sandbox in &list.sandboxes {
                if sandbox.phase() != v1::Phase::Terminating {
                    let request = v1::TerminateSandboxRequest {
                        r#ref: Some(by_id(&sandbox.sandbox_id)),
                        ..v1::TerminateSandboxRequest::default()
                    };
                    client.terminate(request).await.map_err(|error| error.to_string())?;
                }
            }
            if list.sandboxes.is_empty() { Ok(()) } else { Err(format!("{} are left", list.sandboxes.len())) }
        })
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            agent.process = None;
        }
        for node in &mut self.nodes {
            node.process = None;
        }
        let Some(folder) = self.folder.take() else { return };
        kill_shims(folder.path());
        if self.kept || std::thread::panicking() {
            let kept = folder.keep();
            eprintln!("the cluster's logs and data are kept in {}", kept.display());
        }
    }
}
