//! What plans are made on: the fence, the table, the capacity.

use std::collections::BTreeMap;

use super::Action;
use crate::config::Capacity;
use crate::ledger::Incarnation;
use crate::table::Table;

/// Everything that a plan may look at.
#[derive(Clone, Debug)]
pub struct State {
    /// Whom the agent obeys.
    pub fence: Fence,
    /// What it runs.
    pub table: Table,
    /// What it can hold.
    pub capacity: Capacity,
}

/// Whom the agent obeys: the newest session of the highest term.
#[derive(Clone, Debug)]
pub struct Fence {
    /// Who the agent is. Commands for another incarnation are refused.
    pub incarnation: Incarnation,
    /// The cluster, once known. As in the ledger.
    pub cluster_id: Option<String>,
    /// The highest term seen. As in the ledger.
    pub term: u64,
    /// The session of the last command that was obeyed; 0: none. Session numbers only grow, so of two sessions in the
    /// same term the higher one is the newer.
    pub obeyed: u64,
    /// The sessions that are open.
    pub sessions: BTreeMap<u64, SessionFence>,
    /// Clusters that the agent has left, and the highest term seen there. As in the ledger.
    pub former: BTreeMap<String, u64>,
}

/// Whose label a sandbox bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Our cluster's, or that of one which the agent has left.
    Ours,
    /// Nobody's.
    Unlabelled,
    /// Another cluster's.
    Other,
}

/// What is known about one open session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionFence {
    /// Its node belongs to our cluster.
    pub welcomed: bool,
    /// The sequence of the last command that was dealt with.
    pub processed: u64,
}

impl Fence {
    /// The session that reports go to, if it is open, and the last sequence processed in it.
    pub fn leader(&self) -> Option<(u64, u64)> {
        self.sessions.get(&self.obeyed).map(|session| (self.obeyed, session.processed))
    }

    /// Whose a sandbox with this label is.
    pub fn origin(&self, label: &str) -> Origin {
        if label.is_empty() {
            Origin::Unlabelled
        } else if self.cluster_id.as_deref() == Some(label) || self.former.contains_key(label) {
            Origin::Ours
        } else {
            Origin::Other
        }
    }

    fn rehome(&mut self, cluster_id: &str) {
        let term = self.former.remove(cluster_id).unwrap_or(0);
        if let Some(left) = self.cluster_id.replace(cluster_id.to_owned()) {
            self.former.insert(left, self.term);
        }
        (self.term, self.obeyed) = (term, 0);
    }
}

impl State {
    /// Makes the action's change, if it is one of the state. What it does outside is the performer's.
    pub fn apply(&mut self, action: &Action) {
        match action {
            Action::Track { session } => {
                self.fence.sessions.insert(*session, SessionFence::default());
            }
            Action::Forget { session } | Action::Close { session, .. } => {
                self.fence.sessions.remove(session);
            }
            Action::Welcomed { session } => {
                if let Some(fence) = self.fence.sessions.get_mut(session) {
                    fence.welcomed = true;
                }
            }
            Action::Processed { session, sequence } => {
                if let Some(fence) = self.fence.sessions.get_mut(session) {
                    fence.processed = *sequence;
                }
            }
            Action::Join { cluster_id } => self.fence.cluster_id = Some(cluster_id.clone()),
            Action::Rehome { cluster_id } => self.fence.rehome(cluster_id),
            Action::RaiseTerm { term } => self.fence.term = *term,
            Action::Obey { session } => self.fence.obeyed = *session,
            Action::Put(sandbox) => self.table.put((**sandbox).clone()),
            Action::Drop { sandbox_id } => self.table.remove(sandbox_id),
            Action::Create(_)
            | Action::End { .. }
            | Action::Remove { .. }
            | Action::Instruct { .. }
            | Action::Adopt { .. }
            | Action::Report { .. }
            | Action::Refuse(_)
            | Action::Inventory { .. }
            | Action::WrongCluster { .. } => {}
        }
    }
}
