//! Agents: registration, loss, cordon, removal.

use crate::decide::Outcome;
use crate::draft::{Cause, Draft};
use crate::event::EventKind;
use crate::ids::{AgentId, Generation, Incarnation, SandboxId};
use crate::limits::{MAX_AGENTS, MAX_BULK_BYTES, MAX_HOUSEKEEPING_EVENTS, check_agent};
use crate::rejection::Rejection;
use crate::spec::AgentSpec;
use crate::state::{Agent, AgentStatus, Phase, Sandbox};

impl Draft {
    pub(super) fn agent_named(&self, id: &AgentId) -> Result<Agent, Rejection> {
        self.state().agent(id).cloned().ok_or_else(|| Rejection::AgentNotFound(id.clone()))
    }

    pub(super) fn answer_agent(&self, id: &AgentId) -> Result<Outcome, Rejection> {
        Ok(Outcome::Agent(Box::new(self.agent_named(id)?)))
    }

    pub(super) fn register_agent(
        &mut self,
        cause: &mut Cause,
        spec: &AgentSpec,
    ) -> Result<Outcome, Rejection> {
        check_agent(spec).map_err(Rejection::Invalid)?;
        let id = &spec.agent_id;
        let Some(known) = self.state().agent(id) else {
            if self.state().agent_count() >= MAX_AGENTS {
                return Err(Rejection::TooManyAgents);
            }
            self.push_agent(cause, id, EventKind::AgentRegistered(Box::new(spec.clone())), "");
            return self.answer_agent(id);
        };
        let (is, was) = (spec.incarnation, known.spec.incarnation);
        let lost = known.status == AgentStatus::Lost;
        if is.ledger != was.ledger && !lost {
            return Err(Rejection::FailedPrecondition(format!(
                "agent {id} is alive with another ledger: give this agent another --agent-id, or stop the other one \
                 and wait until it is lost"
            )));
        }
        // Another ledger knows nothing of what the old one has started: that it is absent there proves nothing.
        let held = self.state().held_by(id).count();
        if is.ledger != was.ledger && held > 0 {
            return Err(Rejection::FailedPrecondition(format!(
                "agent {id} is lost and still holds {held} sandbox{} by another ledger: make sure that the old one is \
                 off, and say so with `agents remove {id} --fenced`, or give this agent another --agent-id",
                if held == 1 { "" } else { "es" }
            )));
        }
        if is.ledger == was.ledger && is.start < was.start {
            return Err(Rejection::FailedPrecondition(format!(
                "agent {id} has been started since (start {}, this is {}): this process is not the newest",
                was.start, is.start
            )));
        }
        if *spec == *known.spec {
            if lost {
                self.push_agent(cause, id, EventKind::AgentReturned, "");
            }
        } else {
            let reason = match (is.ledger == was.ledger, is.start == was.start) {
                (false, _) => "came back with a new ledger",
                (true, false) => "restarted",
                (true, true) => "changed what it offers",
            };
            self.push_agent(cause, id, EventKind::AgentRegistered(Box::new(spec.clone())), reason);
        }
        self.answer_agent(id)
    }

    pub(super) fn lose_agent(
        &mut self,
        cause: &mut Cause,
        id: &AgentId,
        incarnation: Incarnation,
    ) -> Outcome {
        let Some(agent) = self.state().agent(id) else { return Outcome::Done };
        if agent.status != AgentStatus::Ready || agent.spec.incarnation != incarnation {
            return Outcome::Done;
        }
        self.push_agent(cause, id, EventKind::AgentLost, "no heartbeat");
        self.lose_sandboxes(cause, id, MAX_HOUSEKEEPING_EVENTS);
        Outcome::Done
    }

    /// What a lost agent was to run is LOST: at most so many sandboxes of it now, the others by the next housekeeping.
    /// Answers how many.
    pub(super) fn lose_sandboxes(&mut self, cause: &mut Cause, id: &AgentId, most: usize) -> usize {
        let live = |(sandbox, generation): &(&Sandbox, Generation)| {
            *generation == sandbox.status.generation && sandbox.live_on() == Some(id)
        };
        let live = self.state().held_by(id).filter(live).map(|(sandbox, _)| sandbox.clone());
        let live: Vec<Sandbox> = live.take(most).collect();
        for sandbox in &live {
            self.push_sandbox(cause, sandbox, EventKind::SandboxLost, format!("agent {id} is lost"));
        }
        live.len()
    }

