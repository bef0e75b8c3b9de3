//! Agents that are not heard of, and what is to be done about what they ran.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use sandkeeper_statemachine::{Actor, Command, Request};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::recovery::Recovery;
use super::silence::LastHeard;
use crate::agents::Sessions;
use crate::commands::Commands;
use crate::metrics::Metrics;
use crate::raft::LeaderTerm;
use crate::raft::replica::Replica;

/// How often the sessions are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// If no look was taken for this long, this node was deaf.
const DEAF: Duration = Duration::from_secs(2);

/// How long the decider may take; the next look says it again.
const DEADLINE: Duration = Duration::from_secs(5);

/// While this node leads: tells the decider of every agent that was not heard of, by this node, for `lost_after`, nor
/// since it leads; and of every AUTO_RECREATE sandbox that is down and may be started elsewhere.
pub async fn run(
    mut leads: watch::Receiver<Option<LeaderTerm>>,
    replica: Replica,
    sessions: Sessions,
    commands: Commands,
    metrics: Arc<Metrics>,
    lost_after: Duration,
    stop: CancellationToken,
) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut heard, mut recovery) = (LastHeard::default(), Recovery::default());
    let mut last_look = Instant::now();
    let mut looked_in = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leads.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            _ = ticks.tick() => {}
        }
        let leadership = *leads.borrow_and_update();
        // After that: silence is counted from the election at the earliest, wherever this task is held up.
        let now = Instant::now();
        // In another term another leader may have heard agents meanwhile. And if this node itself was not listening
        // (paused, or starved), their silence says nothing.
        if leadership != looked_in || now.duration_since(last_look) > DEAF {
            (heard, recovery) = (LastHeard::default(), Recovery::default());
            looked_in = leadership;
        }
        let Some(LeaderTerm { term }) = leadership else {
            // Nobody asks; it must not pile up.
            sessions.take_departed();
            metrics.recovery_paused.set(0);
            last_look = Instant::now();
            continue;
        };
        let state = replica.state();
        heard.update(&state, &sessions, now);
        let lost = heard.lost(&state, now, lost_after).into_iter().map(|(agent, incarnation)| {
            info!(%agent, "not heard of for {lost_after:?}: it is lost");
            Command::LoseAgent { agent, incarnation }
        });
        let due = recovery.due(&state, &heard, now).into_iter().map(|(sandbox_id, generation)| {
            info!(%sandbox_id, generation, "another place is looked for");
            Command::RecoverSandbox { sandbox_id, generation }
        });
        metrics.recovery_paused.set(i64::try_from(recovery.paused_agents()).unwrap_or(i64::MAX));
        join_all(lost.chain(due).map(|command| {
            let commands = &commands;
            async move {
                let request = Request { actor: Actor::Leader, id: None, command: command.clone() };
                if let Err(error) = commands.submit_in_term(term, request, Instant::now() + DEADLINE).await {
                    warn!(?command, %error, "not decided; the next look says it again");
                }
            }
        }))
        .await;
        last_look = Instant::now();
    }
}
