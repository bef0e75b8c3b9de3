//! The cluster that is attacked, with all that faults need to attack it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use sandkeeper_client::{Client, v1};
use tempfile::TempDir;
use test_disks::{FileSystem, LoopDisk};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};

use super::oracle::Oracle;
use super::violation::{Breach, Invariant};
use super::workload::{QUIET, REAL, ROOMY, TIGHT};
use crate::cluster::log_of_agent;
use crate::{AgentOptions, Cluster, ClusterOptions, Links, Process, Raw, faketime};

/// Agents that run processes.
const REAL_AGENTS: usize = 3;
/// Of a node's disk. It is a file with holes.
const DISK_BYTES: u64 = 2 << 30;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(30);
/// For a question to one node.
const DEADLINE: Duration = Duration::from_secs(1);

/// What this machine has for faults.
#[derive(Clone, Debug)]
pub struct Means {
    /// Whether file systems can be mounted, and other processes traced.
    pub root: bool,
    /// Where libfaketime is.
    pub faketime: bool,
}

impl Means {
    /// Looks.
    pub fn look() -> Self {
        Self { root: geteuid().is_root(), faketime: faketime::library().is_some() }
    }
}

/// Everything that can be hurt.
pub struct Rig {
    /// The processes. Dropped before the disks.
    pub cluster: Cluster,
    /// Each node's own, if this is root.
    pub disks: Vec<LoopDisk>,
    _data_dirs: Option<TempDir>,
    /// All choices of faults.
    pub dice: StdRng,
    /// Hears of everything.
    pub oracle: Arc<Oracle>,
    /// What this machine can do.
    pub means: Means,
    /// How many nodes belong to the cluster for good.
    pub nodes: usize,
    /// From the kill of a leader to the next acknowledged create, milliseconds.
    pub failovers: Vec<f64>,
}

/// How the rig is made.
#[derive(Clone, Debug)]
pub struct RigOptions {
    /// Control nodes.
    pub nodes: usize,
    /// All choices follow from it.
    pub seed: u64,
    /// Without disks of their own and fake clocks: what this machine can't, or nobody wants.
    pub means: Means,
}

impl Rig {
    /// Starts the cluster, and waits until it is ready.
    ///
    /// # Errors
    /// If a file can't be made.
    pub async fn start(
        options: &RigOptions,
        oracle: impl FnOnce(&Path) -> anyhow::Result<Oracle>,
    ) -> anyhow::Result<Self> {
        let mut dice = StdRng::seed_from_u64(options.seed);
        let mut disks = Vec::new();
        let mut data_dirs = None;
        if options.means.root {
            let folder = tempfile::Builder::new().prefix("sandkeeper-data-").tempdir()?;
            for index in 0..options.nodes {
                let disk = block_in_place(|| LoopDisk::new(FileSystem::Ext4, DISK_BYTES));
                let data_dir = disk.path().join("data");
                std::fs::create_dir(&data_dir)?;
                symlink(&data_dir, folder.path().join(format!("n{index}")))?;
                disks.push(disk);
            }
            data_dirs = Some(folder);
        }
        let cluster = Cluster::start_with(ClusterOptions {
            nodes: options.nodes,
            agents: 0,
            server_flags: server_flags(&mut dice),
            fleet: fleet(options.seed),
            links: true,
            clocks: options.means.faketime,
            data_dirs: data_dirs.as_ref().map(|folder| folder.path().to_owned()),
            ..ClusterOptions::default()
        })
        .await;
        std::fs::create_dir(cluster.folder().join("diaries"))?;
        let oracle = Arc::new(oracle(cluster.folder())?);
        Ok(Self {
            cluster,
            disks,
            _data_dirs: data_dirs,
            dice,
            oracle,
            means: options.means.clone(),
            nodes: options.nodes,
            failovers: Vec::new(),
        })
    }

    /// All links between the parties.
    ///
    /// # Panics
    /// Never: it is started with links.
    pub fn links(&self) -> &Links {
        self.cluster.links.as_ref().expect("a rig has links")
    }

