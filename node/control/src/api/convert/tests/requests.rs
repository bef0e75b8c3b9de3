//! Requests: the tables of what is refused, and what becomes of the rest.

use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::Message;
use prost_types::{Duration as WireDuration, FieldMask};
use sandkeeper_proto::v1;
use sandkeeper_proto::v1::create_sandbox_request::Expiry as WireExpiry;
use sandkeeper_statemachine::{Command, Expiry, Mode, Rejection, Request, SandboxRef, Timestamp};

use super::{actor, cpu, good, one};
use crate::api::convert::create::{DEFAULT_CAPACITY_TIMEOUT_NANOS, create};
use crate::api::convert::event::Filter;
use crate::api::convert::{fleet, freshness, sandbox};
use crate::api::testing::{RETENTION, World, agent};

fn fields(refused: Result<Request, Rejection>) -> Vec<String> {
    match refused {
        Ok(request) => panic!("it must be refused: {request:?}"),
        Err(Rejection::Invalid(violations)) => {
            violations.into_iter().map(|violation| violation.field).collect()
        }
        Err(other) => panic!("{other:?}"),
    }
}

fn many(count: usize) -> BTreeMap<String, String> {
    (0..count).map(|index| (format!("k{index}"), "v".to_owned())).collect()
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
    let short = create(good(), actor(), &RETENTION).unwrap();
    let long = create(explicit, actor(), &RETENTION).unwrap();
    assert_eq!(short.command.digest(), long.command.digest());
    let Command::CreateSandbox(asked) = short.command else { panic!("a create") };
    assert_eq!(asked.spec.mode, Mode::Fast);
    assert_eq!((asked.expiry, asked.wait), (None, None));
    assert_eq!(short.id.unwrap().retention, 600_000_000_000);
}

#[test]
fn maps_are_the_same_in_whatever_order_they_come() {
    // On the wire a map is a list of pairs, in the order of whoever wrote it; a key that comes twice has its last value.
    let pair = |key: &str, value: &str| {
        let mut entry = vec![10, key.len() as u8];
        entry.extend(key.bytes());
        entry.extend([18, value.len() as u8]);
        entry.extend(value.bytes());
        entry
    };
    let asked = |field: u8, pairs: &[(&str, &str)]| {
        let mut bytes = good().encode_to_vec();
        for (key, value) in pairs {
            let entry = pair(key, value);
            // Fields from 16 on have a tag of two bytes.
            let tag = u32::from(field) << 3 | 2;
            prost::encoding::encode_varint(tag.into(), &mut bytes);
            bytes.push(entry.len() as u8);
            bytes.extend(entry);
        }
        let wire = v1::CreateSandboxRequest::decode(bytes.as_slice()).unwrap();
        create(wire, actor(), &RETENTION).unwrap().command.digest()
    };
    // envs, labels, agent_selector.
    for field in [7, 12, 19] {
        let sorted = asked(field, &[("a", "1"), ("b", "2")]);
        assert_eq!(sorted, asked(field, &[("b", "2"), ("a", "1")]));
        assert_eq!(sorted, asked(field, &[("b", "3"), ("b", "2"), ("a", "1")]));
        assert_ne!(sorted, asked(field, &[("a", "2"), ("b", "1")]));
    }
}

#[test]
fn the_server_makes_an_id_if_the_caller_gave_none() {
    let anonymous = v1::CreateSandboxRequest { request_id: String::new(), ..good() };
    let first = create(anonymous.clone(), actor(), &RETENTION).unwrap().id.unwrap();
    let second = create(anonymous, actor(), &RETENTION).unwrap().id.unwrap();
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
    let request = create(wire.clone(), actor(), &RETENTION).unwrap();
    let Command::CreateSandbox(asked) = request.command else { panic!("a create") };
    assert_eq!(asked.spec.ports, [65535, 1]);
    assert_eq!((asked.spec.resources.cpu_millis, asked.spec.resources.memory_bytes), (1, 1 << 46));
    assert_eq!(asked.expiry, Some(Expiry::After(1_500_000_000)));
    assert_eq!(asked.wait, Some(DEFAULT_CAPACITY_TIMEOUT_NANOS));
    let at = v1::CreateSandboxRequest { expiry: Some(WireExpiry::ExpireTime(9)), ..wire };
    let Command::CreateSandbox(asked) = create(at, actor(), &RETENTION).unwrap().command else {
        panic!("a create")
    };
    assert_eq!(asked.expiry, Some(Expiry::At(Timestamp(9))));
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
        ("resources.cpu_millis", |r| r.resources = Some(cpu(0))),
        ("resources.cpu_millis", |r| r.resources = Some(cpu(-1))),
        ("resources.cpu_millis", |r| r.resources = Some(cpu(65_536_001))),
        ("resources.cpu_millis", |r| r.resources = Some(cpu(i64::MAX))),
        ("resources.memory_bytes", |r| r.resources = Some(memory(0))),
        ("resources.memory_bytes", |r| r.resources = Some(memory(i64::MIN))),
        ("resources.memory_bytes", |r| r.resources = Some(memory((1 << 46) + 1))),
        ("pool_ref", |r| r.pool_ref = "-".into()),
        ("labels", |r| r.labels = many(65)),
        ("labels", |r| r.labels = one("", "v")),
        ("labels", |r| r.labels = one("k", &"x".repeat(257))),
        ("agent_selector", |r| r.agent_selector = many(65)),
        ("mode", |r| r.mode = 9),
        ("failure_policy", |r| r.failure_policy = -1),
        ("recovery_timeout_seconds", |r| r.recovery_timeout_seconds = 86_401),
        ("ttl", |r| r.expiry = Some(ttl_of(0, 0))),
        ("ttl", |r| r.expiry = Some(ttl_of(-1, 0))),
        ("ttl", |r| r.expiry = Some(ttl_of(1, -1))),
        ("ttl", |r| r.expiry = Some(ttl_of(0, 1_000_000_000))),
        ("ttl", |r| r.expiry = Some(ttl_of(i64::MAX, 0))),
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
        let found = fields(create(wire, actor(), &RETENTION));
        assert!(found.iter().any(|found| found == field), "case {at}: {field} is not in {found:?}");
        let only = found.iter().all(|found| found == field || field == "request");
        assert!(only, "case {at}: only {field} is bad, not {found:?}");
    }
}

