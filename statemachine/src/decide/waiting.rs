//! Giving agents to sandboxes: at once, or when those that wait can have them.

use super::Surroundings;
use crate::draft::{Cause, Draft};
use crate::event::EventKind;
use crate::ids::{AgentId, SandboxId};
use crate::limits::MAX_HOUSEKEEPING_EVENTS;
use crate::placement::place;

impl Draft {
    /// The next generation of a PENDING sandbox goes to `agent`.
    pub(super) fn allocate(&mut self, cause: &mut Cause, id: &SandboxId, agent: AgentId, reason: &str) {
        let sandbox = self.state().sandbox(id).expect("what gets an agent is in the state").clone();
        let generation = sandbox.status.generation + 1;
        self.push_about(cause, &sandbox, Some(agent), EventKind::SandboxAllocated { generation }, reason);
    }

    /// Gives room to those that wait: of each shape first come first served, and of the shapes that whose first has
    /// waited longest. Bounded; housekeeping goes on with what is left.
    pub(super) fn allocate_waiting(&mut self, around: &mut dyn Surroundings) {
        let mut left = MAX_HOUSEKEEPING_EVENTS;
        loop {
            let before = left;
            for (_, id) in self.state().queue_heads() {
                let sandbox = self.state().sandbox(&id).expect("queues name sandboxes of the state");
                let with_image = around.agents_with_image(&sandbox.spec.image);
                let Some(agent) = place(self.state(), &sandbox.spec.shape(), with_image, None) else { continue };
                let agent = agent.spec.agent_id.clone();
                self.allocate(&mut Cause::leader(), &id, agent, "");
                left -= 1;
                if left == 0 {
                    return;
                }
            }
            if left == before {
                return;
            }
        }
    }
}
