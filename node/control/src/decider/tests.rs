//! The decider against a consensus whose every answer the test gives.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use sandkeeper_statemachine::{
    Actor, AgentSpec, CallerId, Capacity, Command, CreateSandbox, Entry, FailurePolicy, Incarnation, Label,
    Mode, Outcome, Rejection, Request, Resources, SandboxName, SandboxRef, SandboxSpec, State, Target,
    Timestamp,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::*;

const TERM: u64 = 3;

type Confirmation = oneshot::Sender<Result<(), Undecided>>;
type Proposal = (Arc<Entry>, oneshot::Sender<Result<Applied, Undecided>>);

/// Keeps what is proposed and asked until the test answers it.
#[derive(Default)]
struct Scripted {
    proposals: Mutex<VecDeque<Proposal>>,
    confirmations: Mutex<VecDeque<Confirmation>>,
}

impl Consensus for Scripted {
    fn propose(&self, term: u64, entry: EntryData) -> BoxFuture<'_, Result<Fate, Undecided>> {
        assert_eq!(term, TERM);
        let (answer, fate) = oneshot::channel();
        self.proposals.lock().unwrap().push_back((entry.entry().unwrap(), answer));
        let fate = fate.map(|fate| fate.unwrap_or_else(|_| Err(Undecided("gone".into()))));
        async move { Ok(fate.boxed()) }.boxed()
    }

    fn confirm(&self, term: u64) -> BoxFuture<'static, Result<(), Undecided>> {
        assert_eq!(term, TERM);
        let (answer, confirmed) = oneshot::channel();
        self.confirmations.lock().unwrap().push_back(answer);
        async move { confirmed.await.unwrap_or_else(|_| Err(Undecided("gone".into()))) }.boxed()
    }
}

struct Bench {
    consensus: Arc<Scripted>,
    queue: QueueSender,
    stop: CancellationToken,
    decider: JoinHandle<()>,
}

impl Bench {
    /// A decider on a state with one agent of `slots` slots.
    fn new(slots: u64) -> Self {
        Self::with_low_water(slots, 0)
    }

    /// The same, on a node whose disk is low if less than this is free.
    fn with_low_water(slots: u64, low_water: u64) -> Self {
        let folder = std::env::temp_dir();
        let disk = DiskSpace::open("n1", &folder, Some(low_water)).unwrap();
        let consensus = Arc::new(Scripted::default());
        let (queue, mut receiver) = queue();
        let stop = CancellationToken::new();
        let (for_decider, for_stop) = (Arc::clone(&consensus), stop.clone());
        let decider = tokio::spawn(async move {
            let around = Surroundings {
                knowledge: LeaderKnowledge::default(),
                metrics: Arc::new(Metrics::new()),
                clocks: Clocks::default(),
                disk,
            };
            run(TERM, fleet(slots), &mut receiver, for_decider, around, for_stop).await;
        });
        Self { consensus, queue, stop, decider }
    }

    fn push(&self, request: Request) -> oneshot::Receiver<Answer> {
        self.queue.push(request, Instant::now() + Duration::from_secs(3600), None).unwrap()
    }

    async fn proposal(&self) -> Proposal {
        eventually(|| self.consensus.proposals.lock().unwrap().pop_front()).await
    }

    async fn confirmation(&self) -> Confirmation {
        eventually(|| self.consensus.confirmations.lock().unwrap().pop_front()).await
    }
}

async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = look() {
            return found;
        }
        tokio::task::yield_now().await;
    }
}

