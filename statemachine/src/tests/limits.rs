//! Every limit, at and over it.

use std::sync::Arc;

use super::world::*;
use crate::command::Report;
use crate::limits::*;
use crate::*;

/// The fields that a create violates.
fn violated(change: impl FnOnce(&mut CreateSandbox)) -> Vec<String> {
    let mut create = create("web");
    change(&mut create);
    match check_create(&create) {
        Ok(()) => Vec::new(),
        Err(violations) => violations.into_iter().map(|violation| violation.field).collect(),
    }
}

fn labels(count: usize) -> Labels {
    (0..count).map(|n| (format!("k{n}"), String::new())).collect()
}

fn none() -> Vec<String> {
    Vec::new()
}

fn text(bytes: usize) -> String {
    "x".repeat(bytes)
}

#[test]
fn a_create_is_limited_in_what_it_runs() {
    let envs = |count: usize| {
        move |c: &mut CreateSandbox| {
            c.spec.envs = (0..count).map(|n| (format!("K{n}"), String::new())).collect();
        }
    };
    assert_eq!(violated(envs(MAX_ENVS)), none());
    assert_eq!(violated(envs(MAX_ENVS + 1)), ["envs"]);
    let env_bytes = |bytes: usize| {
        move |c: &mut CreateSandbox| {
            c.spec.envs.insert("K".into(), text(bytes - 3)); // with '=' and NUL, as execve(2) counts
        }
    };
    assert_eq!(violated(env_bytes(MAX_ENV_BYTES)), none());
    assert_eq!(violated(env_bytes(MAX_ENV_BYTES + 1)), ["envs"]);
    for (key, value) in [("", "v"), ("a=b", "v"), ("a\0", "v"), ("a", "v\0")] {
        assert_eq!(violated(|c| drop(c.spec.envs.insert(key.into(), value.into()))), ["envs"], "{key:?}");
    }
    let args = |command: usize, args: usize| {
        move |c: &mut CreateSandbox| {
            c.spec.command = vec![String::new(); command];
            c.spec.args = vec![String::new(); args];
        }
    };
    assert_eq!(violated(args(1, MAX_ARGS - 1)), none());
    assert_eq!(violated(args(1, MAX_ARGS)), ["args"]);
    let arg_bytes = |bytes: usize| move |c: &mut CreateSandbox| c.spec.args = vec![text(bytes - 1)];
    assert_eq!(violated(arg_bytes(MAX_ARG_BYTES)), none());
    assert_eq!(violated(arg_bytes(MAX_ARG_BYTES + 1)), ["args"]);
    assert_eq!(violated(|c| c.spec.command = vec!["a\0".into()]), ["args"]);
    assert_eq!(violated(|c| c.spec.image = text(MAX_TEXT_BYTES)), none());
    assert_eq!(violated(|c| c.spec.image = text(MAX_TEXT_BYTES + 1)), ["image"]);
    assert_eq!(violated(|c| c.spec.working_dir = format!("/{}", text(MAX_TEXT_BYTES - 1))), none());
    assert_eq!(violated(|c| c.spec.working_dir = format!("/{}", text(MAX_TEXT_BYTES))), ["working_dir"]);
    assert_eq!(violated(|c| c.spec.working_dir = "/a\0".into()), ["working_dir"]);
    assert_eq!(violated(|c| c.spec.working_dir = "tmp".into()), ["working_dir"]);
}

#[test]
fn a_create_is_limited_in_what_it_takes() {
    let ports = |count: u16| move |c: &mut CreateSandbox| c.spec.ports = (1..=count).collect();
    assert_eq!(violated(ports(MAX_PORTS as u16)), none());
    assert_eq!(violated(ports(MAX_PORTS as u16 + 1)), ["exposed_ports"]);
    assert_eq!(violated(|c| c.spec.ports = vec![0]), ["exposed_ports"]);
    assert_eq!(violated(|c| c.spec.ports = vec![80, 81, 80]), ["exposed_ports"]);
    assert_eq!(violated(|c| c.spec.resources.cpu_millis = MAX_CPU_MILLIS), none());
    assert_eq!(violated(|c| c.spec.resources.cpu_millis = MAX_CPU_MILLIS + 1), ["resources.cpu_millis"]);
    assert_eq!(violated(|c| c.spec.resources.memory_bytes = MAX_MEMORY_BYTES), none());
    assert_eq!(violated(|c| c.spec.resources.memory_bytes = u64::MAX), ["resources.memory_bytes"]);
}

