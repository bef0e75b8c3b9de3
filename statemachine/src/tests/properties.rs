//! Random commands, with small spaces of names and ids so that they meet, and agents that lie. After every command and
//! every entry, what has to hold always is checked.

mod checks;
mod steps;
mod streams;

use proptest::prelude::*;

use super::world::*;
use crate::*;
use checks::{Excused, Model, check_records, check_step};
use steps::{Step, step};

/// What one case does: batches of commands, each batch one entry, as the decider makes them.
fn batches() -> impl Strategy<Value = Vec<Vec<Step>>> {
    prop::collection::vec(prop::collection::vec(step(), 1..6), 20..50)
}

struct Run {
    world: World,
    entries: Vec<Entry>,
    model: Model,
    excused: Excused,
    /// What callers have asked for with an id.
    asked: Vec<Request>,
    /// First answers in streams and of batches that were given again.
    again: u32,
}

impl Run {
    fn new() -> Self {
        let (model, excused) = (Model::default(), Excused::default());
        let mut run =
            Self { world: World::new(), entries: Vec::new(), model, excused, asked: Vec::new(), again: 0 };
        for which in 0..4 {
            let agent = agent_id(&format!("a{which}"));
            let there = ["s0", "s1", "old"].map(|text| unknown(&agent, text));
            run.world.around.unknown.insert(agent, there.into());
        }
        // The first entry of the history, again, so that it is among those that are folded.
        run.world.state = State::new();
        let cluster_id = uuid::Uuid::from_u128(0xc1);
        run.decide(&[Request {
            actor: Actor::Leader,
            id: None,
            command: Command::CreateCluster { cluster_id, cluster_version: CLUSTER_VERSION },
        }]);
        run
    }

    /// Decides requests into one entry, and applies it: on this replica, on one that was restored from a snapshot, and on
    /// one that must skip it.
    fn decide(&mut self, requests: &[Request]) {
        let restored = restore(&self.world.state);
        assert!(restored == self.world.state, "a restored state differs, in a record or an index");
        let mut twin_around = self.world.around.clone();
        let mut draft = Draft::new(self.world.state.clone(), self.world.now);
        let mut twin = Draft::new(restored.clone(), self.world.now);
        let mut answers = Vec::new();
        for request in requests {
            let before = draft.state().clone();
            let bytes = draft.encoded_bytes();
            let outcome = draft.decide(request, &mut self.world.around);
            assert_eq!(outcome, twin.decide(request, &mut twin_around), "another replica decides otherwise");
            if outcome.is_err() {
                assert!(
                    *draft.state() == before && draft.encoded_bytes() == bytes,
                    "a refusal changed something"
                );
            }
            check_step(&before, draft.state(), request, &outcome);
            self.excused.check_queues(draft.state());
            answers.push(outcome);
        }
        let (entry, working) = draft.seal(TERM);
        let (twin_entry, _) = twin.seal(TERM);
        assert_eq!(entry.encoded(), twin_entry.encoded(), "another replica makes another entry");
        self.apply(&entry, &working, restored);
        self.model.follow(&entry, &self.world.state);
        let answers = requests.iter().zip(&answers);
        self.again += answers
            .map(|(request, answer)| u32::from(self.model.streams.check_answer(request, answer)))
            .sum::<u32>();
        check_records(&self.world.state);
        self.entries.push(entry);
    }

    fn apply(&mut self, entry: &Entry, working: &State, mut restored: State) {
        let decoded = Entry::decode(entry.encoded()).unwrap();
        assert_eq!(decoded, *entry);
        let before = restored.clone();
        assert_eq!(restored.apply(&decoded, TERM + 1), Applied::Skipped, "it was decided in another term");
        let stale = Entry::new(entry.base_revision.wrapping_sub(1), TERM, entry.time, entry.events.to_vec());
        assert_eq!(restored.apply(&stale, TERM), Applied::Skipped, "it was decided on another revision");
        assert!(restored == before, "a skipped entry changed something");
        self.world.state.apply(entry, TERM);
        restored.apply(&decoded, TERM);
        assert!(self.world.state == *working, "the working copy differs from what the entry gives");
        assert!(self.world.state == restored, "a restored replica applies otherwise");
        if !entry.events.is_empty() {
            assert_eq!(restored.apply(&decoded, TERM), Applied::Skipped, "the same entry again");
        }
    }

