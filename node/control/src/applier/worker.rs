//! One agent, one session, one term of this leader: what is known of the agent, and what is under way.

mod heartbeat;
mod sending;
mod turn;
mod unknown;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use planted_bugs::{Bug, planted};
use sandkeeper_proto::v1::{self, server_message::Body};
use sandkeeper_statemachine::{
    Actor, Agent, AgentStatus, Command, Rejection, ReportedState, Request, Sandbox, SandboxId, State, Term,
};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::sending::{MAX_REPORTS, REPORT_DEADLINE, Told};
use self::turn::Turn;
use self::unknown::Unknown;
use super::reconcile::{Actual, AgentView, Sent, SentKind, Step, reconcile};
use crate::agents::{AgentGate, Marked, Session, Turns, wire};
use crate::clock::LeaderClock;
use crate::commands::{Commands, SubmitError};
use crate::decider::LeaderKnowledge;
use crate::metrics::Metrics;
use crate::raft::LeaderTerm;

/// What a worker has found out about its agent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Go on.
    Fine,
    /// The agent may not come back as it is.
    Refused(String),
}

enum Finished {
    Registered(Result<(), SubmitError>),
    Reported(SandboxId, bool),
    Confirmed(u64, bool),
    Turn(OwnedSemaphorePermit),
}

/// See the module.
pub(crate) struct Worker {
    term: Term,
    session: Arc<Session>,
    commands: Commands,
    metrics: Arc<Metrics>,
    clock: LeaderClock,
    /// An agent that was heard of within this time lives.
    alive: Duration,
    orphan_grace: Duration,
    /// The sequence of the session's last command, whatever the term.
    sequence: u64,
    /// The sequence of the inventory request of this term, once the agent is registered.
    asked: Option<u64>,
    /// Parts of an inventory that is not whole yet.
    parts: Vec<v1::SandboxReport>,
    /// None until a whole inventory has come.
    view: Option<AgentView>,
    sent_at: BTreeMap<SandboxId, (Instant, Duration)>,
    told: BTreeMap<SandboxId, Told>,
    orphans: BTreeMap<SandboxId, Instant>,
    knowledge: LeaderKnowledge,
    unknown: Unknown,
    reporting: BTreeSet<SandboxId>,
    /// Looked at again when the outbox has room.
    wants_room: BTreeSet<SandboxId>,
    /// Looked at again when reports have been decided.
    wants_report: BTreeSet<SandboxId>,
    /// Looked at again with the next second: the decider did not take their report, it is not agreed
    /// what time it is, or no heartbeat was acknowledged yet.
    undecided: BTreeSet<SandboxId>,
    registering: bool,
    /// The newest heartbeat of this session that was heard; 0: none.
    heartbeat: u64,
    /// The newest that was acknowledged.
    acknowledged: u64,
    /// A quorum is being asked about a heartbeat.
    confirming: bool,
    turns: Turns,
    turn: Turn,
    tasks: JoinSet<Finished>,
}

impl Worker {
    pub(crate) fn new(term: Term, session: Arc<Session>, gate: &AgentGate, sequence: u64) -> Self {
        Self {
            term,
            session,
            commands: gate.commands.clone(),
            metrics: Arc::clone(&gate.metrics),
            clock: gate.clocks.of(term, gate.replica.state().last_time()),
            alive: gate.lost_after / 2,
            orphan_grace: gate.orphan_grace,
            sequence,
            asked: None,
            parts: Vec::new(),
            view: None,
            sent_at: BTreeMap::new(),
            told: BTreeMap::new(),
            orphans: BTreeMap::new(),
            knowledge: gate.knowledge.clone(),
            unknown: Unknown::default(),
            reporting: BTreeSet::new(),
            wants_room: BTreeSet::new(),
            wants_report: BTreeSet::new(),
            undecided: BTreeSet::new(),
            registering: false,
            heartbeat: 0,
            acknowledged: 0,
            confirming: false,
            turns: gate.turns.clone(),
            turn: Turn::None,
            tasks: JoinSet::new(),
        }
    }

