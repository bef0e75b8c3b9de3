//! Bytes of format 1, kept for ever: what was written once is read for ever, so kinds and fields are only appended.
//!
//! If a test here fails, do not take the new bytes: the change breaks every log and snapshot that there is. Append
//! instead, and add a file for what is new.

use bytes::Bytes;
use uuid::Uuid;

use super::world::*;
use crate::*;

const ENTRY: &str = include_str!("golden/entry-format-1.hex");
const SNAPSHOT: &str = include_str!("golden/snapshot-format-1.hex");
/// An entry and the chunks of a snapshot with what came with version 2 of the cluster, in format 1 too: kinds and chunks are
/// only appended.
const VERSION_2: &str = include_str!("golden/version-2.hex");
/// The digests of the state in the snapshot, in [`DIGEST_FORM`] 1: the state's, and the history's.
const DIGESTS: &str = include_str!("golden/digests-format-1.txt");

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let text = text.trim();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// An entry with every kind of event, every kind of actor and id, and every optional field with and without a value.
pub fn every_kind() -> Entry {
    let mut spec = create("prod/web").spec;
    spec.image = "registry.example.com/app:1".into();
    spec.command = vec!["sh".into(), "-c".into()];
    spec.args = vec!["sleep 1".into()];
    spec.envs.insert("KEY".into(), "välue".into());
    spec.working_dir = "/srv".into();
    spec.ports = vec![80, 65_535];
    spec.resources = Resources { cpu_millis: 250, memory_bytes: 1 << 32 };
    spec.agent_selector.insert("zone".into(), "x".into());
    spec.mode = Mode::Strong;
    spec.request_id = RequestId::Uuid(Uuid::from_u128(0x67e5_5044_10b1_426f_9247_bb68_0e5f_e0c8));
    let labels = Labels::from([("tier".to_string(), "front".to_string())]);
    let created = SandboxCreated {
        spec: spec.clone().into(),
        labels: labels.clone(),
        expire_time: Some(Timestamp(1_700_000_000_000_000_000)),
        failure_policy: FailurePolicy::AutoRecreate,
        recovery_timeout_seconds: 60,
        wait_until: None,
    };
    let mut agent = agent("worker-1.example.com", 64);
    agent.labels = labels.clone();
    let update = SandboxUpdate {
        expire_time: Some(None),
        labels: Some(labels),
        failure_policy: Some(FailurePolicy::Manual),
        recovery_timeout_seconds: None,
    };
    let kinds = vec![
        EventKind::ClusterCreated { cluster_id: Uuid::from_u128(0xc1), cluster_version: 1 },
        EventKind::AgentRegistered(Box::new(agent)),
        EventKind::AgentLost,
        EventKind::AgentReturned,
        EventKind::AgentCordoned,
        EventKind::AgentUncordoned,
        EventKind::AgentRemoved { released: 3 },
        EventKind::SandboxCreated(Box::new(created)),
        EventKind::SandboxAllocated { generation: 1 },
        EventKind::SandboxRunning { generation: 1, endpoints: vec!["10.0.0.1:80".into()] },
        EventKind::SandboxFailed { released: Some(1), exit_code: Some(-9) },
        EventKind::SandboxFailed { released: None, exit_code: None },
        EventKind::SandboxLost,
        EventKind::SandboxUpdated(update),
        EventKind::SandboxUpdated(SandboxUpdate {
            expire_time: Some(Some(Timestamp(-1))),
            ..SandboxUpdate::default()
        }),
        EventKind::SandboxReset,
        EventKind::SandboxTerminating,
        EventKind::AllocationReleased { generation: 300 },
        EventKind::SandboxRemoved { released: Some(u64::MAX) },
        EventKind::RequestsPruned { until: Timestamp(i64::MAX), limit: 1_000 },
        EventKind::SandboxLeaseConfirmed { generation: 3 },
        EventKind::ClusterRestored { cluster_id: Uuid::from_u128(0xc2) },
        EventKind::RestoreConfirmed,
        EventKind::AgentsRehomed { from: Uuid::from_u128(0xc1) },
        EventKind::AgentRecoveryResumed,
        EventKind::BatchCreated { sandboxes: ids().into() },
        EventKind::StreamOpened { stream: stream(), acknowledged_below: 1, ends: Timestamp(i64::MAX) },
        EventKind::StreamKept { stream: stream(), acknowledged_below: 70_000, ends: Timestamp(0) },
    ];
    let events = kinds.into_iter().enumerate().map(|(index, kind)| Event { header: header(index), kind });
    Entry::new(41, 7, Timestamp(1_600_000_000_000_000_000), events.collect())
}

fn stream() -> StreamKey {
    StreamKey { namespace: label("prod"), client: Uuid::from_u128(0x57) }
}