#[test]
fn a_create_is_limited_in_labels_and_times() {
    assert_eq!(violated(|c| c.labels = labels(MAX_LABELS)), none());
    assert_eq!(violated(|c| c.labels = labels(MAX_LABELS + 1)), ["labels"]);
    assert_eq!(violated(|c| c.spec.agent_selector = labels(MAX_LABELS)), none());
    assert_eq!(violated(|c| c.spec.agent_selector = labels(MAX_LABELS + 1)), ["agent_selector"]);
    let label =
        |key: usize, value: usize| move |c: &mut CreateSandbox| drop(c.labels.insert(text(key), text(value)));
    assert_eq!(violated(label(MAX_LABEL_TEXT_BYTES, MAX_LABEL_TEXT_BYTES)), none());
    for (key, value) in [(0, 1), (MAX_LABEL_TEXT_BYTES + 1, 1), (1, MAX_LABEL_TEXT_BYTES + 1)] {
        assert_eq!(violated(label(key, value)), ["labels"]);
    }
    let timeout = |seconds: u32| move |c: &mut CreateSandbox| c.recovery_timeout_seconds = seconds;
    assert_eq!(violated(timeout(MAX_RECOVERY_TIMEOUT_SECONDS)), none());
    assert_eq!(violated(timeout(MAX_RECOVERY_TIMEOUT_SECONDS + 1)), ["recovery_timeout_seconds"]);
    for good in [1, MAX_DURATION_NANOS] {
        assert_eq!(violated(|c| c.expiry = Some(Expiry::After(good))), none());
        assert_eq!(violated(|c| c.wait = Some(good)), none());
    }
    for bad in [i64::MIN, 0, MAX_DURATION_NANOS + 1, i64::MAX] {
        assert_eq!(violated(|c| c.expiry = Some(Expiry::After(bad))), ["ttl"]);
        assert_eq!(violated(|c| c.wait = Some(bad)), ["capacity_timeout"]);
    }
}

#[test]
fn an_update_is_limited_like_a_create() {
    let check =
        |update: SandboxUpdate| check_update(&update).err().map(|violations| violations[0].field.clone());
    let of_labels = |count| SandboxUpdate { labels: Some(labels(count)), ..SandboxUpdate::default() };
    assert_eq!(check(of_labels(MAX_LABELS)), None);
    assert_eq!(check(of_labels(MAX_LABELS + 1)).unwrap(), "labels");
    let of_timeout =
        |seconds| SandboxUpdate { recovery_timeout_seconds: Some(seconds), ..SandboxUpdate::default() };
    assert_eq!(check(of_timeout(MAX_RECOVERY_TIMEOUT_SECONDS)), None);
    assert_eq!(check(of_timeout(MAX_RECOVERY_TIMEOUT_SECONDS + 1)).unwrap(), "recovery_timeout_seconds");
}

