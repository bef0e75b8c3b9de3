//! Placement: which agent gets a sandbox.
//!
//! An agent fits if it is READY, not cordoned, of the pool, bears all labels of the selector, and has a slot, the CPU,
//! the memory and all host ports left. Of those that fit: one that has the image before one that has not, then the
//! least loaded (by slots), then the first by name.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::AgentId;
use crate::spec::{Resources, Shape};
use crate::state::{Agent, State};

/// Why no agent had room: how many fell short of what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortage {
    /// The pool that was asked.
    pub pool: String,
    /// Agents of the pool.
    pub agents: usize,
    /// Lost or cordoned.
    pub unavailable: usize,
    /// Without the labels of the selector.
    pub labels: usize,
    /// Without a free slot.
    pub slots: usize,
    /// With too little CPU left.
    pub cpu: usize,
    /// With too little memory left.
    pub memory: usize,
    /// With one of the ports taken.
    pub ports: usize,
    /// Sandboxes of the same shape that wait already, and come first.
    pub waiting: usize,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.agents == 0 {
            return write!(f, "pool {:?} has no agents", self.pool);
        }
        let parts = [
            (self.unavailable, "lost or cordoned"),
            (self.labels, "without the labels asked for"),
            (self.slots, "with no free slot"),
            (self.cpu, "with too little CPU left"),
            (self.memory, "with too little memory left"),
            (self.ports, "with a port taken"),
        ];
        write!(
            f,
            "of {} agent{} in pool {:?}:",
            self.agents,
            if self.agents == 1 { "" } else { "s" },
            self.pool
        )?;
        let mut separator = " ";
        for (count, what) in parts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{separator}{count} {what}")?;
            separator = ", ";
        }
        if self.waiting > 0 {
            write!(f, "{separator}{} of the same shape wait already", self.waiting)?;
        }
        Ok(())
    }
}

enum Misfit {
    Unavailable,
    Labels,
    Slots,
    Cpu,
    Memory,
    Ports,
}

fn fit(agent: &Agent, shape: &Shape) -> Result<(), Misfit> {
    let bears = |(key, value): (&String, &String)| agent.spec.labels.get(key) == Some(value);
    if !agent.schedulable() {
        Err(Misfit::Unavailable)
    } else if !shape.agent_selector.iter().all(bears) {
        Err(Misfit::Labels)
    } else {
        has_room(agent, shape)
    }
}

fn has_room(agent: &Agent, shape: &Shape) -> Result<(), Misfit> {
    let free = agent.free();
    let Resources { cpu_millis, memory_bytes } = shape.resources;
    if free.slots == 0 {
        Err(Misfit::Slots)
    } else if free.cpu_millis < cpu_millis {
        Err(Misfit::Cpu)
    } else if free.memory_bytes < memory_bytes {
        Err(Misfit::Memory)
    } else if shape.ports.iter().any(|port| agent.ports.contains(port)) {
        Err(Misfit::Ports)
    } else {
        Ok(())
    }
}

/// What an agent lacks to hold something of this shape, whether or not it gets new sandboxes: for people.
pub(crate) fn lack_of_room(agent: &Agent, shape: &Shape) -> Option<&'static str> {
    match has_room(agent, shape) {
        Err(Misfit::Slots) => Some("no free slot"),
        Err(Misfit::Cpu) => Some("too little CPU left"),
        Err(Misfit::Memory) => Some("too little memory left"),
        Err(Misfit::Ports) => Some("one of its ports taken"),
        Ok(()) | Err(Misfit::Unavailable | Misfit::Labels) => None,
    }
}

/// Up to so many agents with an image are compared one by one; of more, one is soon found among the least loaded.
const FEW_WITH_IMAGE: usize = 64;

/// Chooses an agent, but for `refused_by`. `with_image`: the agents that have the image, as far as the leader knows.
pub(crate) fn place<'a>(
    state: &'a State,
    shape: &Shape,
    with_image: Option<&BTreeSet<AgentId>>,
    refused_by: Option<&AgentId>,
) -> Option<&'a Agent> {
    let fits = |agent: &&Agent| Some(&agent.spec.agent_id) != refused_by && fit(agent, shape).is_ok();
    let with_image = with_image.and_then(|with_image| {
        if with_image.len() <= FEW_WITH_IMAGE {
            place_on(state, with_image, shape, None, refused_by)
        } else {
            let has_it = |agent: &&Agent| with_image.contains(&agent.spec.agent_id);
            state.ready_agents(&shape.pool).filter(has_it).find(fits)
        }
    });
    with_image.or_else(|| state.ready_agents(&shape.pool).find(fits))
}

/// As [`place`], but chooses one of `agents`.
pub(crate) fn place_on<'a>(
    state: &'a State,
    agents: &BTreeSet<AgentId>,
    shape: &Shape,
    with_image: Option<&BTreeSet<AgentId>>,
    refused_by: Option<&AgentId>,
) -> Option<&'a Agent> {
    let lacks_it = |id: &AgentId| with_image.is_some_and(|with_image| !with_image.contains(id));
    // BTreeSet yields names in order and min_by_key keeps the first of equals, so ties go to the first by name.
    agents
        .iter()
        .filter(|id| Some(*id) != refused_by)
        .filter_map(|id| state.agent(id))
        .filter(|agent| agent.spec.pool == shape.pool && fit(agent, shape).is_ok())
        .min_by_key(|agent| (lacks_it(&agent.spec.agent_id), agent.load()))
}

/// Says why [`place`] found nobody.
pub(crate) fn shortage(state: &State, shape: &Shape) -> Shortage {
    let mut shortage =
        Shortage { pool: shape.pool.to_string(), waiting: state.queue_length(shape), ..Shortage::default() };
    let pool = state.pool(&shape.pool);
    shortage.agents = pool.agents;
    if shape.agent_selector.is_empty() {
        // What is unavailable or has no free slot is counted already: only the others have to be looked at, and in a
        // fleet that is full there are none.
        shortage.unavailable = pool.unavailable;
        shortage.slots = pool.agents - pool.unavailable - state.ready_count(&shape.pool);
        state.ready_agents(&shape.pool).for_each(|agent| shortage.count(agent, shape));
    } else {
        let of_pool = state.agents().filter(|agent| agent.spec.pool == shape.pool);
        of_pool.for_each(|agent| shortage.count(agent, shape));
    }
    shortage
}

impl Shortage {
    fn count(&mut self, agent: &Agent, shape: &Shape) {
        match fit(agent, shape) {
            Ok(()) => {}
            Err(Misfit::Unavailable) => self.unavailable += 1,
            Err(Misfit::Labels) => self.labels += 1,
            Err(Misfit::Slots) => self.slots += 1,
            Err(Misfit::Cpu) => self.cpu += 1,
            Err(Misfit::Memory) => self.memory += 1,
            Err(Misfit::Ports) => self.ports += 1,
        }
    }
}
