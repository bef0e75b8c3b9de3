//! `decide`: commands in, events or a refusal out. Only the leader decides; replicas only fold.
//!
//! One file per noun. Every decision checks everything before it makes its first event, so a refusal leaves the draft
//! as it was.

mod adopt;
mod agent;
mod cluster;
mod create;
mod housekeeping;
mod life;
mod recovery;
mod report;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::{Command, Request};
use crate::draft::{Cause, Draft};
use crate::event::{Event, EventKind, RequestMemory, RequestRef};
use crate::ids::{AgentId, Label, Revision, SandboxId, SandboxName, Timestamp};
use crate::limits::{MAX_ACTOR_BYTES, MAX_DURATION_NANOS, MAX_REQUESTS, RESERVED_REQUESTS, bounded};
use crate::rejection::Rejection;
use crate::spec::Actor;
use crate::state::{Agent, RequestKey, RequestResult, Sandbox, State};
use crate::unknown::UnknownSandbox;

pub use adopt::Adoption;

/// What only the leader has: randomness, and what it knows of the agents beyond the state.
pub trait Surroundings {
    /// A new random UUID (v4).
    fn new_uuid(&mut self) -> Uuid;

    /// The agents that have an image, as far as it is known.
    fn agents_with_image(&self, image: &str) -> Option<&BTreeSet<AgentId>>;

    /// What agents run and the state did not know when they were heard last. Nothing, unless somebody listens to agents.
    fn unknown(&self) -> &BTreeMap<AgentId, Arc<[UnknownSandbox]>> {
        static NOTHING: BTreeMap<AgentId, Arc<[UnknownSandbox]>> = BTreeMap::new();
        &NOTHING
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
    },
    /// What became of each sandbox that was to be adopted.
    Adopted(Vec<Adoption>),
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

    fn decide_new(&mut self, request: &Request, around: &mut dyn Surroundings) -> Result<Outcome, Rejection> {
        let mut cause = Cause { actor: bounded_actor(&request.actor), request: None };
        let remembered = request.id.as_ref().filter(|_| is_callers(&request.command));
        if let Some(caller) = remembered {
            if !(0..=MAX_DURATION_NANOS).contains(&caller.retention) {
                return Err(Rejection::invalid("request_retention", "must be 0 to ten years"));
            }
            let digest = request.command.digest();
            let namespace = namespace_of(&request.command);
            let key = RequestKey { namespace: namespace.clone(), id: caller.id.clone() };
            if let Some(answer) = self.first_answer_again(&key, digest)? {
                return Ok(answer);
            }
            if self.state().request_count() >= most_requests(&request.command) {
                return Err(Rejection::TooManyRequests);
            }
            let memory = Some(RequestMemory { namespace, digest, retention: caller.retention });
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
        }
    }

    /// The answer to a request that was carried out before.
    fn first_answer_again(&self, key: &RequestKey, digest: [u8; 16]) -> Result<Option<Outcome>, Rejection> {
        let Some(record) = self.state().request(key) else { return Ok(None) };
        if record.digest != digest {
            return Err(Rejection::RequestIdReused(key.id.clone()));
        }
        let answer = match &record.result {
            RequestResult::Sandbox { id, name, created, revision } => {
                self.answer_sandbox(id, name, *created, *revision, true)
            }
            RequestResult::RolledBack { reason } => {
                return Err(Rejection::RolledBack { reason: reason.clone() });
            }
            RequestResult::Agent(id) => self.answer_agent(id)?,
            RequestResult::AgentRemoved { released, .. } => Outcome::AgentRemoved { released: *released },
        };
        Ok(Some(answer))
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

/// Where the id of a command's request is known.
fn namespace_of(command: &Command) -> Option<Label> {
    use crate::command::SandboxRef;
    match command {
        Command::CreateSandbox(create) => Some(create.spec.name.namespace.clone()),
        Command::UpdateSandbox { target, .. }
        | Command::ResetSandbox(target)
        | Command::TerminateSandbox(target) => match &target.sandbox {
            SandboxRef::Id { namespace, .. } => Some(namespace.clone()),
            SandboxRef::Name(name) => Some(name.namespace.clone()),
        },
        _ => None,
    }
}

/// Whether a command is one whose request id is remembered. Agents and the leader repeat theirs as they like, and
/// operators what concerns the whole cluster: what is told twice changes nothing.
fn is_callers(command: &Command) -> bool {
    match command {
        Command::CreateSandbox(_)
        | Command::UpdateSandbox { .. }
        | Command::ResetSandbox(_)
        | Command::TerminateSandbox(_)
        | Command::CordonAgent { .. }
        | Command::UncordonAgent(_)
        | Command::RecoverAgent(_)
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
        | Command::AdoptSandboxes { .. } => false,
    }
}

/// How many requests may be remembered already when this one comes.
fn most_requests(command: &Command) -> usize {
    match command {
        Command::CreateSandbox(_) => MAX_REQUESTS,
        _ => MAX_REQUESTS + RESERVED_REQUESTS,
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
