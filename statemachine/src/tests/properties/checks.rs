//! What has to hold, computed from the records alone, or from the events alone.

use std::collections::{BTreeMap, BTreeSet};

use super::streams::StreamOracle;
use crate::limits::STREAM_WINDOW;
use crate::placement::place;
use crate::*;

/// The rules of one state.
pub fn check_records(state: &State) {
    check_allocations(state);
    check_sandboxes(state);
    check_requests(state);
    check_drains(state);
}

/// An agent that is drained gets nothing new, and what is to move has not been forgotten.
fn check_drains(state: &State) {
    for (id, _) in state.drains() {
        let agent = state.agent(id).expect("only an agent of the state is drained");
        assert!(agent.cordoned, "agent {id} is drained, and not cordoned");
        for (sandbox, generation) in state.held_by(id) {
            let status = &sandbox.status;
            let movable = matches!(status.phase, Phase::Allocated | Phase::Running)
                && generation == status.generation
                && status.held.len() == 1
                && status.failure_policy == FailurePolicy::AutoRecreate
                && !state.is_held_back(sandbox);
            if movable && place(state, &sandbox.spec.shape(), None, Some(id)).is_some() {
                let due = state.next_deadline().is_some_and(|due| due <= state.last_time());
                assert!(due, "nobody moves {}", sandbox.id);
            }
        }
    }
}

/// The table of requests is counted right, and no stream has more than its window.
fn check_requests(state: &State) {
    let mut count = state.requests.values().map(|record| record.result.weight()).sum();
    for stream in state.streams.values() {
        let StreamClient { opened, acknowledged_below, .. } = stream.client;
        assert!((1..=state.revision()).contains(&opened));
        let last = stream.answers.get_max().map_or(0, |(sequence, _)| *sequence);
        assert!(last < acknowledged_below + STREAM_WINDOW, "{last} is beyond the window");
        count += stream.answers.len();
    }
    assert_eq!(state.request_count(), count);
    for (key, record) in &state.requests {
        let RequestResult::Batch(batch) = &record.result else { continue };
        let live = batch.sandboxes.iter().filter(|one| state.sandbox(&one.id).is_some()).count();
        assert_eq!((batch.live as usize, live > 0), (live, record.ends.is_none()), "batch {}", key.id);
    }
}

/// Allocated = the sum of unreleased allocations, on each agent.
fn check_allocations(state: &State) {
    let mut sums = BTreeMap::<&AgentId, (Capacity, BTreeSet<u16>)>::new();
    let mut fleet = FleetCapacity::default();
    for sandbox in state.sandboxes() {
        for held in &sandbox.status.held {
            let (sum, ports) = sums.entry(&held.agent).or_default();
            *sum = sum.plus(Capacity::of(sandbox.spec.resources));
            for port in &sandbox.spec.ports {
                assert!(ports.insert(*port), "port {port} of agent {} is given twice", held.agent);
            }
        }
    }
    for agent in state.agents() {
        let (sum, ports) = sums.remove(&agent.spec.agent_id).unwrap_or_default();
        assert_eq!(agent.allocated, sum, "agent {}", agent.spec.agent_id);
        assert!(agent.ports.iter().eq(&ports), "ports of agent {}", agent.spec.agent_id);
        let listed: u64 = state.held_by(&agent.spec.agent_id).count() as u64;
        assert_eq!(listed, sum.slots);
        fleet.allocated = fleet.allocated.plus(sum);
    }
    assert!(sums.is_empty(), "agents that hold something are not there: {sums:?}");
    assert_eq!(state.capacity().allocated, fleet.allocated);
}

