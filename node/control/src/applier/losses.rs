//! Agents that are not heard of.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use sandkeeper_statemachine::{Actor, AgentId, AgentStatus, Command, Incarnation, Request, State};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agents::Sessions;
use crate::commands::Commands;
use crate::raft::LeaderTerm;
use crate::raft::replica::Replica;

/// How often the sessions are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// If no look was taken for this long, this node was deaf.
const DEAF: Duration = Duration::from_secs(2);

/// How long the decider may take; the next look says it again.
const DEADLINE: Duration = Duration::from_secs(5);

/// While this node leads: tells the decider of every agent that was not heard of, by this node, for `lost_after`, nor
/// since it leads.
pub async fn run(
    mut leads: watch::Receiver<Option<LeaderTerm>>,
    replica: Replica,
    sessions: Sessions,
    commands: Commands,
    lost_after: Duration,
    stop: CancellationToken,
) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = LastHeard::default();
    let mut last_look = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leads.changed() => {
                if changed.is_err() {
                    return;
                }
                heard = LastHeard::default();
            }
            _ = ticks.tick() => {}
        }
        let Some(LeaderTerm { term }) = *leads.borrow() else { continue };
        let now = Instant::now();
        if now.duration_since(last_look) > DEAF {
            // This node itself was not listening: paused, or starved. The agents' silence says nothing.
            heard = LastHeard::default();
        }
        let lost = heard.lost(&replica.state(), &sessions, now, lost_after);
        join_all(lost.into_iter().map(|(agent, incarnation)| {
            info!(%agent, "not heard of for {lost_after:?}: it is lost");
            let command = Command::LoseAgent { agent: agent.clone(), incarnation };
            let request = Request { actor: Actor::Leader, id: None, command };
            let commands = &commands;
            async move {
                if let Err(error) = commands.submit_in_term(term, request, Instant::now() + DEADLINE).await {
                    warn!(%agent, %error, "the loss was not decided; the next look says it again");
                }
            }
        }))
        .await;
        last_look = Instant::now();
    }
}

/// When each READY agent was last heard of, since this node leads.
#[derive(Default)]
struct LastHeard(BTreeMap<AgentId, (Incarnation, Instant)>);

impl LastHeard {
    fn lost(
        &mut self,
        state: &State,
        sessions: &Sessions,
        now: Instant,
        lost_after: Duration,
    ) -> Vec<(AgentId, Incarnation)> {
        self.0.retain(|agent, _| state.agent(agent).is_some());
        let mut lost = Vec::new();
        for agent in state.agents().filter(|agent| agent.status == AgentStatus::Ready) {
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
            if now.duration_since(entry.1) >= lost_after {
                lost.push((id.clone(), incarnation));
            }
        }
        lost
    }
}
