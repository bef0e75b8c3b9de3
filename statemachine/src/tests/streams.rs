//! What can't be shown in few lines: the bounds of batches and streams.

use std::sync::Arc;

use uuid::Uuid;

use super::world::*;
use crate::limits::*;
use crate::*;

fn caller(id: RequestId, command: Command) -> Request {
    let id = Some(CallerId { id, retention: 60 * SECOND });
    Request { actor: Actor::Client("ann".into()), id, command }
}

fn batch(count: usize, change: impl Fn(usize, &mut CreateSandbox)) -> Request {
    let creates = (0..count).map(|index| {
        let mut create = create(&format!("team/b-{index}"));
        create.spec.request_id = "batch".parse().unwrap();
        change(index, &mut create);
        create
    });
    caller("batch".parse().unwrap(), Command::CreateSandboxes(creates.collect()))
}

/// The fields of an INVALID refusal.
fn violated(outcome: Result<Outcome, Rejection>) -> Vec<String> {
    match outcome {
        Err(Rejection::Invalid(violations)) => violations.into_iter().map(|found| found.field).collect(),
        other => panic!("{other:?}"),
    }
}

fn fleet() -> World {
    let mut world = World::new();
    for index in 0..4 {
        world.must(Command::RegisterAgent(Box::new(agent(&format!("a{index}"), MAX_SLOTS))));
    }
    world
}

