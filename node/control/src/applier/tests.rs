//! What is to be done in each pairing of what the state says and what the agent has.

mod recovery;
mod strangers;

use std::collections::BTreeMap;

use sandkeeper_statemachine::{
    Actor, AgentId, AgentSpec, Capacity, Command, CreateSandbox, Draft, FailurePolicy, Incarnation, Label,
    Mode, Outcome, Report, ReportedState, Request, Resources, SandboxId, SandboxName, SandboxRef,
    SandboxSpec, State, Surroundings, Target, Timestamp,
};
use uuid::Uuid;

use super::reconcile::{Actual, AgentView, Heard, Sent, SentKind, Step, reconcile};

struct Plain;

impl Surroundings for Plain {
    fn new_uuid(&mut self) -> Uuid {
        Uuid::from_u128(9)
    }

    fn agents_with_image(&self, _: &str) -> Option<&std::collections::BTreeSet<AgentId>> {
        None
    }
}

fn agent() -> AgentId {
    "a".parse().unwrap()
}

fn life() -> Incarnation {
    Incarnation { ledger: Uuid::from_u128(1), start: 1 }
}

struct World {
    state: State,
    view: AgentView,
    id: SandboxId,
}

impl World {
    /// One agent, one sandbox allocated to it.
    fn new() -> Self {
        Self::with_policy(FailurePolicy::Manual)
    }

    fn with_policy(failure_policy: FailurePolicy) -> Self {
        let spec = AgentSpec {
            agent_id: agent(),
            incarnation: life(),
            capacity: Capacity { slots: 4, cpu_millis: 0, memory_bytes: 0 },
            labels: BTreeMap::new(),
            pool: Label::default_name(),
            runtime: String::new(),
            version: String::new(),
            host: String::new(),
        };
        let mut world =
            Self { state: State::new(), view: AgentView::default(), id: SandboxId::Fast([0; 16]) };
        world.decide(Command::RegisterAgent(Box::new(spec)));
        let create = CreateSandbox {
            spec: SandboxSpec {
                name: SandboxName { namespace: Label::default_name(), name: "web".parse().unwrap() },
                image: String::new(),
                command: Vec::new(),
                args: Vec::new(),
                envs: BTreeMap::new(),
                working_dir: String::new(),
                ports: Vec::new(),
                resources: Resources::default(),
                pool: Label::default_name(),
                agent_selector: BTreeMap::new(),
                mode: Mode::Fast,
                request_id: "r".parse().unwrap(),
            },
            labels: BTreeMap::new(),
            expiry: None,
            failure_policy,
            recovery_timeout_seconds: 60,
            wait: None,
        };
        if let Outcome::Sandbox { sandbox, .. } = world.decide(Command::CreateSandbox(Box::new(create))) {
            world.id = sandbox.id;
        }
        world
    }

    fn decide(&mut self, command: Command) -> Outcome {
        let mut draft = Draft::new(self.state.clone(), Timestamp(1));
        let outcome = draft.decide(&Request { actor: Actor::Leader, id: None, command }, &mut Plain).unwrap();
        self.state = draft.seal(1).1;
        outcome
    }

    fn report(&mut self, generation: u64, state: ReportedState) {
        let sandbox_id = self.id.clone();
        let report = Report { agent: agent(), incarnation: life(), sandbox_id, generation, state };
        self.decide(Command::Report(report));
    }

    fn running(&mut self) {
        self.report(1, ReportedState::Running { endpoints: Vec::new(), lease_revision: 0 });
    }

    fn target(&self) -> Target {
        let sandbox = SandboxRef::Id { namespace: Label::default_name(), id: self.id.clone() };
        Target { sandbox, expected_revision: None }
    }

    fn has(&mut self, generation: u64, actual: Actual) {
        self.view.actual.insert(self.id.clone(), (generation, actual));
    }

    fn sent(&mut self, sequence: u64, generation: u64, what: SentKind) {
        self.view.sent.insert(self.id.clone(), Sent { sequence, generation, what, overdue: false });
    }

    fn steps(&self) -> Vec<Step> {
        reconcile(&self.state, &agent(), &self.view, &self.id)
    }
}

fn runs() -> Actual {
    Actual::Running { endpoints: Vec::new(), lease_revision: 0 }
}

#[test]
fn what_is_allocated_is_created_once_and_again_when_overdue() {
    let mut world = World::new();
    assert_eq!(world.steps(), [Step::Create(1)]);
    world.sent(1, 1, SentKind::Create);
    assert_eq!(world.steps(), []);
    world.view.sent.get_mut(&world.id).unwrap().overdue = true;
    assert_eq!(world.steps(), [Step::Create(1)]);
    world.has(1, Actual::Creating);
    assert_eq!(world.steps(), []);
    world.has(1, runs());
    assert_eq!(
        world.steps(),
        [Step::Report(1, ReportedState::Running { endpoints: Vec::new(), lease_revision: 0 })]
    );
    world.running();
    assert_eq!(world.steps(), []);
}

#[test]
fn what_runs_and_is_not_in_the_inventory_has_vanished() {
    let mut world = World::new();
    world.running();
    assert_eq!(world.steps(), [Step::Report(1, ReportedState::Absent)]);
}

