//! Says who waits, and what to do about it, while recovery is paused because many agents were lost together
//! ([`sandkeeper_statemachine::State::recovery_paused`]).

use std::collections::BTreeSet;
use std::time::Duration;

use sandkeeper_statemachine::AgentId;
use tokio::time::Instant;
use tracing::{info, warn};

/// How often it is said again: often enough that who looks at the log finds it on the last page.
const AGAIN: Duration = Duration::from_mins(1);
/// So many agents are named; of the rest only the number is told.
const NAMED: usize = 10;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pause {
    agents: BTreeSet<AgentId>,
    said: Option<Instant>,
}

impl Pause {
    /// How many agents' sandboxes wait.
    pub(super) fn agents(&self) -> usize {
        self.agents.len()
    }

    /// What so many `sandboxes` of these agents wait for. Says so at the beginning, every minute, and at the end.
    pub(super) fn note(&mut self, agents: BTreeSet<AgentId>, sandboxes: usize, now: Instant) {
        let due = self.said.is_none_or(|said| now.saturating_duration_since(said) >= AGAIN);
        if !agents.is_empty() && due {
            self.said = Some(now);
            warn!(
                agents = names(&agents),
                sandboxes,
                "recovery is paused: these agents were lost within a minute of one another, and are more than those that \
                 stayed. That looks like a cut network, so what they ran is not started elsewhere until they are back. If \
                 they are off, say so: `sandkeeper agents recover AGENT…`, or `sandkeeper agents recover --all`"
            );
        } else if agents.is_empty() && !self.agents.is_empty() {
            self.said = None;
            info!(agents = names(&self.agents), "recovery is paused no more");
        }
        self.agents = agents;
    }
}

fn names(agents: &BTreeSet<AgentId>) -> String {
    let named = agents.iter().take(NAMED).map(AgentId::as_str).collect::<Vec<_>>().join(", ");
    match agents.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_at_the_beginning_every_minute_and_at_the_end() {
        let (mut pause, start) = (Pause::default(), Instant::now());
        let agents = |count: usize| (0..count).map(|i| format!("a{i:02}").parse().unwrap()).collect();
        let mut said_at = Vec::new();
        for (second, count) in [(0, 0), (1, 3), (30, 4), (61, 4), (62, 4), (90, 0), (91, 0), (92, 2)] {
            let now = start + Duration::from_secs(second);
            pause.note(agents(count), 7, now);
            assert_eq!(pause.agents(), count);
            if pause.said == Some(now) {
                said_at.push(second);
            }
        }
        assert_eq!(said_at, [1, 61, 92]);
        assert_eq!(names(&agents(2)), "a00, a01");
        assert!(names(&agents(12)).ends_with("a09 and 2 more"));
    }
}
