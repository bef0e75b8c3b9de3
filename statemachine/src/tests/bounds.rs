//! One command about very many sandboxes: its entry stays within its bound, and what is left over is finished.

use super::world::*;
use crate::limits::*;
use crate::*;

const SLOTS: usize = MAX_SLOTS as usize;

/// The longest name that there is, which ends with a number.
fn long(number: usize) -> String {
    format!("{}-{number:05}", "n".repeat(MAX_LABEL_BYTES - 6))
}

/// An agent with the longest name, which holds as many sandboxes with the longest names as can be.
fn full_agent(mode: Mode, ttl: Option<i64>) -> (World, AgentSpec) {
    let mut world = World::new();
    let spec = agent(&"a".repeat(MAX_LABEL_BYTES), MAX_SLOTS);
    world.must(Command::RegisterAgent(Box::new(spec.clone())));
    for number in 0..SLOTS {
        let mut create = create(&format!("{}/{}", "s".repeat(MAX_LABEL_BYTES), long(number)));
        create.spec.mode = mode;
        create.expiry = ttl.map(Expiry::After);
        world.must(Command::CreateSandbox(Box::new(create)));
    }
    (world, spec)
}

/// A caller with the longest name and request id.
fn long_caller(command: Command) -> Request {
    let id = CallerId { id: "r".repeat(MAX_REQUEST_ID_BYTES).parse().unwrap(), retention: SECOND };
    Request { actor: Actor::Client("c".repeat(2 * MAX_ACTOR_BYTES)), id: Some(id), command }
}

#[track_caller]
fn within_bounds(entry: &Entry) {
    assert!(entry.encoded().len() <= MAX_DECISION_BYTES, "{} bytes", entry.encoded().len());
    assert_eq!(Entry::decode(entry.encoded()).unwrap(), *entry);
}

fn lose(spec: &AgentSpec) -> Request {
    let command = Command::LoseAgent { agent: spec.agent_id.clone(), incarnation: spec.incarnation };
    Request { actor: Actor::Leader, id: None, command }
}

#[test]
fn a_loss_of_very_many_sandboxes_is_finished_by_housekeeping() {
    let (mut world, spec) = full_agent(Mode::Strong, None);
    let (_, entry) = world.run(&lose(&spec));
    within_bounds(&entry);
    assert_eq!(world.state.count_in(Phase::Lost), MAX_HOUSEKEEPING_EVENTS as u64);
    assert_eq!(world.state.next_deadline(), Some(world.state.last_time()), "something is left over");
    assert_eq!(world.keep_house(), SLOTS.div_ceil(MAX_HOUSEKEEPING_EVENTS) - 1);
    assert_eq!(world.state.count_in(Phase::Lost), MAX_SLOTS);
    assert_eq!(world.state.next_deadline(), None);
}

#[test]
fn a_loss_that_ends_before_it_is_finished_is_not_finished() {
    let (mut world, spec) = full_agent(Mode::Fast, None);
    world.run(&lose(&spec)).0.unwrap();
    world.must(Command::RegisterAgent(Box::new(spec)));
    assert_eq!(world.keep_house(), 0);
    assert_eq!(world.state.count_in(Phase::Lost), MAX_HOUSEKEEPING_EVENTS as u64);
}

#[test]
fn a_removal_of_very_many_sandboxes_goes_on_when_it_is_asked_again() {
    let (mut world, spec) = full_agent(Mode::Strong, None);
    world.run(&lose(&spec)).0.unwrap();
    world.keep_house();
    let remove = long_caller(Command::RemoveAgent { agent: spec.agent_id.clone(), fenced: true });
    let mut steps = Vec::new();
    let last = loop {
        let (outcome, entry) = world.run(&remove);
        within_bounds(&entry);
        match outcome.unwrap() {
            Outcome::Agent(agent) => steps.push(agent.allocated.slots),
            Outcome::AgentRemoved { released } => break released,
            other => panic!("{other:?}"),
        }
        assert!(steps.len() < 100, "it never ends: {steps:?}");
    };
    assert!(!steps.is_empty() && steps.is_sorted_by(|a, b| a > b), "each step releases some: {steps:?}");
    assert_eq!(world.state.agent_count(), 0);
    assert_eq!(world.state.sandbox_count(), 0, "STRONG creates that never ran are rolled back");
    // Asked once more, it is the first answer again.
    assert_eq!(world.run(&remove).0, Ok(Outcome::AgentRemoved { released: last }));
}

#[test]
fn a_removal_with_usual_names_takes_one_entry() {
    let mut world = World::new();
    let spec = agent("worker-17.example.com", MAX_SLOTS);
    world.must(Command::RegisterAgent(Box::new(spec.clone())));
    for number in 0..SLOTS {
        world.must(Command::CreateSandbox(Box::new(create(&format!("team-a/sandbox-{number}")))));
    }
    world.run(&lose(&spec)).0.unwrap();
    world.keep_house();
    let command = Command::RemoveAgent { agent: spec.agent_id.clone(), fenced: true };
    let id = CallerId { id: RequestId::Uuid(uuid::Uuid::from_u128(7)), retention: SECOND };
    let request = Request { actor: Actor::Client("ops@example.com".into()), id: Some(id), command };
    assert_eq!(world.run(&request).0, Ok(Outcome::AgentRemoved { released: MAX_SLOTS }));
}