fn check_sandboxes(state: &State) {
    let mut names = BTreeSet::new();
    for sandbox in state.sandboxes() {
        let status = &sandbox.status;
        let live = status.phase != Phase::Terminating;
        assert!(
            !live || names.insert(&sandbox.spec.name),
            "two live sandboxes are called {}",
            sandbox.spec.name
        );
        if live {
            assert_eq!(state.sandbox_named(&sandbox.spec.name), Some(sandbox));
        }
        let held: Vec<_> = status.held.iter().map(|held| held.generation).collect();
        assert!(held.is_sorted_by(|a, b| a < b) && held.len() <= 2, "{held:?}");
        assert!(held.iter().all(|generation| (1..=status.generation).contains(generation)));
        let current = sandbox.holder();
        match status.phase {
            // The agent of the current generation holds it, and no other.
            Phase::Allocated | Phase::Running | Phase::Lost => assert_eq!(current, status.agent.as_ref()),
            Phase::Failed => assert_eq!(current, None),
            Phase::Terminating => assert!(!held.is_empty(), "what nobody holds is gone at once"),
            Phase::Pending => {}
        }
        let lost = |id| state.agent(id).is_some_and(|agent| agent.status == AgentStatus::Lost);
        let runs = matches!(status.phase, Phase::Allocated | Phase::Running);
        assert!(!(runs && current.is_some_and(lost)), "{} on an agent that is lost", status.phase.as_str());
        assert!(status.revision <= state.revision());
        let rolled_back = sandbox.spec.mode == Mode::Strong && !status.ever_ran && held.is_empty();
        assert!(status.phase != Phase::Failed || !rolled_back, "a STRONG create that failed is still there");
    }
    let counted: u64 =
        [Phase::Pending, Phase::Allocated, Phase::Running, Phase::Terminating, Phase::Failed, Phase::Lost]
            .into_iter()
            .map(|phase| state.count_in(phase))
            .sum();
    assert_eq!(counted, state.sandbox_count() as u64);
}

/// The shapes that have waited, since they were last offered an agent that they fit on, behind one that was refused there.
#[derive(Default)]
pub struct Excused(BTreeSet<Shape>);

impl Excused {
    /// The first of each shape waits because it fits nowhere; or because it, or who stood before it, was refused where it
    /// fits, and the next housekeeping will offer that.
    pub fn check_queues(&mut self, state: &State) {
        let pending = state.sandboxes().filter(|sandbox| sandbox.status.phase == Phase::Pending);
        self.0.extend(
            pending.filter(|sandbox| sandbox.status.refusals > 0).map(|sandbox| sandbox.spec.shape()),
        );
        let waiting = waiting_in_vain(state);
        for (shape, text) in &waiting {
            assert!(self.0.contains(shape), "{text}");
            assert_eq!(state.next_deadline(), Some(state.last_time()), "nobody will offer: {text}");
        }
        self.0.retain(|shape| waiting.contains_key(shape));
    }
}

/// The shapes whose first waits though there is an agent that it fits on.
fn waiting_in_vain(state: &State) -> BTreeMap<Shape, String> {
    let mut heads = BTreeMap::<Shape, &Sandbox>::new();
    for sandbox in state.sandboxes().filter(|sandbox| sandbox.status.phase == Phase::Pending) {
        let head = heads.entry(sandbox.spec.shape()).or_insert(sandbox);
        if sandbox.status.queued < head.status.queued {
            *head = sandbox;
        }
    }
    let fits = heads.into_iter().filter_map(|(shape, head)| {
        let agent = &place(state, &shape, None, None)?.spec.agent_id;
        Some((shape, format!("{} waits, though it fits on {agent}", head.id)))
    });
    fits.collect()
}

