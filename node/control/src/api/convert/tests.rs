//! A small world to convert from, and the tables of what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use proptest::prelude::*;
use prost::Message;
use prost_types::{Duration as WireDuration, FieldMask};
use sandkeeper_proto::v1;
use sandkeeper_proto::v1::create_sandbox_request::Expiry as WireExpiry;
use sandkeeper_statemachine::{
    Actor, AgentId, AgentSpec, Capacity, Command, Digest, Draft, EventKind, Expiry, Incarnation, Label, Mode, Outcome,
    Rejection, Report, ReportedState, Request, RequestKey, Revision, SandboxId, SandboxName, SandboxRef, State, Surroundings,
    Target, Timestamp,
};
use uuid::Uuid;

use super::event::Filter;
use super::{Retention, event, fleet, sandbox};
use crate::history::checkpoints::{Checkpoint, Checkpoints};
use crate::history::fold::{LogSource, SourceError};
use crate::history::{AppliedEntry, Digests, History, Recorder};
use crate::raft::replica::{Publisher, View};
use crate::raft::types::{LogEntry, StoredMembership};

const RETENTION: Retention = Retention { caller: Duration::from_secs(600), server: Duration::from_secs(60) };

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
        recorder.restart(Checkpoints::default(), Checkpoint { index: u64::MAX, revision: from - 1 });
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

    pub(crate) fn name(&self, name: &str) -> SandboxName {
        SandboxName { namespace: Label::default_name(), name: name.parse().unwrap() }
    }

    fn run(&mut self, command: Command, actor: Actor) -> Outcome {
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

    fn create(&mut self, wire: v1::CreateSandboxRequest) -> (SandboxId, RequestKey) {
        let request = sandbox::create(wire, Actor::Client("test".into()), &RETENTION).unwrap();
        let key = RequestKey {
            namespace: Some(Label::default_name()),
            id: request.id.as_ref().unwrap().id.clone(),
        };
        let Outcome::Sandbox { sandbox, .. } = self.ask(&request).unwrap() else { panic!("a sandbox is made") };
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
        self.create(v1::CreateSandboxRequest { name: name.into(), envs, ..v1::CreateSandboxRequest::default() }).0
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

fn agent() -> AgentId {
    "a1".parse().unwrap()
}

fn incarnation() -> Incarnation {
    Incarnation { ledger: Uuid::from_u128(7), start: 1 }
}

fn actor() -> Actor {
    Actor::Client("test".into())
}

fn good() -> v1::CreateSandboxRequest {
    v1::CreateSandboxRequest { request_id: "r1".into(), name: "web".into(), ..Default::default() }
}

fn fields(refused: Result<Request, Rejection>) -> Vec<String> {
    match refused {
        Ok(request) => panic!("it must be refused: {request:?}"),
        Err(Rejection::Invalid(violations)) => violations.into_iter().map(|violation| violation.field).collect(),
        Err(other) => panic!("{other:?}"),
    }
}

fn many(count: usize) -> BTreeMap<String, String> {
    (0..count).map(|index| (format!("k{index}"), "v".to_owned())).collect()
}

fn one(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

#[test]
fn defaults_are_filled_in_so_that_equal_requests_are_equal() {
    let explicit = v1::CreateSandboxRequest {
        namespace: "default".into(),
        pool_ref: "default".into(),
        mode: v1::Mode::Fast.into(),
        failure_policy: v1::FailurePolicy::Manual.into(),
        recovery_timeout_seconds: 60,
        resources: Some(v1::Resources::default()),
        ..good()
    };
    let short = sandbox::create(good(), actor(), &RETENTION).unwrap();
    let long = sandbox::create(explicit, actor(), &RETENTION).unwrap();
    assert_eq!(short.command.digest(), long.command.digest());
    let Command::CreateSandbox(create) = short.command else { panic!("a create") };
    assert_eq!(create.spec.mode, Mode::Fast);
    assert_eq!((create.expiry, create.wait), (None, None));
    assert_eq!(short.id.unwrap().retention, 600_000_000_000);
}

#[test]
fn the_server_makes_an_id_if_the_caller_gave_none() {
    let anonymous = v1::CreateSandboxRequest { request_id: String::new(), ..good() };
    let first = sandbox::create(anonymous.clone(), actor(), &RETENTION).unwrap().id.unwrap();
    let second = sandbox::create(anonymous, actor(), &RETENTION).unwrap().id.unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(first.retention, 60_000_000_000);
}

#[test]
fn what_a_create_may_ask_for_is_taken_over() {
    let wire = v1::CreateSandboxRequest {
        exposed_ports: vec![65535, 1],
        resources: Some(v1::Resources { cpu_millis: Some(1), memory_bytes: Some(1 << 46) }),
        expiry: Some(WireExpiry::Ttl(WireDuration { seconds: 1, nanos: 500_000_000 })),
        wait_for_capacity: true,
        ..good()
    };
    let request = sandbox::create(wire.clone(), actor(), &RETENTION).unwrap();
    let Command::CreateSandbox(create) = request.command else { panic!("a create") };
    assert_eq!(create.spec.ports, [65535, 1]);
    assert_eq!((create.spec.resources.cpu_millis, create.spec.resources.memory_bytes), (1, 1 << 46));
    assert_eq!(create.expiry, Some(Expiry::After(1_500_000_000)));
    assert_eq!(create.wait, Some(sandbox::DEFAULT_CAPACITY_TIMEOUT_NANOS));
    let at = v1::CreateSandboxRequest { expiry: Some(WireExpiry::ExpireTime(9)), ..wire };
    let Command::CreateSandbox(create) = sandbox::create(at, actor(), &RETENTION).unwrap().command else {
        panic!("a create")
    };
    assert_eq!(create.expiry, Some(Expiry::At(Timestamp(9))));
}

#[test]
fn every_bad_field_of_a_create_is_named() {
    type Change = fn(&mut v1::CreateSandboxRequest);
    let cases: [(&str, Change); 48] = [
        ("request_id", |r| r.request_id = "a b".into()),
        ("request_id", |r| r.request_id = "x".repeat(129)),
        ("namespace", |r| r.namespace = "No".into()),
        ("name", |r| r.name = String::new()),
        ("name", |r| r.name = "a:b".into()),
        ("name", |r| r.name = "x".repeat(64)),
        ("image", |r| r.image = "x".repeat(4097)),
        ("args", |r| r.command = vec!["x".into(); 257]),
        ("args", |r| r.args = vec!["x".repeat(64 * 1024)]),
        ("args", |r| r.args = vec!["a\0b".into()]),
        ("envs", |r| r.envs = many(129)),
        ("envs", |r| r.envs = one("K", &"x".repeat(64 * 1024))),
        ("envs", |r| r.envs = one("", "v")),
        ("envs", |r| r.envs = one("A=B", "v")),
        ("envs", |r| r.envs = one("A", "\0")),
        ("working_dir", |r| r.working_dir = "relative".into()),
        ("working_dir", |r| r.working_dir = format!("/{}", "x".repeat(4096))),
        ("exposed_ports", |r| r.exposed_ports = vec![0]),
        ("exposed_ports", |r| r.exposed_ports = vec![-1]),
        ("exposed_ports", |r| r.exposed_ports = vec![65536]),
        ("exposed_ports", |r| r.exposed_ports = vec![i32::MAX]),
        ("exposed_ports", |r| r.exposed_ports = vec![80, 80]),
        ("exposed_ports", |r| r.exposed_ports = (1..=17).collect()),
        ("resources.cpu_millis", |r| r.resources = cpu(0)),
        ("resources.cpu_millis", |r| r.resources = cpu(-1)),
        ("resources.cpu_millis", |r| r.resources = cpu(65_536_001)),
        ("resources.cpu_millis", |r| r.resources = cpu(i64::MAX)),
        ("resources.memory_bytes", |r| r.resources = memory(0)),
        ("resources.memory_bytes", |r| r.resources = memory(i64::MIN)),
        ("resources.memory_bytes", |r| r.resources = memory((1 << 46) + 1)),
        ("pool_ref", |r| r.pool_ref = "-".into()),
        ("labels", |r| r.labels = many(65)),
        ("labels", |r| r.labels = one("", "v")),
        ("labels", |r| r.labels = one("k", &"x".repeat(257))),
        ("agent_selector", |r| r.agent_selector = many(65)),
        ("mode", |r| r.mode = 9),
        ("failure_policy", |r| r.failure_policy = -1),
        ("recovery_timeout_seconds", |r| r.recovery_timeout_seconds = 86_401),
        ("ttl", |r| r.expiry = ttl_of(0, 0)),
        ("ttl", |r| r.expiry = ttl_of(-1, 0)),
        ("ttl", |r| r.expiry = ttl_of(1, -1)),
        ("ttl", |r| r.expiry = ttl_of(0, 1_000_000_000)),
        ("ttl", |r| r.expiry = ttl_of(i64::MAX, 0)),
        ("expire_time", |r| r.expiry = Some(WireExpiry::ExpireTime(0))),
        ("expire_time", |r| r.expiry = Some(WireExpiry::ExpireTime(i64::MIN))),
        ("capacity_timeout", |r| r.capacity_timeout = Some(WireDuration { seconds: 1, nanos: 0 })),
        ("capacity_timeout", |r| {
            r.wait_for_capacity = true;
            r.capacity_timeout = Some(WireDuration { seconds: 0, nanos: 0 });
        }),
        ("request", |r| r.image = "x".repeat(1024 * 1024)),
    ];
    for (at, (field, change)) in cases.into_iter().enumerate() {
        let mut wire = good();
        change(&mut wire);
        let found = fields(sandbox::create(wire, actor(), &RETENTION));
        assert!(found.iter().any(|found| found == field), "case {at}: {field} is not in {found:?}");
        let only = found.iter().all(|found| found == field || field == "request");
        assert!(only, "case {at}: only {field} is bad, not {found:?}");
    }
}

fn cpu(value: i64) -> Option<v1::Resources> {
    Some(v1::Resources { cpu_millis: Some(value), memory_bytes: None })
}

fn memory(value: i64) -> Option<v1::Resources> {
    Some(v1::Resources { cpu_millis: None, memory_bytes: Some(value) })
}

fn ttl_of(seconds: i64, nanos: i32) -> Option<WireExpiry> {
    Some(WireExpiry::Ttl(WireDuration { seconds, nanos }))
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let wire = v1::CreateSandboxRequest {
        request_id: "a b".into(),
        namespace: "No".into(),
        name: String::new(),
        exposed_ports: vec![0],
        resources: cpu(-1),
        ..good()
    };
    let found = fields(sandbox::create(wire, actor(), &RETENTION));
    for field in ["request_id", "namespace", "name", "exposed_ports", "resources.cpu_millis"] {
        assert!(found.iter().any(|found| found == field), "{field} is not in {found:?}");
    }
}

#[test]
fn a_time_in_the_past_is_refused_by_the_leader_with_the_field() {
    let mut world = World::with_agent();
    let wire = v1::CreateSandboxRequest { expiry: Some(WireExpiry::ExpireTime(1)), ..good() };
    let request = sandbox::create(wire, actor(), &RETENTION).unwrap();
    let Err(Rejection::Invalid(violations)) = world.ask(&request) else { panic!("it must be refused") };
    assert_eq!(violations[0].field, "expire_time");
}

fn by_name() -> Option<v1::SandboxRef> {
    Some(v1::SandboxRef { name: "web".into(), ..Default::default() })
}

#[test]
fn an_update_changes_what_its_mask_names() {
    let mask = |paths: &[&str]| Some(FieldMask { paths: paths.iter().map(ToString::to_string).collect() });
    let wire = |paths: &[&str]| v1::UpdateSandboxRequest {
        r#ref: by_name(),
        update_mask: mask(paths),
        labels: one("a", "b"),
        expire_time: 0,
        ..Default::default()
    };
    let request = sandbox::update(wire(&["labels", "expire_time"]), actor(), &RETENTION).unwrap();
    let Command::UpdateSandbox { update, target } = request.command else { panic!("an update") };
    assert_eq!(update.labels, Some(one("a", "b")));
    assert_eq!(update.expire_time, Some(None), "0: never");
    assert_eq!((update.failure_policy, update.recovery_timeout_seconds), (None, None));
    assert_eq!(target.expected_revision, None);
    let twice = sandbox::update(wire(&["labels", "labels"]), actor(), &RETENTION).unwrap();
    let Command::UpdateSandbox { update, .. } = twice.command else { panic!("an update") };
    assert_eq!(update.labels, Some(one("a", "b")));

    assert_eq!(fields(sandbox::update(wire(&[]), actor(), &RETENTION)), ["update_mask"]);
    assert_eq!(fields(sandbox::update(wire(&["image"]), actor(), &RETENTION)), ["update_mask"]);
    let past = v1::UpdateSandboxRequest { expire_time: -1, ..wire(&["expire_time"]) };
    assert_eq!(fields(sandbox::update(past, actor(), &RETENTION)), ["expire_time"]);
    let labels = v1::UpdateSandboxRequest { labels: many(65), ..wire(&["labels"]) };
    assert_eq!(fields(sandbox::update(labels, actor(), &RETENTION)), ["labels"]);
}

#[test]
fn a_reference_names_one_sandbox_in_one_way() {
    let refused = |r#ref: Option<v1::SandboxRef>| {
        let wire = v1::TerminateSandboxRequest { r#ref, ..Default::default() };
        fields(sandbox::terminate(&wire, actor(), &RETENTION))
    };
    let wire = |id: &str, namespace: &str, name: &str| {
        Some(v1::SandboxRef { sandbox_id: id.into(), namespace: namespace.into(), name: name.into() })
    };
    assert_eq!(refused(None), ["ref"]);
    assert_eq!(refused(wire("", "", "")), ["ref"]);
    assert_eq!(refused(wire("x", "", "web")), ["ref"]);
    assert_eq!(refused(wire("NO", "", "")), ["ref.sandbox_id"]);
    assert_eq!(refused(wire("", "NO", "NO")), ["ref.namespace", "ref.name"]);
    let wire = v1::TerminateSandboxRequest { r#ref: by_name(), expected_revision: 7, ..Default::default() };
    let request = sandbox::terminate(&wire, actor(), &RETENTION).unwrap();
    let Command::TerminateSandbox(target) = request.command else { panic!("a terminate") };
    assert_eq!(target.expected_revision, Some(7));
    assert!(matches!(target.sandbox, SandboxRef::Name(name) if name.namespace.as_str() == "default"));
}

#[test]
fn agents_are_named_and_reasons_bounded() {
    let wire = v1::CordonAgentRequest { agent_id: "NO".into(), reason: "x".repeat(4097), ..Default::default() };
    assert_eq!(fields(fleet::cordon(wire, actor(), &RETENTION)), ["reason", "agent_id"]);
    let wire = v1::RemoveAgentRequest { agent_id: "a1".into(), fenced: true, ..Default::default() };
    let request = fleet::remove(&wire, actor(), &RETENTION).unwrap();
    assert_eq!(request.command, Command::RemoveAgent { agent: agent(), fenced: true });
}

#[test]
fn endpoints_are_foretold_until_the_agent_reports_them() {
    let mut world = World::with_agent();
    let (id, _) = world.create(v1::CreateSandboxRequest { exposed_ports: vec![8080], ..good() });
    let told = |world: &World| sandbox::sandbox(world.state.sandbox(&id).unwrap(), &world.state);
    assert_eq!(told(&world).endpoints, ["host.example:8080"]);
    assert_eq!((told(&world).phase(), told(&world).agent_id.as_str()), (v1::Phase::Allocated, "a1"));
    assert!(!sandbox::lacks_agent(world.state.sandbox(&id).unwrap(), &world.state));
    assert!(sandbox::lacks_agent(world.state.sandbox(&id).unwrap(), &State::new()));
    world.report(&id, ReportedState::Running { endpoints: vec!["10.0.0.1:31000".into()] });
    assert_eq!(told(&world).endpoints, ["10.0.0.1:31000"]);
    assert!(told(&world).running_timestamp > told(&world).create_timestamp);
    let gone = sandbox::gone(told(&world));
    assert_eq!((gone.phase(), gone.endpoints.len()), (v1::Phase::Gone, 0));
}

#[test]
fn what_is_told_of_a_sandbox_is_what_was_asked_for() {
    let wire = v1::CreateSandboxRequest {
        image: "busybox".into(),
        command: vec!["sh".into()],
        args: vec!["-c".into(), "true".into()],
        envs: one("K", "V"),
        working_dir: "/tmp".into(),
        exposed_ports: vec![80],
        resources: cpu(500),
        labels: one("app", "web"),
        failure_policy: v1::FailurePolicy::AutoRecreate.into(),
        recovery_timeout_seconds: 5,
        ..good()
    };
    let mut world = World::with_agent();
    let (id, _) = world.create(wire.clone());
    let told = sandbox::sandbox(world.state.sandbox(&id).unwrap(), &world.state);
    assert_eq!((&told.image, &told.command, &told.args), (&wire.image, &wire.command, &wire.args));
    assert_eq!((&told.envs, &told.working_dir, &told.labels), (&wire.envs, &wire.working_dir, &wire.labels));
    assert_eq!((&told.exposed_ports, told.resources), (&wire.exposed_ports, wire.resources));
    assert_eq!((told.failure_policy, told.recovery_timeout_seconds), (wire.failure_policy, 5));
    assert_eq!((told.request_id.as_str(), told.namespace.as_str(), told.pool_ref.as_str()), ("r1", "default", "default"));
    assert_eq!(told.sandbox_id, SandboxId::fast(&world.name("web"), Timestamp(told.create_timestamp)).to_string());
    assert_eq!(told.expire_time, 0);
}

#[test]
fn events_tell_who_what_and_the_chain() {
    let mut world = World::with_agent();
    let (id, _) = world.create(good());
    world.report(&id, ReportedState::StartFailed { reason: "no such program".into() });
    let mut told = Vec::new();
    for applied in &world.applied {
        for (at, core) in applied.entry.events.iter().enumerate() {
            told.push(event::event(applied.first_revision + at as u64, applied.entry.time_of(at), core));
        }
    }
    let [.., created, allocated, failed] = told.as_slice() else { panic!("three events at least") };
    assert_eq!(created.r#type(), v1::EventType::SandboxCreated);
    assert_eq!((created.actor.as_str(), created.request_id.as_str()), ("client test", "r1"));
    assert_eq!(created.sandbox.as_ref().unwrap().sandbox_id, id.to_string());
    assert_eq!(created.sandbox.as_ref().unwrap().create_timestamp, created.time);
    assert_eq!((allocated.previous_revision, allocated.generation), (created.revision, 1));
    assert_eq!(allocated.agent_id, "a1");
    assert_eq!((failed.previous_revision, failed.reason.as_str()), (allocated.revision, "no such program"));
    assert_eq!(failed.actor, "agent a1");
}

#[test]
fn a_filter_matches_all_that_is_set() {
    let mut world = World::with_agent();
    let (id, _) = world.create(good());
    let events: Vec<_> = world.applied.iter().flat_map(|applied| applied.entry.events.clone()).collect();
    let created = events.iter().find(|event| matches!(event.kind, EventKind::SandboxCreated(_))).unwrap();
    let registered = events.iter().find(|event| matches!(event.kind, EventKind::AgentRegistered(_))).unwrap();
    let empty = v1::EventFilter::default;
    let read = |wire: v1::EventFilter| event::filter(Some(&wire)).unwrap();
    let for_sandbox = [
        empty(),
        v1::EventFilter { namespace: "default".into(), ..empty() },
        v1::EventFilter { name: "web".into(), ..empty() },
        v1::EventFilter { sandbox_id: id.to_string(), ..empty() },
        v1::EventFilter { types: vec![v1::EventType::SandboxCreated.into()], ..empty() },
    ];
    for (at, wire) in for_sandbox.into_iter().enumerate() {
        assert!(read(wire.clone()).matches(created), "{wire:?}");
        assert_eq!(read(wire.clone()).matches(registered), at == 0, "{wire:?}");
    }
    let for_agent = v1::EventFilter { agent_id: "a1".into(), ..empty() };
    assert!(read(for_agent.clone()).matches(registered));
    assert!(!read(v1::EventFilter { name: "web".into(), ..for_agent }).matches(registered));
    assert!(!read(v1::EventFilter { name: "other".into(), ..empty() }).matches(created));
    assert_eq!(event::filter(None).unwrap(), Filter::default());
    for bad in [
        v1::EventFilter { namespace: "NO".into(), ..empty() },
        v1::EventFilter { sandbox_id: "NO".into(), ..empty() },
        v1::EventFilter { types: vec![0], ..empty() },
        v1::EventFilter { types: vec![999], ..empty() },
    ] {
        assert!(event::filter(Some(&bad)).is_err(), "{bad:?}");
    }
}

#[test]
fn a_list_of_events_says_whose() {
    assert!(Filter::of_list(None).is_err());
    let types = v1::EventFilter { types: vec![v1::EventType::AgentLost.into()], ..Default::default() };
    assert!(Filter::of_list(Some(&types)).is_err());
    let named = v1::EventFilter { name: "web".into(), ..Default::default() };
    assert_eq!(Filter::of_list(Some(&named)).unwrap().namespace, Some(Label::default_name()));
}

#[test]
fn consistency_is_linearizable_unless_asked_otherwise() {
    let read = |consistency| super::freshness(Some(v1::ReadOptions { consistency, min_revision: 3 }));
    assert!(super::freshness(None).unwrap().linearizable);
    assert!(read(1).unwrap().linearizable);
    assert!(!read(2).unwrap().linearizable);
    assert_eq!(read(2).unwrap().min_revision, 3);
    assert!(read(3).is_err());
}

#[test]
fn the_fleet_is_counted_from_the_state() {
    let mut world = World::with_agent();
    world.create_strong("web");
    let told = fleet::fleet(&world.state);
    assert_eq!(told.total.unwrap().slots, 100);
    assert_eq!(told.allocated.unwrap().slots, 1);
    assert_eq!(told.free.unwrap().slots, 99);
    assert_eq!((told.sandboxes, told.pending), (1, 0));
    assert_eq!(told.state_digest.len(), 64);
    let agent = fleet::agent(world.state.agent(&agent()).unwrap(), None);
    assert!(!agent.connected);
    assert_eq!(agent.status(), v1::AgentStatus::Ready);
}

proptest! {
    /// Whatever bytes come: a request is refused, or gives a command that the core can take.
    #[test]
    fn no_create_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        name in "[a-z0-9-]{0,70}",
        mode in -2..5i32,
        ports in proptest::collection::vec(any::<i32>(), 0..20),
        numbers in any::<(Option<i64>, Option<i64>, i64, i32, u32)>(),
    ) {
        if let Ok(wire) = v1::CreateSandboxRequest::decode(bytes.as_slice()) {
            let _ = sandbox::create(wire, actor(), &RETENTION);
        }
        let (cpu_millis, memory_bytes, seconds, nanos, recovery_timeout_seconds) = numbers;
        let wire = v1::CreateSandboxRequest {
            name,
            mode,
            exposed_ports: ports,
            resources: Some(v1::Resources { cpu_millis, memory_bytes }),
            expiry: ttl_of(seconds, nanos),
            recovery_timeout_seconds,
            ..good()
        };
        if let Ok(request) = sandbox::create(wire, actor(), &RETENTION) {
            let mut world = World::with_agent();
            let refused = world.ask(&request).err();
            prop_assert!(!matches!(refused, Some(Rejection::Invalid(_))), "{refused:?}");
        }
    }

    #[test]
    fn no_other_request_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = bytes.as_slice();
        if let Ok(wire) = v1::UpdateSandboxRequest::decode(bytes) {
            let _ = sandbox::update(wire, actor(), &RETENTION);
        }
        if let Ok(wire) = v1::TerminateSandboxRequest::decode(bytes) {
            let _ = sandbox::terminate(&wire, actor(), &RETENTION);
        }
        if let Ok(wire) = v1::EventFilter::decode(bytes) {
            let _ = Filter::of_list(Some(&wire));
        }
        if let Ok(wire) = v1::CordonAgentRequest::decode(bytes) {
            let _ = fleet::cordon(wire, actor(), &RETENTION);
        }
    }
}
