//! Another place for what is down: AUTO_RECREATE.
//!
//! Two generations never run at once. A LOST sandbox is given up only when the leader has not heard of its agent for
//! longer than the lease that the agent is known to keep it under ([`crate::state::Status::lease`]); the leader measures
//! that, and says so by `RecoverSandbox`. Why that proves that it is dead stands in `docs/guarantees.md`.

use super::Surroundings;
use crate::decide::Outcome;
use crate::draft::{Cause, Draft};
use crate::event::EventKind;
use crate::ids::{AgentId, Generation, SandboxId};
use crate::placement::place;
use crate::state::{AgentStatus, Phase, Sandbox};

impl Draft {
    pub(super) fn recover_sandbox(
        &mut self,
        cause: &mut Cause,
        id: &SandboxId,
        generation: Generation,
        around: &mut dyn Surroundings,
    ) -> Outcome {
        let Some(sandbox) = self.state().sandbox(id).cloned() else { return Outcome::Done };
        let status = &sandbox.status;
        // Something may have happened to it since the leader looked; and of a restored state it is not known what runs
        // elsewhere.
        let changed = status.generation != generation || !status.is_recoverable();
        if changed || self.state().is_held_back(&sandbox) {
            return Outcome::Done;
        }
        match (status.phase, sandbox.holder(), status.lease) {
            (Phase::Lost, Some(agent), Some(seconds)) => {
                let lost = self.state().agent(agent).is_none_or(|agent| agent.status == AgentStatus::Lost);
                if !lost {
                    return Outcome::Done;
                }
                let reason = format!("agent {agent} is lost, and the lease of {seconds} s is over");
                self.push_sandbox(cause, &sandbox, EventKind::AllocationReleased { generation }, reason);
            }
            (Phase::Failed, _, _) if status.held.is_empty() => {
                let reason = format!("made anew: {}", status.reason);
                self.push_sandbox(cause, &sandbox, EventKind::SandboxReset, reason);
            }
            _ => return Outcome::Done,
        }
        self.place_again(cause, &sandbox, None, around);
        Outcome::Done
    }

    /// A sandbox that stands in the queue of its shape again may have an agent at once, if nobody stands before it; another
    /// one than `avoid`, if there is one.
    pub(super) fn place_again(
        &mut self,
        cause: &mut Cause,
        sandbox: &Sandbox,
        avoid: Option<&AgentId>,
        around: &mut dyn Surroundings,
    ) {
        let shape = sandbox.spec.shape();
        if self.state().queue_length(&shape) != 1 {
            return;
        }
        let with_image = around.agents_with_image(&sandbox.spec.image);
        let elsewhere = avoid.and_then(|avoid| place(self.state(), &shape, with_image, Some(avoid)));
        let found = elsewhere.or_else(|| place(self.state(), &shape, with_image, None));
        if let Some(agent) = found.map(|agent| agent.spec.agent_id.clone()) {
            self.allocate(cause, &sandbox.id, agent, "");
        }
    }
}