    fn step(&mut self, batch: &[Step]) {
        let mut requests = Vec::new();
        for step in batch {
            match step {
                Step::Advance(seconds) => self.world.now = self.world.now.plus(i64::from(*seconds) * SECOND),
                // A clock that jumps back: time goes on all the same.
                Step::Recede(seconds) => self.world.now = self.world.now.plus(-i64::from(*seconds) * SECOND),
                _ => requests.push(self.request(step)),
            }
        }
        self.decide(&requests);
        self.asked.extend(requests.into_iter().filter(|request| request.id.is_some()));
    }

    fn request(&self, step: &Step) -> Request {
        // One of the last, whose answer may not have come.
        let last = &self.asked[self.asked.len().saturating_sub(20)..];
        match step {
            Step::Retry(index) if !last.is_empty() => index.get(last).clone(),
            Step::Resend(index) => {
                let many = |request: &&Request| {
                    matches!(request.command, Command::CreateInStream { .. } | Command::CreateSandboxes(_))
                };
                let last: Vec<_> = last.iter().filter(many).collect();
                if last.is_empty() {
                    return step.request(&self.world.state);
                }
                let chosen: &&Request = index.get(&last);
                self.again(chosen)
            }
            _ => step.request(&self.world.state),
        }
    }

    /// A request once more. A client that has opened its stream again goes on in that.
    fn again(&self, request: &Request) -> Request {
        let mut request = request.clone();
        if let Command::CreateInStream { position, create } = &mut request.command
            && let RequestId::Stream { client, .. } = create.spec.request_id
        {
            let namespace = create.spec.name.namespace.clone();
            let known = self.world.state.stream_client(&StreamKey { namespace, client });
            position.opened = known.map_or(position.opened, |known| known.opened);
        }
        request
    }

    fn give(&mut self, command: Command) {
        self.decide(&[Request { actor: Actor::Leader, id: None, command }]);
    }

    /// Ends everything: terminates all, has the agents say that all is gone, removes them, and lets time pass.
    fn wind_down(&mut self) {
        let ids: Vec<_> = self.world.state.sandboxes().map(|sandbox| sandbox.id.clone()).collect();
        for id in &ids {
            self.give(Command::TerminateSandbox(by_id(id)));
        }
        let agents: Vec<_> = self.world.state.agents().cloned().collect();
        for agent in agents {
            let (id, incarnation) = (agent.spec.agent_id.clone(), agent.spec.incarnation);
            self.give(Command::RegisterAgent(Box::new((*agent.spec).clone())));
            let held = self.world.state.held_by(&id);
            let held: Vec<_> = held.map(|(sandbox, generation)| (sandbox.id.clone(), generation)).collect();
            for (sandbox_id, generation) in held {
                let (agent, state) = (id.clone(), ReportedState::Absent);
                let report = Report { agent, incarnation, sandbox_id, generation, state };
                self.give(Command::Report(report));
            }
            self.give(Command::LoseAgent { agent: id.clone(), incarnation });
            self.give(Command::RemoveAgent { agent: id, fenced: false });
        }
        self.world.now = self.world.now.max(self.world.state.last_time()).plus(3_600 * SECOND);
        for _ in 0..3 {
            self.give(Command::Housekeeping);
        }
    }

    /// Nothing is left, in no record and no index; but for what every history keeps.
    fn check_empty(&self) {
        let state = &self.world.state;
        let mut empty = State::new();
        empty.revision = state.revision();
        empty.last_time = state.last_time();
        empty.history = state.history_digest();
        empty.put_cluster(state.cluster().unwrap());
        assert!(*state == empty, "something is left over: {state:#?}");
        assert_eq!(state.next_deadline(), None);
    }

