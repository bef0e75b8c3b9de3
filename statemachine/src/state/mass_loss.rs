//! Agents that were lost together. So many at once are more likely cut off (a switch, a bad answer of DNS) than dead, and
//! the rest could hardly take what they ran: its recovery waits until they are back, or an operator says that it need not.

use std::collections::BTreeSet;

use super::{Agent, AgentStatus, State};
use crate::ids::{AgentId, Timestamp};

/// Agents were lost together if there is not more between their losses than this, nanoseconds. Agents that a failure cuts
/// off at one moment are lost within some seconds of one another, for each is counted from its own last heartbeat, and anew
/// by a new leader; a minute has room for a failure that spreads. Machines that die for reasons of their own seldom do so
/// within a minute.
pub const TOGETHER_NANOS: i64 = 60_000_000_000;

impl State {
    /// The LOST agents whose sandboxes are not recovered now: more agents were lost together with them than stayed. Who has
    /// been lost since, for a reason of its own, counts as one that stayed, and who had been lost long before does not count:
    /// so another loss neither begins nor ends the pause for those that it has nothing to do with.
    pub fn recovery_paused(&self) -> BTreeSet<AgentId> {
        let lost_agents: Vec<(&Agent, Timestamp)> =
            self.agents.values().filter_map(|agent| Some((agent, agent.lost_since?))).collect();
        let ready = self.agents.values().filter(|agent| agent.status == AgentStatus::Ready).count();
        let mut losses: Vec<Timestamp> = lost_agents.iter().map(|(_, since)| *since).collect();
        losses.sort_unstable();
        let until = |time: Timestamp| losses.partition_point(|loss| *loss <= time);
        let is_paused = |(agent, since): &&(&Agent, Timestamp)| {
            let before = losses.partition_point(|loss| *loss < since.plus(-TOGETHER_NANOS));
            let together = until(since.plus(TOGETHER_NANOS)) - before;
            let later = losses.len() - until(since.plus(TOGETHER_NANOS));
            !agent.recovery_resumed && together > ready + later
        };
        lost_agents.iter().filter(is_paused).map(|(agent, _)| agent.spec.agent_id.clone()).collect()
    }
}