#[test]
fn expiry_of_very_many_sandboxes_is_finished_step_by_step() {
    let (mut world, _) = full_agent(Mode::Fast, Some(SECOND));
    world.now = world.now.plus(2 * SECOND);
    let housekeeping = Request { actor: Actor::Leader, id: None, command: Command::Housekeeping };
    within_bounds(&world.run(&housekeeping).1);
    assert_eq!(world.keep_house(), SLOTS.div_ceil(MAX_HOUSEKEEPING_EVENTS) - 1);
    assert_eq!(world.state.count_in(Phase::Terminating), MAX_SLOTS);
}

#[test]
fn very_many_that_wait_are_given_room_and_up_step_by_step() {
    let waiting = 3 * MAX_HOUSEKEEPING_EVENTS;
    let mut world = World::new();
    for number in 0..waiting {
        let mut create = create(&format!("{}/{}", "s".repeat(MAX_LABEL_BYTES), long(number)));
        create.spec.mode = Mode::Strong;
        create.wait = Some(SECOND);
        world.must(Command::CreateSandbox(Box::new(create)));
    }
    let mut other = world.clone();
    // An agent comes: housekeeping goes on with what one command is too small for.
    let spec = agent("a1", MAX_SLOTS);
    let (_, entry) = world.run(&Request {
        actor: Actor::Leader,
        id: None,
        command: Command::RegisterAgent(Box::new(spec)),
    });
    within_bounds(&entry);
    assert_eq!(world.state.count_in(Phase::Allocated), MAX_HOUSEKEEPING_EVENTS as u64);
    assert_eq!(world.state.next_deadline(), Some(world.state.last_time()), "something is left over");
    assert_eq!(world.keep_house(), 2);
    assert_eq!(world.state.count_in(Phase::Allocated), waiting as u64);

    // None comes.
    other.now = other.now.plus(2 * SECOND);
    let housekeeping = Request { actor: Actor::Leader, id: None, command: Command::Housekeeping };
    within_bounds(&other.run(&housekeeping).1);
    assert_eq!(other.keep_house(), 2);
    assert_eq!(other.state.sandbox_count(), 0);
}

#[test]
fn a_draft_that_is_not_full_takes_any_command() {
    let mut world = World::new();
    let mut largest = create("web");
    largest.spec.envs.insert("K".into(), "v".repeat(MAX_ENV_BYTES - 3));
    largest.spec.args = vec!["a".repeat(MAX_ARG_BYTES - 1)];
    largest.spec.image = "i".repeat(MAX_TEXT_BYTES);
    largest.spec.working_dir = "/".repeat(MAX_TEXT_BYTES);
    largest.wait = Some(SECOND);
    let (width, value) = (MAX_LABEL_TEXT_BYTES, "v".repeat(MAX_LABEL_TEXT_BYTES));
    let label = |n: usize| (format!("{n:0>width$}"), value.clone());
    largest.labels = (0..MAX_LABELS).map(label).collect();
    largest.spec.agent_selector = largest.labels.clone();
    let mut draft = Draft::new(world.state.clone(), world.now);
    let mut made = 0;
    while !draft.is_full() {
        made += 1;
        largest.spec.name = name(&long(made));
        let command = Command::CreateSandbox(Box::new(largest.clone()));
        let before = draft.encoded_bytes();
        let request = Request { actor: Actor::Leader, id: None, command };
        draft.decide(&request, &mut world.around).unwrap();
        assert!(draft.encoded_bytes() - before <= MAX_DECISION_BYTES);
    }
    assert!(made > 1);
    let (entry, state) = draft.seal(TERM);
    assert!(entry.encoded().len() <= MAX_ENTRY_BYTES);
    assert_eq!(Entry::decode(entry.encoded()).unwrap(), entry);
    // The largest records there are fit into a chunk of a snapshot, and come back.
    let chunks = state.snapshot_chunks().map(Ok::<_, std::io::Error>);
    assert!(State::from_snapshot_chunks(chunks).unwrap() == state);
}

#[test]
fn the_image_that_everyone_has_is_found_like_the_image_that_few_have() {
    // Beyond some dozens of agents with the image, another way is taken to the same choice.
    let mut world = World::new();
    for number in 0..200 {
        world.must(Command::RegisterAgent(Box::new(agent(&format!("a{number:03}"), 4))));
    }
    let ids = |range: std::ops::Range<usize>| range.map(|n| agent_id(&format!("a{n:03}"))).collect();
    world.around.images.insert("few".into(), ids(150..160));
    world.around.images.insert("many".into(), ids(100..200));
    let mut place = |number: usize, image: &str| {
        let mut create = create(&format!("s{number}"));
        create.spec.image = image.into();
        let Outcome::Sandbox { sandbox, .. } = world.must(Command::CreateSandbox(Box::new(create))) else {
            panic!("a create answers with a sandbox");
        };
        sandbox.status.agent.clone().unwrap().to_string()
    };
    let chosen: Vec<_> = ["few", "few", "many", "many", "", "few"]
        .into_iter()
        .enumerate()
        .map(|(number, image)| place(number, image))
        .collect();
    assert_eq!(chosen, ["a150", "a151", "a100", "a101", "a000", "a152"]);
}
