//! What has to be done so that one agent comes to hold what the state says: pure.
//!
//! Level-triggered: it looks at the state and at what the agent is known to have, never at what happened. A message
//! only wakes it. It is called again whenever either side may have changed, and when a command has gone unanswered.

use std::collections::BTreeMap;

use planted_bugs::{Bug, planted};
use sandkeeper_statemachine::{
    Adoptable, AgentId, Generation, Origin, Phase, ReportedState, Revision, Sandbox, SandboxId, State,
};

/// What an agent says of one generation that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actual {
    /// A placeholder, before the runtime is called.
    Creating,
    /// It runs; its ports are reached there.
    Running {
        /// `host:port`.
        endpoints: Vec<String>,
        /// The revision of the lease that it is kept under; 0: none.
        lease_revision: Revision,
    },
    /// It is being stopped.
    Stopping,
    /// The workload has ended; the record is kept.
    Exited {
        /// If it is known.
        exit_code: Option<i32>,
        /// Why, for people.
        reason: String,
        /// The agent ended it because its time was over.
        expired: bool,
        /// It was ended because its lease was over.
        lease_over: bool,
    },
    /// It could not be started; the record is kept.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// A sandbox of an agent that does not bear our label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// Its generation.
    pub generation: Generation,
    /// Whose label it bears.
    pub origin: Origin,
    /// What it is, if it may be adopted.
    pub adoptable: Option<Box<Adoptable>>,
}

/// What an agent says of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Of one that is ours; None: it is not there.
    Ours(Option<Actual>),
    /// Of another.
    Stranger(Stranger),
}

/// The last command that was sent about a sandbox, in this session and term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its sequence.
    pub sequence: u64,
    /// For which generation.
    pub generation: Generation,
    /// Which.
    pub what: SentKind,
    /// It has gone unanswered for so long that it may be sent again.
    pub overdue: bool,
}

/// Which command was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentKind {
    /// Create.
    Create,
    /// Terminate.
    Terminate,
    /// Adopt.
    Adopt,
}

/// What the leader knows of one agent in this session and term: a whole inventory, and all reports since.
#[derive(Clone, Debug, Default)]
pub struct AgentView {
    /// What it has. One generation of a sandbox at a time: an agent stops the old one before it starts the new.
    pub actual: BTreeMap<SandboxId, (Generation, Actual)>,
    /// What it has that does not bear our label.
    pub strangers: BTreeMap<SandboxId, Stranger>,
    /// The last command that the agent had processed when it last spoke.
    pub processed: u64,
    /// The newest command about each sandbox that is not settled yet.
    pub sent: BTreeMap<SandboxId, Sent>,
}

impl AgentView {
    /// Notes what the agent says of one generation; None: that it is not there. What it says of an older generation
    /// than the one that it is known to have says nothing of that one.
    pub fn note(&mut self, id: &SandboxId, generation: Generation, heard: Heard) {
        let actual = match heard {
            Heard::Stranger(stranger) => {
                self.actual.remove(id);
                self.strangers.insert(id.clone(), stranger);
                return;
            }
            Heard::Ours(actual) => actual,
        };
        self.strangers.remove(id);
        let known = self.actual.get(id).map(|(generation, _)| *generation);
        match actual {
            Some(actual) if known.is_none_or(|known| known <= generation) => {
                self.actual.insert(id.clone(), (generation, actual));
            }
            None if known.is_some_and(|known| known <= generation) => {
                self.actual.remove(id);
            }
            _ => {}
        }
    }

    /// Whether an inventory that was given after so many commands is older than what the agent has said since: what it lacks
    /// may have been made by commands whose answers have settled them.
    pub fn is_newer_than(&self, processed: u64) -> bool {
        processed < self.processed
    }

