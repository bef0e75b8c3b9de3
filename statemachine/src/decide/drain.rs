//! Draining an agent: what it runs leaves, as soon as it may.
//!
//! The command only says so. What leaves is found by housekeeping, five times a second and a bounded number at once, so that
//! a new leader goes on where the old one stopped, and what finds no room now moves when there is some.

use std::collections::BTreeSet;

use super::Surroundings;
use crate::decide::Outcome;
use crate::draft::{Cause, Draft};
use crate::event::{DRAINS_SINCE, EventKind};
use crate::ids::AgentId;
use crate::limits::{MAX_DURATION_NANOS, MAX_PLACEMENT_CHECKS};
use crate::placement::place;
use crate::rejection::Rejection;
use crate::spec::Shape;
use crate::state::{Drain, Leave, Sandbox};

/// What is still allowed of one housekeeping.
struct Left {
    events: usize,
    checks: usize,
    /// Shapes that found no room: room only shrinks meanwhile.
    full: BTreeSet<Shape>,
}

impl Draft {
    /// `deadline`: nanoseconds from now.
    pub(super) fn drain_agent(
        &mut self,
        cause: &mut Cause,
        id: &AgentId,
        reason: &str,
        deadline: Option<i64>,
        terminate: bool,
    ) -> Result<Outcome, Rejection> {
        self.agent_named(id)?;
        let good = deadline.is_none_or(|nanos| (0..=MAX_DURATION_NANOS).contains(&nanos));
        if !good {
            return Err(Rejection::invalid("deadline", "must be 0 to ten years"));
        }
        if terminate && deadline.is_none() {
            return Err(Rejection::invalid("deadline", "must be given with terminate; 0 is at once"));
        }
        let version = self.state().cluster().map_or(0, |cluster| cluster.version);
        if version < DRAINS_SINCE {
            return Err(Rejection::FailedPrecondition(format!(
                "this cluster keeps to version {version} of its history, which has no drains (version {DRAINS_SINCE} \
                 has): cordon agent {id} and reset or terminate what it runs"
            )));
        }
        let deadline = deadline.map(|nanos| self.next_time().plus(nanos));
        let known = self.state().drain(id);
        if known.is_none_or(|known| known.deadline != deadline || known.terminate != terminate) {
            self.push_agent(cause, id, EventKind::AgentDraining { deadline, terminate }, reason);
        }
        self.answer_agent(id)
    }

    /// Lets leave what may leave the agents that are drained, by at most about so many events.
    pub(super) fn drain_further(&mut self, events: usize, around: &mut dyn Surroundings) {
        let now = self.next_time();
        let drains = self.state().drains().map(|(agent, drain)| (agent.clone(), *drain));
        let drains: Vec<(AgentId, Drain)> = drains.collect();
        let mut left = Left { events, checks: MAX_PLACEMENT_CHECKS, full: BTreeSet::new() };
        for (agent, drain) in drains {
            let over = drain.ends_all_at().is_some_and(|end| end <= now);
            let leaving = self.state().leaving(&agent).filter(|(_, leave)| over || *leave == Leave::Move);
            let leaving: Vec<(Sandbox, Leave)> = leaving.map(|(one, leave)| (one.clone(), leave)).collect();
            for (sandbox, leave) in leaving {
                let before = self.len();
                match leave {
                    Leave::Move => self.move_away(&agent, &sandbox, over, &mut left, around),
                    Leave::End => {
                        let reason = format!("agent {agent} is drained, and the time for that is over");
                        self.terminate(&mut Cause::leader(), &sandbox, &reason);
                    }
                }
                left.events = left.events.saturating_sub(self.len() - before);
                if left.events == 0 {
                    return;
                }
            }
        }
    }

    /// Its next generation goes elsewhere, if there is room that nobody waits for; `over`: and if there is none it waits for
    /// some.
    fn move_away(
        &mut self,
        agent: &AgentId,
        sandbox: &Sandbox,
        over: bool,
        left: &mut Left,
        around: &mut dyn Surroundings,
    ) {
        let shape = sandbox.spec.shape();
        let elsewhere = self.room_elsewhere(agent, sandbox, &shape, left, around);
        if elsewhere.is_none() && !over {
            left.full.insert(shape);
            return;
        }
        let cause = &mut Cause::leader();
        self.push_sandbox(cause, sandbox, EventKind::SandboxReset, format!("agent {agent} is drained"));
        if let Some(elsewhere) = elsewhere {
            self.allocate(cause, &sandbox.id, elsewhere, "");
        }
    }

    fn room_elsewhere(
        &self,
        agent: &AgentId,
        sandbox: &Sandbox,
        shape: &Shape,
        left: &mut Left,
        around: &mut dyn Surroundings,
    ) -> Option<AgentId> {
        if left.full.contains(shape) || self.state().queue_length(shape) > 0 {
            return None;
        }
        left.checks = left.checks.checked_sub(self.state().ready_count(&shape.pool))?;
        let with_image = around.agents_with_image(&sandbox.spec.image);
        place(self.state(), shape, with_image, Some(agent)).map(|agent| agent.spec.agent_id.clone())
    }
}