#[test]
fn an_agent_is_limited_in_what_it_says_of_itself() {
    let violated = |change: &dyn Fn(&mut AgentSpec)| {
        let mut spec = agent("a1", 1);
        change(&mut spec);
        let violations = check_agent(&spec).err().unwrap_or_default();
        violations.into_iter().map(|violation| violation.field).collect::<Vec<_>>()
    };
    assert_eq!(violated(&|a| a.capacity.slots = MAX_SLOTS), none());
    assert_eq!(violated(&|a| a.capacity.slots = MAX_SLOTS + 1), ["capacity.slots"]);
    assert_eq!(violated(&|a| a.capacity.slots = 0), ["capacity.slots"]);
    assert_eq!(violated(&|a| a.capacity.cpu_millis = MAX_CPU_MILLIS), none());
    assert_eq!(violated(&|a| a.capacity.cpu_millis = MAX_CPU_MILLIS + 1), ["capacity.cpu_millis"]);
    assert_eq!(violated(&|a| a.capacity.memory_bytes = MAX_MEMORY_BYTES), none());
    assert_eq!(violated(&|a| a.capacity.memory_bytes = MAX_MEMORY_BYTES + 1), ["capacity.memory_bytes"]);
    assert_eq!(violated(&|a| a.labels = labels(MAX_LABELS)), none());
    assert_eq!(violated(&|a| a.labels = labels(MAX_LABELS + 1)), ["labels"]);
    assert_eq!(violated(&|a| a.host = text(MAX_LABEL_TEXT_BYTES)), none());
    assert_eq!(violated(&|a| a.host = text(MAX_LABEL_TEXT_BYTES + 1)), ["host"]);
    assert_eq!(violated(&|a| a.version = text(MAX_LABEL_TEXT_BYTES + 1)), ["version"]);
    assert_eq!(violated(&|a| a.runtime = text(MAX_LABEL_TEXT_BYTES + 1)), ["runtime"]);
    assert_eq!(violated(&|a| a.incarnation.start = 0), ["incarnation.start"]);
}

#[test]
fn sums_of_the_largest_agents_stay_below_their_type() {
    let (agents, slots) = (MAX_AGENTS as u128, u128::from(MAX_SLOTS));
    for most in [u128::from(MAX_CPU_MILLIS), u128::from(MAX_MEMORY_BYTES)] {
        assert!(agents * most <= u128::from(u64::MAX), "what all agents have");
        assert!(
            slots * most <= u128::from(u64::MAX),
            "what one agent has given away, whatever it had before"
        );
    }
}

#[test]
fn agents_are_limited_in_number() {
    let mut world = World::new();
    let pool = label("default");
    for n in 0..MAX_AGENTS {
        // Straight into the state: deciding each would take a minute.
        let id = agent_id(&format!("a{n}"));
        let spec = AgentSpec { agent_id: id.clone(), pool: pool.clone(), ..agent("a", 1) };
        let event = Event {
            header: Header {
                actor: Actor::Leader,
                reason: String::new(),
                request: None,
                subject: Subject { sandbox: None, agent: Some(id) },
                previous: 0,
            },
            kind: EventKind::AgentRegistered(Box::new(spec)),
        };
        let time = world.state.last_time().plus(1);
        world.state.apply_event(&event, time);
    }
    let one_more = Command::RegisterAgent(Box::new(agent("one-more", 1)));
    assert_eq!(world.give(one_more.clone()), Err(Rejection::TooManyAgents));
    // One that is known may still come back.
    world.must(Command::RegisterAgent(Box::new(agent("a7", 2))));
    world.must(Command::LoseAgent { agent: agent_id("a7"), incarnation: incarnation(1, 1) });
    world.must(Command::RemoveAgent { agent: agent_id("a7"), fenced: false });
    world.must(one_more);
}

fn waiting(text: &str) -> CreateSandbox {
    CreateSandbox { wait: Some(SECOND), ..create(text) }
}

fn make(create: CreateSandbox) -> Command {
    Command::CreateSandbox(Box::new(create))
}

fn leader(command: Command) -> Request {
    Request { actor: Actor::Leader, id: None, command }
}

#[test]
fn those_that_wait_are_limited_in_number() {
    let mut world = World::new();
    let mut draft = Draft::new(world.state.clone(), world.now);
    for n in 0..MAX_WAITING {
        draft.decide(&leader(make(waiting(&format!("w{n}")))), &mut world.around).unwrap();
    }
    let one_more = leader(make(waiting("one-more")));
    assert_eq!(draft.decide(&one_more, &mut world.around), Err(Rejection::QueueFull));
    draft.decide(&leader(Command::TerminateSandbox(by_name("w7"))), &mut world.around).unwrap();
    draft.decide(&one_more, &mut world.around).unwrap();
}

