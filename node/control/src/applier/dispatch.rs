//! Wakes the workers of the agents that applied events concern.

use std::time::Duration;

use sandkeeper_statemachine::{Event, EventKind, State};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::agents::Sessions;
use crate::history::History;
use crate::raft::replica::{Replica, WaitError};

/// How much history is read at once.
const READ_BYTES: usize = 1024 * 1024;

/// Only so that a wait ends: nothing happens when it does.
const IDLE: Duration = Duration::from_secs(60);

/// Follows the history of this node from now on, until it is stopped. If it can't follow (a snapshot came in
/// between), it wakes everybody: who wakes up looks at the state.
pub async fn run(history: History, replica: Replica, sessions: Sessions, stop: CancellationToken) {
    let mut at = replica.revision();
    loop {
        let newer = history.wait_newer(at, Instant::now() + IDLE);
        tokio::select! {
            () = stop.cancelled() => return,
            result = newer => match result {
                Ok(()) => {}
                Err(WaitError::Timeout { .. }) => continue,
                Err(WaitError::Stopped) => return,
            },
        }
        at = match history.read_here(at + 1, READ_BYTES).await {
            Ok(entries) => {
                let state = replica.state();
                for applied in &entries {
                    for event in &applied.entry.events {
                        wake(event, &state, &sessions);
                    }
                }
                entries.last().map_or(at, crate::history::AppliedEntry::last_revision)
            }
            Err(error) => {
                debug!(%error, "the applier's feed was cut: everything is looked at again");
                wake_all(&sessions);
                replica.revision()
            }
        };
    }
}

fn wake_all(sessions: &Sessions) {
    for session in sessions.all() {
        session.dirty.mark_all();
    }
}

fn wake(event: &Event, state: &State, sessions: &Sessions) {
    if event.kind == EventKind::RestoreConfirmed {
        // What was left alone until now is on whatever agent.
        wake_all(sessions);
    }
    let subject = &event.header.subject;
    let Some((id, _)) = &subject.sandbox else {
        if let Some(agent) = &subject.agent
            && !matches!(
                event.kind,
                EventKind::AgentCordoned
                    | EventKind::AgentUncordoned
                    | EventKind::AgentRecoveryResumed
                    | EventKind::AgentDraining { .. }
            )
            && let Some(session) = sessions.get(agent)
        {
            session.dirty.mark_all();
        }
        return;
    };
    let held = state.sandbox(id).map(|sandbox| &sandbox.status.held[..]).unwrap_or_default();
    let holders = held.iter().map(|held| &held.agent);
    for agent in subject.agent.iter().chain(holders) {
        if let Some(session) = sessions.get(agent) {
            session.dirty.mark(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;
    use futures::future::BoxFuture;
    use tokio::time::timeout;

    use super::*;
    use crate::history::Recorder;
    use crate::history::fold::{LogSource, SourceError};
    use crate::raft::replica::Publisher;
    use crate::raft::types::LogEntry;

    struct EmptyLog;

    impl LogSource for EmptyLog {
        fn entries_from(&self, _: u64, _: usize) -> BoxFuture<'_, Result<Vec<LogEntry>, SourceError>> {
            futures::future::ready(Ok(Vec::new())).boxed()
        }

        fn first_index(&self) -> u64 {
            0
        }
    }

    /// A wait for news fails at once then, again and again.
    #[tokio::test]
    async fn it_ends_with_the_state_machine() {
        let (publisher, replica) = Publisher::new();
        let history = History::new(Recorder::new(0), replica.clone(), Arc::new(EmptyLog));
        drop(publisher);
        let run = run(history, replica, Sessions::default(), CancellationToken::new());
        timeout(Duration::from_secs(10), run).await.expect("it ends by itself");
    }
}
