//! The gRPC services for clients, and serving them (agents' sessions on the same port are `crate::agents`).
//!
//! | file | what |
//! | --- | --- |
//! | `convert` | wire types to core types and back: the only place where both are known |
//! | `status`, `call` | refusals as gRPC says them; deadlines and actors |
//! | `sandbox`, `batch`, `create_stream`, `wait`, `list`, `pages`, `logs` | `SandboxService` |
//! | `event`, `watch`, `scan` | `EventService` |
//! | `fleet` | `FleetService` |
//! | `cluster` | `ClusterService` |
//! | `serve`, `health` | the server, its limits, health and reflection |
//!
//! Architecture invariants: nothing here changes the state but through [`Commands`]. Every wait has a deadline and ends
//! at shutdown. No request holds the node up: what is slow is cut off, what is long is cut into pieces.

mod backup;
mod batch;
mod call;
mod cluster;
pub mod convert;
mod create_stream;
mod event;
mod fleet;
mod health;
mod list;
mod logs;
mod pages;
mod sandbox;
mod scan;
mod serve;
pub mod status;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod unknown;
mod wait;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use planted_bugs::{Bug, planted};
use sandkeeper_proto::v1;
use sandkeeper_statemachine::{Command, Outcome, Request, Revision, State};
use tokio::sync::Semaphore;
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

pub use call::{ACTOR_KEY, DEFAULT_DEADLINE, DEFAULT_LONG_DEADLINE, MAX_ACTOR_BYTES, MAX_DEADLINE};
pub use convert::Retention;
pub use create_stream::MAX_CREATE_STREAMS;
pub use health::{PUBLIC_SERVICES, public_descriptors};
pub use scan::Searcher;
pub use serve::{MAX_STREAMS, serve};
pub use watch::MAX_WATCHERS;

use crate::agents::Sessions;
use crate::clock::Clocks;
use crate::commands::Commands;
use crate::metrics::{CommandLabels, Metrics};
use crate::raft::RaftNode;
use convert::freshness;
use pages::Pages;

/// How often states that nobody lists any more are let go.
const SWEEP: Duration = Duration::from_secs(10);

/// All services of a node for its clients. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    started: Instant,
    pages: Pages,
    watchers: Arc<Semaphore>,
    create_streams: Arc<Semaphore>,
    /// Owns the tasks of streams.
    tasks: TaskTracker,
}

/// What the services are made of.
pub struct Parts {
    /// Read from, and asked for members and leader.
    pub raft: RaftNode,
    /// The time of each term.
    pub clocks: Clocks,
    /// Where commands go.
    pub commands: Commands,
    /// The agents that are connected.
    pub sessions: Sessions,
    /// Commands and watchers are counted here.
    pub metrics: Arc<Metrics>,
    /// How long requests are remembered.
    pub retention: Retention,
    /// Finds events.
    pub searcher: Searcher,
    /// Ends all streams and waits.
    pub stop: CancellationToken,
}

/// A state that a read is answered from.
pub(crate) struct Read {
    pub state: State,
    pub linearizable: bool,
}

