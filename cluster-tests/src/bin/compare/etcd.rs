//! Three members of etcd, as processes, with default settings.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cluster_tests::Process;
use etcd_client::{Client, ConnectOptions};
use sandkeeper_load::{Found, Load, connections};
use tempfile::TempDir;
use test_ports::Ports;
use tokio::time::{sleep, timeout};

use crate::Contestant;
use crate::etcd_work::EtcdWork;

/// Members.
const MEMBERS: usize = 3;
/// Only a cluster that does not come up takes this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// A member that does not answer for this long is left for another. Shorter than etcd's own seven seconds, in which it waits for a
/// leader that is dead.
const ATTEMPT: Duration = Duration::from_millis(100);

/// The cluster. It ends with this.
pub struct Etcd {
    members: Vec<Member>,
    initial: String,
    _ports: Ports,
    folder: TempDir,
}

struct Member {
    name: String,
    client: String,
    peer: String,
    /// None while it is down.
    process: Option<Process>,
}

fn program() -> PathBuf {
    std::env::var_os("ETCD").map_or_else(|| PathBuf::from("etcd"), PathBuf::from)
}

/// What `etcd --version` says first.
///
/// # Errors
/// If there is none.
pub async fn version() -> anyhow::Result<String> {
    let output = tokio::process::Command::new(program()).arg("--version").output().await;
    let output =
        output.context("etcd can't be run: install Debian's etcd-server, or set ETCD to the program")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().next().unwrap_or("unknown").replace("etcd Version: ", ""))
}

impl Contestant for Etcd {
    const NAME: &'static str = "etcd";
    type Work = EtcdWork;
    const WORKS: &'static [(EtcdWork, &'static str)] = &[
        (EtcdWork::Create, "create"),
        (EtcdWork::CreateAlone, "create-alone"),
        (EtcdWork::Put, "put"),
        (EtcdWork::Get, "get"),
        (EtcdWork::GetLocal, "get-local"),
    ];

    async fn start() -> anyhow::Result<Self> {
        let ports = Ports::take(2 * MEMBERS);
        let url = |index: usize| format!("http://{}", ports.socket(index));
        let members: Vec<_> = (0..MEMBERS)
            .map(|index| Member {
                name: format!("m{index}"),
                client: url(index),
                peer: url(MEMBERS + index),
                process: None,
            })
            .collect();
        let named: Vec<_> = members.iter().map(|member| format!("{}={}", member.name, member.peer)).collect();
        let folder = tempfile::tempdir()?;
        let mut etcd = Self { members, initial: named.join(","), _ports: ports, folder };
        for index in 0..MEMBERS {
            etcd.start_member(index);
        }
        etcd.leader().await?;
        Ok(etcd)
    }

    async fn run(&mut self, work: EtcdWork, load: Load) -> anyhow::Result<Found> {
        work.run(self, load).await
    }

    async fn failover(&mut self, number: u16) -> anyhow::Result<Duration> {
        let leader = self.leader().await?;
        let others: Vec<_> = (0..MEMBERS).filter(|index| *index != leader).collect();
        let mut clients = Vec::new();
        for index in others {
            let mut client = connect(&self.members[index].client).await?;
            client.put("before", "", None).await?;
            clients.push(client);
        }
        let began = Instant::now();
        // It is dropped, which kills it.
        self.members[leader].process = None;
        for attempt in 0.. {
            let client = &mut clients[attempt % (MEMBERS - 1)];
            if let Ok(Ok(_)) = timeout(ATTEMPT, client.put(format!("after-{number}"), "", None)).await {
                break;
            }
            if began.elapsed() > PATIENCE {
                bail!("no write after {PATIENCE:?}");
            }
        }
        let took = began.elapsed();
        self.start_member(leader);
        self.leader().await?;
        Ok(took)
    }
}

impl Etcd {
    fn start_member(&mut self, index: usize) {
        let Member { name, client, peer, .. } = &self.members[index];
        let mut command = Command::new(program());
        command.args(["--name", name, "--data-dir"]).arg(self.folder.path().join(name));
        command.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
        command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
        command.args(["--initial-cluster", &self.initial, "--log-level", "error"]);
        let log = self.folder.path().join(format!("{name}.log"));
        self.members[index].process = Some(Process::start(command, &log));
    }

    /// Clients enough for so many callers. Each has a connection to one member, by turns.
    ///
    /// # Errors
    /// If a member can't be reached.
    pub async fn clients(&self, callers: u16) -> anyhow::Result<Vec<Client>> {
        let mut clients = Vec::new();
        for number in 0..connections(callers, MEMBERS) {
            clients.push(connect(&self.members[number % MEMBERS].client).await?);
        }
        Ok(clients)
    }

    /// The place of the member that leads, when all that run follow it.
    async fn leader(&self) -> anyhow::Result<usize> {
        let began = Instant::now();
        loop {
            if let Some(leader) = self.agreed_leader().await {
                return Ok(leader);
            }
            ensure!(began.elapsed() < PATIENCE, "etcd has no leader after {PATIENCE:?}");
            sleep(LOOK).await;
        }
    }

    async fn agreed_leader(&self) -> Option<usize> {
        let (mut ids, mut leaders) = (Vec::new(), Vec::new());
        for member in &self.members {
            let mut client = timeout(ATTEMPT, connect(&member.client)).await.ok()?.ok()?;
            let status = timeout(ATTEMPT, client.status()).await.ok()?.ok()?;
            ids.push(status.header()?.member_id());
            leaders.push(status.leader());
        }
        let agreed = leaders.iter().all(|leader| *leader == leaders[0]);
        if agreed { ids.iter().position(|id| *id == leaders[0]) } else { None }
    }
}

async fn connect(url: &str) -> anyhow::Result<Client> {
    let options = ConnectOptions::new().with_connect_timeout(PATIENCE).with_tcp_keepalive(PATIENCE);
    Client::connect([url], Some(options)).await.with_context(|| format!("connecting to {url}"))
}