    /// Whether what is not in `actual` is proven absent: the agent spoke after it had processed the last command.
    fn proves_absence(&self, id: &SandboxId) -> bool {
        planted(Bug::OldInventoryAsProof)
            || self.sent.get(id).is_none_or(|sent| sent.sequence <= self.processed)
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Tell the agent to create this generation.
    Create(Generation),
    /// Tell the agent to terminate this generation.
    Terminate(Generation),
    /// Tell the decider what the agent says of this generation.
    Report(Generation, ReportedState),
    /// The agent has something that the state does not know: terminate it, once it has been so for the grace period.
    Orphan(Generation),
    /// Tell the agent to label it as ours: it was adopted.
    Adopt(Generation),
}

/// What has to be done about one sandbox on one agent.
pub fn reconcile(state: &State, agent: &AgentId, view: &AgentView, id: &SandboxId) -> Vec<Step> {
    let sandbox = state.sandbox(id);
    let actual = view.actual.get(id);
    let held = held_by(sandbox, agent);
    let mut steps = Vec::new();
    if let Some(stranger) = view.strangers.get(id)
        && stranger.origin == Origin::Unlabelled
        && held.contains(&stranger.generation)
    {
        // Nothing else is told of it before it is ours.
        let generation = stranger.generation;
        let due = once(view, id, generation, SentKind::Adopt);
        return due.then_some(Step::Adopt(generation)).into_iter().collect();
    }
    if let (Some(sandbox), Some(newest)) = (sandbox, held.last()) {
        // Older generations first: a new one is not created while an old one may be there.
        for generation in &held {
            // An agent that stops a sandbox stops all generations of it up to the one that it names.
            let speaks_of = |(there, actual): &&(Generation, Actual)| {
                there == generation || (there > generation && *actual == Actual::Stopping)
            };
            let here = actual.filter(speaks_of).map(|(_, actual)| actual);
            let newest_here = generation == newest;
            // What comes from a backup may run elsewhere: it is started when an operator has confirmed the restore.
            let startable = newest_here && !sandbox.holds_older_generation() && !state.is_held_back(sandbox);
            steps.extend(reconcile_held(sandbox, *generation, startable, here, view));
        }
    }
    if let Some((generation, actual)) = actual
        && !held.contains(generation)
        // A backup may be older than what runs: nothing of it is ended before the restore is confirmed.
        && state.unconfirmed_restore().is_none()
    {
        steps.extend(reconcile_unheld(sandbox, agent, *generation, actual, view));
    }
    steps
}

/// The generations that the agent holds, oldest first.
fn held_by(sandbox: Option<&Sandbox>, agent: &AgentId) -> Vec<Generation> {
    let held = sandbox.map_or(&[][..], |sandbox| &sandbox.status.held);
    let mut held: Vec<_> =
        held.iter().filter(|held| held.agent == *agent).map(|held| held.generation).collect();
    held.sort_unstable();
    held
}

fn reconcile_held(
    sandbox: &Sandbox,
    generation: Generation,
    startable: bool,
    actual: Option<&Actual>,
    view: &AgentView,
) -> Option<Step> {
    let status = &sandbox.status;
    let wanted = generation == status.generation
        && matches!(status.phase, Phase::Allocated | Phase::Running | Phase::Lost);
    let absent = actual.is_none() && view.proves_absence(&sandbox.id);
    match actual {
        _ if !wanted && absent => Some(Step::Report(generation, ReportedState::Absent)),
        Some(Actual::Stopping) => None,
        _ if !wanted => terminate_once(view, &sandbox.id, generation),
        None if status.phase == Phase::Allocated => {
            if startable {
                create_once(view, &sandbox.id, generation)
            } else {
                None
            }
        }
        None if absent => Some(Step::Report(generation, ReportedState::Absent)),
        None | Some(Actual::Creating) => None,
        Some(Actual::Running { endpoints, lease_revision }) => {
            let confirms = *lease_revision == status.lease_revision && status.lease != status.wanted_lease();
            let known = status.phase == Phase::Running && status.endpoints == *endpoints && !confirms;
            let (endpoints, lease_revision) = (endpoints.clone(), *lease_revision);
            let running = ReportedState::Running { endpoints, lease_revision };
            (!known).then_some(Step::Report(generation, running))
        }
        Some(Actual::Exited { exit_code, reason, expired, lease_over }) => {
            let (exit_code, reason) = (*exit_code, reason.clone());
            let (expired, lease_over) = (*expired, *lease_over);
            let exited = ReportedState::Exited { exit_code, reason, expired, lease_over };
            Some(Step::Report(generation, exited))
        }
        Some(Actual::Failed { reason }) => {
            Some(Step::Report(generation, ReportedState::StartFailed { reason: reason.clone() }))
        }
    }
}

/// What the agent has without an allocation.
fn reconcile_unheld(
    sandbox: Option<&Sandbox>,
    agent: &AgentId,
    generation: Generation,
    actual: &Actual,
    view: &AgentView,
) -> Option<Step> {
    let id_of = |sandbox: &Sandbox| sandbox.id.clone();
    match (sandbox, actual) {
        (_, Actual::Stopping) => None,
        // A record of what has failed: its log and exit code are kept until it is terminated or reset.
        (Some(sandbox), Actual::Exited { .. } | Actual::Failed { .. })
            if sandbox.status.phase == Phase::Failed
                && sandbox.status.generation == generation
                && sandbox.status.agent.as_ref() == Some(agent) =>
        {
            None
        }
        (Some(sandbox), _) => terminate_once(view, &id_of(sandbox), generation),
        // Nothing of it runs, and nobody knows it: there is nothing to be careful about.
        (None, Actual::Exited { .. } | Actual::Failed { .. }) => Some(Step::Terminate(generation)),
        (None, _) => Some(Step::Orphan(generation)),
    }
}

fn create_once(view: &AgentView, id: &SandboxId, generation: Generation) -> Option<Step> {
    once(view, id, generation, SentKind::Create).then_some(Step::Create(generation))
}

fn terminate_once(view: &AgentView, id: &SandboxId, generation: Generation) -> Option<Step> {
    once(view, id, generation, SentKind::Terminate).then_some(Step::Terminate(generation))
}

/// Whether the command has to be sent: it was not, or has gone unanswered for too long.
fn once(view: &AgentView, id: &SandboxId, generation: Generation, what: SentKind) -> bool {
    let sent = view.sent.get(id);
    !sent.is_some_and(|sent| sent.generation == generation && sent.what == what && !sent.overdue)
}