impl Api {
    /// The services of a node.
    pub fn new(parts: Parts) -> Self {
        let inner = Inner {
            parts,
            started: Instant::now(),
            pages: Pages::default(),
            watchers: Arc::new(Semaphore::new(MAX_WATCHERS)),
            create_streams: Arc::new(Semaphore::new(MAX_CREATE_STREAMS)),
            tasks: TaskTracker::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    fn node_name(&self) -> String {
        self.parts().raft.local().member.name.clone()
    }

    /// The state that a read is answered from.
    async fn read(&self, options: Option<v1::ReadOptions>, deadline: Instant) -> Result<Read, Status> {
        let wanted = freshness(options).map_err(|rejection| status::rejected(&rejection))?;
        let raft = &self.parts().raft;
        let mut view = if wanted.linearizable && !planted(Bug::ReadWithoutReadIndex) {
            let read = self.unless_stopped(raft.read_index(deadline)).await?;
            read.map_err(|error| status::read(&error, &self.knows()))?
        } else {
            raft.replica().view()
        };
        if view.revision() < wanted.min_revision && !planted(Bug::MinRevisionIgnored) {
            let reached = raft.replica().wait_revision(wanted.min_revision, deadline);
            let reached = self.unless_stopped(reached).await?;
            view = reached.map_err(|error| status::wait(error, wanted.min_revision))?;
        }
        Ok(Read { state: view.state.clone(), linearizable: wanted.linearizable })
    }

    /// What this node knows of the cluster, for a caller that gets no answer.
    fn knows(&self) -> String {
        let status = self.parts().raft.status();
        let leader =
            self.parts().raft.leader().map_or_else(|| "unknown".to_owned(), |(_, member)| member.name);
        format!(
            "node {}, term {}, leader {leader}, {} members",
            status.member.name,
            status.term,
            status.members.len()
        )
    }

    fn header(&self, read: &Read) -> v1::ResponseHeader {
        self.header_at(read.state.revision(), read.linearizable)
    }

    /// The header of an answer to a command that left its subject at `revision`.
    fn header_written(&self, revision: Revision) -> v1::ResponseHeader {
        self.header_at(revision, true)
    }

    fn header_at(&self, revision: Revision, linearizable: bool) -> v1::ResponseHeader {
        v1::ResponseHeader { node: self.node_name(), revision, linearizable }
    }

    /// Has a command decided, and counts what came of it.
    async fn submit(&self, request: impl Into<Arc<Request>>, deadline: Instant) -> Result<Outcome, Status> {
        let request = request.into();
        let kind = kind_of(&request.command);
        let began = Instant::now();
        let outcome = self.parts().commands.submit(request, deadline).await;
        let result = outcome.as_ref().map_or_else(status::result_of, |_| "OK");
        let metrics = &self.parts().metrics;
        metrics.commands.get_or_create(&CommandLabels { kind, result }).inc();
        metrics.command_seconds.observe(began.elapsed().as_secs_f64());
        outcome.map_err(|error| {
            if self.parts().stop.is_cancelled() { status::shutting_down() } else { status::submit(&error) }
        })
    }

    /// What comes of a wait, unless the node stops first.
    async fn unless_stopped<T>(&self, wait: impl Future<Output = T>) -> Result<T, Status> {
        self.parts().stop.run_until_cancelled(wait).await.ok_or_else(status::shutting_down)
    }

    /// Lets go of states that nobody lists any more, until the node stops.
    async fn sweep(self) {
        let mut ticks = interval(SWEEP);
        while self.parts().stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.inner.pages.sweep(Instant::now());
        }
    }
}

/// The name of a caller's command, for metrics.
fn kind_of(command: &Command) -> &'static str {
    match command {
        Command::CreateSandbox(_) => "create_sandbox",
        Command::CreateSandboxes(_) => "create_sandboxes",
        Command::CreateInStream { .. } => "create_in_stream",
        Command::OpenStream { .. } => "open_stream",
        Command::KeepStream { .. } => "keep_stream",
        Command::UpdateSandbox { .. } => "update_sandbox",
        Command::ResetSandbox(_) => "reset_sandbox",
        Command::TerminateSandbox(_) => "terminate_sandbox",
        Command::CordonAgent { .. } => "cordon_agent",
        Command::UncordonAgent(_) => "uncordon_agent",
        Command::DrainAgent { .. } => "drain_agent",
        Command::RecoverAgent(_) => "recover_agent",
        Command::RemoveAgent { .. } => "remove_agent",
        Command::ConfirmRestore => "confirm_restore",
        Command::RehomeAgents { .. } => "rehome_agents",
        Command::ListUnknown { .. } => "list_unknown",
        Command::AdoptSandboxes { .. } => "adopt_sandboxes",
        Command::CreateCluster { .. }
        | Command::RegisterAgent(_)
        | Command::LoseAgent { .. }
        | Command::RecoverSandbox { .. }
        | Command::Report(_)
        | Command::RestoreCluster { .. }
        | Command::Housekeeping => "internal",
    }
}
