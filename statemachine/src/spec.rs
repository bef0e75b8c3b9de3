//! What is asked for: of a sandbox, and what an agent offers.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, Incarnation, Label, RequestId, SandboxName};

/// What a sandbox takes of its agent, beside one slot. 0: asks for none in particular.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

/// What an agent has, has given away, or has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// How many sandboxes.
    pub slots: u64,
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

impl Capacity {
    /// One slot with these resources: what one allocation takes.
    pub fn of(resources: Resources) -> Self {
        Self { slots: 1, cpu_millis: resources.cpu_millis, memory_bytes: resources.memory_bytes }
    }

    /// The sum.
    ///
    /// # Panics
    /// On overflow, which `limits` excludes.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.checked_plus(other).expect("limits keep every sum below 2^64")
    }

    /// The sum; None on overflow.
    pub(crate) fn checked_plus(self, other: Self) -> Option<Self> {
        Some(Self {
            slots: self.slots.checked_add(other.slots)?,
            cpu_millis: self.cpu_millis.checked_add(other.cpu_millis)?,
            memory_bytes: self.memory_bytes.checked_add(other.memory_bytes)?,
        })
    }

    /// The difference.
    ///
    /// # Panics
    /// If `other` is more: a release of what was never taken.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        let sub = |a: u64, b: u64| a.checked_sub(b).expect("only what was allocated is released");
        Self {
            slots: sub(self.slots, other.slots),
            cpu_millis: sub(self.cpu_millis, other.cpu_millis),
            memory_bytes: sub(self.memory_bytes, other.memory_bytes),
        }
    }

    /// What is left when `taken` is gone; nothing if an agent came back smaller than what it holds.
    #[must_use]
    pub fn left(self, taken: Self) -> Self {
        Self {
            slots: self.slots.saturating_sub(taken.slots),
            cpu_millis: self.cpu_millis.saturating_sub(taken.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(taken.memory_bytes),
        }
    }
}

/// When a create is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// When the allocation has committed.
    #[default]
    Fast,
    /// When it runs, or has failed and been rolled back.
    Strong,
}

/// What happens to a sandbox whose agent is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailurePolicy {
    /// It stays LOST or FAILED until someone acts.
    #[default]
    Manual,
    /// It gets the next generation on another agent after the recovery timeout.
    AutoRecreate,
}

/// Labels, of sandboxes and agents.
pub type Labels = BTreeMap<String, String>;

/// What was asked for when a sandbox was created. Never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// What people call it.
    pub name: SandboxName,
    /// The image; runtimes without images ignore it.
    pub image: String,
    /// The program and its first arguments; empty: the image's.
    pub command: Vec<String>,
    /// Further arguments.
    pub args: Vec<String>,
    /// The environment.
    pub envs: BTreeMap<String, String>,
    /// Empty: the runtime's choice.
    pub working_dir: String,
    /// Ports of the agent's host that it holds.
    pub ports: Vec<u16>,
    /// What it takes beside its slot.
    pub resources: Resources,
    /// The pool of agents to choose from.
    pub pool: Label,
    /// Only agents that bear all of these.
    pub agent_selector: Labels,
    /// When its create is answered.
    pub mode: Mode,
    /// The request that made it.
    pub request_id: RequestId,
}

impl SandboxSpec {
    /// What decides where it fits: sandboxes of one shape stand in one queue, in whatever order they name their ports.
    pub fn shape(&self) -> Shape {
        let mut ports = self.ports.clone();
        ports.sort_unstable();
        Shape {
            pool: self.pool.clone(),
            resources: self.resources,
            ports,
            agent_selector: self.agent_selector.clone(),
        }
    }
}

/// All that placement looks at, but for the image. See [`SandboxSpec::shape`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shape {
    /// The pool of agents to choose from.
    pub pool: Label,
    /// What it takes beside its slot.
    pub resources: Resources,
    /// Host ports, in ascending order.
    pub ports: Vec<u16>,
    /// Only agents that bear all of these.
    pub agent_selector: Labels,
}

impl Shape {
    /// The first of all shapes of a pool, in their order.
    pub(crate) fn first_of(pool: Label) -> Self {
        let (resources, ports, agent_selector) = (Resources::default(), Vec::new(), Labels::new());
        Self { pool, resources, ports, agent_selector }
    }
}

/// What an agent says of itself when it registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSpec {
    /// Its name.
    pub agent_id: AgentId,
    /// Which life of its ledger speaks.
    pub incarnation: Incarnation,
    /// What it can hold in all.
    pub capacity: Capacity,
    /// For placement.
    pub labels: Labels,
    /// For placement.
    pub pool: Label,
    /// How it runs sandboxes.
    pub runtime: String,
    /// The version of its program.
    pub version: String,
    /// Where its sandboxes' ports are reached.
    pub host: String,
}

/// Who caused an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Actor {
    /// A caller of the API, by the name or address that the API knows.
    Client(String),
    /// An agent reported it.
    Agent(AgentId),
    /// The control plane itself: expiry, loss of agents, housekeeping.
    Leader,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(name) => write!(f, "client {name}"),
            Self::Agent(id) => write!(f, "agent {id}"),
            Self::Leader => f.write_str("control plane"),
        }
    }
}
