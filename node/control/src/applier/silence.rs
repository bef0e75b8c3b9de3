//! For how long agents have been silent, as the leader counts: on its monotonic clock, since it leads.

use std::collections::BTreeMap;
use std::time::Duration;

use sandkeeper_statemachine::{AgentId, AgentStatus, Incarnation, State};
use tokio::time::Instant;

use crate::agents::Sessions;

/// When each agent was last heard of, at the earliest when this node began to lead. Never earlier than it was: leases are
/// over by this.
#[derive(Debug, Default)]
pub(super) struct LastHeard(BTreeMap<AgentId, (Incarnation, Instant)>);

impl LastHeard {
    /// Takes in what the sessions know. `now` was read before.
    pub(super) fn update(&mut self, state: &State, sessions: &Sessions, now: Instant) {
        self.0.retain(|agent, _| state.agent(agent).is_some());
        for agent in state.agents() {
            let (id, incarnation) = (&agent.spec.agent_id, agent.spec.incarnation);
            let entry = self.0.entry(id.clone()).or_insert((incarnation, now));
            if entry.0 != incarnation {
                *entry = (incarnation, now);
            }
            if let Some(session) = sessions.get(id)
                && session.spec.incarnation == incarnation
            {
                entry.1 = entry.1.max(session.last_heard());
            }
        }
        for (id, (incarnation, heard)) in sessions.take_departed() {
            if let Some(entry) = self.0.get_mut(&id).filter(|entry| entry.0 == incarnation) {
                entry.1 = entry.1.max(heard);
            }
        }
    }

    /// For how long an agent has been silent; zero if nothing is known of it.
    pub(super) fn silence(&self, agent: &AgentId, now: Instant) -> Duration {
        self.0.get(agent).map_or(Duration::ZERO, |(_, heard)| now.saturating_duration_since(*heard))
    }

    /// READY agents that have been silent for `lost_after`.
    pub(super) fn lost(
        &self,
        state: &State,
        now: Instant,
        lost_after: Duration,
    ) -> Vec<(AgentId, Incarnation)> {
        let ready = state.agents().filter(|agent| agent.status == AgentStatus::Ready);
        let silent = ready.filter(|agent| self.silence(&agent.spec.agent_id, now) >= lost_after);
        silent.map(|agent| (agent.spec.agent_id.clone(), agent.spec.incarnation)).collect()
    }

    #[cfg(test)]
    pub(super) fn heard(mut self, agent: &AgentId, incarnation: Incarnation, at: Instant) -> Self {
        self.0.insert(agent.clone(), (incarnation, at));
        self
    }
}
