//! `apply`: folding entries into the state.
//!
//! Never refuses a valid entry. Panics on an impossible one (an event about a sandbox that is not there, a release of
//! what is not held): the history is corrupt or the program wrong, and a node must stop rather than guess.

mod requests;

use std::sync::Arc;

use planted_bugs::{Bug, planted};

use crate::entry::Entry;
use crate::event::{Event, EventKind, Header, SandboxCreated};
use crate::ids::{AgentId, Generation, Revision, SandboxId, Term, Timestamp};
use crate::spec::Capacity;
use crate::state::digest::{digest_of, link};
use crate::state::{Agent, AgentStatus, Cluster, Drain, Held, Phase, Restored, Sandbox, State, Status};

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Its events are in the history now.
    Done {
        /// The revision of its first event.
        first: Revision,
        /// The revision of its last event.
        last: Revision,
    },
    /// It was decided on another state, or by the leader of another term: it changed nothing.
    Skipped,
}

impl State {
    /// Compare and append: applies an entry that stands in the log under `term`, if it was decided in that term and on
    /// this very revision; skips it whole otherwise, on every replica alike.
    ///
    /// # Panics
    /// On an impossible event; see the module.
    pub fn apply(&mut self, entry: &Entry, term: Term) -> Applied {
        let moved = entry.base_revision != self.revision && !planted(Bug::BaseRevisionIgnored);
        if moved || entry.decided_term != term {
            return Applied::Skipped;
        }
        for (index, event) in entry.events.iter().enumerate() {
            let forgetful = planted(Bug::RequestIdsNotReplicated).then(|| {
                let mut event = event.clone();
                event.header.request = None;
                event
            });
            self.apply_event(forgetful.as_ref().unwrap_or(event), entry.time_of(index));
        }
        self.history = link(self.history, entry);
        Applied::Done { first: entry.base_revision + 1, last: self.revision }
    }

    /// Folds one event that happened at `time`.
    pub(crate) fn apply_event(&mut self, event: &Event, time: Timestamp) {
        assert!(time > self.last_time, "event {} is not later than the one before", self.revision + 1);
        self.revision += 1;
        self.last_time = time;
        let header = &event.header;
        match &event.kind {
            EventKind::ClusterCreated { cluster_id, cluster_version } => {
                assert!(self.cluster.is_none(), "a cluster is created once");
                let (id, version) = (*cluster_id, *cluster_version);
                self.put_cluster(Cluster { id, version, created: time, predecessor: None, restored: None });
            }
            EventKind::ClusterRestored { .. }
            | EventKind::RestoreConfirmed
            | EventKind::AgentsRehomed { .. } => self.apply_to_cluster(&event.kind, time),
            EventKind::AgentRegistered(_)
            | EventKind::AgentLost
            | EventKind::AgentReturned
            | EventKind::AgentCordoned
            | EventKind::AgentUncordoned
            | EventKind::AgentRecoveryResumed
            | EventKind::AgentDraining { .. }
            | EventKind::AgentRemoved { .. } => self.apply_to_agent(header, &event.kind, time),
            EventKind::SandboxCreated(created) => self.create_sandbox(header, created, time),
            EventKind::RequestsPruned { until, limit } => self.prune_requests(*until, *limit),
            // What it tells is remembered, like every request, below.
            EventKind::BatchCreated { .. } => {}
            EventKind::StreamOpened { stream, acknowledged_below, ends } => {
                self.open_stream(stream, *acknowledged_below, *ends);
            }
            EventKind::StreamKept { stream, acknowledged_below, ends } => {
                self.keep_stream(stream, *acknowledged_below, *ends);
            }
            EventKind::SandboxRemoved { released } => self.finish_sandbox(header, *released, time),
            kind => self.apply_to_sandbox(header, kind, time),
        }
        self.remember_request(event, time);
    }

    fn apply_to_cluster(&mut self, kind: &EventKind, time: Timestamp) {
        let mut cluster = self.cluster.expect("a cluster is created before anything happens to it");
        match kind {
            EventKind::ClusterRestored { cluster_id } => {
                let (from, revision) = (cluster.id, self.revision - 1);
                cluster.restored = Some(Restored { from, revision, time, confirmed: false });
                cluster.id = *cluster_id;
                cluster.predecessor = None;
            }
            EventKind::RestoreConfirmed => {
                let restored = cluster.restored.as_mut();
                restored.expect("only a restore can be confirmed").confirmed = true;
            }
            EventKind::AgentsRehomed { from } => cluster.predecessor = Some(*from),
            _ => unreachable!("apply_event sends only the cluster's events here"),
        }
        self.put_cluster(cluster);
    }