/// The rules of one command.
pub fn check_step(before: &State, after: &State, request: &Request, outcome: &Result<Outcome, Rejection>) {
    for agent in after.agents() {
        let old = before.agent(&agent.spec.agent_id).map_or_else(Capacity::default, |old| old.allocated);
        let (given, has) = (agent.allocated, agent.spec.capacity);
        // Only one that came back smaller has given away more than it has, and then it gives no more of that.
        for (given, old, has) in [
            (given.slots, old.slots, has.slots),
            (given.cpu_millis, old.cpu_millis, has.cpu_millis),
            (given.memory_bytes, old.memory_bytes, has.memory_bytes),
        ] {
            assert!(
                given <= old.max(has),
                "agent {} has {has}, and has given away {given}",
                agent.spec.agent_id
            );
        }
    }
    check_fairness(before, after);
    if let (
        Command::CreateSandbox(create) | Command::CreateInStream { create, .. },
        Ok(Outcome::Sandbox { sandbox, duplicate, .. }),
    ) = (&request.command, outcome)
    {
        let ahead = |other: &Sandbox| {
            other.status.phase == Phase::Pending
                && other.spec.shape() == create.spec.shape()
                && other.id != sandbox.id
        };
        let overtook = sandbox.status.phase == Phase::Allocated && before.sandboxes().any(ahead);
        assert!(*duplicate || !overtook, "a newcomer overtook those that wait");
        if let (Some(caller), true) = (&request.id, *duplicate) {
            assert_eq!(sandbox.spec.request_id, caller.id, "the answer of another request");
        }
    }
}

/// Of each shape first come first served.
fn check_fairness(before: &State, after: &State) {
    let waited = |sandbox: &&Sandbox| sandbox.status.phase == Phase::Pending;
    for sandbox in before.sandboxes().filter(waited) {
        let now = after.sandbox(&sandbox.id);
        if now.is_none_or(|now| now.status.generation == sandbox.status.generation) {
            continue;
        }
        let (shape, place) = (sandbox.spec.shape(), sandbox.status.queued);
        let passed_over = before.sandboxes().filter(waited).find(|other| {
            let still = after.sandbox(&other.id).is_some_and(|now| waited(&now));
            still && other.spec.shape() == shape && other.status.queued < place
        });
        assert!(passed_over.is_none(), "{:?} was passed over", passed_over.map(|other| &other.id));
    }
}

/// What the events alone say: who holds what, and when each sandbox last changed.
#[derive(Default)]
pub struct Model {
    held: BTreeSet<(SandboxId, Generation, AgentId)>,
    last: BTreeMap<SandboxId, Revision>,
    time: Timestamp,
    pub streams: StreamOracle,
}

impl Model {
    pub fn follow(&mut self, entry: &Entry, state: &State) {
        for (index, event) in entry.events.iter().enumerate() {
            assert!(entry.time_of(index) > self.time, "no two events share a time");
            self.time = entry.time_of(index);
            self.follow_event(entry.base_revision + 1 + index as u64, event);
            self.streams.follow_event(event);
        }
        let held = state.sandboxes().flat_map(|sandbox| {
            sandbox.status.held.iter().map(|held| (sandbox.id.clone(), held.generation, held.agent.clone()))
        });
        assert_eq!(self.held, held.collect(), "the events and the records differ");
    }

    fn follow_event(&mut self, revision: Revision, event: &Event) {
        let subject = &event.header.subject;
        let Some((id, _)) = &subject.sandbox else { return };
        let previous = self.last.insert(id.clone(), revision).unwrap_or(0);
        assert_eq!(event.header.previous, previous, "one sandbox's history is a chain");
        let held = |generation: Generation| (id.clone(), generation, subject.agent.clone().unwrap());
        match &event.kind {
            EventKind::SandboxAllocated { generation } => assert!(self.held.insert(held(*generation))),
            // The agent that is named is the one that held it.
            EventKind::AllocationReleased { generation } => assert!(self.held.remove(&held(*generation))),
            EventKind::SandboxFailed { released: Some(generation), .. }
            | EventKind::SandboxRemoved { released: Some(generation) } => {
                assert!(self.held.remove(&held(*generation)));
            }
            _ => {}
        }
        // The name of an adopted one can come again, as the id of another life.
        if let EventKind::SandboxRemoved { .. } = event.kind {
            self.last.remove(id);
        }
    }
}