    /// Whether this node still leads in the worker's term.
    pub(crate) fn leads(&self, leads: &watch::Receiver<Option<LeaderTerm>>) -> bool {
        *leads.borrow() == Some(LeaderTerm { term: self.term }) || planted(Bug::ApplierOnFollower)
    }

    /// Whether commands wait for room in the outbox.
    pub(crate) fn waits_for_room(&self) -> bool {
        !self.wants_room.is_empty()
    }

    /// There is room in the outbox: looks again at as many as it takes.
    pub(crate) fn go_on(&mut self, state: &State) {
        for _ in 0..self.session.outbox.capacity() {
            let Some(id) = self.wants_room.pop_first() else { return };
            self.reconcile(state, [id]);
        }
    }

    /// The sequence of the session's last command: a worker of a later term goes on from there.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Sees to it that the state knows this incarnation, and that this term has an inventory. Called every second,
    /// and when the agent's record may have changed.
    pub(crate) fn look_after(&mut self, state: &State) {
        self.end_long_turn();
        let record = state.agent(&self.session.spec.agent_id);
        if !record.is_some_and(|record| self.is_registered(record)) {
            // What it said before it was lost is not what it has when it is back.
            self.asked = None;
            if self.view.take().is_some() {
                self.forget_unknown();
            }
            // That it says hello does not mean that it hears the answer: its heart beats once it has.
            if self.heartbeat > 0 && self.lives() && !self.registering && self.has_turn() {
                self.registering = true;
                let actor = Actor::Agent(self.session.spec.agent_id.clone());
                let command = Command::RegisterAgent(Box::new(self.session.spec.clone()));
                let (commands, term, deadline) =
                    (self.commands.clone(), self.term, Instant::now() + REPORT_DEADLINE);
                self.tasks.spawn(async move {
                    let request = Request { actor, id: None, command };
                    Finished::Registered(commands.submit_in_term(term, request, deadline).await.map(|_| ()))
                });
            }
            return;
        }
        self.acknowledge(state);
        if self.asked.is_none() && self.lives() && self.has_turn() {
            self.asked = self.send(Body::InventoryRequest(v1::InventoryRequest {}));
        }
        self.retry(state);
    }

    fn lives(&self) -> bool {
        self.session.last_heard().elapsed() < self.alive
    }

    fn is_registered(&self, record: &Agent) -> bool {
        *record.spec == self.session.spec && record.status == AgentStatus::Ready
    }

    /// Waits for the next of the worker's own errands to end. Never ends while there is none.
    pub(crate) async fn errand(&mut self, state: impl Fn() -> State) -> Verdict {
        let Some(finished) = self.tasks.join_next().await else { return std::future::pending().await };
        match finished {
            Ok(Finished::Registered(result)) => {
                self.registering = false;
                match result {
                    Ok(()) => self.look_after(&state()),
                    Err(SubmitError::Rejected(rejection)) => return Verdict::Refused(refusal(&rejection)),
                    Err(error) => debug!(agent = %self.session.spec.agent_id, %error, "not registered yet"),
                }
            }
            Ok(Finished::Turn(permit)) => self.begin_turn(permit, &state()),
            Ok(Finished::Confirmed(number, by_quorum)) => self.confirmed(number, by_quorum, &state()),
            Ok(Finished::Reported(id, decided)) => {
                self.reporting.remove(&id);
                let mut ids = if self.tasks.len() <= MAX_REPORTS / 2 {
                    std::mem::take(&mut self.wants_report)
                } else {
                    BTreeSet::new()
                };
                if decided {
                    ids.insert(id);
                } else {
                    self.undecided.insert(id);
                }
                self.reconcile(&state(), ids);
            }
            Err(error) => warn!(%error, "an errand of the applier died"),
        }
        Verdict::Fine
    }

