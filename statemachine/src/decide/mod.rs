//! `decide`: commands in, events or a refusal out. Only the leader decides; replicas only fold.
//!
//! One file per noun. Every decision checks everything before it makes its first event, so a refusal leaves the draft
//! as it was.

mod adopt;
mod agent;
mod batch;
mod cluster;
mod create;
mod drain;
mod housekeeping;
mod life;
mod recovery;
mod report;
mod stream;
mod waiting;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::{Command, Request, StreamPosition};
use crate::draft::{Cause, Draft};
use crate::event::{Event, EventKind, RequestMemory, RequestRef};
use crate::ids::{AgentId, Revision, SandboxId, SandboxName, Timestamp};
use crate::limits::{MAX_ACTOR_BYTES, MAX_DURATION_NANOS, MAX_REQUESTS, RESERVED_REQUESTS, bounded};
use crate::rejection::Rejection;
use crate::spec::Actor;
use crate::state::{Agent, BatchSandbox, RequestKey, RequestResult, Sandbox, State};
use crate::unknown::{UnknownByAgent, UnknownSandbox};

pub use adopt::Adoption;

/// What only the leader has: randomness, and what it knows of the agents beyond the state.
pub trait Surroundings {
    /// A new random UUID (v4).
    fn new_uuid(&mut self) -> Uuid;

    /// The agents that have an image, as far as it is known.
    fn agents_with_image(&self, image: &str) -> Option<&BTreeSet<AgentId>>;

    /// What agents run and the state does not know. An agent that has not said yet what it runs is not in it.
    fn unknown(&self) -> UnknownByAgent {
        UnknownByAgent::new()
    }
}

/// The answer to a command that was not refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// A sandbox, as the command left it.
    Sandbox {
        /// Its record.
        sandbox: Box<Sandbox>,
        /// The revision of the command's first event.
        revision: Revision,
        /// The request was known: this is the first answer again.
        duplicate: bool,
    },
    /// A sandbox that is not in the state any more.
    Gone {
        /// Its id.
        id: SandboxId,
        /// Its name.
        name: SandboxName,
        /// Its create timestamp.
        created: Timestamp,
        /// The revision of the command's first event.
        revision: Revision,
        /// The request was known: this is the first answer again.
        duplicate: bool,
    },
    /// An agent, as the command left it. To a removal: it held more than one entry can release. What could be has been
    /// released; the same command again goes on.
    Agent(Box<Agent>),
    /// An agent is gone, and so many allocations were released with it.
    AgentRemoved {
        /// How many, by this command's last step.
        released: u64,
    },
    /// Done, or nothing had to be done.
    Done,
    /// What agents run and the state does not know.
    Unknown {
        /// By agent and id.
        sandboxes: Vec<UnknownSandbox>,
        /// There is more than one answer names.
        more: bool,
        /// So many of the agents in question have not said yet what they run.
        unheard: usize,
    },
    /// What became of each sandbox that was to be adopted.
    Adopted(Vec<Adoption>),
    /// All sandboxes of a batch. Their records are in the state at revision `at`; those that are not are gone.
    Batch {
        /// In the order of the request.
        sandboxes: Arc<[BatchSandbox]>,
        /// The revision of the command's first event.
        revision: Revision,
        /// The revision of the state that this was decided on, with what the command did.
        at: Revision,
        /// The request was known: this is the first answer again.
        duplicate: bool,
    },
    /// A stream is open.
    Stream(StreamPosition),
}

/// Decides one command on a state: what [`Draft::decide`] does for many.
///
/// # Errors
/// See [`Rejection`].
pub fn decide(
    state: &State,
    request: &Request,
    now: Timestamp,
    surroundings: &mut dyn Surroundings,
) -> Result<(Vec<Event>, Outcome), Rejection> {
    let mut draft = Draft::new(state.clone(), now);
    let outcome = draft.decide(request, surroundings)?;
    Ok((draft.events().to_vec(), outcome))
}

impl Draft {
    /// Decides one more command. A refusal leaves the draft as it was.
    ///
    /// # Errors
    /// See [`Rejection`].
    pub fn decide(&mut self, request: &Request, around: &mut dyn Surroundings) -> Result<Outcome, Rejection> {
        let before = self.len();
        let revision = self.state().revision();
        let outcome = self.decide_new(request, around);
        debug_assert!(outcome.is_ok() || self.len() == before, "a refusal must not leave events behind");
        if !self.state().nobody_waits() {
            let freed = freed_agents(&self.events()[before..]);
            self.allocate_freed(&freed, revision, around);
        }
        outcome
    }

