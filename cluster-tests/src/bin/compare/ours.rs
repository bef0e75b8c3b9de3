//! Sandkeeper's side: a cluster of real processes with default settings, and simulated agents.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use cluster_tests::{Cluster, ClusterOptions, by_id, shell};
use sandkeeper_client::{Client, v1};
use sandkeeper_load::{Found, Load, connections};

use crate::{AGENTS, Contestant, SLOTS};

/// Kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OurWork {
    /// A create, answered when its allocation has committed.
    Create,
    /// A linearizable read.
    Get,
    /// A read of the node that is asked.
    GetLocal,
}

/// The cluster. It ends with this.
pub struct Ours {
    cluster: Cluster,
    names: Arc<AtomicU64>,
}

impl Contestant for Ours {
    const NAME: &'static str = "Sandkeeper";
    type Work = OurWork;
    const WORKS: &'static [(OurWork, &'static str)] =
        &[(OurWork::Create, "create"), (OurWork::Get, "get"), (OurWork::GetLocal, "get-local")];

    async fn start() -> anyhow::Result<Self> {
        let words = format!("--runtime simulated --count {AGENTS}");
        let options = ClusterOptions {
            agents: 1,
            slots: SLOTS,
            agent_flags: words.split(' ').map(str::to_owned).collect(),
            ..ClusterOptions::default()
        };
        let cluster = Cluster::start_with(options).await;
        let client = cluster.client();
        cluster_tests::eventually("all agents are registered", || async {
            let capacity = client.capacity(v1::ReadOptions::default()).await;
            let total = capacity.map_err(|error| error.to_string())?.total.unwrap_or_default().slots;
            if total == AGENTS * SLOTS { Ok(()) } else { Err(format!("{total} slots")) }
        })
        .await;
        Ok(Self { cluster, names: Arc::default() })
    }

    async fn run(&mut self, work: Self::Work, load: Load) -> anyhow::Result<Found> {
        let clients = self.clients(load.callers);
        let consistency = match work {
            OurWork::GetLocal => v1::Consistency::Local,
            OurWork::Create | OurWork::Get => v1::Consistency::Linearizable,
        };
        let read = v1::ReadOptions { consistency: consistency.into(), min_revision: 0 };
        let made = clients[0].create(shell(&self.name(), "sleep 600")).await?;
        let id = made.sandbox.context("a create is answered with a sandbox")?.sandbox_id;
        if work == OurWork::GetLocal {
            self.cluster.wait_identical().await;
        }
        let names = Arc::clone(&self.names);
        let found = load.run(move |caller, _| {
            let client = clients[usize::from(caller) % clients.len()].clone();
            let (id, names) = (id.clone(), Arc::clone(&names));
            async move {
                let done = match work {
                    OurWork::Create => client.create(shell(&next(&names), "sleep 600")).await.map(drop),
                    OurWork::Get | OurWork::GetLocal => client.get(by_id(&id), read).await.map(drop),
                };
                done.map(|()| 1).map_err(|error| error.to_string())
            }
        });
        Ok(found.await?)
    }

    async fn failover(&mut self, number: u16) -> anyhow::Result<Duration> {
        self.cluster.wait_ready().await;
        let leader = self.cluster.wait_leader().await;
        let count = self.cluster.nodes.len();
        let others: Vec<_> = (1..count).map(|step| (leader + step) % count).collect();
        let client = self.cluster.client_of(&others);
        client.create(shell(&self.name(), "sleep 600")).await.context("before the kill")?;
        let began = Instant::now();
        self.cluster.kill_node(leader);
        client.create(shell(&format!("after-{number}"), "sleep 600")).await.context("after the kill")?;
        let took = began.elapsed();
        self.cluster.start_node(leader);
        Ok(took)
    }
}

impl Ours {
    fn name(&self) -> String {
        next(&self.names)
    }

    /// Clients enough for so many callers. Each begins with another node.
    fn clients(&self, callers: u16) -> Vec<Client> {
        let nodes = self.cluster.nodes.len();
        let order = |first: usize| (0..nodes).map(|step| (first + step) % nodes).collect::<Vec<_>>();
        (0..connections(callers, nodes)).map(|number| self.cluster.client_of(&order(number))).collect()
    }
}

fn next(names: &AtomicU64) -> String {
    format!("web-{}", names.fetch_add(1, Ordering::Relaxed))
}