    fn apply_to_agent(&mut self, header: &Header, kind: &EventKind, time: Timestamp) {
        let id = subject_agent(header);
        if let EventKind::AgentRemoved { .. } = kind {
            assert!(
                self.agents.contains_key(id),
                "event {} removes agent {id}, which is not there",
                self.revision
            );
            assert!(self.held_by(id).next().is_none(), "agent {id} is removed, but holds allocations");
            self.remove_drain(id);
            self.remove_agent(id);
            return;
        }
        let mut agent = match (kind, self.agents.get(id)) {
            (EventKind::AgentRegistered(spec), None) => Agent {
                spec: Arc::new((**spec).clone()),
                status: AgentStatus::Ready,
                cordoned: false,
                reason: String::new(),
                lost_since: None,
                recovery_resumed: false,
                revision: 0,
                allocated: Capacity::default(),
                ports: imbl::OrdSet::new(),
                live: 0,
            },
            (_, Some(agent)) => agent.clone(),
            (_, None) => panic!("event {} is about agent {id}, which is not there", self.revision),
        };
        match kind {
            EventKind::AgentRegistered(spec) => {
                agent.spec = Arc::new((**spec).clone());
                agent.return_to_ready();
            }
            EventKind::AgentLost => {
                agent.status = AgentStatus::Lost;
                agent.lost_since = Some(time);
            }
            EventKind::AgentReturned => agent.return_to_ready(),
            EventKind::AgentRecoveryResumed => {
                assert_eq!(agent.status, AgentStatus::Lost, "only what a LOST agent ran is recovered");
                agent.recovery_resumed = true;
            }
            EventKind::AgentCordoned => agent.cordoned = true,
            EventKind::AgentUncordoned => {
                agent.cordoned = false;
                self.remove_drain(id);
            }
            EventKind::AgentDraining { deadline, terminate } => {
                agent.cordoned = true;
                // Who asks again wants another deadline, or another end.
                let since = self.drain(id).map_or(time, |known| known.since);
                self.put_drain(id, Drain { since, deadline: *deadline, terminate: *terminate });
            }
            _ => unreachable!("apply_event sends only agents' events here"),
        }
        agent.reason.clone_from(&header.reason);
        agent.revision = self.revision;
        self.put_agent(agent);
    }

    fn create_sandbox(&mut self, header: &Header, created: &SandboxCreated, time: Timestamp) {
        let id = subject_sandbox(header).clone();
        assert!(!self.sandboxes.contains_key(&id), "sandbox {id} is created twice");
        assert!(self.sandbox_named(&created.spec.name).is_none(), "name {} is taken", created.spec.name);
        let status = Status {
            phase: Phase::Pending,
            generation: 0,
            agent: None,
            held: Vec::new(),
            endpoints: Vec::new(),
            labels: created.labels.clone(),
            expire_time: created.expire_time,
            failure_policy: created.failure_policy,
            recovery_timeout_seconds: created.recovery_timeout_seconds,
            wait_until: created.wait_until,
            queued: self.revision,
            reason: header.reason.clone(),
            exit_code: None,
            running_since: None,
            ever_ran: false,
            lease: None,
            lease_revision: 0,
            refusals: 0,
            revision: self.revision,
        };
        let spec_digest = digest_of(&created.spec);
        let spec = Arc::clone(&created.spec);
        self.put_sandbox(Sandbox { id, created: time, spec, spec_digest, status: Arc::new(status) });
    }

    fn apply_to_sandbox(&mut self, header: &Header, kind: &EventKind, time: Timestamp) {
        let (id, revision) = (subject_sandbox(header), self.revision);
        let found = self.change_sandbox(id, |sandbox| {
            check_transition(sandbox, kind, revision);
            change_status(Arc::make_mut(&mut sandbox.status), header, kind, revision, time);
        });
        assert!(found, "event {revision} is about sandbox {id}, which is not there");
    }

    fn finish_sandbox(&mut self, header: &Header, released: Option<Generation>, time: Timestamp) {
        let (id, revision) = (subject_sandbox(header), self.revision);
        let removed = self.remove_sandbox(id);
        let sandbox =
            removed.unwrap_or_else(|| panic!("event {revision} is about sandbox {id}, which is not there"));
        let held = sandbox.status.held.iter().map(|held| held.generation);
        assert!(held.eq(released), "sandbox {id} is removed, and holds other allocations than are released");
        self.end_request_of(&sandbox, &header.reason, time);
    }
}

