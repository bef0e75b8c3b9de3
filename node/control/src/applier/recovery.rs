//! Which AUTO_RECREATE sandboxes may be started elsewhere: pure, but for the leader's monotonic clock, which is given.
//!
//! A LOST one may be when its agent has been silent for longer than the lease that it is known to be kept under: whoever
//! guards it has ended it before (`docs/guarantees.md`). A FAILED one is known to be gone; it waits its recovery timeout
//! so that what always fails is not started all the time.

use std::collections::BTreeMap;
use std::time::Duration;

use sandkeeper_statemachine::{AgentStatus, Generation, Phase, Sandbox, SandboxId, State};
use tokio::time::Instant;
use tracing::{error, info};

use super::silence::LastHeard;

/// Sandboxes that one look hands to the decider: the next look, a quarter of a second later, takes the next ones.
const MAX_AT_ONCE: usize = 500;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// When this leader first saw what has FAILED.
    failed: BTreeMap<SandboxId, (Generation, Instant)>,
    paused: bool,
}

impl Recovery {
    /// Whether most agents are lost. Then it is more likely that this node is cut off from them (a switch, a bad answer of
    /// DNS) than that they are all dead, and the rest could not take what they ran.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// What may be started elsewhere now.
    pub(super) fn due(
        &mut self,
        state: &State,
        heard: &LastHeard,
        now: Instant,
    ) -> Vec<(SandboxId, Generation)> {
        self.pause_if_most_are_lost(state);
        let mut failed = BTreeMap::new();
        let mut due = Vec::new();
        for sandbox in state.recoverable() {
            let generation = sandbox.status.generation;
            let since = match sandbox.status.phase {
                Phase::Lost if self.paused => continue,
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
        due
    }

    fn pause_if_most_are_lost(&mut self, state: &State) {
        let all = state.agent_count();
        let lost = state.agents().filter(|agent| agent.status == AgentStatus::Lost).count();
        let paused = lost * 2 > all;
        if paused && !self.paused {
            error!(
                lost,
                all,
                "more than half of the agents are lost: recovery is paused until they are back; take out those that are \
                 gone for good with `sandkeeper agents remove AGENT --fenced`"
            );
        } else if self.paused && !paused {
            info!(lost, all, "most agents are there again: recovery goes on");
        }
        self.paused = paused;
    }
}

/// For how long the lease of a LOST sandbox has been over, and its recovery timeout counts; None: it has no lease, or the
/// lease is not over.
fn lost_for(sandbox: &Sandbox, heard: &LastHeard, now: Instant) -> Option<Duration> {
    let lease = seconds(sandbox.status.lease?);
    let silence = heard.silence(sandbox.holder()?, now);
    (silence >= lease).then_some(silence)
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}