    /// How often links have held bytes back so far, because they were cut.
    pub fn held(&self) -> u64 {
        self.links().tally().held.load(Ordering::Relaxed)
    }

    /// Where sandboxes write down their lives.
    pub fn diaries(&self) -> PathBuf {
        self.cluster.folder().join("diaries")
    }

    /// A time within bounds, by the dice.
    pub fn some_time(&mut self, millis: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.dice.random_range(millis))
    }

    /// One of the nodes, by the dice.
    pub fn some_node(&mut self) -> usize {
        self.dice.random_range(0..self.nodes)
    }

    /// The nodes, in an order by the dice.
    pub fn shuffled_nodes(&mut self) -> Vec<usize> {
        let mut nodes: Vec<_> = (0..self.nodes).collect();
        nodes.shuffle(&mut self.dice);
        nodes
    }

    /// An agent's process, by the dice; those that run processes more often.
    pub fn some_agent(&mut self) -> usize {
        if self.dice.random_bool(0.7) {
            self.dice.random_range(0..REAL_AGENTS)
        } else {
            self.dice.random_range(0..self.vulnerable_agents())
        }
    }

    /// So many agents, the first ones, may be hurt. The last is left alone: with it, it is seen whether the nodes work.
    pub fn vulnerable_agents(&self) -> usize {
        self.cluster.agents.len() - 1
    }

    /// A client of one node, without retries beyond a short deadline.
    pub fn ask(&self, node: usize) -> Client {
        self.cluster.client_of(&[node]).with_deadline(DEADLINE)
    }

    /// A client of all nodes.
    pub fn ask_all(&self, deadline: Duration) -> Client {
        self.cluster.client_of(&(0..self.nodes).collect::<Vec<_>>()).with_deadline(deadline)
    }

    /// The leader, if one is known to most of the running nodes within a while; else the first that runs.
    pub async fn leader(&self) -> usize {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            for node in self.running() {
                let Some(leader) = self.leader_as_seen_by(node).await else { continue };
                if self.leader_as_seen_by(leader).await == Some(leader) {
                    return leader;
                }
            }
            if Instant::now() > until {
                return self.running().first().copied().unwrap_or(0);
            }
            sleep(LOOK).await;
        }
    }

    async fn leader_as_seen_by(&self, node: usize) -> Option<usize> {
        // Not the product's client: nothing is retried, and there is no connection that waits.
        let raw = Raw::new(&self.cluster.nodes[node].api);
        let mut cluster = raw.cluster();
        let answer = tokio::time::timeout(DEADLINE, cluster.get_status(v1::GetStatusRequest {})).await;
        let leader = answer.ok()?.ok()?.into_inner().leader;
        (0..self.nodes).find(|node| self.cluster.nodes[*node].name == leader)
    }

    /// A node that does not lead.
    pub async fn follower(&mut self) -> usize {
        let leader = self.leader().await;
        let mut nodes = self.shuffled_nodes();
        nodes.retain(|node| *node != leader);
        nodes[0]
    }

    /// The nodes that belong to the cluster for good, and whose processes run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes).filter(|node| self.cluster.nodes[*node].process.is_some()).collect()
    }

    /// Kills nodes at one time. Whether all of them are gone.
    pub fn kill(&mut self, nodes: &[usize]) -> bool {
        let pids: Vec<_> = nodes.iter().filter_map(|node| self.pid(*node)).collect();
        block_in_place(|| {
            for node in nodes {
                if let Some(process) = &self.cluster.nodes[*node].process {
                    process.signal(Signal::SIGKILL);
                }
            }
            for node in nodes {
                self.cluster.kill_node(*node);
            }
        });
        !pids.is_empty() && pids.iter().all(|pid| !crate::alive(pid.cast_signed()))
    }

    /// A node's process id.
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.cluster.nodes[node].process.as_ref().map(Process::pid)
    }

    /// Starts nodes that don't run.
    pub fn start_missing(&mut self) {
        for node in 0..self.nodes {
            if self.cluster.nodes[node].process.is_none() {
                self.cluster.start_node(node);
            }
        }
    }

    /// Waits until a condition holds; whether it did in time.
    pub async fn wait(&mut self, patience: Duration, mut holds: impl AsyncFnMut(&mut Self) -> bool) -> bool {
        let until = Instant::now() + patience;
        while !holds(self).await {
            if Instant::now() > until {
                return false;
            }
            sleep(LOOK).await;
        }
        true
    }

    /// Whether a node has ended by itself; then it is known to be gone.
    pub fn has_ended(&mut self, node: usize) -> bool {
        let ended = self.cluster.nodes[node].process.as_mut().is_none_or(Process::has_ended);
        if ended {
            self.cluster.nodes[node].process = None;
        }
        ended
    }

    /// A process that has ended although no fault explains it breaks an invariant.
    pub fn sweep(&mut self) {
        let folder = self.cluster.folder().to_owned();
        let nodes = self.cluster.nodes.iter_mut();
        let nodes = nodes.map(|node| (&node.name, format!("{}.log", node.name), &mut node.process));
        let agents = self.cluster.agents.iter_mut().enumerate();
        let agents = agents.map(|(index, agent)| (&agent.name, log_of_agent(index), &mut agent.process));
        for (name, log, process) in nodes.chain(agents) {
            if process.as_mut().is_none_or(|process| !process.has_ended()) {
                continue;
            }
            *process = None;
            let log = std::fs::read_to_string(folder.join(log)).unwrap_or_default();
            let last: Vec<_> = log.lines().rev().take(6).collect();
            let diverged = last.iter().any(|line| line.contains("has diverged"));
            let invariant = if diverged { Invariant::Digests } else { Invariant::Progress };
            let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
            let what = format!("{name} has ended, and no fault explains it:\n{last}");
            self.oracle.checked(invariant, Err(Breach::of(invariant, what)));
        }
    }

    /// Empties a node's data directory, which nobody uses.
    ///
    /// # Errors
    /// If it can't be emptied.
    pub fn wipe(&self, node: usize) -> anyhow::Result<()> {
        let folder = &self.cluster.nodes[node].data_dir;
        for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }
                .with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// All members of the cluster, as its leader says.
    ///
    /// # Errors
    /// If nobody answers.
    pub async fn members(&self) -> anyhow::Result<Vec<v1::Member>> {
        let client = self.ask_all(Duration::from_secs(3));
        Ok(client.list_members(v1::ReadOptions::default()).await?.members)
    }
}

