//! What holds for every sequence of inputs, checked against a model of the runtime.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use sandkeeper_proto::v1::SandboxState;

use super::tests::{fresh_state, incarnation};
use super::*;
use crate::config::Capacity;
use crate::spec::SandboxSpec;
use crate::table::Phase;
use crate::wire;

const CAPACITY: Capacity = Capacity { slots: 3, cpu_millis: 10, memory_bytes: 10 };
const SESSIONS: u64 = 3;

#[derive(Clone, Debug)]
enum Step {
    Command {
        session: u64,
        term: u64,
        body: Body,
    },
    Reopen {
        session: u64,
    },
    /// The n-th runtime call that is under way is answered, well or badly.
    Answer {
        at: usize,
        well: bool,
    },
    /// The n-th running workload ends.
    Ended {
        at: usize,
    },
    Tick {
        by: u64,
    },
}

fn any_order() -> impl Strategy<Value = Order> {
    (0u8..4, 1u64..5, 0u64..8, 0u16..3, proptest::option::of(0u64..50)).prop_map(
        |(id, generation, cpu, port, expires_at)| Order {
            spec: Arc::new(SandboxSpec {
                cluster_id: "blue".to_owned(),
                sandbox_id: format!("s{id}"),
                generation,
                cpu_millis: cpu,
                memory_bytes: 8 - cpu,
                ports: vec![80 + port],
                ..SandboxSpec::default()
            }),
            expires_at: expires_at.map(BootTime),
            lease: None,
            heard: None,
        },
    )
}

fn any_body() -> impl Strategy<Value = Body> {
    let id = || (0u8..4).prop_map(|id| format!("s{id}"));
    prop_oneof![
        4 => any_order().prop_map(Body::Create),
        3 => (id(), 1u64..5).prop_map(|(sandbox_id, generation)| Body::Terminate { sandbox_id, generation }),
        1 => (id(), 1u64..5, proptest::option::of(0u64..50)).prop_map(|(sandbox_id, generation, expires_at)| {
            Body::Update { sandbox_id, generation, expires_at: expires_at.map(BootTime), lease: Some(LeaseTerms { length: Duration::from_secs(5), revision: 7 }) }
        }),
        1 => Just(Body::Inventory),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..SESSIONS, 0u64..4, any_body())
            .prop_map(|(session, term, body)| Step::Command { session, term, body }),
        1 => (0..SESSIONS).prop_map(|session| Step::Reopen { session }),
        6 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(at, well)| Step::Answer { at, well }),
        2 => any::<usize>().prop_map(|at| Step::Ended { at }),
        1 => (0u64..20).prop_map(|by| Step::Tick { by }),
    ]
}

/// What is really there of a sandbox.
#[derive(Clone, Debug)]
enum Real {
    Starting(Order),
    Running(Order),
    /// Its workload has ended, its files are there.
    Ended(Order),
    Removing(Order),
}