fn ids() -> [SandboxId; 3] {
    let texts = ["e4b85f2f7d8fb1918a47168a87c62761", "67e55044-10b1-426f-9247-bb680e5fe0c8", "adopted-1"];
    texts.map(|text| text.parse().unwrap())
}

fn header(index: usize) -> Header {
    let actors = [Actor::Client("ann".into()), Actor::Agent(agent_id("a1")), Actor::Leader];
    let namespace = (index % 4 == 1).then(|| label("prod"));
    let (digest, retention) = ([index as u8; 16], 600 * SECOND);
    let acknowledged_below = if index == 7 { 300 } else { 0 };
    let memory = RequestMemory { namespace, digest, retention, acknowledged_below };
    let memory = (index % 2 == 1).then_some(memory);
    let request_id = match index % 4 {
        0 | 1 => spec_id(),
        2 => "order-17".parse().unwrap(),
        _ => RequestId::Stream { client: Uuid::from_u128(2), sequence: index as u64 },
    };
    Header {
        actor: actors[index % 3].clone(),
        reason: if index.is_multiple_of(2) { String::new() } else { format!("reason {index}") },
        request: (!index.is_multiple_of(5)).then_some(RequestRef { id: request_id, memory }),
        subject: Subject {
            sandbox: (!index.is_multiple_of(7)).then(|| (ids()[index % 3].clone(), name("prod/web"))),
            agent: (index.is_multiple_of(2)).then(|| agent_id("worker-1.example.com")),
        },
        previous: index as u64 * 1_000,
    }
}

fn spec_id() -> RequestId {
    RequestId::Uuid(Uuid::from_u128(1))
}

/// Which of all kinds of event this is. A new kind has to be appended here, and to [`every_kind`] a copy of the test.
fn number(kind: &EventKind) -> u32 {
    match kind {
        EventKind::ClusterCreated { .. } => 0,
        EventKind::AgentRegistered(_) => 1,
        EventKind::AgentLost => 2,
        EventKind::AgentReturned => 3,
        EventKind::AgentCordoned => 4,
        EventKind::AgentUncordoned => 5,
        EventKind::AgentRemoved { .. } => 6,
        EventKind::SandboxCreated(_) => 7,
        EventKind::SandboxAllocated { .. } => 8,
        EventKind::SandboxRunning { .. } => 9,
        EventKind::SandboxFailed { .. } => 10,
        EventKind::SandboxLost => 11,
        EventKind::SandboxUpdated(_) => 12,
        EventKind::SandboxReset => 13,
        EventKind::SandboxTerminating => 14,
        EventKind::AllocationReleased { .. } => 15,
        EventKind::SandboxRemoved { .. } => 16,
        EventKind::RequestsPruned { .. } => 17,
        EventKind::SandboxLeaseConfirmed { .. } => 18,
        EventKind::ClusterRestored { .. } => 19,
        EventKind::RestoreConfirmed => 20,
        EventKind::AgentsRehomed { .. } => 21,
        EventKind::AgentRecoveryResumed => 22,
        EventKind::BatchCreated { .. } => 23,
        EventKind::StreamOpened { .. } => 24,
        EventKind::StreamKept { .. } => 25,
        EventKind::AgentDraining { .. } => 26,
    }
}

/// Every kind of event that came with version 2 of the cluster, with and without what is optional.
fn every_kind_of_version_2() -> Entry {
    let kinds = [
        EventKind::AgentDraining { deadline: None, terminate: false },
        EventKind::AgentDraining { deadline: Some(Timestamp(i64::MAX)), terminate: true },
    ];
    let events = kinds.into_iter().enumerate().map(|(index, kind)| Event { header: header(index), kind });
    Entry::new(41, 7, Timestamp(1_600_000_000_000_000_000), events.collect())
}

/// A state with everything that came with version 2 of the cluster.
fn state_of_version_2() -> State {
    let mut world = World::of_version(2);
    for id in ["a1", "a2"] {
        world.must(Command::RegisterAgent(Box::new(agent(id, 2))));
        let (agent, reason) = (agent_id(id), "disk".to_owned());
        let deadline = (id == "a1").then_some(60 * SECOND);
        let terminate = deadline.is_some();
        world.must(Command::DrainAgent { agent, reason, deadline, terminate });
    }
    world.state
}

