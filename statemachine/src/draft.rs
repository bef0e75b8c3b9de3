//! A draft: an entry in the making, and the working copy of the state that it is decided on.

use crate::entry::{Entry, FIXED_BYTES, MAX_ENTRY_BYTES, encode_event};
use crate::event::{Event, EventKind, Header, RequestRef, Subject};
use crate::ids::{AgentId, Generation, Revision, Term, Timestamp};
use crate::limits::{MAX_DECISION_BYTES, MAX_REASON_BYTES, bounded};
use crate::spec::Actor;
use crate::state::digest::link;
use crate::state::{Sandbox, State};

/// An entry in the making. Each event is folded into the working copy as soon as it is decided, so that the next
/// command is decided on what it left.
#[derive(Clone, Debug)]
pub struct Draft {
    state: State,
    base: Revision,
    time: Timestamp,
    events: Vec<Event>,
    body: Vec<u8>,
}

/// Who is behind the events of one command.
#[derive(Clone, Debug)]
pub(crate) struct Cause {
    pub actor: Actor,
    pub request: Option<RequestRef>,
}

impl Cause {
    /// The control plane's own doing, as a consequence of a command.
    pub(crate) fn leader() -> Self {
        Self { actor: Actor::Leader, request: None }
    }

    /// The same cause, for events that are not what the request is remembered by.
    pub(crate) fn consequence(&self) -> Self {
        let request =
            self.request.as_ref().map(|request| RequestRef { id: request.id.clone(), memory: None });
        Self { actor: self.actor.clone(), request }
    }

    /// A request is remembered once, by its first event.
    fn take(&mut self) -> Option<RequestRef> {
        let request = self.request.clone();
        if let Some(request) = &mut self.request {
            request.memory = None;
        }
        request
    }
}

impl Draft {
    /// Begins an entry on a state, at the leader's time. `time = max(now, time of the last event + 1 ns)`.
    pub fn new(state: State, now: Timestamp) -> Self {
        let time = now.max(state.last_time().plus(1));
        let base = state.revision();
        // Nobody asks for the digest of what is only decided on.
        let state = state.without_digest();
        Self { state, base, time, events: Vec::new(), body: vec![0; FIXED_BYTES] }
    }

    /// The working copy: the state as it is after all events so far.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The time that the next event will have.
    pub fn next_time(&self) -> Timestamp {
        self.time.plus(self.events.len() as i64)
    }

    /// Whether nothing has been decided that changes anything.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// The bytes of the entry so far.
    pub fn encoded_bytes(&self) -> usize {
        self.body.len()
    }

    /// Whether one more command might not fit into the entry: seal it, and decide the next command in a new draft.
    pub fn is_full(&self) -> bool {
        self.encoded_bytes() > MAX_ENTRY_BYTES - MAX_DECISION_BYTES
    }

    /// Tries something that may be refused half-way: then the draft is as it was before.
    pub(crate) fn attempt<T, E>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, E>) -> Result<T, E> {
        let (state, events, bytes) = (self.state.clone(), self.events.len(), self.body.len());
        work(self).inspect_err(|_| {
            self.state = state;
            self.events.truncate(events);
            self.body.truncate(bytes);
        })
    }

    /// The events so far.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Ends the entry. The state that comes with it is what every replica will have once the entry is applied; it keeps no digest.
    pub fn seal(self, term: Term) -> (Entry, State) {
        let entry = Entry::from_body(self.base, term, self.time, self.events, self.body);
        let mut state = self.state;
        state.history = link(state.history, &entry);
        (entry, state)
    }

    pub(crate) fn push_sandbox(
        &mut self,
        cause: &mut Cause,
        sandbox: &Sandbox,
        kind: EventKind,
        reason: impl Into<String>,
    ) {
        let agent = sandbox.status.agent.clone();
        self.push_about(cause, sandbox, agent, kind, reason);
    }

    /// An event by which `generation` is released: it is about the agent that held that one, which need not be the
    /// agent of the current one.
    pub(crate) fn push_release(
        &mut self,
        cause: &mut Cause,
        sandbox: &Sandbox,
        generation: Generation,
        kind: EventKind,
        reason: impl Into<String>,
    ) {
        let holder = sandbox.holder_of(generation).cloned();
        self.push_about(cause, sandbox, holder, kind, reason);
    }

    pub(crate) fn push_about(
        &mut self,
        cause: &mut Cause,
        sandbox: &Sandbox,
        agent: Option<AgentId>,
        kind: EventKind,
        reason: impl Into<String>,
    ) {
        let subject = Subject { sandbox: Some((sandbox.id.clone(), sandbox.spec.name.clone())), agent };
        // The record may be older than the last event of this draft about it.
        let previous = self.state.sandbox(&sandbox.id).map_or(0, |now| now.status.revision);
        self.push(cause, subject, previous, kind, reason.into());
    }

    pub(crate) fn push_agent(
        &mut self,
        cause: &mut Cause,
        agent: &AgentId,
        kind: EventKind,
        reason: impl Into<String>,
    ) {
        let previous = self.state.agent(agent).map_or(0, |agent| agent.revision);
        let subject = Subject { sandbox: None, agent: Some(agent.clone()) };
        self.push(cause, subject, previous, kind, reason.into());
    }

    pub(crate) fn push(
        &mut self,
        cause: &mut Cause,
        subject: Subject,
        previous: Revision,
        kind: EventKind,
        reason: String,
    ) {
        let actor = cause.actor.clone();
        let reason = bounded(reason, MAX_REASON_BYTES);
        let header = Header { actor, reason, request: cause.take(), subject, previous };
        let event = Event { header, kind };
        let time = self.next_time();
        self.state.apply_event(&event, time);
        encode_event(&event, &mut self.body);
        self.events.push(event);
    }
}
