//! One session: the task that hears its agent, and has the applier's worker while this node leads.

use std::sync::Arc;
use std::time::Duration;

use planted_bugs::{Bug, planted};
use sandkeeper_proto::v1::{self, agent_message, server_message};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::{Session, service::AgentGate};
use crate::applier::{Verdict, Worker};
use crate::raft::LeaderTerm;

/// How often a worker looks after its agent.
const LOOK: Duration = Duration::from_secs(1);

/// When an agent may come back after its session was ended for no fault of its own.
const RETRY_AFTER_MILLIS: u32 = 500;

/// When an agent may come back that waits for an operator: soon enough for him, and no flood in the logs.
const NOT_YET_MILLIS: u32 = 5_000;

/// Runs a session until its agent goes, a newer one takes its place, or the node stops.
pub(super) async fn run(session: Arc<Session>, mut inbound: Streaming<v1::AgentMessage>, gate: AgentGate) {
    let mut leads = gate.leads.clone();
    let mut sequence = 0;
    let mut worker = None;
    lead(&mut worker, &mut sequence, &mut leads, &session, &gate);
    let mut members = gate.members.clone();
    members.mark_changed();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let farewell = loop {
        tokio::select! {
            () = gate.stop.cancelled() => break Some(goodbye("this control node is shutting down", false)),
            () = session.ended.cancelled() => break Some(goodbye("a newer session of this agent has taken over", false)),
            message = inbound.message() => match message {
                Ok(Some(message)) => {
                    session.hear();
                    let worker = worker.as_mut().filter(|worker| worker.leads(&leads));
                    hear(message, &session, worker, &gate);
                }
                Ok(None) => break None,
                Err(status) => {
                    debug!(agent = %session.spec.agent_id, %status, "the session broke");
                    break None;
                }
            },
            changed = leads.changed() => {
                if changed.is_err() {
                    break None;
                }
                lead(&mut worker, &mut sequence, &mut leads, &session, &gate);
            }
            changed = members.changed() => {
                if changed.is_err() {
                    break None;
                }
                let servers = members.borrow_and_update().clone();
                let body = Some(server_message::Body::Members(v1::Members { servers }));
                // If its outbox is full, it learns with its next session.
                let _ = session.outbox.try_send(Ok(v1::ServerMessage { body, ..v1::ServerMessage::default() }));
            }
            marked = session.dirty.take(), if worker.is_some() => {
                if let Some(worker) = worker.as_mut().filter(|worker| worker.leads(&leads)) {
                    worker.look_at(marked, &gate.replica.state());
                }
            }
            room = session.outbox.reserve(), if worker.as_ref().is_some_and(Worker::waits_for_room) => {
                if room.is_err() {
                    break None;
                }
                drop(room);
                if let Some(worker) = &mut worker {
                    worker.go_on(&gate.replica.state());
                }
            }
            verdict = errand(&mut worker, &gate) => {
                if let Verdict::Refused(reason) = verdict {
                    warn!(agent = %session.spec.agent_id, %reason, "an agent is sent away");
                    break Some(goodbye(&reason, true));
                }
            }
            _ = ticks.tick() => {
                // Before it is lost: the agent has gone, whatever TCP believes.
                if session.last_heard().elapsed() > gate.lost_after.mul_f32(0.8) {
                    break Some(goodbye("nothing was heard of the agent", false));
                }
                if let Some(worker) = &mut worker {
                    worker.look_after(&gate.replica.state());
                }
            }
        }
    };
    info!(agent = %session.spec.agent_id, connection = %session.connection_id, "the session ends");
    if let Some(farewell) = farewell {
        // If its outbox is full, the agent finds out by the end of the stream.
        let _ = session.outbox.try_send(Ok(farewell));
        let _ = session.outbox.try_send(Err(Status::unavailable("the session was ended, see the goodbye")));
    }
}

/// A worker for the term in which this node leads; none while it does not.
fn lead(
    worker: &mut Option<Worker>,
    sequence: &mut u64,
    leads: &mut watch::Receiver<Option<LeaderTerm>>,
    session: &Arc<Session>,
    gate: &AgentGate,
) {
    if let Some(worker) = worker.take() {
        *sequence = worker.sequence();
    }
    let mut term = *leads.borrow_and_update();
    if planted(Bug::ApplierOnFollower) {
        let applied = gate.replica.view().applied;
        term = term.or_else(|| applied.map(|id| LeaderTerm { term: id.committed_leader_id().term }));
    }
    *worker = term.map(|LeaderTerm { term }| {
        let mut worker = Worker::new(term, Arc::clone(session), gate, *sequence);
        worker.look_after(&gate.replica.state());
        worker
    });
}

async fn errand(worker: &mut Option<Worker>, gate: &AgentGate) -> Verdict {
    match worker {
        Some(worker) => worker.errand(|| gate.replica.state()).await,
        None => std::future::pending().await,
    }
}

fn hear(message: v1::AgentMessage, session: &Session, worker: Option<&mut Worker>, gate: &AgentGate) {
    match message.body {
        Some(agent_message::Body::Heartbeat(heartbeat)) => {
            if !heartbeat.images.is_empty() {
                gate.knowledge.set_images(&session.spec.agent_id, &heartbeat.images);
            }
            if let Some(worker) = worker {
                worker.beat(heartbeat.number, &gate.replica.state());
            }
        }
        Some(agent_message::Body::Hello(_)) | None => {}
        Some(body) => {
            if let Some(worker) = worker {
                worker.hear(body, &gate.replica.state());
            }
        }
    }
}

pub(super) fn goodbye(reason: &str, fatal: bool) -> v1::ServerMessage {
    farewell(reason, RETRY_AFTER_MILLIS, fatal)
}

/// To an agent that may be welcome later, when an operator has said so.
pub(super) fn not_yet(reason: &str) -> v1::ServerMessage {
    farewell(reason, NOT_YET_MILLIS, false)
}

pub(super) fn farewell(reason: &str, retry_after_millis: u32, fatal: bool) -> v1::ServerMessage {
    let goodbye = v1::Goodbye { reason: reason.to_owned(), retry_after_millis, fatal };
    v1::ServerMessage { body: Some(server_message::Body::Goodbye(goodbye)), ..v1::ServerMessage::default() }
}
