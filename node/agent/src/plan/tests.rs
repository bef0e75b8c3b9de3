//! Scripts: an input a line, and under it what the plan says. The snapshots are meant to be read.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::config::Capacity;
use crate::spec::SandboxSpec;
use crate::table::Table;

pub(super) fn incarnation(start: u64) -> Incarnation {
    Incarnation { ledger_id: "ledger".to_owned(), start }
}

pub(super) fn fresh_state(capacity: Capacity) -> State {
    State {
        fence: Fence {
            incarnation: incarnation(1),
            cluster_id: None,
            term: 0,
            obeyed: 0,
            sessions: BTreeMap::new(),
            former: BTreeMap::new(),
        },
        table: Table::default(),
        capacity,
    }
}

struct Script {
    state: State,
    now: BootTime,
    sequences: BTreeMap<u64, u64>,
    /// What the runtime was last told to start, by sandbox id.
    orders: BTreeMap<String, Order>,
    out: String,
}

/// One line of a script: words, then `key=value`s.
struct Line<'a> {
    words: Vec<&'a str>,
    values: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    fn new(line: &'a str) -> Self {
        let (values, words): (Vec<_>, Vec<_>) = line.split_whitespace().partition(|word| word.contains('='));
        Self { words, values: values.into_iter().filter_map(|value| value.split_once('=')).collect() }
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.values.get(key).map(|value| value.parse().unwrap())
    }

    fn text(&self, key: &str) -> String {
        self.values.get(key).copied().unwrap_or_default().to_owned()
    }

    fn word(&self, at: usize) -> String {
        self.words[at].to_owned()
    }
}

impl Script {
    fn input(&mut self, line: &Line<'_>) -> Input {
        let session = || line.words[1].parse().unwrap();
        match line.words[0] {
            "open" => Input::Opened { session: session() },
            "close" => Input::Closed { session: session() },
            "welcome" => {
                let predecessor_id = line.text("from");
                Input::Welcome { session: session(), cluster_id: line.word(2), predecessor_id }
            }
            "adopted" => Input::Adopted { sandbox_id: line.word(1), cluster_id: line.text("label") },
            "created" => Input::Created { order: self.orders[line.words[1]].clone(), result: Ok(()) },
            "failed" => Input::Created {
                order: self.orders[line.words[1]].clone(),
                result: Err(line.words[2..].join(" ")),
            },
            "exited" => {
                let exit = Ended {
                    exit_code: Some(0),
                    reason: "exited with code 0".to_owned(),
                    expired: false,
                    lease_over: false,
                };
                Input::Exited { sandbox_id: line.word(1), exit }
            }
            "instructed" => {
                let lease = line
                    .number("lease")
                    .map(|revision| LeaseTerms { length: Duration::from_secs(5), revision });
                Input::Instructed { sandbox_id: line.word(1), lease }
            }
            "removed" => Input::Removed { sandbox_id: line.word(1) },
            "tick" => {
                self.now = BootTime(line.words[1].parse().unwrap());
                Input::Tick
            }
            _ => Input::Command(self.command(line)),
        }
    }

    fn command(&mut self, line: &Line<'_>) -> Command {
        let session = line.number("via").unwrap();
        let next = self.sequences.entry(session).or_default();
        *next = line.number("sequence").unwrap_or(*next + 1);
        let sequence = *next;
        let generation = line.number("gen").unwrap_or(1);
        let expires_at = line.number("expires").map(BootTime);
        let lease =
            line.number("lease").map(|revision| LeaseTerms { length: Duration::from_secs(5), revision });
        let body = match line.words[0] {
            "create" => Body::Create(Order {
                spec: Arc::new(SandboxSpec {
                    sandbox_id: line.word(1),
                    generation,
                    cpu_millis: line.number("cpu").unwrap_or(0),
                    memory_bytes: line.number("memory").unwrap_or(0),
                    ports: line.number("port").map(|port| port as u16).into_iter().collect(),
                    cluster_id: self.state.fence.cluster_id.clone().unwrap_or_default(),
                    ..SandboxSpec::default()
                }),
                expires_at,
                lease,
                heard: None,
            }),
            "unusable" => Body::Unusable {
                sandbox_id: line.word(1),
                generation,
                reason: "it needs a command".to_owned(),
            },
            "terminate" => Body::Terminate { sandbox_id: line.word(1), generation },
            "update" => Body::Update { sandbox_id: line.word(1), generation, expires_at, lease },
            "adopt" => Body::Adopt { sandbox_id: line.word(1), generation },
            "inventory" => Body::Inventory,
            other => panic!("no such input: {other}"),
        };
        let incarnation = incarnation(line.number("start").unwrap_or(1));
        Command { session, term: line.number("term").unwrap_or(1), sequence, incarnation, body }
    }

