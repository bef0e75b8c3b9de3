//! An agent's record. What it has given away is derived from the sandboxes' allocations.

use std::sync::Arc;

use imbl::OrdSet;
use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Revision, Timestamp};
use crate::spec::{AgentSpec, Capacity};
use crate::state::digest::digest_of;

/// Whether an agent is heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentStatus {
    /// Heard of.
    Ready,
    /// Not heard of for too long.
    Lost,
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// What it said of itself.
    pub spec: Arc<AgentSpec>,
    /// Whether it is heard of.
    pub status: AgentStatus,
    /// No new sandboxes for it.
    pub cordoned: bool,
    /// Why it is as it is, for people.
    pub reason: String,
    /// If it is LOST: since when.
    pub lost_since: Option<Timestamp>,
    /// If it is LOST: an operator has said that what it ran may be recovered although many agents were lost with it.
    pub recovery_resumed: bool,
    /// The revision of the last change of what stands above.
    pub revision: Revision,
    /// The sum of the unreleased allocations. Derived.
    pub allocated: Capacity,
    /// The host ports that they hold. Derived.
    pub ports: OrdSet<u16>,
    /// How many ALLOCATED and RUNNING sandboxes it is to run. Derived.
    pub(crate) live: u64,
}

impl Agent {
    /// What is left.
    pub fn free(&self) -> Capacity {
        self.spec.capacity.left(self.allocated)
    }

    /// Whether it may get new sandboxes.
    pub fn schedulable(&self) -> bool {
        self.status == AgentStatus::Ready && !self.cordoned
    }

    /// It is heard of, and nothing is left of its loss.
    pub(crate) fn return_to_ready(&mut self) {
        self.status = AgentStatus::Ready;
        self.lost_since = None;
        self.recovery_resumed = false;
    }

    /// Whether it is LOST, and has sandboxes that are not called so yet.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.status == AgentStatus::Lost && self.live > 0
    }

    /// How loaded it is: 65,536ths of its slots.
    pub(crate) fn load(&self) -> u32 {
        let slots = self.spec.capacity.slots.max(1);
        u32::try_from((self.allocated.slots << 16) / slots).unwrap_or(u32::MAX)
    }

    pub(crate) fn digest(&self) -> Digest {
        let loss = (self.lost_since, self.recovery_resumed);
        digest_of(&("agent", &self.spec, self.status, self.cordoned, &self.reason, loss, self.revision))
    }
}