    /// Decides a command if that changes nothing: it is refused, or carried out already. `None`: it would make events, and
    /// the draft is as it was.
    pub fn decide_without_events(
        &mut self,
        request: &Request,
        around: &mut dyn Surroundings,
    ) -> Option<Result<Outcome, Rejection>> {
        let before = self.len();
        let decided = self.attempt(|draft| {
            let decision = draft.decide(request, around);
            if draft.len() == before { Ok(decision) } else { Err(()) }
        });
        decided.ok()
    }

    fn decide_new(&mut self, request: &Request, around: &mut dyn Surroundings) -> Result<Outcome, Rejection> {
        let mut cause = Cause { actor: bounded_actor(&request.actor), request: None };
        let remembered = request.id.as_ref().filter(|_| is_callers(&request.command));
        if let Some(caller) = remembered {
            if !(0..=MAX_DURATION_NANOS).contains(&caller.retention) {
                return Err(Rejection::invalid("request_retention", "must be 0 to ten years"));
            }
            let digest = request.command.digest();
            let namespace = request.command.namespace();
            let key = RequestKey { namespace: namespace.clone(), id: caller.id.clone() };
            let mut acknowledged_below = 0;
            let known = if let Command::CreateInStream { position, .. } = &request.command {
                acknowledged_below = position.acknowledged_below;
                self.answer_in_stream(&key, *position, digest)?
            } else {
                self.first_answer_again(&key, digest)?
            };
            if let Some(answer) = known {
                return Ok(answer);
            }
            if !room_for(&request.command, self.state().request_count()) {
                return Err(Rejection::TooManyRequests);
            }
            let retention = caller.retention;
            let memory = Some(RequestMemory { namespace, digest, retention, acknowledged_below });
            cause.request = Some(RequestRef { id: caller.id.clone(), memory });
        }
        let cause = &mut cause;
        match &request.command {
            Command::CreateCluster { cluster_id, cluster_version } => {
                self.create_cluster(cause, *cluster_id, *cluster_version);
                Ok(Outcome::Done)
            }
            Command::CreateSandbox(create) => self.create_sandbox(cause, create, around),
            Command::UpdateSandbox { target, update } => self.update_sandbox(cause, target, update),
            Command::ResetSandbox(target) => self.reset_sandbox(cause, target, around),
            Command::TerminateSandbox(target) => self.terminate_sandbox(cause, target),
            Command::RegisterAgent(spec) => self.register_agent(cause, spec),
            Command::LoseAgent { agent, incarnation } => Ok(self.lose_agent(cause, agent, *incarnation)),
            Command::CordonAgent { agent, reason } => self.cordon_agent(cause, agent, reason),
            Command::DrainAgent { agent, reason, deadline, terminate } => {
                self.drain_agent(cause, agent, reason, *deadline, *terminate)
            }
            Command::UncordonAgent(agent) => self.uncordon_agent(cause, agent),
            Command::RecoverAgent(agent) => self.recover_agent(cause, agent),
            Command::RemoveAgent { agent, fenced } => self.drop_agent(cause, agent, *fenced),
            Command::RecoverSandbox { sandbox_id, generation } => {
                Ok(self.recover_sandbox(cause, sandbox_id, *generation, around))
            }
            Command::Report(report) => Ok(self.hear_report(cause, report, around)),
            Command::Housekeeping => Ok(self.keep_house(around)),
            Command::RestoreCluster { cluster_id } => self.restore_cluster(cause, *cluster_id),
            Command::ConfirmRestore => self.confirm_restore(cause),
            Command::RehomeAgents { from } => self.rehome_agents(cause, *from),
            Command::ListUnknown { agent } => self.tell_unknown(agent.as_ref(), around),
            Command::AdoptSandboxes { agent, namespace, ids } => {
                self.adopt_sandboxes(cause, agent, namespace, ids, around)
            }
            Command::CreateSandboxes(creates) => self.create_batch(cause, creates, around),
            Command::OpenStream { stream, resume, acknowledged_below, retention } => {
                self.open_stream(cause, stream, *resume, *acknowledged_below, *retention)
            }
            Command::KeepStream { stream, position, retention } => {
                self.keep_stream(cause, stream, *position, *retention)
            }
            Command::CreateInStream { create, .. } => self.create_in_stream(cause, create, around),
        }
    }

