//! Entries of sandboxes' lives, as a leader that decides one command at a time makes them: a create, a report that it runs, a
//! termination, a report that it is gone. For tests and benchmarks that need many.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sandkeeper_statemachine::{
    Actor, AgentId, AgentSpec, CallerId, Capacity, Command, CreateSandbox, Draft, Entry, FailurePolicy,
    Incarnation, Label, Mode, Report, ReportedState, Request, RequestId, Resources, SandboxId, SandboxName,
    SandboxRef, SandboxSpec, State, Surroundings, Target, Term,
};
use uuid::Uuid;

/// The term in which everything is decided, unless another one is said.
pub const TERM: Term = 1;
/// Between two commands, nanoseconds; with it a request is remembered for 60,000 of them.
const STEP: i64 = 1_000_000;
const REMEMBERED: i64 = 60_000 * STEP;

/// How many there are of what.
#[derive(Clone, Copy, Debug)]
pub struct Population {
    /// Agents.
    pub agents: u64,
    /// Sandboxes that live at a time.
    pub live: u64,
}

impl Default for Population {
    fn default() -> Self {
        Self { agents: 100, live: 10_000 }
    }
}

/// A cluster in the making.
#[derive(Debug)]
pub struct Lives {
    population: Population,
    state: State,
    term: Term,
    /// Sandboxes begun so far.
    begun: u64,
    /// What has to be decided next.
    next: VecDeque<Step>,
}

#[derive(Debug)]
enum Step {
    Agent(u64),
    Create(u64),
    Running(u64),
    Terminate(u64),
    Absent(SandboxId),
}

/// It draws ids by counting, and knows nothing of images.
struct Counting(u128);

impl Surroundings for Counting {
    fn new_uuid(&mut self) -> Uuid {
        self.0 += 1;
        Uuid::from_u128(self.0)
    }

    fn agents_with_image(&self, _: &str) -> Option<&BTreeSet<AgentId>> {
        None
    }
}

impl Lives {
    /// A cluster with nothing in it.
    pub fn new(population: Population) -> Self {
        let next = (0..population.agents).map(Step::Agent).collect();
        Self { population, state: State::new(), term: TERM, begun: 0, next }
    }

    /// What follows is decided in this term.
    pub fn lead_in(&mut self, term: Term) {
        self.term = term;
    }

    /// The state after the entries so far.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How many sandboxes were begun.
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Decides the next command: an entry with its events.
    ///
    /// # Panics
    /// If the command is refused.
    pub fn decide(&mut self) -> Entry {
        let mut draft = Draft::new(self.state.clone(), self.state.last_time().plus(STEP));
        let (actor, id, command) = self.command();
        let decided = draft.decide(&Request { actor, id, command }, &mut Counting(0));
        assert!(decided.is_ok(), "refused: {decided:?}");
        let (entry, state) = draft.seal(self.term);
        self.state = state;
        entry
    }

    fn command(&mut self) -> (Actor, Option<CallerId>, Command) {
        if self.state.cluster().is_none() {
            let create = Command::CreateCluster { cluster_id: Uuid::from_u128(7), cluster_version: 1 };
            return (Actor::Leader, None, create);
        }
        if self.state.next_deadline().is_some_and(|deadline| deadline <= self.state.last_time()) {
            return (Actor::Leader, None, Command::Housekeeping);
        }
        let step = self.next.pop_front().unwrap_or_else(|| self.begin());
        match step {
            Step::Agent(number) => (Actor::Leader, None, Command::RegisterAgent(Box::new(agent(number)))),
            Step::Create(number) => {
                let create = Command::CreateSandbox(Box::new(create(number)));
                (client(), Some(caller(number, "create")), create)
            }
            Step::Running(number) => {
                let id = self.id_of(number);
                (Actor::Leader, None, self.report(id, running()))
            }
            Step::Terminate(number) => {
                self.next.push_back(Step::Absent(self.id_of(number)));
                let target = Target { sandbox: SandboxRef::Name(name(number)), expected_revision: None };
                (client(), Some(caller(number, "terminate")), Command::TerminateSandbox(target))
            }
            Step::Absent(id) => (Actor::Leader, None, self.report(id, ReportedState::Absent)),
        }
    }

    /// Begins the next sandbox, and ends the one so many before it.
    fn begin(&mut self) -> Step {
        let number = self.begun;
        self.begun += 1;
        self.next.push_back(Step::Running(number));
        self.next.extend(number.checked_sub(self.population.live).map(Step::Terminate));
        Step::Create(number)
    }

    fn id_of(&self, number: u64) -> SandboxId {
        self.state.sandbox_named(&name(number)).expect("it was begun, and not ended").id.clone()
    }

    fn report(&self, sandbox_id: SandboxId, state: ReportedState) -> Command {
        let sandbox = self.state.sandbox(&sandbox_id).expect("it is not gone");
        let agent = sandbox.status.agent.clone().expect("there is room for all");
        let incarnation = self.state.agent(&agent).expect("agents stay").spec.incarnation;
        let generation = sandbox.status.generation;
        Command::Report(Report { agent, incarnation, sandbox_id, generation, state })
    }
}

fn running() -> ReportedState {
    ReportedState::Running { endpoints: Vec::new(), lease_revision: 0 }
}

fn client() -> Actor {
    Actor::Client("somebody".into())
}

fn caller(number: u64, what: &str) -> CallerId {
    CallerId { id: request_id(number, what), retention: REMEMBERED }
}

fn request_id(number: u64, what: &str) -> RequestId {
    format!("{what}-{number}").parse().expect("short and printable")
}

/// The name of the sandbox of a number.
///
/// # Panics
/// Never: it is a label.
pub fn name(number: u64) -> SandboxName {
    let name = format!("sandbox-{number}").parse().expect("letters and digits");
    SandboxName { namespace: Label::default_name(), name }
}

fn agent(number: u64) -> AgentSpec {
    AgentSpec {
        agent_id: format!("agent-{number}").parse().expect("letters and digits"),
        incarnation: Incarnation { ledger: Uuid::from_u128(number.into()), start: 1 },
        capacity: Capacity { slots: 4_000, cpu_millis: 400_000, memory_bytes: 1 << 38 },
        labels: BTreeMap::new(),
        pool: Label::default_name(),
        runtime: "simulated".into(),
        version: "test".into(),
        host: "127.0.0.1".into(),
    }
}

fn create(number: u64) -> CreateSandbox {
    let spec = SandboxSpec {
        name: name(number),
        image: String::new(),
        command: vec!["python3".into(), "-m".into(), "http.server".into()],
        args: vec!["8080".into()],
        envs: BTreeMap::from([("USER_ID".into(), number.to_string())]),
        working_dir: "/home/user".into(),
        ports: Vec::new(),
        resources: Resources { cpu_millis: 100, memory_bytes: 64 << 20 },
        pool: Label::default_name(),
        agent_selector: BTreeMap::new(),
        mode: Mode::Fast,
        request_id: request_id(number, "create"),
    };
    CreateSandbox {
        spec,
        labels: BTreeMap::new(),
        expiry: None,
        failure_policy: FailurePolicy::Manual,
        recovery_timeout_seconds: 60,
        wait: None,
    }
}
