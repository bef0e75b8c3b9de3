//! A cluster of one: a state, a clock that the test moves, and ids that count.

use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

use crate::*;

pub const SECOND: i64 = 1_000_000_000;
pub const START: Timestamp = Timestamp(1_000 * SECOND);
pub const TERM: Term = 3;

/// Ids that count, and images that the test names.
#[derive(Clone, Debug, Default)]
pub struct Around {
    pub drawn: u128,
    pub images: BTreeMap<String, BTreeSet<AgentId>>,
    pub unknown: UnknownByAgent,
}

impl Surroundings for Around {
    fn new_uuid(&mut self) -> Uuid {
        self.drawn += 1;
        Uuid::from_u128(0xd00d << 112 | self.drawn)
    }

    fn agents_with_image(&self, image: &str) -> Option<&BTreeSet<AgentId>> {
        self.images.get(image)
    }

    fn unknown(&self) -> UnknownByAgent {
        self.unknown.clone()
    }
}

#[derive(Clone, Debug)]
pub struct World {
    pub state: State,
    pub now: Timestamp,
    pub around: Around,
}

impl World {
    /// Of a cluster of the newest version.
    pub fn new() -> Self {
        Self::of_version(CLUSTER_VERSION)
    }

    pub fn of_version(cluster_version: u32) -> Self {
        let mut world = Self { state: State::new(), now: START, around: Around::default() };
        world.must(Command::CreateCluster { cluster_id: Uuid::from_u128(0xc1), cluster_version });
        world
    }

    /// Decides a request and applies its entry as a replica does.
    pub fn run(&mut self, request: &Request) -> (Result<Outcome, Rejection>, Entry) {
        let mut draft = Draft::new(self.state.clone(), self.now);
        let outcome = draft.decide(request, &mut self.around);
        let (entry, working) = draft.seal(TERM);
        let events = entry.events.len() as u64;
        let first = self.state.revision() + 1;
        assert_eq!(self.state.apply(&entry, TERM), Applied::Done { first, last: first + events - 1 });
        assert!(self.state == working, "the working copy differs from what the entry gives");
        (outcome, entry)
    }

    /// A command of the leader, an agent, or a caller without an id.
    pub fn give(&mut self, command: Command) -> Result<Outcome, Rejection> {
        self.run(&Request { actor: Actor::Leader, id: None, command }).0
    }

    pub fn must(&mut self, command: Command) -> Outcome {
        self.give(command).unwrap()
    }

    /// Housekeeping until it has nothing to do. Answers how often it had.
    pub fn keep_house(&mut self) -> usize {
        for round in 0..10_000 {
            let before = self.state.revision();
            self.must(Command::Housekeeping);
            if self.state.revision() == before {
                return round;
            }
        }
        panic!("housekeeping never ends");
    }
}

pub fn label(text: &str) -> Label {
    text.parse().unwrap()
}

pub fn name(text: &str) -> SandboxName {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    SandboxName { namespace: label(namespace), name: label(name) }
}

pub fn agent_id(text: &str) -> AgentId {
    text.parse().unwrap()
}

pub fn incarnation(ledger: u128, start: u64) -> Incarnation {
    Incarnation { ledger: Uuid::from_u128(ledger), start }
}

pub fn agent(id: &str, slots: u64) -> AgentSpec {
    AgentSpec {
        agent_id: agent_id(id),
        incarnation: incarnation(1, 1),
        capacity: Capacity { slots, cpu_millis: 8_000, memory_bytes: 8_000 },
        labels: Labels::new(),
        pool: label("default"),
        runtime: "simulated".into(),
        version: "1".into(),
        host: "10.0.0.1".into(),
    }
}

pub fn create(text: &str) -> CreateSandbox {
    CreateSandbox {
        spec: SandboxSpec {
            name: name(text),
            image: String::new(),
            command: Vec::new(),
            args: Vec::new(),
            envs: BTreeMap::new(),
            working_dir: String::new(),
            ports: Vec::new(),
            resources: Resources::default(),
            pool: label("default"),
            agent_selector: Labels::new(),
            mode: Mode::Fast,
            request_id: "none".parse().unwrap(),
        },
        labels: Labels::new(),
        expiry: None,
        failure_policy: FailurePolicy::Manual,
        recovery_timeout_seconds: 60,
        wait: None,
    }
}

pub fn adoptable(text: &str) -> Adoptable {
    let CreateSandbox { spec, labels, .. } = create(text);
    Adoptable { spec, labels }
}

pub fn by_name(text: &str) -> Target {
    Target { sandbox: SandboxRef::Name(name(text)), expected_revision: None }
}

pub fn by_id(id: &SandboxId) -> Target {
    let namespace = label("default");
    Target { sandbox: SandboxRef::Id { namespace, id: id.clone() }, expected_revision: None }
}
