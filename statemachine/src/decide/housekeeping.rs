//! What time brings: expiry, waits that are over, requests that may be forgotten.

use super::Surroundings;
use crate::decide::Outcome;
use crate::draft::{Cause, Draft};
use crate::event::{EventKind, Subject};
use crate::ids::AgentId;
use crate::limits::MAX_HOUSEKEEPING_EVENTS;
use crate::state::Sandbox;

/// The most requests that one event forgets: some milliseconds of work on every replica.
const PRUNED_AT_ONCE: u32 = 1_000;

impl Draft {
    pub(super) fn keep_house(&mut self, around: &mut dyn Surroundings) -> Outcome {
        let cause = &mut Cause::leader();
        let now = self.next_time();
        let mut left = MAX_HOUSEKEEPING_EVENTS;
        let lost: Vec<AgentId> = self.state().unsettled().take(left).cloned().collect();
        for agent in lost {
            left -= self.lose_sandboxes(cause, &agent, left);
        }
        let expired: Vec<Sandbox> = self.state().expired(now).take(left).cloned().collect();
        left -= expired.len();
        for sandbox in expired {
            self.terminate(cause, &sandbox, "expired");
        }
        let over: Vec<Sandbox> = self.state().waited_too_long(now).take(left).cloned().collect();
        for sandbox in over {
            let reason = format!("waited too long for capacity; {}", sandbox.status.reason);
            self.fail(cause, &sandbox, None, None, &reason);
        }
        if self.state().drains().next().is_some() {
            self.drain_further(left, around);
        }
        let state = self.state();
        if state.forgettable(now).next().is_some() || state.first_stream_over(now).is_some() {
            let kind = EventKind::RequestsPruned { until: now, limit: PRUNED_AT_ONCE };
            self.push(cause, Subject::default(), 0, kind, String::new());
        }
        if !self.state().nobody_waits() {
            self.allocate_left_over(around);
        }
        Outcome::Done
    }
}