    /// The agent said something. Only what it says to this term counts.
    pub(crate) fn hear(&mut self, body: v1::agent_message::Body, state: &State) {
        use v1::agent_message::Body as Said;
        match body {
            Said::Inventory(inventory) if inventory.term == self.term => {
                self.hear_inventory(inventory, state)
            }
            Said::Reports(reports) if reports.term == self.term => {
                let Some(view) = &mut self.view else { return };
                view.processed = view.processed.max(reports.processed_sequence);
                let ids: Vec<_> = reports.reports.iter().filter_map(|report| note(view, report)).collect();
                self.reconcile(state, ids);
            }
            Said::Refusal(refusal) if refusal.term == self.term => self.hear_refusal(&refusal, state),
            Said::Refusal(refusal) => {
                debug!(agent = %self.session.spec.agent_id, reason = %refusal.reason, "refused, in another term");
            }
            _ => {}
        }
    }

    fn hear_inventory(&mut self, inventory: v1::Inventory, state: &State) {
        let older = self.asked.is_none_or(|asked| inventory.processed_sequence < asked);
        if older && !planted(Bug::OldInventoryAsProof) {
            return; // it answers somebody else's question
        }
        let newer = self.view.as_ref().is_some_and(|view| view.is_newer_than(inventory.processed_sequence));
        if newer && !planted(Bug::OldInventoryAsProof) {
            debug!(agent = %self.session.spec.agent_id, "an inventory that is older than what was heard");
            return;
        }
        if inventory.part == 0 {
            self.parts.clear();
        }
        self.parts.extend(inventory.sandboxes);
        if !inventory.last {
            return;
        }
        let mut view = AgentView { processed: inventory.processed_sequence, ..AgentView::default() };
        if let Some(known) = self.view.take() {
            view.sent = known.sent;
        }
        for report in std::mem::take(&mut self.parts) {
            // Of one without an end it is known what the agent was told. (How much of its time another is told to have
            // left can't be compared exactly: it is told once more.)
            if let Some(id) = note(&mut view, &report)
                && !report.expires
            {
                let told = Told { generation: report.generation, expire_time: None, lease: report.lease };
                self.told.entry(id).or_insert(told);
            }
        }
        debug!(agent = %self.session.spec.agent_id, sandboxes = view.actual.len(), "inventory");
        self.view = Some(view);
        self.unknown = Unknown::of_new_inventory();
        self.turn = Turn::None;
        self.reconcile_all(state);
    }

    fn hear_refusal(&mut self, refusal: &v1::Refusal, state: &State) {
        let Some(view) = &mut self.view else { return };
        view.processed = view.processed.max(refusal.processed_sequence);
        let Ok(id) = refusal.sandbox_id.parse::<SandboxId>() else { return };
        let newest = view.sent.get(&id).is_some_and(|sent| sent.sequence == refusal.sequence);
        info!(agent = %self.session.spec.agent_id, %id, reason = %refusal.reason, "the agent refused");
        // Nothing was started, and no later command about it is on its way: only this proves it.
        if newest && refusal.kind() == v1::RefusalKind::Admission {
            let reason = refusal.reason.clone();
            self.report(&id, refusal.generation, ReportedState::AdmissionRefused { reason });
        } else {
            self.reconcile(state, [id]);
        }
    }

    /// Looks at what was marked.
    pub(crate) fn look_at(&mut self, marked: Marked, state: &State) {
        if marked.all {
            self.look_after(state);
            self.reconcile_all(state);
        } else {
            self.reconcile(state, marked.sandboxes);
        }
    }

    fn reconcile_all(&mut self, state: &State) {
        let Some(view) = &self.view else { return };
        let agent = &self.session.spec.agent_id;
        let mut ids: BTreeSet<_> = state.held_by(agent).map(|(sandbox, _)| sandbox.id.clone()).collect();
        ids.extend(view.actual.keys().cloned());
        ids.extend(view.strangers.keys().cloned());
        ids.extend(view.sent.keys().cloned());
        ids.extend(self.told.keys().cloned());
        self.reconcile(state, ids);
    }

    fn reconcile(&mut self, state: &State, ids: impl IntoIterator<Item = SandboxId>) {
        let registered =
            state.agent(&self.session.spec.agent_id).is_some_and(|record| self.is_registered(record));
        if !registered {
            return; // no command before the registration of this incarnation has committed
        }
        for id in ids {
            let Some(view) = &self.view else { return };
            let steps = reconcile(state, &self.session.spec.agent_id, view, &id);
            if steps.is_empty() {
                self.settle(state, &id);
            }
            for step in steps {
                self.take_step(state, &id, step);
            }
            self.note_unknown(state, &id);
        }
        self.tell_unknown();
    }

