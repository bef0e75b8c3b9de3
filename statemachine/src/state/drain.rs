//! Agents that are drained: what they run is to leave.
//!
//! Architecture invariant: a drain is a record of its own, beside its agent's, and not a field of that. Histories and
//! snapshots without drains are the same, byte by byte, as before there were any.

use serde::{Deserialize, Serialize};

use super::{Phase, Sandbox, State};
use crate::ids::{AgentId, Digest, Timestamp};
use crate::spec::FailurePolicy;
use crate::state::digest::digest_of;

/// An agent is drained: it gets nothing new, its AUTO_RECREATE sandboxes move as soon as others have room, and the rest is
/// waited for, or ended at the deadline. Until somebody uncordons it, or it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Since when.
    pub since: Timestamp,
    /// Until when whoever asked for it wants to wait; None: as long as it takes.
    pub deadline: Option<Timestamp>,
    /// At the deadline what is left is ended; else it runs on.
    pub terminate: bool,
}

/// How a sandbox leaves an agent that is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Its next generation goes to another agent.
    Move,
    /// It is waited for, or terminated.
    End,
}

impl Drain {
    /// When what is left is ended; None: it is waited for.
    pub(crate) fn ends_all_at(&self) -> Option<Timestamp> {
        self.deadline.filter(|_| self.terminate)
    }

    pub(crate) fn digest(&self, agent: &AgentId) -> Digest {
        digest_of(&("drain", agent, self))
    }
}

impl State {
    /// The drain of an agent, if it is drained.
    pub fn drain(&self, agent: &AgentId) -> Option<&Drain> {
        self.drains.get(agent)
    }

    /// All drains, by agent.
    pub(crate) fn drains(&self) -> impl Iterator<Item = (&AgentId, &Drain)> {
        self.drains.iter()
    }

    /// What has to leave an agent that is drained, and how. What is on its way already is not in it: what is TERMINATING,
    /// or has its next generation elsewhere, what waits for an older generation to be gone, and what a lost agent ran and the
    /// leader recovers.
    pub(crate) fn leaving<'a>(
        &'a self,
        agent: &'a AgentId,
    ) -> impl Iterator<Item = (&'a Sandbox, Leave)> + 'a {
        self.held_by(agent).filter_map(move |(sandbox, generation)| {
            let status = &sandbox.status;
            let current = generation == status.generation && !self.is_held_back(sandbox);
            let recreated = status.failure_policy == FailurePolicy::AutoRecreate;
            match status.phase {
                Phase::Allocated | Phase::Running if current && recreated => {
                    (status.held.len() == 1).then_some((sandbox, Leave::Move))
                }
                Phase::Allocated | Phase::Running => current.then_some((sandbox, Leave::End)),
                Phase::Lost if current && !recreated => Some((sandbox, Leave::End)),
                _ => None,
            }
        })
    }

    /// The earliest time at which there may be something to do for a drain: the time of the last event if something that is
    /// to move may find room.
    pub(crate) fn next_drain(&self) -> Option<Timestamp> {
        let of = |(agent, drain): (&AgentId, &Drain)| {
            let may_move = |(sandbox, leave): (&Sandbox, Leave)| {
                leave == Leave::Move && self.ready_count(&sandbox.spec.pool) > 0
            };
            if self.leaving(agent).any(may_move) {
                return Some(self.last_time);
            }
            drain.ends_all_at().filter(|_| self.leaving(agent).next().is_some())
        };
        self.drains().filter_map(of).min()
    }

    /// Puts a drain in place of the one of the same agent, if there is one.
    pub(crate) fn put_drain(&mut self, agent: &AgentId, drain: Drain) {
        self.remove_drain(agent);
        self.sum.add(|| drain.digest(agent));
        self.drains.insert(agent.clone(), drain);
    }

    /// Ends a drain, if there is one.
    pub(crate) fn remove_drain(&mut self, agent: &AgentId) {
        if let Some(old) = self.drains.remove(agent) {
            self.sum.remove(|| old.digest(agent));
        }
    }
}