    fn step(&mut self, text: &str) {
        writeln!(self.out, "> {text}").unwrap();
        let line = Line::new(text);
        if line.words[0] == "there" {
            // What the agent found at its start.
            let (sandbox_id, cluster_id) = (line.word(1), line.text("label"));
            let spec = SandboxSpec { sandbox_id, cluster_id, generation: 1, ..SandboxSpec::default() };
            let order = Order { spec: Arc::new(spec), expires_at: None, lease: None, heard: None };
            self.state.table.put(Sandbox::creating(order).in_phase(crate::table::Phase::Running));
            return;
        }
        if line.words[0] == "table" {
            for (_, sandbox) in self.state.table.iter() {
                writeln!(self.out, "    {sandbox}").unwrap();
            }
            let used = self.state.table.used();
            let (slots, cpu, memory) = (used.slots, used.cpu_millis, used.memory_bytes);
            writeln!(self.out, "    used: slots {slots}, cpu {cpu}m, memory {memory}").unwrap();
            return;
        }
        let input = self.input(&line);
        let actions = plan(&self.state, &input, self.now);
        if actions.is_empty() {
            writeln!(self.out, "    nothing").unwrap();
        }
        for action in actions {
            writeln!(self.out, "    {action}").unwrap();
            self.state.apply(&action);
            if let Action::Create(order) = action {
                self.orders.insert(order.spec.sandbox_id.clone(), order);
            }
        }
    }
}

/// Runs a script on an agent with 2 slots, 1000m of CPU and 100 bytes of memory, at time 0.
fn run(script: &str) -> String {
    let capacity = Capacity { slots: 2, cpu_millis: 1_000, memory_bytes: 100 };
    let mut script_run = Script {
        state: fresh_state(capacity),
        now: BootTime(0),
        sequences: BTreeMap::new(),
        orders: BTreeMap::new(),
        out: String::new(),
    };
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        script_run.step(line);
    }
    script_run.out
}

macro_rules! script {
    ($name:ident, $script:literal) => {
        #[test]
        fn $name() {
            insta::assert_snapshot!(run($script));
        }
    };
}

script!(
    the_life_of_a_sandbox,
    "open 1
     welcome 1 blue
     create a via=1 cpu=500 memory=60 port=80
     table
     created a
     create a via=1 cpu=500 memory=60 port=80
     inventory via=1
     terminate a via=1
     table
     terminate a via=1
     removed a
     terminate a via=1
     table"
);

script!(
    a_higher_term_takes_over_and_a_lower_one_is_refused,
    "open 1
     welcome 1 blue
     open 2
     welcome 2 blue
     create a via=1 term=4
     inventory via=2 term=5
     create b via=1 term=4
     terminate a via=1 term=4
     inventory via=1 term=0
     table"
);

script!(
    of_two_sessions_in_one_term_the_newer_is_obeyed,
    "open 1
     welcome 1 blue
     inventory via=1 term=4
     open 2
     welcome 2 blue
     inventory via=2 term=4
     create a via=1 term=4
     close 1
     create a via=1 term=9
     table"
);

script!(
    commands_for_another_incarnation_are_refused_and_their_term_is_not_taken_over,
    "open 1
     welcome 1 blue
     create a via=1 term=9 start=2
     create a via=1 term=3"
);

script!(
    sessions_that_break_the_rules_are_closed,
    "open 1
     create a via=1
     open 2
     welcome 2 blue
     create a via=2
     create b via=2 sequence=1
     open 3
     welcome 3 green"
);

