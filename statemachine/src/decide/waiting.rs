//! Giving agents to sandboxes: at once, or when those that wait can have them.
//!
//! A sandbox that waits fits on no agent (else it would not wait), until an agent's room grows. So whatever makes room
//! offers that agent, and no other, to those that wait in its pool, in the same entry.

use std::collections::BTreeSet;

use super::Surroundings;
use crate::draft::{Cause, Draft};
use crate::event::EventKind;
use crate::ids::{AgentId, Label, Revision, SandboxId};
use crate::limits::{MAX_HOUSEKEEPING_EVENTS, MAX_PLACEMENT_CHECKS};
use crate::placement::{place, place_on};
use crate::state::Sandbox;

impl Draft {
    /// The next generation of a PENDING sandbox goes to `agent`.
    pub(super) fn allocate(&mut self, cause: &mut Cause, id: &SandboxId, agent: AgentId, reason: &str) {
        let sandbox = self.state().sandbox(id).expect("what gets an agent is in the state").clone();
        let generation = sandbox.status.generation + 1;
        self.push_about(cause, &sandbox, Some(agent), EventKind::SandboxAllocated { generation }, reason);
    }

    /// Offers the agents whose room has grown since revision `since` to those that wait.
    pub(super) fn allocate_freed(
        &mut self,
        freed: &BTreeSet<AgentId>,
        since: Revision,
        around: &mut dyn Surroundings,
    ) {
        let pools = freed.iter().filter_map(|id| Some(self.state().agent(id)?.spec.pool.clone())).collect();
        self.allocate_waiting(&pools, |draft, sandbox| {
            // What an agent has just refused is not offered to it again at once, but by the next housekeeping.
            let refused = sandbox.status.refusals > 0 && sandbox.status.queued > since;
            let refused_by = sandbox.status.agent.as_ref().filter(|_| refused);
            let with_image = around.agents_with_image(&sandbox.spec.image);
            place_on(draft.state(), freed, &sandbox.spec.shape(), with_image, refused_by)
                .map(|agent| agent.spec.agent_id.clone())
        });
    }

    /// Offers all agents to those that wait: what one command was too small for, and what was refused before.
    pub(super) fn allocate_left_over(&mut self, around: &mut dyn Surroundings) {
        let mut checks = MAX_PLACEMENT_CHECKS;
        let pools = self.state().waiting_pools();
        self.allocate_waiting(&pools, |draft, sandbox| {
            checks = checks.checked_sub(draft.state().ready_count(&sandbox.spec.pool))?;
            let with_image = around.agents_with_image(&sandbox.spec.image);
            place(draft.state(), &sandbox.spec.shape(), with_image, None)
                .map(|agent| agent.spec.agent_id.clone())
        });
    }

    /// Gives room to those that wait: of each shape first come first served, and of the shapes' firsts the one that has
    /// waited longest. Room only shrinks meanwhile, so a shape that does not fit is not asked again. Bounded.
    fn allocate_waiting(
        &mut self,
        pools: &BTreeSet<Label>,
        mut choose: impl FnMut(&Self, &Sandbox) -> Option<AgentId>,
    ) {
        let heads = pools.iter().flat_map(|pool| self.state().queue_heads(pool));
        let mut heads: BTreeSet<(Revision, SandboxId)> = heads.cloned().collect();
        let mut left = MAX_HOUSEKEEPING_EVENTS;
        while let Some((_, id)) = heads.pop_first().filter(|_| left > 0) {
            let sandbox = self.state().sandbox(&id).expect("queues name sandboxes of the state").clone();
            if let Some(agent) = choose(self, &sandbox) {
                self.allocate(&mut Cause::leader(), &id, agent, "");
                left -= 1;
                heads.extend(self.state().queue_head(&sandbox.spec.shape()).cloned());
            }
        }
    }
}
