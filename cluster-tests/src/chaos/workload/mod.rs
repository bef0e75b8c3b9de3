//! What the cluster is kept busy with, and what looks at it meanwhile.

pub mod caller;
mod liar;
mod looks;
mod streams;
mod tails;
mod watchers;
mod witnesses;
mod workers;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::oracle::Oracle;
use super::violation::{Breach, Invariant};
use caller::{Caller, Stage};

/// The pool of the agents that only seem to run sandboxes, with room for everything.
pub const ROOMY: &str = "roomy";
/// The same with little room, slow starts, and starts that fail.
pub const TIGHT: &str = "tight";
/// The pool of the agents that no fault is about.
pub const QUIET: &str = "quiet";
/// The pool of the agents that really run processes.
pub const REAL: &str = "real";

/// The pool of the agent that lies.
pub const LIES: &str = "lies";
/// The namespace of sandboxes that write down their lives.
pub const LIVES: &str = "lives";

/// Clients that create, change and read, in pairs that share a namespace.
const WORKERS: usize = 16;
/// Those of them that work with little room.
const IN_TIGHT: usize = 6;
/// Clients whose sandboxes write down their lives.
const WITNESSES: usize = 2;
/// Clients of create streams.
const STREAMS: usize = 1;
/// After the last fault everything that is open becomes known within this time.
const FINISH: Duration = Duration::from_secs(30);

/// Everything that works and watches, until it is stopped.
pub struct Workload {
    stage: watch::Sender<Stage>,
    workers: JoinSet<()>,
    /// End only with this.
    observers: JoinSet<()>,
}

/// Whom it is about.
#[derive(Clone, Debug)]
pub struct Target {
    /// `host:port` of each node.
    pub apis: Vec<String>,
    /// Where sandboxes write down their lives.
    pub diaries: PathBuf,
    /// All choices follow from it.
    pub seed: u64,
}

impl Workload {
    /// Starts all of it.
    pub fn start(target: &Target, oracle: &Arc<Oracle>) -> Self {
        let (stage, listener) = watch::channel(Stage::Work);
        let mut workers = JoinSet::new();
        let caller = |name: String, number: u64| {
            let seed = target.seed.wrapping_mul(1_000).wrapping_add(number);
            Caller::new(name, seed, &target.apis, Arc::clone(oracle), listener.clone())
        };
        for index in 0..WORKERS {
            let pool = if index < WORKERS - IN_TIGHT { ROOMY } else { TIGHT };
            let namespace = format!("ns{}", index / 2);
            let caller = caller(format!("w{index}"), index as u64);
            workers.spawn(workers::work(caller, namespace, pool));
        }
        for index in 0..WITNESSES {
            let caller = caller(format!("d{index}"), 100 + index as u64);
            workers.spawn(witnesses::work(caller, target.diaries.clone()));
        }
        for index in 0..STREAMS {
            let namespace = format!("stream{index}");
            workers.spawn(streams::work(
                target.apis.clone(),
                namespace,
                Arc::clone(oracle),
                listener.clone(),
            ));
        }
        workers.spawn(workers::work(caller("w-lies".to_owned(), 300), "lies".to_owned(), LIES));
        let mut observers = JoinSet::new();
        observers.spawn(liar::play(target.apis.clone(), target.seed, Arc::clone(oracle), listener.clone()));
        for (node, api) in target.apis.iter().enumerate() {
            observers.spawn(tails::tail(node, api.clone(), Arc::clone(oracle)));
            observers.spawn(looks::look(node, api.clone(), Arc::clone(oracle)));
        }
        observers.spawn(looks::verify(target.apis.clone(), Arc::clone(oracle)));
        let namespaces = [None, None, Some("ns0".to_owned()), Some("ns6".to_owned())];
        for (index, namespace) in namespaces.into_iter().enumerate() {
            let seed = target.seed.wrapping_mul(1_000).wrapping_add(200 + index as u64);
            let name = format!("watcher {index}");
            observers.spawn(watchers::watch(
                name,
                namespace,
                seed,
                target.apis.clone(),
                Arc::clone(oracle),
                index == 0,
            ));
        }
        Self { stage, workers, observers }
    }

    /// Ends the work, when everything is known that was asked; those that watch go on.
    pub async fn finish(&mut self, oracle: &Oracle) {
        self.stage.send_replace(Stage::Finish);
        let all = async { while self.workers.join_next().await.is_some() {} };
        if timeout(FINISH, all).await.is_err() {
            let what = format!(
                "{} clients do not know {FINISH:?} after the last fault what came of a call",
                self.workers.len()
            );
            oracle.checked(Invariant::Progress, Err(Breach::of(Invariant::Progress, what)));
        }
    }

    /// A task that has panicked would be blind.
    pub fn assert_sighted(&mut self) -> anyhow::Result<()> {
        for tasks in [&mut self.workers, &mut self.observers] {
            while let Some(ended) = tasks.try_join_next() {
                ended?;
            }
        }
        Ok(())
    }
}