    /// The history, folded from nothing, gives this state, whether or not its digest is kept on the way.
    fn check_history(&self) {
        let (mut state, mut quick) = (State::new(), State::new().without_digest());
        for entry in &self.entries {
            let decoded = Entry::decode(entry.encoded()).unwrap();
            assert!(matches!(state.apply(&decoded, TERM), Applied::Done { .. }));
            quick.apply(&decoded, TERM);
        }
        assert!(state == quick.with_digest(), "a state without digest is another");
        assert_eq!(state.state_digest(), self.world.state.state_digest());
        assert_eq!(state.history_digest(), self.world.state.history_digest());
        assert!(state == self.world.state, "the history gives another state");
    }
}

fn unknown(agent: &AgentId, text: &str) -> UnknownSandbox {
    UnknownSandbox {
        agent: agent.clone(),
        id: text.parse().unwrap(),
        generation: 1,
        origin: Origin::Unlabelled,
        adoptable: Some(Box::new(adoptable(text))),
    }
}

fn restore(state: &State) -> State {
    State::from_snapshot_chunks(state.snapshot_chunks().map(Ok::<_, std::io::Error>)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_commanded_the_rules_hold(batches in batches()) {
        let mut run = Run::new();
        for batch in &batches {
            run.step(batch);
        }
        run.check_history();
        run.wind_down();
        run.check_history();
        run.check_empty();
    }
}

/// Random commands are of no use if most of them are refused: this counts what they lead to.
#[test]
fn random_commands_reach_every_kind_of_event_and_refusal() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    let mut run = Run::new();
    for _ in 0..120 {
        let batches = batches().new_tree(&mut runner).unwrap().current();
        for batch in &batches {
            run.step(batch);
            for step in batch.iter().filter(|step| step.is_command()) {
                let request = run.request(step);
                if let Err(rejection) = run.world.clone().run(&request).0 {
                    *seen.entry(rejection.code().into()).or_default() += 1;
                }
            }
        }
        for event in run.entries.drain(..).flat_map(|entry| entry.events) {
            let text = format!("{:?}", event.kind);
            let kind = text.split([' ', '(']).next().unwrap_or_default();
            *seen.entry(kind.into()).or_default() += 1;
        }
        run.wind_down();
    }
    assert!(run.again > 30, "answers of streams and batches that were given again: {}", run.again);
    // What can't be reached by few: limits of number (see `limits`, `streams`).
    let codes =
        ["INVALID", "SANDBOX_NOT_FOUND", "AGENT_NOT_FOUND", "NAME_TAKEN", "REQUEST_ID_REUSED", "ROLLED_BACK"];
    let more = ["NO_CAPACITY", "REVISION_MOVED", "FAILED_PRECONDITION"];
    let streams = ["STREAM_FORGOTTEN", "STREAM_SUPERSEDED", "STREAM_CLIENT_EXISTS", "ACKNOWLEDGED"];
    let many = ["BatchCreated", "StreamOpened", "StreamKept"];
    let agents = [
        "AgentRegistered",
        "AgentLost",
        "AgentReturned",
        "AgentCordoned",
        "AgentUncordoned",
        "AgentRecoveryResumed",
        "AgentDraining",
        "AgentRemoved",
    ];
    let sandboxes = ["SandboxCreated", "SandboxAllocated", "SandboxRunning", "SandboxFailed", "SandboxLost"];
    let ends = [
        "SandboxUpdated",
        "SandboxReset",
        "SandboxLeaseConfirmed",
        "SandboxTerminating",
        "AllocationReleased",
        "SandboxRemoved",
    ];
    let others = ["RequestsPruned", "ClusterRestored", "RestoreConfirmed", "AgentsRehomed"];
    let wanted = [&codes[..], &more, &agents, &sandboxes, &ends, &streams, &many, &others].concat();
    let rare: Vec<_> = wanted.into_iter().filter(|what| seen.get(*what).copied().unwrap_or(0) < 3).collect();
    assert!(rare.is_empty(), "hardly ever: {rare:?}, of {seen:#?}");
}
