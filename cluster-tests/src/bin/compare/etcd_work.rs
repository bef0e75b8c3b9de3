//! The same work on etcd: what a careful user writes who keeps sandboxes and agents there.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use etcd_client::{Compare, CompareOp, Error, GetOptions, KvClient, Txn, TxnOp, TxnOpResponse};
use rand::RngExt;
use sandkeeper_load::{Found, Load};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::etcd::Etcd;
use crate::{AGENTS, SLOTS};

/// Kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtcdWork {
    /// A create: read an agent, then a transaction that compares its revision; again if somebody was quicker.
    Create,
    /// The same by one process that knows all agents from its own writes, and has each changed by one caller at a time: no read, no
    /// conflict. The best that can be done without a server of one's own before etcd, and only while there is one such process.
    CreateAlone,
    /// One key, nothing compared.
    Put,
    /// A linearizable read.
    Get,
    /// A read of the member that is asked.
    GetLocal,
}

/// What is kept of an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Agent {
    name: String,
    slots: u64,
    allocated: u64,
    cpu_millis: u64,
    memory_bytes: u64,
}

/// An agent, and when it was changed last.
#[derive(Clone, Debug)]
struct Known {
    agent: Agent,
    revision: i64,
}

/// What is kept of a sandbox: as much as Sandkeeper's record has.
#[derive(Serialize)]
struct Sandbox<'a> {
    id: String,
    namespace: &'static str,
    name: &'a str,
    phase: &'static str,
    agent_id: &'a str,
    generation: u64,
    command: [&'static str; 2],
    labels: [(&'static str, &'static str); 1],
    created_nanos: u128,
}

impl EtcdWork {
    /// One round of it.
    ///
    /// # Errors
    /// If etcd can't be reached.
    pub async fn run(self, etcd: &Etcd, load: Load) -> anyhow::Result<Found> {
        let clients: Vec<KvClient> =
            etcd.clients(load.callers).await?.iter().map(etcd_client::Client::kv_client).collect();
        let fleet = Arc::new(Fleet::write(clients[0].clone()).await?);
        let names = Arc::new(AtomicU64::new(0));
        let found = load.run(move |caller, _| {
            let client = clients[usize::from(caller) % clients.len()].clone();
            let (fleet, number) = (Arc::clone(&fleet), names.fetch_add(1, Ordering::Relaxed));
            async move {
                let done = match self {
                    Self::Create => fleet.create(client, number).await,
                    Self::CreateAlone => fleet.create_alone(client, number).await,
                    Self::Put => put(client, number).await,
                    Self::Get => get(client, None).await,
                    Self::GetLocal => get(client, Some(GetOptions::new().with_serializable())).await,
                };
                done.map(|()| 1).map_err(|error| error.to_string())
            }
        });
        Ok(found.await?)
    }
}

async fn put(mut client: KvClient, number: u64) -> Result<(), Error> {
    let agent = key_of_agent(0);
    let value = sandbox(&format!("put-{number}"), &agent);
    client.put(format!("puts/{number}"), value, None).await.map(drop)
}

async fn get(mut client: KvClient, options: Option<GetOptions>) -> Result<(), Error> {
    client.get(key_of_agent(0), options).await.map(drop)
}

fn key_of_agent(number: u64) -> String {
    format!("agents/agent-{number}")
}

fn sandbox(name: &str, agent: &str) -> Vec<u8> {
    let created = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let sandbox = Sandbox {
        id: uuid::Uuid::new_v4().simple().to_string(),
        namespace: "default",
        name,
        phase: "ALLOCATED",
        agent_id: agent,
        generation: 1,
        command: ["sleep", "infinity"],
        labels: [("sandkeeper-bench", "compare")],
        created_nanos: created.as_nanos(),
    };
    serde_json::to_vec(&sandbox).expect("a record of texts and numbers can be written")
}

fn encode(agent: &Agent) -> Vec<u8> {
    serde_json::to_vec(agent).expect("a record of texts and numbers can be written")
}

/// The agents, as one process knows them that is alone.
struct Fleet {
    /// What was made bears this, so that rounds do not meet.
    run: String,
    free: Mutex<VecDeque<Known>>,
    /// As many as there are free ones.
    turns: Semaphore,
}

impl Fleet {
    /// Writes all agents, empty.
    async fn write(mut client: KvClient) -> anyhow::Result<Self> {
        let mut free = VecDeque::new();
        for number in 0..AGENTS {
            let agent = Agent {
                name: key_of_agent(number),
                slots: SLOTS,
                allocated: 0,
                cpu_millis: 8_000,
                memory_bytes: 8 << 30,
            };
            let written = client.put(key_of_agent(number), encode(&agent), None).await?;
            let revision = written.header().context("an answer without a header")?.revision();
            free.push_back(Known { agent, revision });
        }
        let turns = Semaphore::new(free.len());
        Ok(Self { run: uuid::Uuid::new_v4().simple().to_string(), free: Mutex::new(free), turns })
    }

    fn transaction(&self, known: &Known, number: u64) -> Txn {
        let (name, key) = (format!("web-{number}"), &known.agent.name);
        let agent = Agent { allocated: known.agent.allocated + 1, ..known.agent.clone() };
        let path = format!("sandboxes/{}/{name}", self.run);
        let (made, changed) = (sandbox(&name, key), encode(&agent));
        Txn::new()
            .when([
                Compare::mod_revision(key.as_str(), CompareOp::Equal, known.revision),
                Compare::version(path.as_str(), CompareOp::Equal, 0),
            ])
            .and_then([TxnOp::put(path, made, None), TxnOp::put(key.as_str(), changed, None)])
            .or_else([TxnOp::get(key.as_str(), None)])
    }

    async fn create(&self, mut client: KvClient, number: u64) -> Result<(), Error> {
        let key = key_of_agent(rand::rng().random_range(0..AGENTS));
        let read = client.get(key, None).await?;
        let mut known = read.kvs().first().and_then(known_of).ok_or_else(unreadable)?;
        loop {
            let answer = client.txn(self.transaction(&known, number)).await?;
            if answer.succeeded() {
                return Ok(());
            }
            // What stood in the way came with the answer.
            known = answer.op_responses().iter().find_map(known_in).ok_or_else(unreadable)?;
        }
    }

    async fn create_alone(&self, mut client: KvClient, number: u64) -> Result<(), Error> {
        let turn = self.turns.acquire().await.expect("it is never closed");
        let mut known = self.free().pop_front().expect("there is one for each turn");
        let done = loop {
            match client.txn(self.transaction(&known, number)).await {
                Ok(answer) if answer.succeeded() => {
                    known.revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
                    known.agent.allocated += 1;
                    break Ok(());
                }
                Ok(answer) => match answer.op_responses().iter().find_map(known_in) {
                    Some(now) => known = now,
                    None => break Err(unreadable()),
                },
                Err(error) => break Err(error),
            }
        };
        self.free().push_back(known);
        drop(turn);
        done
    }

    fn free(&self) -> std::sync::MutexGuard<'_, VecDeque<Known>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn known_in(answer: &TxnOpResponse) -> Option<Known> {
    match answer {
        TxnOpResponse::Get(read) => read.kvs().first().and_then(known_of),
        _ => None,
    }
}

fn known_of(pair: &etcd_client::KeyValue) -> Option<Known> {
    Some(Known { agent: serde_json::from_slice(pair.value()).ok()?, revision: pair.mod_revision() })
}

fn unreadable() -> Error {
    Error::InvalidArgs("an agent's record is not there, or not one".to_owned())
}
