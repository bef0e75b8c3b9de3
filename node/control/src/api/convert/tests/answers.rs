//! What is told of sandboxes, events and agents.

use sandkeeper_proto::v1;
use sandkeeper_statemachine::{
    Actor, Command, EventKind, Label, ReportedState, SandboxId, SandboxUpdate, State, Timestamp,
};

use super::{cpu, good, one};
use crate::api::convert::event::Filter;
use crate::api::convert::{event, fleet, sandbox};
use crate::api::testing::{World, agent};

#[test]
fn endpoints_are_foretold_until_the_agent_reports_them() {
    let mut world = World::with_agent();
    let (id, _) = world.create(v1::CreateSandboxRequest { exposed_ports: vec![8080], ..good() });
    let told = |world: &World| sandbox::sandbox(world.state.sandbox(&id).unwrap(), &world.state);
    assert_eq!(told(&world).endpoints, ["host.example:8080"]);
    assert_eq!((told(&world).phase(), told(&world).agent_id.as_str()), (v1::Phase::Allocated, "a1"));
    assert!(!sandbox::lacks_agent(world.state.sandbox(&id).unwrap(), &world.state));
    assert!(sandbox::lacks_agent(world.state.sandbox(&id).unwrap(), &State::new()));
    world.report(&id, ReportedState::Running { endpoints: vec!["10.0.0.1:31000".into()], lease_revision: 0 });
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
        resources: Some(cpu(500)),
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
    assert_eq!(
        (told.request_id.as_str(), told.namespace.as_str(), told.pool_ref.as_str()),
        ("r1", "default", "default")
    );
    assert_eq!(
        told.sandbox_id,
        SandboxId::fast(&World::name("web"), Timestamp(told.create_timestamp)).to_string()
    );
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
fn events_tell_where_it_runs_and_what_was_changed() {
    let mut world = World::with_agent();
    let (id, _) = world.create(good());
    world.report(&id, ReportedState::Running { endpoints: vec!["10.0.0.1:31000".into()], lease_revision: 0 });
    let applied = world.applied.last().unwrap();
    let mut core = applied.entry.events.last().unwrap().clone();
    let told = event::event(applied.first_revision, applied.entry.time_of(0), &core);
    assert_eq!(
        (told.r#type(), told.endpoints),
        (v1::EventType::SandboxRunning, vec!["10.0.0.1:31000".into()])
    );
    core.kind = EventKind::SandboxUpdated(SandboxUpdate {
        expire_time: Some(None),
        recovery_timeout_seconds: Some(7),
        ..SandboxUpdate::default()
    });
    let told = event::event(9, Timestamp(9), &core);
    assert_eq!(told.changed, ["expire_time", "recovery_timeout_seconds"]);
    let expected = v1::Sandbox { recovery_timeout_seconds: 7, ..Default::default() };
    assert_eq!(told.sandbox, Some(expected), "and nothing of what was not changed");
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
fn the_fleet_is_counted_from_the_state() {
    let mut world = World::with_agent();
    world.create_strong("web");
    let told = fleet::fleet(&world.state);
    assert_eq!(told.total.unwrap().slots, 100);
    assert_eq!(told.allocated.unwrap().slots, 1);
    assert_eq!(told.free.unwrap().slots, 99);
    assert_eq!((told.sandboxes, told.pending), (1, 0));
    assert_eq!(told.state_digest.len(), 64);
    let tell = |world: &World| fleet::agents(&world.state, world.state.agents(), |_| None).pop().unwrap();
    let told = tell(&world);
    assert!(!told.connected && !told.recovery_paused);
    assert_eq!((told.status(), told.lost_since), (v1::AgentStatus::Ready, 0));
    let incarnation = world.state.agent(&agent()).unwrap().spec.incarnation;
    world.run(Command::LoseAgent { agent: agent(), incarnation }, Actor::Leader);
    let told = tell(&world);
    assert!(told.recovery_paused && told.lost_since > 0, "nobody is left: {told:?}");
}