fn memory(value: i64) -> v1::Resources {
    v1::Resources { cpu_millis: None, memory_bytes: Some(value) }
}

fn ttl_of(seconds: i64, nanos: i32) -> WireExpiry {
    WireExpiry::Ttl(WireDuration { seconds, nanos })
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let wire = v1::CreateSandboxRequest {
        request_id: "a b".into(),
        namespace: "No".into(),
        name: String::new(),
        exposed_ports: vec![0],
        resources: Some(cpu(-1)),
        ..good()
    };
    let found = fields(create(wire, actor(), &RETENTION));
    for field in ["request_id", "namespace", "name", "exposed_ports", "resources.cpu_millis"] {
        assert!(found.iter().any(|found| found == field), "{field} is not in {found:?}");
    }
}

#[test]
fn a_time_in_the_past_is_refused_by_the_leader_with_the_field() {
    let mut world = World::with_agent();
    let wire = v1::CreateSandboxRequest { expiry: Some(WireExpiry::ExpireTime(1)), ..good() };
    let request = create(wire, actor(), &RETENTION).unwrap();
    let Err(Rejection::Invalid(violations)) = world.ask(&request) else { panic!("it must be refused") };
    assert_eq!(violations[0].field, "expire_time");
}

fn by_name() -> v1::SandboxRef {
    v1::SandboxRef { name: "web".into(), ..Default::default() }
}

#[test]
fn an_update_changes_what_its_mask_names() {
    let mask = |paths: &[&str]| Some(FieldMask { paths: paths.iter().map(ToString::to_string).collect() });
    let wire = |paths: &[&str]| v1::UpdateSandboxRequest {
        r#ref: Some(by_name()),
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
    let wire =
        v1::TerminateSandboxRequest { r#ref: Some(by_name()), expected_revision: 7, ..Default::default() };
    let request = sandbox::terminate(&wire, actor(), &RETENTION).unwrap();
    let Command::TerminateSandbox(target) = request.command else { panic!("a terminate") };
    assert_eq!(target.expected_revision, Some(7));
    assert!(matches!(target.sandbox, SandboxRef::Name(name) if name.namespace.as_str() == "default"));
}

#[test]
fn agents_are_named_and_reasons_bounded() {
    let wire =
        v1::CordonAgentRequest { agent_id: "NO".into(), reason: "x".repeat(4097), ..Default::default() };
    assert_eq!(fields(fleet::cordon(wire, actor(), &RETENTION)), ["reason", "agent_id"]);
    let wire = v1::RemoveAgentRequest { agent_id: "a1".into(), fenced: true, ..Default::default() };
    let request = fleet::remove(&wire, actor(), &RETENTION).unwrap();
    assert_eq!(request.command, Command::RemoveAgent { agent: agent(), fenced: true });
}

#[test]
fn consistency_is_linearizable_unless_asked_otherwise() {
    let read = |consistency| freshness(Some(v1::ReadOptions { consistency, min_revision: 3 }));
    assert!(freshness(None).unwrap().linearizable);
    assert!(read(1).unwrap().linearizable);
    assert!(!read(2).unwrap().linearizable);
    assert_eq!(read(2).unwrap().min_revision, 3);
    assert!(read(3).is_err());
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
            let _ = create(wire, actor(), &RETENTION);
        }
        let (cpu_millis, memory_bytes, seconds, nanos, recovery_timeout_seconds) = numbers;
        let wire = v1::CreateSandboxRequest {
            name,
            mode,
            exposed_ports: ports,
            resources: Some(v1::Resources { cpu_millis, memory_bytes }),
            expiry: Some(ttl_of(seconds, nanos)),
            recovery_timeout_seconds,
            ..good()
        };
        if let Ok(request) = create(wire, actor(), &RETENTION) {
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
