//! What the agent has that the state does not know: kept for operators, who may want to see it and to adopt it.

use std::collections::BTreeSet;

use sandkeeper_statemachine::{Origin, SandboxId, State, UnknownSandbox};

use super::Worker;
use crate::applier::reconcile::{Actual, AgentView};
use crate::decider::Teller;

/// The most unknown sandboxes of one agent that are kept for operators: as many as it has slots, in all but strange
/// cases. What is beyond is dealt with like the others, and seen when some of these are gone.
const MAX_KEPT: usize = 4_096;

/// Which they are, and whether that has been told.
#[derive(Default)]
pub(super) struct Unknown {
    ids: BTreeSet<SandboxId>,
    untold: bool,
}

impl Unknown {
    /// An inventory has come. That it holds nothing unknown is to be told too: nobody who asks can know it otherwise.
    pub(super) fn of_new_inventory() -> Self {
        Self { ids: BTreeSet::new(), untold: true }
    }
}

impl Worker {
    /// After a look at a sandbox.
    pub(super) fn note_unknown(&mut self, state: &State, id: &SandboxId) {
        let Some(view) = &self.view else { return };
        let unknown = state.sandbox(id).is_none() && describe(view, id).is_some();
        let changed = if unknown {
            self.unknown.ids.len() < MAX_KEPT && self.unknown.ids.insert(id.clone())
        } else {
            self.unknown.ids.remove(id)
        };
        self.unknown.untold |= changed;
    }

    /// Tells what has changed.
    pub(super) fn tell_unknown(&mut self) {
        let Some(view) = self.view.as_ref().filter(|_| self.unknown.untold) else { return };
        self.unknown.untold = false;
        let agent = &self.session.spec.agent_id;
        let unknown = self.unknown.ids.iter().filter_map(|id| {
            let (generation, origin) = describe(view, id)?;
            let adoptable = view.strangers.get(id).and_then(|stranger| stranger.adoptable.clone());
            Some(UnknownSandbox { agent: agent.clone(), id: id.clone(), generation, origin, adoptable })
        });
        self.knowledge.set_unknown(agent, self.teller(), unknown.collect());
    }

    /// What the agent said does not count any more.
    pub(super) fn forget_unknown(&self) {
        self.knowledge.forget_unknown(&self.session.spec.agent_id, self.teller());
    }

    fn teller(&self) -> Teller {
        (self.session.number, self.term)
    }
}

impl Drop for Worker {
    /// Whoever leads next, or in the next session, listens anew.
    fn drop(&mut self) {
        self.forget_unknown();
    }
}

fn describe(view: &AgentView, id: &SandboxId) -> Option<(u64, Origin)> {
    let stranger = view.strangers.get(id).map(|stranger| (stranger.generation, stranger.origin));
    let ours = || match view.actual.get(id)? {
        (_, Actual::Stopping) => None,
        (generation, _) => Some((*generation, Origin::Ours)),
    };
    stranger.or_else(ours)
}