script!(
    what_does_not_fit_is_refused_and_nothing_is_started,
    "open 1
     welcome 1 blue
     create a via=1 cpu=800 memory=80 port=80
     create b via=1 cpu=300
     create b via=1 memory=30
     create b via=1 cpu=18446744073709551615
     create b via=1 port=80
     unusable b via=1
     create b via=1 cpu=200 port=81
     create c via=1
     table"
);

script!(
    a_failed_start_is_kept_until_it_is_terminated_and_holds_nothing,
    "open 1
     welcome 1 blue
     create a via=1 port=80
     failed a sh: no such file
     table
     create a via=1 port=80
     create b via=1 port=80
     terminate a via=1
     table"
);

script!(
    an_exit_is_kept_until_it_is_terminated_and_holds_nothing,
    "open 1
     welcome 1 blue
     create a via=1 cpu=1000
     exited a
     created a
     table
     terminate a via=1
     exited a
     removed a"
);

script!(
    a_terminate_during_the_start_waits_for_it,
    "open 1
     welcome 1 blue
     create a via=1
     terminate a via=1
     table
     created a
     removed a
     create b via=1
     terminate b via=1
     failed b sh: no such file
     table"
);

script!(
    the_next_generation_starts_when_the_old_one_is_gone,
    "open 1
     welcome 1 blue
     create a gen=1 via=1 cpu=600 port=80
     created a
     create a gen=3 via=1 cpu=700 port=80
     table
     create a gen=2 via=1
     create a gen=3 via=1
     terminate a gen=1 via=1
     removed a
     created a
     terminate a gen=2 via=1
     update a gen=2 via=1
     table"
);

script!(
    the_next_generation_waits_for_a_start_and_takes_the_place_of_a_failure,
    "open 1
     welcome 1 blue
     create a gen=1 via=1
     create a gen=2 via=1
     failed a no such file
     failed a no such file
     create a gen=3 via=1
     table"
);

script!(
    a_terminate_covers_lower_generations_and_the_one_that_waits,
    "open 1
     welcome 1 blue
     create a gen=1 via=1
     created a
     terminate a gen=4 via=1
     table
     removed a
     create b gen=1 via=1
     created b
     create b gen=2 via=1
     terminate b gen=2 via=1
     table
     removed b
     table"
);

script!(
    time_ends_a_sandbox_without_any_control_node,
    "open 1
     welcome 1 blue
     create a via=1 expires=100
     create b via=1 expires=200
     tick 150
     created a
     created b
     close 1
     tick 150
     exited a
     table
     tick 150"
);

script!(
    an_update_moves_the_end_also_during_the_start,
    "open 1
     welcome 1 blue
     create a via=1 expires=100
     update a via=1 expires=500 lease=7
     created a
     tick 100
     update a via=1
     tick 1000
     update a gen=2 via=1
     update none via=1
     create a gen=2 via=1
     update a gen=2 via=1 expires=700
     removed a
     table"
);

script!(
    a_lease_is_told_when_its_guard_has_it,
    "open 1
     welcome 1 blue
     create a via=1 lease=3
     created a
     update a via=1 lease=5
     update a via=1 lease=6
     instructed a lease=5
     instructed a lease=6
     instructed a lease=6
     update a via=1
     instructed a
     instructed none
     table"
);

script!(
    what_bears_no_label_or_another_clusters_is_left_alone_until_it_is_adopted,
    "there old
     there foreign label=green
     there own label=blue
     open 1
     welcome 1 blue
     terminate old via=1
     update old via=1
     create old via=1
     create old gen=2 via=1
     terminate foreign gen=9 via=1
     create foreign via=1
     adopt foreign via=1
     adopt none via=1
     adopt old gen=2 via=1
     adopt own via=1
     adopt old via=1
     adopted old label=blue
     adopt old via=1
     terminate old via=1
     terminate own via=1
     table"
);

script!(
    a_rehomed_agent_takes_its_sandboxes_along_and_obeys_the_old_cluster_no_more,
    "open 1
     welcome 1 blue
     open 2
     welcome 2 blue
     create a via=1 term=7
     created a
     open 3
     welcome 3 green from=red
     open 3
     welcome 3 green from=blue
     terminate a via=1 term=8 sequence=2
     open 4
     welcome 4 green from=blue
     terminate a via=4 term=1
     open 5
     welcome 5 blue
     open 6
     welcome 6 red"
);