/// A state with sandboxes in every phase, agents of every kind, and requests with every result.
pub fn some_state() -> State {
    let mut world = World::of_version(1);
    let mut number = 0;
    let mut ask = |world: &mut World, command: Command| {
        number += 1;
        let id = CallerId { id: format!("r{number}").parse().unwrap(), retention: 600 * SECOND };
        let command = match command {
            Command::CreateSandbox(mut create) => {
                create.spec.request_id = id.id.clone();
                Command::CreateSandbox(create)
            }
            other => other,
        };
        let (outcome, entry) =
            world.run(&Request { actor: Actor::Client("ann".into()), id: Some(id), command });
        outcome.unwrap();
        entry
    };
    for (id, slots) in [("a1", 3), ("a2", 2), ("a3", 2), ("a4", 2)] {
        world.must(Command::RegisterAgent(Box::new(agent(id, slots))));
    }
    // When these bytes were made, an agent that was alive could be removed; its history is still read.
    let mut stopped = world.clone();
    let known = stopped.state.agent(&agent_id("a4")).unwrap().clone();
    stopped.state.put_agent(Agent { status: AgentStatus::Lost, ..known });
    let entry = ask(&mut stopped, Command::RemoveAgent { agent: agent_id("a4"), fenced: true });
    assert!(matches!(world.state.apply(&entry, TERM), Applied::Done { .. }));
    let names = ["runs", "reset", "lost", "ends", "fails", "lost-2", "pending", "rolled-back"];
    for (index, text) in names.into_iter().enumerate() {
        let mut create = create(text);
        create.spec.ports = vec![8_000 + index as u16];
        create.spec.resources = Resources { cpu_millis: 100, memory_bytes: 1_000 };
        create.wait = (index >= 6).then_some(60 * SECOND);
        create.spec.pool = label(if text == "pending" { "nowhere" } else { "default" });
        create.expiry = (index.is_multiple_of(2)).then_some(Expiry::After(3_600 * SECOND));
        create.spec.mode = if matches!(text, "reset" | "rolled-back") { Mode::Strong } else { Mode::Fast };
        ask(&mut world, Command::CreateSandbox(Box::new(create)));
    }
    let report = |world: &mut World, text: &str, state: ReportedState| {
        let sandbox = world.state.sandbox_named(&name(text)).unwrap();
        let (sandbox_id, generation) = (sandbox.id.clone(), sandbox.status.generation);
        let (agent, incarnation) = (sandbox.status.agent.clone().unwrap(), incarnation(1, 1));
        world.must(Command::Report(Report { agent, incarnation, sandbox_id, generation, state }));
    };
    report(
        &mut world,
        "runs",
        ReportedState::Running { endpoints: vec!["10.0.0.1:8000".into()], lease_revision: 0 },
    );
    report(&mut world, "reset", ReportedState::Running { endpoints: Vec::new(), lease_revision: 0 });
    ask(&mut world, Command::TerminateSandbox(by_name("ends")));
    let exited = ReportedState::Exited {
        exit_code: Some(3),
        reason: "crashed".into(),
        expired: false,
        lease_over: false,
    };
    report(&mut world, "fails", exited);
    report(&mut world, "rolled-back", ReportedState::StartFailed { reason: "no such image".into() });
    ask(&mut world, Command::ResetSandbox(by_name("reset")));
    many(&mut world);
    ask(&mut world, Command::CordonAgent { agent: agent_id("a2"), reason: "disk".into() });
    let held = world.state.sandbox_named(&name("lost")).unwrap().holder().unwrap().clone();
    world.must(Command::LoseAgent { agent: held.clone(), incarnation: incarnation(1, 1) });
    ask(&mut world, Command::RecoverAgent(held));
    world.state
}

/// A batch of which one is gone, and a stream with an answer of each kind.
fn many(world: &mut World) {
    let waiting = |text: &str, request_id: RequestId, mode: Mode| {
        let mut create = create(text);
        (create.spec.mode, create.spec.request_id) = (mode, request_id);
        create.spec.pool = label("nowhere");
        create.wait = Some(SECOND);
        create
    };
    let mut ask = |id: RequestId, command: Command| {
        let id = Some(CallerId { id, retention: 600 * SECOND });
        world.run(&Request { actor: Actor::Client("ann".into()), id, command }).0.unwrap();
    };
    let id: RequestId = "batch".parse().unwrap();
    let batch = ["batch-1", "batch-2"].map(|text| waiting(text, id.clone(), Mode::Fast));
    ask(id, Command::CreateSandboxes(batch.into()));
    ask("end".parse().unwrap(), Command::TerminateSandbox(by_name("batch-1")));
    let stream = StreamKey { namespace: label("default"), ..stream() };
    let client = stream.client;
    let open = Command::OpenStream { stream, resume: false, acknowledged_below: 0, retention: 600 * SECOND };
    let Outcome::Stream(position) = world.must(open) else { panic!("a stream is opened") };
    let mut in_stream = |sequence: u64, mode: Mode| {
        let id = RequestId::Stream { client, sequence };
        let create = Box::new(waiting(&format!("stream-{sequence}"), id.clone(), mode));
        let caller = Some(CallerId { id, retention: 600 * SECOND });
        let command = Command::CreateInStream { position, create };
        world.run(&Request { actor: Actor::Client("ann".into()), id: caller, command }).0.unwrap();
    };
    in_stream(1, Mode::Fast);
    in_stream(3, Mode::Strong);
    world.now = world.now.plus(2 * SECOND);
    world.must(Command::Housekeeping);
}

