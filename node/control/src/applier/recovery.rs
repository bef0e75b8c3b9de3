//! Which AUTO_RECREATE sandboxes may be started elsewhere: pure, but for the leader's monotonic clock, which is given.
//!
//! A LOST one may be when its agent has been silent for longer than the lease that it is known to be kept under: whoever
//! guards it has ended it before (`docs/guarantees.md`). A FAILED one is known to be gone; it waits its recovery timeout
//! so that what always fails is not started all the time. What was lost together with most other agents waits ([`Pause`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use planted_bugs::{Bug, planted};
use sandkeeper_statemachine::{Generation, Phase, Sandbox, SandboxId, State};
use tokio::time::Instant;

use super::pause::Pause;
use super::silence::LastHeard;

/// Sandboxes that one look hands to the decider: the next look, a quarter of a second later, takes the next ones.
const MAX_AT_ONCE: usize = 500;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// When this leader first saw what has FAILED.
    failed: BTreeMap<SandboxId, (Generation, Instant)>,
    pause: Pause,
}

impl Recovery {
    /// Of how many agents nothing is started elsewhere because they were lost together.
    pub(super) fn paused_agents(&self) -> usize {
        self.pause.agents()
    }

    /// What may be started elsewhere now.
    pub(super) fn due(
        &mut self,
        state: &State,
        heard: &LastHeard,
        now: Instant,
    ) -> Vec<(SandboxId, Generation)> {
        let paused = state.recovery_paused();
        let (mut waiting_agents, mut waiting) = (BTreeSet::new(), 0);
        let mut failed = BTreeMap::new();
        let mut due = Vec::new();
        for sandbox in state.recoverable().filter(|sandbox| !state.is_held_back(sandbox)) {
            let generation = sandbox.status.generation;
            let since = match sandbox.status.phase {
                Phase::Lost if let Some(agent) = sandbox.holder().filter(|agent| paused.contains(*agent)) => {
                    waiting_agents.insert(agent.clone());
                    waiting += 1;
                    continue;
                }
                Phase::Lost => lost_for(sandbox, heard, now),
                _ => {
                    let known = self.failed.get(&sandbox.id).filter(|(known, _)| *known == generation);
                    let since = known.map_or(now, |(_, since)| *since);
                    failed.insert(sandbox.id.clone(), (generation, since));
                    Some(now.saturating_duration_since(since))
                }
            };
            let timeout = seconds(sandbox.status.recovery_timeout_seconds);
            if since.is_some_and(|since| since >= timeout) && due.len() < MAX_AT_ONCE {
                due.push((sandbox.id.clone(), generation));
            }
        }
        self.failed = failed;
        self.pause.note(waiting_agents, waiting, now);
        due
    }
}

/// For how long the lease of a LOST sandbox has been over, and its recovery timeout counts; None: it has no lease, or the
/// lease is not over.
fn lost_for(sandbox: &Sandbox, heard: &LastHeard, now: Instant) -> Option<Duration> {
    if planted(Bug::RecoveryWithoutLease) {
        return Some(Duration::MAX);
    }
    let lease = seconds(sandbox.status.lease?);
    let silence = heard.silence(sandbox.holder()?, now);
    (silence >= lease).then_some(silence)
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}