#[test]
fn a_batch_is_limited_in_number() {
    let mut world = fleet();
    assert_eq!(violated(world.run(&batch(0, |_, _| {})).0), ["creates"]);
    assert_eq!(violated(world.run(&batch(MAX_BATCH_CREATES + 1, |_, _| {})).0), ["creates"]);
    let (outcome, entry) = world.run(&batch(MAX_BATCH_CREATES, |_, _| {}));
    let Ok(Outcome::Batch { sandboxes, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(sandboxes.len(), MAX_BATCH_CREATES);
    assert!(entry.encoded().len() <= MAX_DECISION_BYTES);
    assert_eq!(world.state.request_count(), MAX_BATCH_CREATES, "it counts for as many as it made");
}

/// Event i of an entry has its time + i: no two of a batch have one id.
#[test]
fn fast_ids_of_a_batch_follow_from_the_times_of_its_events() {
    let mut world = fleet();
    let (outcome, entry) = world.run(&batch(3, |_, _| {}));
    let Ok(Outcome::Batch { sandboxes, .. }) = outcome else { panic!("{outcome:?}") };
    for (index, one) in sandboxes.iter().enumerate() {
        // Each has two events: it is created, and allocated.
        assert_eq!(one.created, entry.time.plus(2 * index as i64));
        assert_eq!(one.id, SandboxId::fast(&name(&format!("team/b-{index}")), one.created));
    }
}

#[test]
fn a_batch_of_too_many_bytes_is_refused_and_changes_nothing() {
    let mut world = fleet();
    let large = |_: usize, create: &mut CreateSandbox| {
        create.spec.envs.insert("K".into(), "v".repeat(MAX_ENV_BYTES - 3));
    };
    let fits = (MAX_DECISION_BYTES - 32 * MAX_BATCH_CREATES) / (MAX_ENV_BYTES + 512);
    let before = world.state.clone();
    let (outcome, entry) = world.run(&batch(fits + 1, large));
    let text = outcome.clone().unwrap_err().to_string();
    assert_eq!(violated(outcome), ["creates"]);
    assert!(text.contains("several smaller batches"), "{text}");
    assert!(entry.events.is_empty());
    assert_eq!(world.state.state_digest(), before.state_digest());
    let (outcome, entry) = world.run(&batch(fits, large));
    outcome.unwrap();
    assert!(entry.encoded().len() <= MAX_DECISION_BYTES, "{}", entry.encoded().len());
}

#[test]
fn a_batch_says_which_of_it_is_refused() {
    let mut world = fleet();
    let refused = world.run(&batch(5, |index, create| {
        if index == 3 {
            create.spec.pool = label("nowhere");
        }
    }));
    let rejection = refused.0.unwrap_err();
    assert_eq!(rejection.code(), "NO_CAPACITY");
    let text = rejection.to_string();
    assert!(text.starts_with("create 3 of the batch (team/b-3): no agent has room"), "{text}");
    assert!(text.ends_with("nothing was made"), "{text}");
    assert_eq!((world.state.sandbox_count(), world.state.request_count()), (0, 0));
}

#[test]
fn a_batch_needs_room_for_all_it_makes_in_the_table_of_requests() {
    let mut world = fleet();
    let result = RequestResult::Agent(agent_id("a1"));
    let record = Arc::new(RequestRecord { digest: [0; 16], retention: 0, ends: None, result });
    let key = |n: usize| RequestKey { namespace: None, id: RequestId::Uuid(Uuid::from_u128(n as u128)) };
    world.state.requests = (0..MAX_REQUESTS - 4).map(|n| (key(n), Arc::clone(&record))).collect();
    let mut draft = Draft::new(world.state.clone(), world.now);
    assert_eq!(draft.decide(&batch(5, |_, _| {}), &mut world.around), Err(Rejection::TooManyRequests));
    draft.decide(&batch(4, |_, _| {}), &mut world.around).unwrap();
}

fn key(client: u128) -> StreamKey {
    StreamKey { namespace: label("default"), client: Uuid::from_u128(client) }
}

fn open(client: u128) -> Command {
    let stream = key(client);
    Command::OpenStream { stream, resume: false, acknowledged_below: 1, retention: SECOND }
}

fn in_stream(draft: &Draft, client: u128, sequence: u64, acknowledged_below: u64) -> Request {
    let opened = draft.state().stream_client(&key(client)).map_or(0, |client| client.opened);
    let id = RequestId::Stream { client: Uuid::from_u128(client), sequence };
    let mut create = create(&format!("c{client}-s{sequence}"));
    create.spec.request_id = id.clone();
    let position = StreamPosition { opened, acknowledged_below };
    caller(id, Command::CreateInStream { position, create: Box::new(create) })
}

#[test]
fn a_window_full_of_answers_is_forgotten_little_by_little_and_a_snapshot_keeps_it() {
    let mut world = fleet();
    let mut draft = Draft::new(world.state.clone(), world.now);
    draft.decide(&Request { actor: Actor::Leader, id: None, command: open(1) }, &mut world.around).unwrap();
    let mut ask = |draft: &mut Draft, sequence: u64, below: u64| {
        let request = in_stream(draft, 1, sequence, below);
        draft.decide(&request, &mut world.around)
    };
    for sequence in 1..=STREAM_WINDOW {
        ask(&mut draft, sequence, 1).unwrap();
    }
    let over = STREAM_WINDOW + 1;
    let full = Rejection::StreamWindowFull { sequence: over, acknowledged_below: 1 };
    assert_eq!(ask(&mut draft, over, 1), Err(full));
    let known = |draft: &Draft| draft.state().request_count();
    assert_eq!(known(&draft), STREAM_WINDOW as usize);
    // All is acknowledged at once, and no create forgets more than a few.
    ask(&mut draft, over, over).unwrap();
    assert_eq!(known(&draft), STREAM_WINDOW as usize + 1 - FORGOTTEN_A_CREATE);
    let gone = Rejection::Acknowledged { sequence: 7, acknowledged_below: over };
    assert_eq!(ask(&mut draft, 7, 1), Err(gone), "whatever an older message says");
    let late = Rejection::Acknowledged { sequence: over - 1, acknowledged_below: over };
    assert_eq!(ask(&mut draft, over - 1, over), Err(late), "also while it is still in the table");
    let chunks = draft.state().snapshot_chunks().map(Ok::<_, std::io::Error>);
    let restored = State::from_snapshot_chunks(chunks).unwrap();
    assert!(restored == *draft.state());
    for sequence in over + 1..over + 300 {
        ask(&mut draft, sequence, sequence).unwrap();
    }
    assert_eq!(known(&draft), 1, "only the last is not acknowledged");
}

#[test]
fn answers_of_streams_count_as_remembered_requests_until_the_client_is_forgotten() {
    let mut world = fleet();
    world.must(open(1));
    for sequence in 1..=3 {
        let draft = Draft::new(world.state.clone(), world.now);
        world.run(&in_stream(&draft, 1, sequence, 1)).0.unwrap();
    }
    assert_eq!((world.state.request_count(), world.state.stream_count()), (3, 1));
    world.now = world.now.plus(2 * SECOND);
    assert!(world.state.next_deadline().is_some_and(|due| due <= world.now));
    world.must(Command::Housekeeping);
    assert_eq!((world.state.request_count(), world.state.stream_count()), (0, 0));
    assert_eq!(world.state.sandbox_count(), 3, "what it made lives on");
}

#[test]
fn clients_of_streams_are_limited_in_number() {
    let mut world = fleet();
    let mut draft = Draft::new(world.state.clone(), world.now);
    let request = |client: u128| Request { actor: Actor::Leader, id: None, command: open(client) };
    for client in 0..MAX_STREAM_CLIENTS {
        draft.decide(&request(client as u128), &mut world.around).unwrap();
    }
    let one_more = request(MAX_STREAM_CLIENTS as u128);
    assert_eq!(draft.decide(&one_more, &mut world.around), Err(Rejection::TooManyStreamClients));
    // One that is known may still come back.
    draft.decide(&request(7), &mut world.around).unwrap();
}

#[test]
fn a_create_of_a_stream_names_its_sequence() {
    let mut world = fleet();
    world.must(open(1));
    let draft = Draft::new(world.state.clone(), world.now);
    let good = in_stream(&draft, 1, 1, 1);
    assert_eq!(violated(world.run(&Request { id: None, ..good.clone() }).0), ["sequence"]);
    let id = Some(CallerId { id: "r1".parse().unwrap(), retention: SECOND });
    assert_eq!(violated(world.run(&Request { id, ..good.clone() }).0), ["sequence"]);
    let Command::CreateInStream { mut create, position } = good.command.clone() else { panic!("a create") };
    create.spec.request_id = "other".parse().unwrap();
    let other = Request { command: Command::CreateInStream { create, position }, ..good.clone() };
    assert_eq!(violated(world.run(&other).0), ["request_id"]);
    world.run(&good).0.unwrap();
}
