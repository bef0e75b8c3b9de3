//! A small world for the tests of this folder: a state that is driven by commands, and its history.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use sandkeeper_proto::v1;
use sandkeeper_statemachine::{
    Actor, AgentId, AgentSpec, Capacity, Command, Digest, Draft, Incarnation, Label, Outcome, Rejection,
    Report, ReportedState, Request, RequestKey, Revision, SandboxId, SandboxName, SandboxRef, State,
    Surroundings, Target, Timestamp,
};
use uuid::Uuid;

use super::convert::{Retention, create};
use crate::history::checkpoints::{Checkpoint, Checkpoints};
use crate::history::fold::{LogSource, SourceError};
use crate::history::{AppliedEntry, Digests, History, Recorder};
use crate::raft::replica::{Publisher, View};
use crate::raft::types::{LogEntry, StoredMembership};

pub(crate) const RETENTION: Retention =
    Retention { caller: Duration::from_mins(10), server: Duration::from_mins(1) };

/// A state that is driven by commands, with the entries that made it.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) applied: Vec<AppliedEntry>,
    uuids: u128,
}

/// A log that has nothing beside what is in memory.
struct NoLog;

impl LogSource for NoLog {
    fn entries_from(&self, _: u64, _: usize) -> BoxFuture<'_, Result<Vec<LogEntry>, SourceError>> {
        Box::pin(std::future::ready(Err(SourceError::Purged)))
    }

    fn first_index(&self) -> u64 {
        u64::MAX
    }
}

struct Counting<'a>(&'a mut u128);

impl Surroundings for Counting<'_> {
    fn new_uuid(&mut self) -> Uuid {
        *self.0 += 1;
        Uuid::from_u128(*self.0)
    }

    fn agents_with_image(&self, _: &str) -> Option<&BTreeSet<AgentId>> {
        None
    }
}

impl World {
    /// A cluster with agent a1 at host.example, 100 slots.
    pub(crate) fn with_agent() -> Self {
        let mut world = Self { state: State::new(), applied: Vec::new(), uuids: 0 };
        world.run(Command::CreateCluster { cluster_id: Uuid::nil(), cluster_version: 1 }, Actor::Leader);
        let spec = AgentSpec {
            agent_id: agent(),
            incarnation: incarnation(),
            capacity: Capacity { slots: 100, cpu_millis: 64_000, memory_bytes: 1 << 36 },
            labels: BTreeMap::new(),
            pool: Label::default_name(),
            runtime: "simulated".into(),
            version: "0".into(),
            host: "host.example".into(),
        };
        world.run(Command::RegisterAgent(Box::new(spec)), Actor::Agent(agent()));
        world
    }

    /// The history of this world, all of it in memory from revision `from` on. It lives as long as the publisher.
    pub(crate) fn history(&self, from: Revision) -> (History, Publisher, Recorder) {
        let (publisher, replica) = Publisher::new();
        let recorder = Recorder::new(usize::MAX);
        let history = History::new(recorder.clone(), replica, Arc::new(NoLog));
        recorder.restart(
            Checkpoints::default(),
            Checkpoint { index: u64::MAX, revision: from - 1, ..Checkpoint::ORIGIN },
        );
        for applied in self.applied.iter().filter(|applied| applied.first_revision >= from) {
            let revision = applied.last_revision();
            let digests = Digests { revision, history: Digest::default(), state: Digest::default() };
            recorder.applied(applied.clone(), digests);
        }
        self.publish(&publisher);
        (history, publisher, recorder)
    }

    pub(crate) fn publish(&self, publisher: &Publisher) {
        let membership = StoredMembership::default();
        publisher.publish(View { state: self.state.clone(), applied: None, membership });
    }

    pub(crate) fn name(name: &str) -> SandboxName {
        SandboxName { namespace: Label::default_name(), name: name.parse().unwrap() }
    }

    pub(crate) fn run(&mut self, command: Command, actor: Actor) -> Outcome {
        self.ask(&Request { actor, id: None, command }).unwrap()
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Result<Outcome, Rejection> {
        let mut draft = Draft::new(self.state.clone(), Timestamp(1_700_000_000_000_000_000));
        let outcome = draft.decide(request, &mut Counting(&mut self.uuids))?;
        if draft.is_empty() {
            return Ok(outcome);
        }
        let (entry, _) = draft.seal(1);
        let first_revision = self.state.revision() + 1;
        self.state.apply(&entry, 1);
        let index = self.applied.len() as u64;
        self.applied.push(AppliedEntry { first_revision, term: 1, index, entry: Arc::new(entry) });
        Ok(outcome)
    }

    pub(crate) fn create(&mut self, wire: v1::CreateSandboxRequest) -> (SandboxId, RequestKey) {
        let request = create::create(wire, Actor::Client("test".into()), &RETENTION).unwrap();
        let key = RequestKey {
            namespace: Some(Label::default_name()),
            id: request.id.as_ref().unwrap().id.clone(),
        };
        let Outcome::Sandbox { sandbox, .. } = self.ask(&request).unwrap() else {
            panic!("a sandbox is made")
        };
        (sandbox.id, key)
    }

    /// Makes a STRONG sandbox with the label app=NAME.
    pub(crate) fn create_strong(&mut self, name: &str) -> (SandboxId, RequestKey) {
        self.create(v1::CreateSandboxRequest {
            name: name.into(),
            mode: v1::Mode::Strong.into(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            ..v1::CreateSandboxRequest::default()
        })
    }

    /// Makes a sandbox whose record has about so many bytes.
    pub(crate) fn create_large(&mut self, name: &str, bytes: usize) -> SandboxId {
        let envs = BTreeMap::from([("LARGE".to_owned(), "x".repeat(bytes))]);
        self.create(v1::CreateSandboxRequest {
            name: name.into(),
            envs,
            ..v1::CreateSandboxRequest::default()
        })
        .0
    }

    pub(crate) fn report(&mut self, id: &SandboxId, state: ReportedState) {
        let generation = self.state.sandbox(id).unwrap().status.generation;
        let report =
            Report { agent: agent(), incarnation: incarnation(), sandbox_id: id.clone(), generation, state };
        self.run(Command::Report(report), Actor::Agent(agent()));
    }

    pub(crate) fn terminate(&mut self, id: &SandboxId) {
        let sandbox = SandboxRef::Id { namespace: Label::default_name(), id: id.clone() };
        let target = Target { sandbox, expected_revision: None };
        self.run(Command::TerminateSandbox(target), Actor::Client("test".into()));
    }
}

pub(crate) fn agent() -> AgentId {
    "a1".parse().unwrap()
}

fn incarnation() -> Incarnation {
    Incarnation { ledger: Uuid::from_u128(7), start: 1 }
}