fn fleet(slots: u64) -> State {
    let mut draft = Draft::new(State::new(), Timestamp(1));
    let capacity = Capacity { slots, cpu_millis: 1_000, memory_bytes: 1 << 30 };
    let agent = AgentSpec {
        agent_id: "a".parse().unwrap(),
        incarnation: Incarnation { ledger: Uuid::from_u128(1), start: 1 },
        capacity,
        labels: std::collections::BTreeMap::new(),
        pool: Label::default_name(),
        runtime: "simulated".into(),
        version: "test".into(),
        host: "127.0.0.1".into(),
    };
    let mut around = LeaderKnowledge::default().surroundings();
    for command in [
        Command::CreateCluster { cluster_id: Uuid::from_u128(7), cluster_version: 1 },
        Command::RegisterAgent(Box::new(agent)),
    ] {
        draft.decide(&Request { actor: Actor::Leader, id: None, command }, &mut around).unwrap();
    }
    draft.seal(1).1
}

fn create(name: &str, request_id: &str) -> Request {
    let spec = SandboxSpec {
        name: SandboxName { namespace: Label::default_name(), name: name.parse().unwrap() },
        image: String::new(),
        command: vec!["true".into()],
        args: Vec::new(),
        envs: std::collections::BTreeMap::new(),
        working_dir: String::new(),
        ports: Vec::new(),
        resources: Resources::default(),
        pool: Label::default_name(),
        agent_selector: std::collections::BTreeMap::new(),
        mode: Mode::Fast,
        request_id: request_id.parse().unwrap(),
    };
    let create = CreateSandbox {
        spec,
        labels: std::collections::BTreeMap::new(),
        expiry: None,
        failure_policy: FailurePolicy::Manual,
        recovery_timeout_seconds: 60,
        wait: None,
    };
    Request {
        actor: Actor::Client("test".into()),
        id: Some(CallerId { id: request_id.parse().unwrap(), retention: 60_000_000_000 }),
        command: Command::CreateSandbox(Box::new(create)),
    }
}

fn done(entry: &Entry) -> Applied {
    Applied::Done { revision: entry.last_revision() }
}

#[tokio::test]
async fn a_create_is_answered_when_its_entry_is_applied_and_not_before() {
    let bench = Bench::new(4);
    let mut answer = bench.push(create("web", "r1"));
    let (entry, fate) = bench.proposal().await;
    assert!(answer.try_recv().is_err(), "nothing is acknowledged before it is applied");
    fate.send(Ok(done(&entry))).unwrap();
    let outcome = answer.await.unwrap().unwrap().unwrap();
    assert!(matches!(outcome, Outcome::Sandbox { duplicate: false, .. }));
    bench.stop.cancel();
    bench.decider.await.unwrap();
}

#[tokio::test]
async fn commands_that_wait_share_an_entry_and_the_next_is_decided_while_it_commits() {
    let bench = Bench::new(4);
    let first = bench.push(create("a", "r1"));
    let (entry, fate) = bench.proposal().await;
    let rest: Vec<_> = ["b", "c"].iter().map(|name| bench.push(create(name, name))).collect();
    let (next, next_fate) = bench.proposal().await;
    assert_eq!(next.base_revision, entry.last_revision(), "it is decided on what the one in flight leaves");
    assert_eq!(next.events.len(), 4, "two creates, each with its allocation");
    fate.send(Ok(done(&entry))).unwrap();
    next_fate.send(Ok(done(&next))).unwrap();
    assert!(first.await.unwrap().unwrap().is_ok());
    for answer in rest {
        assert!(answer.await.unwrap().unwrap().is_ok());
    }
}

/// Batch 1 creates `web`, is in flight, and is lost with its leader; batch 2 has already refused another `web`.
#[tokio::test]
async fn a_refusal_that_rests_on_a_lost_entry_is_never_told() {
    let bench = Bench::new(4);
    let first = bench.push(create("web", "r1"));
    let (_, fate) = bench.proposal().await;
    let mut second = bench.push(create("web", "r2"));
    let confirmation = bench.confirmation().await;
    // A quorum may well confirm it: the refusal still rests on an entry that is not there.
    confirmation.send(Ok(())).unwrap();
    tokio::task::yield_now().await;
    assert!(second.try_recv().is_err(), "a refusal waits for the entry that it rests on");
    fate.send(Err(Undecided("lost".into()))).unwrap();
    assert!(first.await.unwrap().is_err());
    assert!(second.await.unwrap().is_err(), "nobody is told that the name is taken");
    bench.decider.await.unwrap();
}