    fn held_now(&self, id: &AgentId) -> Vec<(Sandbox, Generation)> {
        self.state().held_by(id).map(|(sandbox, generation)| (sandbox.clone(), generation)).collect()
    }

    pub(super) fn cordon_agent(
        &mut self,
        cause: &mut Cause,
        id: &AgentId,
        reason: &str,
    ) -> Result<Outcome, Rejection> {
        if !self.agent_named(id)?.cordoned {
            self.push_agent(cause, id, EventKind::AgentCordoned, reason);
        }
        self.answer_agent(id)
    }

    pub(super) fn uncordon_agent(&mut self, cause: &mut Cause, id: &AgentId) -> Result<Outcome, Rejection> {
        if self.agent_named(id)?.cordoned {
            self.push_agent(cause, id, EventKind::AgentUncordoned, "");
        }
        self.answer_agent(id)
    }

    pub(super) fn recover_agent(&mut self, cause: &mut Cause, id: &AgentId) -> Result<Outcome, Rejection> {
        let agent = self.agent_named(id)?;
        if agent.status != AgentStatus::Lost {
            return Err(Rejection::FailedPrecondition(format!(
                "agent {id} is not LOST: what it runs needs no recovery"
            )));
        }
        if !agent.recovery_resumed {
            let reason = "no heartbeat; its recovery was resumed";
            self.push_agent(cause, id, EventKind::AgentRecoveryResumed, reason);
        }
        self.answer_agent(id)
    }

    pub(super) fn drop_agent(
        &mut self,
        cause: &mut Cause,
        id: &AgentId,
        fenced: bool,
    ) -> Result<Outcome, Rejection> {
        let agent = self.agent_named(id)?;
        let held = self.held_now(id);
        if !held.is_empty() && !fenced {
            return Err(Rejection::FailedPrecondition(format!(
                "agent {id} holds {} sandbox{}: terminate them first, or, if the machine is off for good, say so with \
                 --fenced",
                held.len(),
                if held.len() == 1 { "" } else { "es" }
            )));
        }
        // It would register again at once, and what it holds may run.
        if agent.status == AgentStatus::Ready {
            let consequence = if held.is_empty() { "it would come back" } else { "its sandboxes may run" };
            return Err(Rejection::FailedPrecondition(format!(
                "agent {id} is alive, so {consequence}: stop it first, and wait until it is LOST"
            )));
        }
        let released = held.len() as u64;
        let end = self.encoded_bytes() + MAX_BULK_BYTES;
        let reason = "its agent was removed as fenced";
        let consequence = &mut cause.consequence();
        for (sandbox, generation) in held {
            if self.encoded_bytes() >= end {
                return self.answer_agent(id);
            }
            self.release_fenced(consequence, &sandbox.id, generation, reason);
        }
        self.push_agent(cause, id, EventKind::AgentRemoved { released }, if fenced { "fenced" } else { "" });
        Ok(Outcome::AgentRemoved { released })
    }

    /// The operator vouches that this generation is not there any more.
    fn release_fenced(&mut self, cause: &mut Cause, id: &SandboxId, generation: Generation, reason: &str) {
        // An agent can hold two generations of one sandbox: the first release may have changed the record.
        let Some(sandbox) = self.state().sandbox(id).cloned() else { return };
        let status = &sandbox.status;
        let current = generation == status.generation;
        match status.phase {
            Phase::Terminating if status.held.len() == 1 => {
                let kind = EventKind::SandboxRemoved { released: Some(generation) };
                self.push_release(cause, &sandbox, generation, kind, reason);
            }
            Phase::Allocated | Phase::Running | Phase::Lost if current => {
                self.fail(cause, &sandbox, Some(generation), None, reason);
            }
            _ => {
                let kind = EventKind::AllocationReleased { generation };
                self.push_release(cause, &sandbox, generation, kind, reason);
                self.roll_back(cause, id);
            }
        }
    }
}