/// Few entries and small snapshots, so that purges and compactions come often; how few depends on the seed. The timers of
/// elections are the default ones.
fn server_flags(dice: &mut StdRng) -> Vec<String> {
    let retained = [2_000, 5_000, 1_000_000][dice.random_range(0..3)];
    let catch_up = [200, 1_000, 5_000][dice.random_range(0..3)];
    let words = format!(
        "--lost-after 2s --history-retain-entries {retained} --catch-up-entries {catch_up} --snapshot-log-bytes 256KiB"
    );
    words.split(' ').map(str::to_owned).collect()
}

fn fleet(seed: u64) -> Vec<AgentOptions> {
    let agent = |name: &str, pool: &str, flags: String| AgentOptions {
        name: name.to_owned(),
        flags: format!("--pool {pool} --memory 64GiB --terminate-grace 500ms {flags}")
            .split(' ')
            .map(str::to_owned)
            .collect(),
    };
    let real =
        (0..REAL_AGENTS).map(|index| agent(&format!("a{index}"), REAL, "--slots 12 --cpu 8".to_owned()));
    let simulated = |count: usize, slots: usize, cpu: usize, more: &str| {
        format!("--runtime simulated --count {count} --slots {slots} --cpu {cpu} --seed {seed} {more}")
            .trim_end()
            .to_owned()
    };
    let others = [
        agent("roomy", ROOMY, simulated(6, 60, 64, "--start-time 5ms --failure-rate 0.01")),
        agent("tight", TIGHT, simulated(3, 5, 3, "--start-time 40ms --failure-rate 0.05")),
        agent("quiet", QUIET, simulated(2, 100, 64, "")),
    ];
    real.chain(others).collect()
}
