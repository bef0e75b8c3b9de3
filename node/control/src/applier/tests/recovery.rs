//! When a sandbox may be started elsewhere.

use std::time::Duration;

use sandkeeper_statemachine::{Generation, SandboxUpdate};
use tokio::time::Instant;

use super::*;
use crate::applier::recovery::Recovery;
use crate::applier::silence::LastHeard;

const SECOND: Duration = Duration::from_secs(1);

struct Watch {
    world: World,
    recovery: Recovery,
    start: Instant,
    heard: LastHeard,
}

impl Watch {
    /// A sandbox that runs, and its agent was last heard of at the start. Two more agents are there.
    fn new(policy: FailurePolicy) -> Self {
        let mut world = World::with_policy(policy);
        for name in ["b", "c"] {
            let mut spec = (*world.state.agent(&agent()).unwrap().spec).clone();
            spec.agent_id = name.parse().unwrap();
            world.decide(Command::RegisterAgent(Box::new(spec)));
        }
        world.running();
        let start = Instant::now();
        let heard = LastHeard::default().heard(&agent(), life(), start);
        Self { world, recovery: Recovery::default(), start, heard }
    }

    fn due(&mut self, seconds: f64) -> Vec<Generation> {
        let now = self.start + SECOND.mul_f64(seconds);
        let due = self.recovery.due(&self.world.state, &self.heard, now);
        due.into_iter().map(|(_, generation)| generation).collect()
    }

    fn lose(&mut self, name: &str) {
        self.world.decide(Command::LoseAgent { agent: name.parse().unwrap(), incarnation: life() });
    }

    fn update(&mut self, policy: FailurePolicy, seconds: u32) {
        let (failure_policy, recovery_timeout_seconds) = (Some(policy), Some(seconds));
        let update = SandboxUpdate { failure_policy, recovery_timeout_seconds, ..SandboxUpdate::default() };
        let target = self.world.target();
        self.world.decide(Command::UpdateSandbox { target, update });
    }
}

#[test]
fn a_lost_one_when_its_agent_has_been_silent_for_its_lease() {
    let mut watch = Watch::new(FailurePolicy::AutoRecreate);
    assert_eq!(watch.due(100.0), [], "it runs");
    watch.lose("a");
    assert_eq!(watch.due(59.9), []);
    assert_eq!(watch.due(60.0), [1]);
    // Heard of meanwhile, in a session that is over by now.
    watch.heard = LastHeard::default().heard(&agent(), life(), watch.start + 30 * SECOND);
    assert_eq!(watch.due(89.9), []);
    assert_eq!(watch.due(90.0), [1]);
    // A leader that has just been elected has heard nobody, and begins to count.
    watch.heard = LastHeard::default();
    assert_eq!(watch.due(1_000.0), []);
}

#[test]
fn what_comes_from_a_backup_when_the_restore_is_confirmed() {
    let mut watch = Watch::new(FailurePolicy::AutoRecreate);
    watch.lose("a");
    watch.world.decide(Command::CreateCluster { cluster_id: Uuid::from_u128(1), cluster_version: 1 });
    watch.world.decide(Command::RestoreCluster { cluster_id: Uuid::from_u128(2) });
    assert_eq!(watch.due(100.0), []);
    watch.world.decide(Command::ConfirmRestore);
    assert_eq!(watch.due(101.0), [1]);
}

#[test]
fn a_lost_one_without_a_lease_never() {
    let mut watch = Watch::new(FailurePolicy::Manual);
    watch.lose("a");
    watch.update(FailurePolicy::AutoRecreate, 5);
    assert_eq!(watch.due(1_000.0), [], "its agent has never heard of a lease");
}

#[test]
fn a_shorter_lease_counts_when_it_is_confirmed() {
    let mut watch = Watch::new(FailurePolicy::AutoRecreate);
    watch.update(FailurePolicy::AutoRecreate, 5);
    let wanted = watch.world.state.sandbox(&watch.world.id).unwrap().status.lease_revision;
    watch.world.has(1, Actual::Running { endpoints: Vec::new(), lease_revision: wanted - 1 });
    assert_eq!(watch.world.steps(), [], "of older terms nothing new is learnt");
    let confirmed = Actual::Running { endpoints: Vec::new(), lease_revision: wanted };
    let mut other = Watch { world: World { state: watch.world.state.clone(), ..World::new() }, ..watch };
    other.world.id = other.world.state.sandboxes().next().unwrap().id.clone();
    other.lose("a");
    assert_eq!(other.due(59.0), [], "the agent may keep it under the old one");
    assert_eq!(other.due(60.0), [1]);

    let mut watch = Watch::new(FailurePolicy::AutoRecreate);
    watch.update(FailurePolicy::AutoRecreate, 5);
    watch.world.has(1, confirmed);
    let running = ReportedState::Running { endpoints: Vec::new(), lease_revision: wanted };
    assert_eq!(watch.world.steps(), [Step::Report(1, running.clone())]);
    watch.world.report(1, running);
    assert_eq!(watch.world.steps(), [], "said once");
    watch.lose("a");
    assert_eq!(watch.due(4.9), []);
    assert_eq!(watch.due(5.0), [1]);
}

#[test]
fn a_failed_one_after_its_timeout_and_what_is_done_never() {
    let exited = |code| ReportedState::Exited {
        exit_code: Some(code),
        reason: String::new(),
        expired: false,
        lease_over: false,
    };
    let mut watch = Watch::new(FailurePolicy::AutoRecreate);
    watch.world.report(1, exited(3));
    assert_eq!(watch.due(100.0), [], "it is seen for the first time");
    assert_eq!(watch.due(159.9), []);
    assert_eq!(watch.due(160.0), [1]);

    let mut watch = Watch::new(FailurePolicy::AutoRecreate);
    watch.world.report(1, exited(0));
    assert_eq!(watch.due(100.0), []);
    assert_eq!(watch.due(1_000.0), []);
}

#[test]
fn nothing_while_most_agents_were_lost_together() {
    let mut watch = Watch::new(FailurePolicy::AutoRecreate);
    watch.lose("a");
    watch.lose("b");
    assert_eq!(watch.due(1_000.0), []);
    assert_eq!(watch.recovery.paused_agents(), 1, "b ran nothing that could be recovered");
    let mut resumed = watch;
    let mut spec = (*resumed.world.state.agent(&agent()).unwrap().spec).clone();
    spec.agent_id = "b".parse().unwrap();
    let before = resumed.world.state.clone();
    resumed.world.decide(Command::RegisterAgent(Box::new(spec)));
    assert_eq!(resumed.due(1_001.0), [1], "it goes on by itself");
    assert_eq!(resumed.recovery.paused_agents(), 0);
    resumed.world.state = before;
    assert_eq!(resumed.due(1_002.0), []);
    resumed.world.decide(Command::RecoverAgent(agent()));
    assert_eq!(resumed.due(1_003.0), [1], "the operator says that it need not be waited for");
    resumed.heard = LastHeard::default().heard(&agent(), life(), resumed.start + 1_000 * SECOND);
    assert_eq!(resumed.due(1_059.0), [], "its lease is waited for all the same");
    assert_eq!(resumed.due(1_060.0), [1]);
}