#[tokio::test]
async fn a_skipped_entry_ends_the_decider_and_everything_behind_it() {
    let bench = Bench::new(4);
    let first = bench.push(create("a", "r1"));
    let (_, fate) = bench.proposal().await;
    let second = bench.push(create("b", "r2"));
    let (next, next_fate) = bench.proposal().await;
    fate.send(Ok(Applied::Skipped { revision: 9 })).unwrap();
    next_fate.send(Ok(Applied::Skipped { revision: 9 })).unwrap();
    assert!(first.await.unwrap().is_err());
    assert!(second.await.unwrap().is_err());
    assert!(next.base_revision > 0);
    bench.decider.await.unwrap();
}

#[tokio::test]
async fn a_deposed_leader_tells_nobody_that_the_name_exists() {
    let bench = Bench::new(4);
    let first = bench.push(create("web", "r1"));
    let (entry, fate) = bench.proposal().await;
    fate.send(Ok(done(&entry))).unwrap();
    assert!(first.await.unwrap().unwrap().is_ok());
    let second = bench.push(create("web", "r2"));
    let confirmation = bench.confirmation().await;
    confirmation.send(Err(Undecided("this node does not lead".into()))).unwrap();
    assert!(second.await.unwrap().is_err());
}

#[tokio::test]
async fn a_confirmed_leader_refuses_and_repeats_its_first_answer() {
    let bench = Bench::new(1);
    let first = bench.push(create("web", "r1"));
    let (entry, fate) = bench.proposal().await;
    fate.send(Ok(done(&entry))).unwrap();
    let Outcome::Sandbox { sandbox, .. } = first.await.unwrap().unwrap().unwrap() else {
        panic!("no sandbox")
    };
    let answers =
        [bench.push(create("web", "r1")), bench.push(create("web", "r2")), bench.push(create("db", "r3"))];
    let confirmed = tokio::spawn({
        let consensus = Arc::clone(&bench.consensus);
        async move {
            loop {
                let confirmation = consensus.confirmations.lock().unwrap().pop_front();
                if let Some(confirmation) = confirmation {
                    confirmation.send(Ok(())).unwrap();
                }
                tokio::task::yield_now().await;
            }
        }
    });
    let [again, taken, full] = answers;
    let again = again.await.unwrap().unwrap().unwrap();
    assert!(
        matches!(again, Outcome::Sandbox { sandbox: same, duplicate: true, .. } if same.id == sandbox.id)
    );
    assert!(matches!(taken.await.unwrap().unwrap(), Err(Refusal::Rejected(Rejection::NameTaken { .. }))));
    assert!(matches!(full.await.unwrap().unwrap(), Err(Refusal::Rejected(Rejection::NoCapacity(_)))));
    confirmed.abort();
}

#[tokio::test(start_paused = true)]
async fn a_command_past_its_deadline_is_dropped_undecided() {
    let bench = Bench::new(4);
    let answer = bench.queue.push(create("web", "r1"), Instant::now(), None).unwrap();
    assert!(answer.await.unwrap().is_err());
    assert!(bench.consensus.proposals.lock().unwrap().is_empty());
}

/// A leader that was paused, replaced and woken, or that leads again in a later term, has observed an agent's silence
/// that is its own: only its own term may conclude from it.
#[tokio::test]
async fn what_another_term_has_observed_is_not_decided() {
    let bench = Bench::new(4);
    let deadline = Instant::now() + Duration::from_secs(3600);
    let incarnation = Incarnation { ledger: Uuid::from_u128(1), start: 1 };
    let command = Command::LoseAgent { agent: "a".parse().unwrap(), incarnation };
    let request = Request { actor: Actor::Leader, id: None, command };
    let stale = bench.queue.push(request.clone(), deadline, Some(TERM - 1)).unwrap();
    assert!(stale.await.unwrap().is_err());
    assert!(bench.consensus.proposals.lock().unwrap().is_empty());
    let own = bench.queue.push(request, deadline, Some(TERM)).unwrap();
    let (entry, fate) = bench.proposal().await;
    fate.send(Ok(done(&entry))).unwrap();
    assert!(own.await.unwrap().unwrap().is_ok());
}