#[test]
fn the_shapes_of_those_that_wait_are_limited_in_number() {
    let mut world = World::new();
    let mut draft = Draft::new(world.state.clone(), world.now);
    let of_shape = |name: String, shape: usize| {
        let mut create = waiting(&name);
        create.spec.resources.cpu_millis = shape as u64;
        leader(make(create))
    };
    for n in 0..MAX_WAITING_SHAPES {
        draft.decide(&of_shape(format!("w{n}"), n), &mut world.around).unwrap();
    }
    let one_more = of_shape("one-more".into(), MAX_WAITING_SHAPES);
    assert_eq!(draft.decide(&one_more, &mut world.around), Err(Rejection::QueueFull));
    // A shape that somebody waits with already is no more work.
    draft.decide(&of_shape("same".into(), 7), &mut world.around).unwrap();
}

#[test]
fn remembered_requests_are_limited_in_number_and_a_full_table_keeps_nobody_from_terminating() {
    let mut world = World::new();
    world.must(Command::RegisterAgent(Box::new(agent("a1", 2))));
    world.must(make(create("web")));
    let result = RequestResult::Agent(agent_id("a1"));
    let record = Arc::new(RequestRecord { digest: [0; 16], retention: 0, ends: None, result });
    // Straight into the table, past its digest: a million decisions take too long.
    let key =
        |n: usize| RequestKey { namespace: None, id: RequestId::Uuid(uuid::Uuid::from_u128(n as u128)) };
    world.state.requests = (0..MAX_REQUESTS - 1).map(|n| (key(n), Arc::clone(&record))).collect();
    let ask = |id: &str, command: Command| {
        let caller = CallerId { id: id.parse().unwrap(), retention: SECOND };
        Request { actor: Actor::Client("ann".into()), id: Some(caller), command }
    };
    let with_id = |id: &str| {
        let mut create = create(id);
        create.spec.request_id = id.parse().unwrap();
        ask(id, make(create))
    };
    let mut draft = Draft::new(world.state.clone(), world.now);
    draft.decide(&with_id("last"), &mut world.around).unwrap();
    assert_eq!(draft.decide(&with_id("too-much"), &mut world.around), Err(Rejection::TooManyRequests));
    let terminate = |id: &str| ask(id, Command::TerminateSandbox(by_name("web")));
    draft.decide(&terminate("t1"), &mut world.around).unwrap();

    let full = MAX_REQUESTS + RESERVED_REQUESTS;
    world.state.requests = (0..full).map(|n| (key(n), Arc::clone(&record))).collect();
    let mut draft = Draft::new(world.state.clone(), world.now);
    assert_eq!(draft.decide(&terminate("t2"), &mut world.around), Err(Rejection::TooManyRequests));
}

#[test]
fn a_sandbox_remembers_the_request_that_made_it() {
    let mut world = World::new();
    let caller = CallerId { id: "r1".parse().unwrap(), retention: SECOND };
    let request = Request { actor: Actor::Leader, id: Some(caller), command: make(waiting("web")) };
    let refused = Rejection::invalid("request_id", "must be the id of the request that makes the sandbox");
    assert_eq!(world.run(&request).0, Err(refused));
}

#[test]
fn an_id_that_is_drawn_twice_is_refused() {
    let mut world = World::new();
    let mut strong = waiting("one");
    strong.spec.mode = Mode::Strong;
    world.must(make(strong.clone()));
    world.around.drawn = 0;
    strong.spec.name = name("two");
    assert_eq!(world.give(make(strong)).unwrap_err().code(), "FAILED_PRECONDITION");
}

