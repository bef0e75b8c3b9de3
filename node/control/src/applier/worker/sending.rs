//! What a worker sends: commands to its agent, and its agent's reports to the decider.

use std::time::Duration;

use sandkeeper_proto::v1::{self, server_message::Body};
use sandkeeper_statemachine::{
    Actor, Command, Generation, Report, ReportedState, Request, Sandbox, SandboxId, Timestamp,
};
use tokio::time::Instant;
use tracing::debug;

use super::{Finished, Worker};
use crate::agents::wire;
use crate::applier::reconcile::{Sent, SentKind};
use crate::metrics::CallLabels;

/// A command that an agent has not answered after this time is sent again; the wait doubles up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_secs(2);
/// The longest wait before a command is sent again.
const MAX_RETRY: Duration = Duration::from_secs(30);
/// How long a report may wait for the decider; the next look makes it again.
pub(super) const REPORT_DEADLINE: Duration = Duration::from_secs(10);
/// Reports of one agent on their way to the decider at once.
pub(super) const MAX_REPORTS: usize = 512;

/// It is not agreed yet what time it is, and by a wrong clock a sandbox would be ended early.
pub(super) struct NotAgreed;

/// What the agent was last told of a sandbox that may change while it runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) generation: Generation,
    pub(super) expire_time: Option<Timestamp>,
    pub(super) lease: Option<v1::Lease>,
}

impl Told {
    pub(super) fn of(sandbox: &Sandbox, generation: Generation) -> Self {
        Self { generation, expire_time: sandbox.status.expire_time, lease: wire::lease(sandbox) }
    }
}

impl Worker {
    /// Tells what has changed since the agent was told last.
    pub(super) fn tell(&mut self, sandbox: &Sandbox, generation: Generation) {
        let (id, told) = (&sandbox.id, Told::of(sandbox, generation));
        if self.told.get(id) == Some(&told) {
            return;
        }
        // A lease begins with an acknowledged heartbeat: before one its guard would take it for over.
        let unleased = told.lease.is_none() || self.acknowledged > 0;
        let (true, Ok(expires_in_nanos)) = (unleased, self.remaining(sandbox)) else {
            self.undecided.insert(id.clone());
            return;
        };
        let sandbox_id = id.to_string();
        let update = v1::UpdateCommand { sandbox_id, generation, expires_in_nanos, lease: told.lease };
        if self.send(Body::Update(update)).is_some() {
            self.told.insert(id.clone(), told);
        } else {
            self.wants_room.insert(id.clone());
        }
    }

    pub(super) fn report(&mut self, id: &SandboxId, generation: Generation, state: ReportedState) {
        if self.tasks.len() >= MAX_REPORTS {
            self.wants_report.insert(id.clone());
            return;
        }
        if !self.reporting.insert(id.clone()) {
            return; // one is on its way; the next look makes the next
        }
        let agent = self.session.spec.agent_id.clone();
        let incarnation = self.session.spec.incarnation;
        let report = Report { agent: agent.clone(), incarnation, sandbox_id: id.clone(), generation, state };
        let request = Request { actor: Actor::Agent(agent), id: None, command: Command::Report(report) };
        let (commands, term, id) = (self.commands.clone(), self.term, id.clone());
        let deadline = Instant::now() + REPORT_DEADLINE;
        self.tasks.spawn(async move {
            let decided = commands.submit_in_term(term, request, deadline).await;
            if let Err(error) = &decided {
                debug!(%id, %error, "a report was not decided; the next look makes it again");
            }
            Finished::Reported(id, decided.is_ok())
        });
    }

    /// Sends a command about a sandbox, and keeps in mind that it was sent.
    pub(super) fn command(
        &mut self,
        id: &SandboxId,
        generation: Generation,
        what: SentKind,
        body: Body,
    ) -> bool {
        let Some(sequence) = self.send(body) else {
            self.wants_room.insert(id.clone());
            return false;
        };
        let Some(view) = &mut self.view else { return false };
        let again = view.sent.get(id).is_some_and(|sent| sent.what == what && sent.generation == generation);
        let wait = match self.sent_at.get(id) {
            Some((_, wait)) if again => (*wait * 2).min(MAX_RETRY),
            _ => RETRY,
        };
        view.sent.insert(id.clone(), Sent { sequence, generation, what, overdue: false });
        self.sent_at.insert(id.clone(), (Instant::now(), wait));
        true
    }

    /// Sends a command; None if the outbox is full or the session at its end.
    pub(super) fn send(&mut self, body: Body) -> Option<u64> {
        let call = match &body {
            Body::Create(_) => "create",
            Body::Terminate(_) => "terminate",
            Body::Update(_) => "update",
            _ => "inventory",
        };
        let message = v1::ServerMessage {
            term: self.term,
            sequence: self.sequence + 1,
            incarnation: Some(wire::incarnation(self.session.spec.incarnation)),
            body: Some(body),
        };
        self.session.outbox.try_send(Ok(message)).ok()?;
        self.sequence += 1;
        self.metrics.applier_calls.get_or_create(&CallLabels { call }).inc();
        Some(self.sequence)
    }

    /// What remains of a sandbox's time, nanoseconds, as the leader counts; None: it has no end.
    pub(super) fn remaining(&self, sandbox: &Sandbox) -> Result<Option<i64>, NotAgreed> {
        let Some(time) = sandbox.status.expire_time else { return Ok(None) };
        if !self.clock.is_agreed() {
            return Err(NotAgreed);
        }
        Ok(Some(time.0.saturating_sub(self.clock.now().0).max(0)))
    }
}