    /// The answer to a request that was carried out before.
    fn first_answer_again(&self, key: &RequestKey, digest: [u8; 16]) -> Result<Option<Outcome>, Rejection> {
        let Some(record) = self.state().request(key) else { return Ok(None) };
        if record.digest != digest {
            return Err(Rejection::RequestIdReused(key.id.clone()));
        }
        self.answer_of(&record.result).map(Some)
    }

    /// What a request that was carried out is answered again.
    fn answer_of(&self, result: &RequestResult) -> Result<Outcome, Rejection> {
        match result {
            RequestResult::Sandbox { id, name, created, revision } => {
                Ok(self.answer_sandbox(id, name, *created, *revision, true))
            }
            RequestResult::RolledBack { reason } => Err(Rejection::RolledBack { reason: reason.clone() }),
            RequestResult::Agent(id) => self.answer_agent(id),
            RequestResult::AgentRemoved { released, .. } => Ok(Outcome::AgentRemoved { released: *released }),
            RequestResult::Batch(batch) => {
                let (sandboxes, revision) = (Arc::clone(&batch.sandboxes), batch.revision);
                Ok(Outcome::Batch { sandboxes, revision, at: self.state().revision(), duplicate: true })
            }
        }
    }

    /// A sandbox as it is now, or that it is gone.
    fn answer_sandbox(
        &self,
        id: &SandboxId,
        name: &SandboxName,
        created: Timestamp,
        revision: Revision,
        duplicate: bool,
    ) -> Outcome {
        match self.state().sandbox(id) {
            Some(sandbox) => Outcome::Sandbox { sandbox: Box::new(sandbox.clone()), revision, duplicate },
            None => Outcome::Gone { id: id.clone(), name: name.clone(), created, revision, duplicate },
        }
    }

    fn answer_about(&self, sandbox: &Sandbox, revision: Revision) -> Outcome {
        self.answer_sandbox(&sandbox.id, &sandbox.spec.name, sandbox.created, revision, false)
    }
}

/// Whether a command is one whose request id is remembered. Agents and the leader repeat theirs as they like, and
/// operators what concerns the whole cluster: what is told twice changes nothing.
fn is_callers(command: &Command) -> bool {
    match command {
        Command::CreateSandbox(_)
        | Command::CreateSandboxes(_)
        | Command::CreateInStream { .. }
        | Command::UpdateSandbox { .. }
        | Command::ResetSandbox(_)
        | Command::TerminateSandbox(_)
        | Command::CordonAgent { .. }
        | Command::UncordonAgent(_)
        | Command::RecoverAgent(_)
        | Command::DrainAgent { .. }
        | Command::RemoveAgent { .. } => true,
        Command::CreateCluster { .. }
        | Command::RegisterAgent(_)
        | Command::LoseAgent { .. }
        | Command::RecoverSandbox { .. }
        | Command::Report(_)
        | Command::Housekeeping
        | Command::RestoreCluster { .. }
        | Command::ConfirmRestore
        | Command::RehomeAgents { .. }
        | Command::ListUnknown { .. }
        | Command::AdoptSandboxes { .. }
        | Command::OpenStream { .. }
        | Command::KeepStream { .. } => false,
    }
}

/// Whether one more request can be remembered beside so many.
fn room_for(command: &Command, remembered: usize) -> bool {
    match command {
        Command::CreateSandbox(_) | Command::CreateInStream { .. } => remembered < MAX_REQUESTS,
        Command::CreateSandboxes(creates) => remembered + creates.len() <= MAX_REQUESTS,
        _ => remembered < MAX_REQUESTS + RESERVED_REQUESTS,
    }
}

fn bounded_actor(actor: &Actor) -> Actor {
    match actor {
        Actor::Client(name) => Actor::Client(bounded(name.clone(), MAX_ACTOR_BYTES)),
        other => other.clone(),
    }
}

/// The agents on which events may have made room for sandboxes that wait.
fn freed_agents(events: &[Event]) -> BTreeSet<AgentId> {
    let frees = |event: &&Event| match &event.kind {
        EventKind::AgentRegistered(_)
        | EventKind::AgentReturned
        | EventKind::AgentUncordoned
        | EventKind::AllocationReleased { .. } => true,
        EventKind::SandboxFailed { released, .. } | EventKind::SandboxRemoved { released } => {
            released.is_some()
        }
        _ => false,
    };
    events.iter().filter(frees).filter_map(|event| event.header.subject.agent.clone()).collect()
}