#[test]
fn texts_of_agents_and_callers_are_cut_at_the_end_of_a_character() {
    let mut world = World::new();
    world.must(Command::RegisterAgent(Box::new(agent("a1", 2))));
    world.must(make(create("web")));
    let id = world.state.sandbox_named(&name("web")).unwrap().id.clone();
    let report = |state| {
        let (agent, incarnation) = (agent_id("a1"), incarnation(1, 1));
        Command::Report(Report { agent, incarnation, sandbox_id: id.clone(), generation: 1, state })
    };
    let mut endpoints = vec!["x".repeat(MAX_ENDPOINT_BYTES); MAX_PORTS + 1];
    endpoints.insert(0, "x".repeat(MAX_ENDPOINT_BYTES + 1));
    world.must(report(ReportedState::Running { endpoints, lease_revision: 0 }));
    let kept = &world.state.sandbox(&id).unwrap().status.endpoints;
    assert_eq!((kept.len(), kept[0].len()), (MAX_PORTS, MAX_ENDPOINT_BYTES));

    let reason = format!("x{}", "ü".repeat(MAX_REASON_BYTES));
    world.must(report(ReportedState::Exited {
        exit_code: None,
        reason: reason.clone(),
        expired: false,
        lease_over: false,
    }));
    assert_eq!(world.state.sandbox(&id).unwrap().status.reason, reason[..MAX_REASON_BYTES - 1]);

    let actor = Actor::Client("ü".repeat(MAX_ACTOR_BYTES));
    let command = Command::CordonAgent { agent: agent_id("a1"), reason };
    let (_, entry) = world.run(&Request { actor, id: None, command });
    let header = &entry.events[0].header;
    assert_eq!(header.actor, Actor::Client("ü".repeat(MAX_ACTOR_BYTES / 2)));
    assert_eq!(header.reason.len(), MAX_REASON_BYTES - 1);
}

/// An agent has so many sandboxes that nobody knows, each with so many bytes of environment.
fn strangers(count: usize, env_bytes: usize) -> World {
    let mut world = World::new();
    world.must(Command::RegisterAgent(Box::new(agent("a", count as u64))));
    let unknown = (0..count).map(|n| {
        let name = format!("s{n:04}");
        let mut adoptable = adoptable(&name);
        adoptable.spec.envs.insert("K".into(), text(env_bytes));
        UnknownSandbox {
            agent: agent_id("a"),
            id: name.parse().unwrap(),
            generation: 1,
            origin: Origin::Unlabelled,
            adoptable: Some(Box::new(adoptable)),
        }
    });
    world.around.unknown.insert(agent_id("a"), unknown.collect());
    world
}

#[test]
fn an_adoption_is_limited_in_bytes_and_the_next_one_goes_on() {
    // With what else an event has, each takes somewhat more than the most of an environment.
    let mut world = strangers(12, MAX_ENV_BYTES - 16);
    let at_once = MAX_ADOPTION_BYTES / MAX_ENV_BYTES;
    let all = || {
        let namespace = Label::default_name();
        Command::AdoptSandboxes { agent: agent_id("a"), namespace, ids: Vec::new() }
    };
    let mut adopted = Vec::new();
    for _ in 0..3 {
        let (outcome, entry) = world.run(&leader(all()));
        let Ok(Outcome::Adopted(adoptions)) = outcome else { panic!("{outcome:?}") };
        let bytes = entry.encoded().len();
        assert!(bytes <= MAX_ADOPTION_BYTES + MAX_ENV_BYTES + 4096, "{bytes}");
        adopted.push(adoptions.iter().filter(|adoption| adoption.refused.is_none()).count());
        for why in adoptions.into_iter().filter_map(|adoption| adoption.refused) {
            assert_eq!(why, "too many at once: give the same command again");
        }
    }
    assert_eq!(adopted, [at_once, 12 - at_once, 0]);
}

#[test]
fn an_answer_about_what_is_unknown_is_limited_and_says_so() {
    for (there, told, more) in
        [(MAX_UNKNOWN_TOLD, MAX_UNKNOWN_TOLD, false), (MAX_UNKNOWN_TOLD + 1, MAX_UNKNOWN_TOLD, true)]
    {
        let mut world = strangers(there, 1);
        world.must(Command::RegisterAgent(Box::new(agent("silent", 1))));
        let outcome = world.run(&leader(Command::ListUnknown { agent: None })).0.unwrap();
        let Outcome::Unknown { sandboxes, more: beyond, unheard } = outcome else { panic!("{outcome:?}") };
        assert_eq!((sandboxes.len(), beyond, unheard), (told, more, 1));
        assert!(sandboxes.iter().all(|unknown| unknown.adoptable.is_none()), "an answer does not need it");
    }
}