/// The fate of what a deposed leader has in flight may be unknown for long.
#[tokio::test]
async fn who_comes_while_a_decider_ends_is_not_kept_waiting() {
    let bench = Bench::new(4);
    let first = bench.push(create("a", "r1"));
    let (entry, fate) = bench.proposal().await;
    bench.stop.cancel();
    let late = bench.push(create("b", "r2"));
    assert!(late.await.unwrap().is_err(), "it may go to the next leader");
    fate.send(Ok(done(&entry))).unwrap();
    assert!(first.await.unwrap().unwrap().is_ok(), "what was in flight is answered truly");
}

#[tokio::test]
async fn the_queue_is_bounded_by_commands_and_by_bytes() {
    let deadline = Instant::now() + Duration::from_secs(60);
    let (sender, _receiver) = queue();
    let answers: Vec<_> =
        (0..MAX_QUEUED_COMMANDS).map(|_| sender.push(create("a", "r"), deadline, None)).collect();
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(sender.push(create("a", "r"), deadline, None).unwrap_err(), Full);

    let (sender, _receiver) = queue();
    let mut large = create("a", "r");
    if let Command::CreateSandbox(create) = &mut large.command {
        create.spec.command = vec!["x".repeat(1024 * 1024)];
    }
    let pushed = (0..32).flat_map(|_| sender.push(large.clone(), deadline, None)).count();
    assert_eq!(pushed, 15, "sixteen and their envelopes are more than {MAX_QUEUED_BYTES} bytes");
}

/// What is carried out already is answered as before, what can't be is refused as before; only what would be new is
/// refused for lack of room. What ends something goes on.
#[tokio::test]
async fn on_a_low_disk_new_work_is_refused_and_all_else_goes_on() {
    let bench = Bench::with_low_water(4, u64::MAX);
    let commands = |command| Request {
        actor: Actor::Client("test".into()),
        id: Some(CallerId { id: "r9".parse().unwrap(), retention: 60_000_000_000 }),
        command,
    };
    let mut invalid = create("bad", "r2");
    if let Command::CreateSandbox(create) = &mut invalid.command {
        create.recovery_timeout_seconds = u32::MAX;
    }
    let name = SandboxName { namespace: Label::default_name(), name: "web".parse().unwrap() };
    let target = Target { sandbox: SandboxRef::Name(name), expected_revision: None };
    let new = bench.push(create("web", "r1"));
    let invalid = bench.push(invalid);
    let missing = bench.push(commands(Command::TerminateSandbox(target)));
    let mut refusals = Vec::new();
    for mut answer in [new, invalid, missing] {
        // They are decided one by one or together.
        let answered = eventually(|| {
            if let Some(confirmation) = bench.consensus.confirmations.lock().unwrap().pop_front() {
                confirmation.send(Ok(())).unwrap();
            }
            answer.try_recv().ok()
        });
        refusals.push(answered.await.unwrap().unwrap_err());
    }
    assert!(matches!(&refusals[0], Refusal::DiskLow(low) if low.0[0].node == "n1"), "{refusals:?}");
    assert!(matches!(&refusals[1], Refusal::Rejected(Rejection::Invalid(_))), "{refusals:?}");
    assert!(matches!(&refusals[2], Refusal::Rejected(Rejection::SandboxNotFound(_))), "{refusals:?}");

    let agent = "a".parse().unwrap();
    let cordon = bench.push(commands(Command::CordonAgent { agent, reason: "full".into() }));
    let (entry, fate) = bench.proposal().await;
    fate.send(Ok(done(&entry))).unwrap();
    assert!(cordon.await.unwrap().unwrap().is_ok());
}