/// What an event makes of the part of a sandbox that changes.
fn change_status(
    status: &mut Status,
    header: &Header,
    kind: &EventKind,
    revision: Revision,
    time: Timestamp,
) {
    let mut new_reason =
        !matches!(kind, EventKind::SandboxUpdated(_) | EventKind::SandboxLeaseConfirmed { .. });
    match kind {
        EventKind::SandboxAllocated { generation } => {
            allocate(status, *generation, subject_agent(header).clone());
            status.lease = status.wanted_lease();
            status.lease_revision = revision;
        }
        EventKind::SandboxRunning { generation, endpoints } => {
            assert_eq!(*generation, status.generation, "only the current generation is announced");
            status.phase = Phase::Running;
            status.endpoints.clone_from(endpoints);
            status.running_since = status.running_since.or(Some(time));
            status.ever_ran = true;
            status.refusals = 0;
        }
        EventKind::SandboxFailed { released, exit_code } => {
            if let Some(generation) = released {
                release(status, *generation);
            }
            status.phase = Phase::Failed;
            status.exit_code = *exit_code;
            status.wait_until = None;
            status.endpoints.clear();
        }
        EventKind::SandboxLost => status.phase = Phase::Lost,
        EventKind::SandboxUpdated(update) => {
            let wanted_before = status.wanted_lease();
            if let Some(labels) = &update.labels {
                status.labels.clone_from(labels);
            }
            status.expire_time = update.expire_time.unwrap_or(status.expire_time);
            status.failure_policy = update.failure_policy.unwrap_or(status.failure_policy);
            status.recovery_timeout_seconds =
                update.recovery_timeout_seconds.unwrap_or(status.recovery_timeout_seconds);
            let wanted = status.wanted_lease();
            if wanted != wanted_before {
                // Until the agent confirms the new one it may be under the old one, or under this one already.
                status.lease = status.lease.zip(wanted).map(|(old, new)| old.max(new));
                status.lease_revision = revision;
            }
        }
        EventKind::SandboxLeaseConfirmed { generation } => {
            assert_eq!(*generation, status.generation, "only the current generation is leased");
            status.lease = status.wanted_lease();
        }
        EventKind::SandboxReset => {
            status.phase = Phase::Pending;
            status.queued = revision;
            status.wait_until = None;
            status.endpoints.clear();
            status.refusals = 0;
        }
        EventKind::SandboxTerminating => status.phase = Phase::Terminating,
        EventKind::AllocationReleased { generation } => {
            release(status, *generation);
            // A refused allocation, or one that is proven gone with its agent: it wants another one. (Older
            // generations are released in any phase, and say nothing of the current one.)
            let wanted = matches!(status.phase, Phase::Allocated | Phase::Running | Phase::Lost);
            new_reason = wanted && *generation == status.generation;
            if new_reason {
                status.endpoints.clear();
                status.refusals += u64::from(status.phase == Phase::Allocated);
                status.phase = Phase::Pending;
                status.queued = revision;
            }
        }
        _ => unreachable!("apply_event sends only sandboxes' events here"),
    }
    if new_reason {
        status.reason.clone_from(&header.reason);
    }
    status.revision = revision;
}

/// Which events can follow in which phase: anything else is a corrupt history.
fn check_transition(sandbox: &Sandbox, kind: &EventKind, revision: Revision) {
    use Phase::{Allocated, Failed, Lost, Pending, Running, Terminating};
    let from: &[Phase] = match kind {
        EventKind::SandboxAllocated { .. } | EventKind::SandboxFailed { released: None, .. } => &[Pending],
        EventKind::SandboxRunning { .. }
        | EventKind::SandboxFailed { .. }
        | EventKind::SandboxLeaseConfirmed { .. } => &[Allocated, Running, Lost],
        EventKind::SandboxLost => &[Allocated, Running],
        EventKind::SandboxReset => &[Allocated, Running, Failed],
        EventKind::SandboxTerminating | EventKind::SandboxUpdated(_) => {
            &[Pending, Allocated, Running, Failed, Lost]
        }
        _ => &[Pending, Allocated, Running, Terminating, Failed, Lost],
    };
    let phase = sandbox.status.phase;
    let id = &sandbox.id;
    assert!(from.contains(&phase), "event {} can't happen to {} sandbox {id}", revision, phase.as_str());
}

fn allocate(status: &mut Status, generation: Generation, agent: AgentId) {
    assert_eq!(generation, status.generation + 1, "generations count by one");
    status.phase = Phase::Allocated;
    status.generation = generation;
    status.agent = Some(agent.clone());
    status.held.push(Held { generation, agent });
    status.endpoints.clear();
    status.exit_code = None;
    status.running_since = None;
    status.wait_until = None;
}

fn release(status: &mut Status, generation: Generation) {
    let at = status.held.iter().position(|held| held.generation == generation);
    status.held.remove(at.expect("only an allocation that is held is released"));
}

fn subject_sandbox(header: &Header) -> &SandboxId {
    let subject = header.subject.sandbox.as_ref();
    &subject.expect("a sandbox's event names the sandbox").0
}

fn subject_agent(header: &Header) -> &AgentId {
    header.subject.agent.as_ref().expect("an agent's event names the agent")
}