/// A create sits in an old session's buffer; the inventory lacks it; the slot must not be sold.
#[test]
fn an_inventory_older_than_the_last_command_proves_no_absence() {
    let mut world = World::new();
    world.sent(7, 1, SentKind::Create);
    world.view.processed = 6;
    let target = world.target();
    world.decide(Command::TerminateSandbox(target));
    assert_eq!(world.steps(), [Step::Terminate(1)], "it may come to be there, so it has to be terminated");
    world.sent(8, 1, SentKind::Terminate);
    assert_eq!(world.steps(), [], "not processed yet: nothing is proven");
    world.view.processed = 8;
    assert_eq!(world.steps(), [Step::Report(1, ReportedState::Absent)]);
    world.report(1, ReportedState::Absent);
    assert_eq!(world.state.sandbox_count(), 0);
    assert_eq!(world.steps(), []);
}

/// The command that made it is settled and forgotten: that it is not in an inventory of before proves nothing, and such an
/// inventory must not take the view's place.
#[test]
fn an_inventory_of_before_what_was_heard_since_is_no_view() {
    let mut world = World::new();
    world.running();
    world.view.processed = 8;
    assert!(world.view.is_newer_than(7));
    assert!(!world.view.is_newer_than(8) && !world.view.is_newer_than(9));
}

#[test]
fn what_terminates_is_terminated_until_it_is_absent() {
    let mut world = World::new();
    world.running();
    world.has(1, runs());
    let target = world.target();
    world.decide(Command::TerminateSandbox(target));
    assert_eq!(world.steps(), [Step::Terminate(1)]);
    world.sent(3, 1, SentKind::Terminate);
    world.has(1, Actual::Stopping);
    world.view.processed = 3;
    assert_eq!(world.steps(), []);
    world.view.actual.clear();
    assert_eq!(world.steps(), [Step::Report(1, ReportedState::Absent)]);
}

#[test]
fn the_next_generation_waits_until_the_old_one_is_gone() {
    let mut world = World::new();
    world.running();
    world.has(1, runs());
    let target = world.target();
    world.decide(Command::ResetSandbox(target));
    assert_eq!(world.state.sandbox(&world.id).unwrap().status.generation, 2);
    assert_eq!(world.steps(), [Step::Terminate(1)], "no create of generation 2 yet");
    world.sent(4, 1, SentKind::Terminate);
    world.view.processed = 4;
    world.view.actual.clear();
    assert_eq!(world.steps(), [Step::Report(1, ReportedState::Absent)]);
    world.report(1, ReportedState::Absent);
    assert_eq!(world.steps(), [Step::Create(2)]);
}

#[test]
fn the_record_of_what_failed_stays_until_it_is_terminated() {
    let exited = Actual::Exited {
        exit_code: Some(3),
        reason: "exit code 3".into(),
        expired: false,
        lease_over: false,
    };
    let mut world = World::new();
    world.running();
    world.has(1, exited.clone());
    let reported = ReportedState::Exited {
        exit_code: Some(3),
        reason: "exit code 3".into(),
        expired: false,
        lease_over: false,
    };
    assert_eq!(world.steps(), [Step::Report(1, reported.clone())]);
    world.report(1, reported);
    assert_eq!(world.steps(), [], "its log and exit code are kept");
    let target = world.target();
    world.decide(Command::TerminateSandbox(target));
    assert_eq!(world.state.sandbox_count(), 0);
    assert_eq!(world.steps(), [Step::Terminate(1)]);
}

#[test]
fn what_nobody_knows_is_an_orphan_and_an_old_generation_is_not_tolerated() {
    let mut world = World::new();
    let stranger = SandboxId::Fast([5; 16]);
    world.view.actual.insert(stranger.clone(), (1, runs()));
    assert_eq!(reconcile(&world.state, &agent(), &world.view, &stranger), [Step::Orphan(1)]);
    world.report(1, ReportedState::StartFailed { reason: "no such file".into() });
    world.has(1, runs());
    assert_eq!(world.steps(), [Step::Terminate(1)], "its allocation was released, so it may not run");
}

/// The agent repeats that generation 1 is gone (a terminate was sent twice), while generation 2 runs.
#[test]
fn the_absence_of_an_older_generation_says_nothing_of_the_newer() {
    let mut world = World::new();
    let id = world.id.clone();
    world.running();
    let target = world.target();
    world.decide(Command::ResetSandbox(target));
    world.report(1, ReportedState::Absent);
    world.report(2, ReportedState::Running { endpoints: Vec::new(), lease_revision: 0 });
    world.view.note(&id, 2, Heard::Ours(Some(runs())));
    world.view.note(&id, 1, Heard::Ours(None));
    assert_eq!(world.steps(), [], "generation 2 runs on");
    world.view.note(&id, 1, Heard::Ours(Some(Actual::Stopping)));
    assert_eq!(world.steps(), []);
    world.view.note(&id, 2, Heard::Ours(None));
    assert_eq!(world.steps(), [Step::Report(2, ReportedState::Absent)]);
}