#[test]
fn entries_of_format_1_are_written_and_read_as_ever() {
    let entry = every_kind();
    let kinds: std::collections::BTreeSet<u32> =
        entry.events.iter().map(|event| number(&event.kind)).collect();
    assert!(kinds.into_iter().eq(0..26), "every kind of event is in the entry");
    assert_eq!(hex(entry.encoded()), ENTRY.trim(), "the encoding has changed");
    assert_eq!(Entry::decode(&Bytes::from(unhex(ENTRY))).unwrap(), entry);
}

#[test]
fn snapshots_of_format_1_are_written_and_read_as_ever() {
    let state = some_state();
    let written: Vec<_> = state.snapshot_chunks().map(|chunk| hex(&chunk)).collect();
    let kept: Vec<_> = SNAPSHOT.lines().collect();
    assert_eq!(written, kept, "the encoding, or what is decided, has changed");
    let chunks = kept.into_iter().map(|line| Ok::<_, std::io::Error>(unhex(line)));
    let read = State::from_snapshot_chunks(chunks).unwrap();
    assert!(read == state);
    assert_eq!(format!("{}\n{}", read.state_digest(), read.history_digest()), DIGESTS.trim());
}

#[test]
fn what_came_with_version_2_is_written_and_read_as_ever() {
    let kept: Vec<_> = VERSION_2.lines().collect();
    let (entry, state) = (every_kind_of_version_2(), state_of_version_2());
    let chunks = state.snapshot_chunks().map(|chunk| hex(&chunk));
    let written: Vec<_> = std::iter::once(hex(entry.encoded())).chain(chunks).collect();
    assert_eq!(written, kept, "the encoding, or what is decided, has changed");
    assert_eq!(Entry::decode(&Bytes::from(unhex(kept[0]))).unwrap(), entry);
    let chunks = kept[1..].iter().map(|line| Ok::<_, std::io::Error>(unhex(line)));
    assert!(State::from_snapshot_chunks(chunks).unwrap() == state);
}

#[test]
fn the_golden_state_has_something_of_everything() {
    let state = some_state();
    let phases =
        [Phase::Pending, Phase::Allocated, Phase::Running, Phase::Terminating, Phase::Failed, Phase::Lost];
    let missing: Vec<_> = phases.into_iter().filter(|phase| state.count_in(*phase) == 0).collect();
    assert_eq!(missing, [], "phases that are missing");
    assert!(state.sandboxes().any(Sandbox::holds_older_generation));
    let has =
        |wanted: fn(&RequestResult) -> bool| state.requests.values().any(|record| wanted(&record.result));
    assert!(has(|result| matches!(result, RequestResult::Sandbox { .. })));
    assert!(has(|result| matches!(result, RequestResult::RolledBack { .. })));
    assert!(has(|result| matches!(result, RequestResult::Agent(_))));
    assert!(has(|result| matches!(result, RequestResult::AgentRemoved { .. })));
    assert!(has(|result| matches!(result, RequestResult::Batch(batch) if batch.live == 1)));
    let answers: Vec<_> = state.streams.values().flat_map(|stream| stream.answers.values()).collect();
    let rolled_back = |answer: &&&StreamAnswer| matches!(answer.result, RequestResult::RolledBack { .. });
    assert_eq!((answers.len(), answers.iter().filter(rolled_back).count()), (2, 1));
}

#[test]
#[ignore = "writes the golden files; only for a new format version, and while none has been released"]
fn write_golden() {
    let state = some_state();
    let chunks: Vec<_> = state.snapshot_chunks().map(|chunk| hex(&chunk) + "\n").collect();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/golden");
    let digests = format!("{}\n{}\n", state.state_digest(), state.history_digest());
    let newer = std::iter::once(hex(every_kind_of_version_2().encoded()) + "\n");
    let chunks_of_newer = state_of_version_2();
    let version_2: String =
        newer.chain(chunks_of_newer.snapshot_chunks().map(|chunk| hex(&chunk) + "\n")).collect();
    for (name, content) in [
        ("entry-format-1.hex", hex(every_kind().encoded()) + "\n"),
        ("snapshot-format-1.hex", chunks.concat()),
        ("digests-format-1.txt", digests),
        ("version-2.hex", version_2),
    ] {
        #[expect(clippy::disallowed_methods, reason = "a test writes")]
        std::fs::write(folder.join(name), content).unwrap();
    }
}