struct World {
    state: State,
    real: BTreeMap<String, Real>,
    sequences: BTreeMap<u64, u64>,
    /// The newest session of each node.
    sessions: [u64; SESSIONS as usize],
    now: u64,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            state: fresh_state(CAPACITY),
            real: BTreeMap::new(),
            sequences: BTreeMap::new(),
            sessions: [1, 2, 3],
            now: 0,
        };
        for session in world.sessions {
            world.open(session);
        }
        world
    }

    fn open(&mut self, session: u64) {
        self.feed(&Input::Opened { session });
        let (cluster_id, predecessor_id) = ("blue".to_owned(), String::new());
        self.feed(&Input::Welcome { session, cluster_id, predecessor_id });
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Command { session, term, body } => self.command(session, term, body),
            Step::Reopen { session } => {
                let newest = self.sessions.into_iter().max().unwrap() + 1;
                let old = std::mem::replace(&mut self.sessions[session as usize], newest);
                self.feed(&Input::Closed { session: old });
                self.open(newest);
            }
            Step::Answer { at, well } => self.answer(at, well),
            Step::Ended { at } => {
                let running: Vec<_> =
                    self.real.iter().filter(|(_, real)| matches!(real, Real::Running(_))).collect();
                let Some((id, Real::Running(order))) = pick(&running, at) else { return };
                let (id, order) = ((*id).clone(), order.clone());
                self.real.insert(id.clone(), Real::Ended(order));
                let exit =
                    Ended { exit_code: Some(1), reason: String::new(), expired: false, lease_over: false };
                self.feed(&Input::Exited { sandbox_id: id, exit });
            }
            Step::Tick { by } => {
                self.now += by;
                self.feed(&Input::Tick);
                assert_eq!(self.state.table.overdue(BootTime(self.now)).count(), 0);
            }
        }
    }

    fn command(&mut self, session: u64, term: u64, body: Body) {
        let session = self.sessions[session as usize];
        let sequence = self.sequences.entry(session).or_default();
        *sequence += 1;
        let command = Command { session, term, sequence: *sequence, incarnation: incarnation(1), body };
        self.feed(&Input::Command(command));
    }

    fn answer(&mut self, at: usize, well: bool) {
        let waiting: Vec<_> = self
            .real
            .iter()
            .filter(|(_, real)| matches!(real, Real::Starting(_) | Real::Removing(_)))
            .map(|(id, real)| (id.clone(), real.clone()))
            .collect();
        match pick(&waiting, at) {
            Some((id, Real::Starting(order))) if well => {
                self.real.insert(id.clone(), Real::Running(order.clone()));
                self.feed(&Input::Created { order: order.clone(), result: Ok(()) });
            }
            Some((id, Real::Starting(order))) => {
                self.real.remove(id);
                self.feed(&Input::Created { order: order.clone(), result: Err("no".to_owned()) });
            }
            Some((id, _)) => {
                self.real.remove(id);
                self.feed(&Input::Removed { sandbox_id: id.clone() });
            }
            None => {}
        }
    }

    fn feed(&mut self, input: &Input) {
        let before = self.state.clone();
        let actions = plan(&self.state, input, BootTime(self.now));
        for action in &actions {
            self.state.apply(action);
            self.perform(action);
        }
        self.check(&before, input, &actions);
    }

    /// The runtime, which insists on its contract.
    fn perform(&mut self, action: &Action) {
        match action {
            Action::Create(order) => {
                let id = &order.spec.sandbox_id;
                assert!(matches!(self.state.table.get(id).unwrap().phase, Phase::Creating), "no placeholder");
                let before = self.real.insert(id.clone(), Real::Starting(order.clone()));
                assert!(before.is_none(), "{before:?} is there and another is started");
            }
            Action::Remove { sandbox_id } => {
                let order = match self.real.get(sandbox_id) {
                    Some(Real::Running(order) | Real::Ended(order)) => order.clone(),
                    other => panic!("{other:?} is to be removed"),
                };
                self.real.insert(sandbox_id.clone(), Real::Removing(order));
            }
            Action::End { sandbox_id } => {
                assert!(matches!(self.real[sandbox_id], Real::Running(_)));
            }
            _ => {}
        }
    }

    fn check(&self, before: &State, input: &Input, actions: &[Action]) {
        let used = self.state.table.used();
        assert!(used.slots <= CAPACITY.slots);
        assert!(used.cpu_millis <= CAPACITY.cpu_millis && used.memory_bytes <= CAPACITY.memory_bytes);
        assert!(self.state.fence.term >= before.fence.term);
        if let Input::Command(command) = input
            && (command.term < before.fence.term || command.term == 0)
        {
            assert_eq!(self.state.table, before.table, "a lower term changed something");
        }
        // Whatever really is there is in the table, and the table's phase knows how it is.
        for (id, real) in &self.real {
            let phase = &self.state.table.get(id).unwrap_or_else(|| panic!("{id} is forgotten")).phase;
            let knows = match real {
                Real::Starting(_) => {
                    matches!(phase, Phase::Creating | Phase::Stopping { creating: true, .. })
                }
                Real::Running(_) => matches!(phase, Phase::Running | Phase::Ending),
                Real::Ended(_) => matches!(phase, Phase::Exited { .. }),
                Real::Removing(_) => matches!(phase, Phase::Stopping { creating: false, .. }),
            };
            assert!(knows, "{id} is {real:?}, and {phase:?} in the table");
        }
        for (id, sandbox) in before.table.iter() {
            if let Some(after) = self.state.table.get(id) {
                assert!(after.generation >= sandbox.generation, "{id} went back in generations");
            }
        }
        for action in actions {
            if let Action::Report { sandbox_id, generation } = action {
                self.check_report(sandbox_id, *generation);
            }
        }
    }

    /// "Absent" is only said of what is not there.
    fn check_report(&self, id: &str, generation: u64) {
        let report = wire::report(&self.state, id, generation, "host");
        if report.state() != SandboxState::Absent {
            return;
        }
        let real = match self.real.get(id) {
            Some(Real::Starting(o) | Real::Running(o) | Real::Ended(o) | Real::Removing(o)) => {
                o.spec.generation
            }
            None => return,
        };
        assert_ne!(real, generation, "{id} is there and called absent");
    }

    /// All calls are answered and all sandboxes terminated: nothing stays.
    fn end(&mut self) {
        let newest = self.sessions.into_iter().max().unwrap() + 1;
        self.sessions[0] = newest;
        self.open(newest);
        let ids: Vec<_> = self.state.table.iter().map(|(id, _)| id.to_owned()).collect();
        for sandbox_id in ids {
            self.command(0, 1_000, Body::Terminate { sandbox_id, generation: 1_000 });
        }
        while self.real.values().any(|real| matches!(real, Real::Starting(_) | Real::Removing(_))) {
            self.answer(0, true);
        }
        assert!(self.real.is_empty());
        assert_eq!(self.state.table, crate::table::Table::default());
    }
}

fn pick<T>(from: &[T], at: usize) -> Option<&T> {
    from.get(at.checked_rem(from.len())?)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn any_sequence_of_inputs_keeps_the_promises(steps in proptest::collection::vec(any_step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.end();
    }
}