    fn take_step(&mut self, state: &State, id: &SandboxId, step: Step) {
        match step {
            Step::Create(generation) => {
                let Some(sandbox) = state.sandbox(id) else { return };
                // An agent starts nothing under a lease before a heartbeat of it was acknowledged.
                let unleased = wire::lease(sandbox).is_none() || self.acknowledged > 0;
                let (true, Ok(remaining)) = (unleased, self.remaining(sandbox)) else {
                    self.undecided.insert(id.clone());
                    return;
                };
                let create = wire::create_command(sandbox, generation, remaining);
                if self.command(id, generation, SentKind::Create, Body::Create(create)) {
                    self.told.insert(id.clone(), Told::of(sandbox, generation));
                }
            }
            Step::Terminate(generation) => {
                let terminate = v1::TerminateCommand { sandbox_id: id.to_string(), generation };
                self.command(id, generation, SentKind::Terminate, Body::Terminate(terminate));
            }
            Step::Adopt(generation) => {
                let adopt = v1::AdoptCommand { sandbox_id: id.to_string(), generation };
                self.command(id, generation, SentKind::Adopt, Body::Adopt(adopt));
            }
            Step::Report(generation, reported) => self.report(id, generation, reported),
            Step::Orphan(generation) => {
                let since = *self.orphans.entry(id.clone()).or_insert_with(Instant::now);
                if since.elapsed() >= self.orphan_grace {
                    warn!(agent = %self.session.spec.agent_id, %id, "an orphan is removed");
                    self.take_step(state, id, Step::Terminate(generation));
                }
            }
        }
    }

    /// Nothing is to be done about it: forgets what was only kept to do something, and tells changes.
    fn settle(&mut self, state: &State, id: &SandboxId) {
        let agent = &self.session.spec.agent_id;
        let Some(view) = &mut self.view else { return };
        let held = |sandbox: &&Sandbox| sandbox.status.held.iter().any(|held| held.agent == *agent);
        let held = state.sandbox(id).filter(held);
        // A create that was carried out has nothing left to be repeated.
        let done = |sent: &Sent| sent.what != SentKind::Terminate && sent.sequence <= view.processed;
        if view.actual.contains_key(id) && view.sent.get(id).is_some_and(done) {
            view.sent.remove(id);
            self.sent_at.remove(id);
        }
        match (held, view.actual.get(id)) {
            (None, None) => {
                view.sent.remove(id);
                self.sent_at.remove(id);
                self.told.remove(id);
                self.orphans.remove(id);
            }
            (Some(sandbox), Some((generation, Actual::Creating | Actual::Running { .. })))
                if *generation == sandbox.status.generation =>
            {
                let generation = *generation;
                self.tell(sandbox, generation);
            }
            _ => {}
        }
    }

    /// Looks again at what has gone unanswered for too long, and at orphans.
    fn retry(&mut self, state: &State) {
        let now = Instant::now();
        let over = |(_, (since, wait)): &(&SandboxId, &(Instant, Duration))| now >= *since + *wait;
        let mut again: BTreeSet<_> = self.sent_at.iter().filter(over).map(|(id, _)| id.clone()).collect();
        if let Some(view) = &mut self.view {
            for id in &again {
                if let Some(sent) = view.sent.get_mut(id) {
                    sent.overdue = true;
                }
            }
        }
        again.extend(self.orphans.keys().cloned());
        again.append(&mut self.undecided);
        self.reconcile(state, again);
    }
}

/// Notes what a report says of a sandbox; its id, if it makes sense.
fn note(view: &mut AgentView, report: &v1::SandboxReport) -> Option<SandboxId> {
    match wire::heard(report) {
        Ok((id, heard)) => {
            view.note(&id, report.generation, heard);
            Some(id)
        }
        Err(error) => {
            warn!(%error, "an agent's report makes no sense");
            None
        }
    }
}

fn refusal(rejection: &Rejection) -> String {
    format!("the registration was refused: {rejection}")
}
