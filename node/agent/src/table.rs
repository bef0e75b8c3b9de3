//! The sandboxes that this agent knows, and what they hold of its capacity.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::boottime::BootTime;
use crate::config::Capacity;
use crate::lease::LeaseTerms;
use crate::spec::SandboxSpec;

/// What a create command asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What it is to be.
    pub spec: Arc<SandboxSpec>,
    /// When its time is over; `None`: never.
    pub expires_at: Option<BootTime>,
    /// When it has to be dead if no leader is heard of; `None`: it may run on.
    pub lease: Option<LeaseTerms>,
    /// When the newest heartbeat was sent that had been acknowledged, in the command's own session, before the command
    /// came; `None`: none had. A lease begins with it.
    pub heard: Option<BootTime>,
}

/// A sandbox that the agent knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// What it is, when its time is over, and its lease, as they are wanted.
    pub order: Order,
    /// The lease that whoever guards it keeps.
    pub guarded: Option<LeaseTerms>,
    /// The generation that it is known by: the order's, or a higher one that a terminate command named.
    pub generation: u64,
    /// Where it is in its life.
    pub phase: Phase,
    /// The agent ended it, or is ending it, because its time is over.
    pub expired: bool,
    /// It was ended because its lease was over.
    pub lease_over: bool,
}

/// Where a sandbox is in its life on this agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The placeholder: the runtime has been told to start it.
    Creating,
    /// It runs.
    Running,
    /// Its time is over and it is being ended; its record will stay.
    Ending,
    /// Everything of it is being removed.
    Stopping {
        /// Its start has not been answered yet; the removal begins after that.
        creating: bool,
        /// Its workload had ended before: its leader has released what it held.
        ended: bool,
        /// The next generation, which is started as soon as this one is gone.
        next: Option<Order>,
    },
    /// The workload has ended. The record stays until it is terminated.
    Exited {
        /// The code, or 128 and the signal's number.
        exit_code: Option<i32>,
        /// How it ended, for people.
        reason: String,
    },
    /// It could not be started, and nothing of it is left. The record stays until it is terminated, so that every
    /// inventory repeats what happened.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

impl Sandbox {
    /// A placeholder for `order`.
    pub fn creating(order: Order) -> Self {
        let generation = order.spec.generation;
        Self { generation, order, guarded: None, phase: Phase::Creating, expired: false, lease_over: false }
    }

    /// The same sandbox in another phase.
    pub fn in_phase(&self, phase: Phase) -> Self {
        Self { phase, ..self.clone() }
    }

    /// The order of the generation that waits for this one to be gone.
    pub fn next(&self) -> Option<&Order> {
        match &self.phase {
            Phase::Stopping { next, .. } => next.as_ref(),
            _ => None,
        }
    }

    /// What it takes of the agent's capacity. What has ended takes nothing: its leader has released it.
    fn holds(&self) -> Capacity {
        match &self.phase {
            Phase::Creating
            | Phase::Running
            | Phase::Ending
            | Phase::Stopping { ended: false, next: None, .. } => self.order.spec.needs(),
            Phase::Stopping { ended: true, next: Some(next), .. } => next.spec.needs(),
            Phase::Stopping { ended: false, next: Some(next), .. } => {
                let (old, new) = (self.order.spec.needs(), next.spec.needs());
                Capacity {
                    slots: 1,
                    cpu_millis: old.cpu_millis.max(new.cpu_millis),
                    memory_bytes: old.memory_bytes.max(new.memory_bytes),
                }
            }
            Phase::Stopping { ended: true, next: None, .. } | Phase::Exited { .. } | Phase::Failed { .. } => {
                Capacity::default()
            }
        }
    }

    fn ports(&self) -> BTreeSet<u16> {
        let ended = match &self.phase {
            Phase::Exited { .. } | Phase::Failed { .. } => true,
            Phase::Stopping { ended, .. } => *ended,
            Phase::Creating | Phase::Running | Phase::Ending => false,
        };
        let own = if ended { &[][..] } else { &self.order.spec.ports };
        let next = self.next().into_iter().flat_map(|next| &next.spec.ports);
        own.iter().chain(next).copied().collect()
    }

    /// When the agent has to end it by itself.
    fn deadline(&self) -> Option<BootTime> {
        (self.phase == Phase::Running).then_some(self.order.expires_at).flatten()
    }
}

/// All sandboxes of the agent. Sums, ports and deadlines are kept up to date with each change, so that none of them
/// costs a walk over the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    sandboxes: BTreeMap<String, Sandbox>,
    used: Capacity,
    ports: BTreeMap<u16, String>,
    deadlines: BTreeSet<(BootTime, String)>,
}

impl Table {
    /// The sandbox of this id.
    pub fn get(&self, sandbox_id: &str) -> Option<&Sandbox> {
        self.sandboxes.get(sandbox_id)
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Sandbox)> {
        self.sandboxes.iter().map(|(id, sandbox)| (id.as_str(), sandbox))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sandboxes.len()
    }

    /// What all of them hold.
    pub fn used(&self) -> Capacity {
        self.used
    }

    /// What all but this one hold.
    pub fn used_by_others(&self, sandbox_id: &str) -> Capacity {
        self.get(sandbox_id).map_or(self.used, |sandbox| minus(self.used, sandbox.holds()))
    }

    /// Who holds a port of the host.
    pub fn port_holder(&self, port: u16) -> Option<&str> {
        self.ports.get(&port).map(String::as_str)
    }

    /// Running sandboxes whose time is over, the longest overdue first.
    pub fn overdue(&self, now: BootTime) -> impl Iterator<Item = &str> {
        self.deadlines.iter().take_while(move |(deadline, _)| *deadline <= now).map(|(_, id)| id.as_str())
    }

    /// When the next running sandbox's time is over.
    pub fn next_deadline(&self) -> Option<BootTime> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Adds the sandbox, or replaces the one of the same id.
    pub fn put(&mut self, sandbox: Sandbox) {
        let id = sandbox.order.spec.sandbox_id.clone();
        self.remove(&id);
        let holds = sandbox.holds();
        self.used.slots = self.used.slots.saturating_add(holds.slots);
        self.used.cpu_millis = self.used.cpu_millis.saturating_add(holds.cpu_millis);
        self.used.memory_bytes = self.used.memory_bytes.saturating_add(holds.memory_bytes);
        for port in sandbox.ports() {
            self.ports.insert(port, id.clone());
        }
        if let Some(deadline) = sandbox.deadline() {
            self.deadlines.insert((deadline, id.clone()));
        }
        self.sandboxes.insert(id, sandbox);
    }

    /// Forgets the sandbox.
    pub fn remove(&mut self, sandbox_id: &str) {
        let Some(sandbox) = self.sandboxes.remove(sandbox_id) else { return };
        self.used = minus(self.used, sandbox.holds());
        for port in sandbox.ports() {
            self.ports.remove(&port);
        }
        if let Some(deadline) = sandbox.deadline() {
            self.deadlines.remove(&(deadline, sandbox_id.to_owned()));
        }
    }
}

fn minus(a: Capacity, b: Capacity) -> Capacity {
    Capacity {
        slots: a.slots.saturating_sub(b.slots),
        cpu_millis: a.cpu_millis.saturating_sub(b.cpu_millis),
        memory_bytes: a.memory_bytes.saturating_sub(b.memory_bytes),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(id: u8, generation: u64, port: u16, expires_at: Option<u64>) -> Order {
        Order {
            spec: Arc::new(SandboxSpec {
                sandbox_id: format!("s{id}"),
                generation,
                ports: vec![port],
                cpu_millis: u64::from(id) + generation,
                memory_bytes: 10 * generation,
                ..SandboxSpec::default()
            }),
            expires_at: expires_at.map(BootTime),
            lease: None,
            heard: None,
        }
    }

    fn any_sandbox() -> impl Strategy<Value = Sandbox> {
        (0u8..5, 1u64..4, 0usize..8, proptest::option::of(0u64..10)).prop_map(
            |(id, generation, phase, expires_at)| {
                let port = 100 + u16::from(id);
                let next = order(id, generation + 1, 200 + u16::from(id), None);
                let phase = match phase {
                    0 => Phase::Creating,
                    1 => Phase::Running,
                    2 => Phase::Ending,
                    3 => Phase::Stopping { creating: false, ended: false, next: None },
                    4 => Phase::Stopping { creating: true, ended: false, next: Some(next) },
                    5 => Phase::Stopping { creating: false, ended: true, next: None },
                    6 => Phase::Exited { exit_code: Some(1), reason: String::new() },
                    _ => Phase::Failed { reason: String::new() },
                };
                Sandbox { phase, ..Sandbox::creating(order(id, generation, port, expires_at)) }
            },
        )
    }

    proptest! {
        /// Whatever was put and removed: the sums are those of what is there.
        #[test]
        fn sums_follow_every_change(
            steps in proptest::collection::vec(
                prop_oneof![3 => any_sandbox().prop_map(Ok), 1 => (0u8..5).prop_map(Err)],
                0..60,
            )
        ) {
            let mut table = Table::default();
            for step in steps {
                match step {
                    Ok(sandbox) => table.put(sandbox),
                    Err(id) => table.remove(&format!("s{id}")),
                }
                let mut fresh = Table::default();
                for (_, sandbox) in table.iter() {
                    fresh.put(sandbox.clone());
                }
                prop_assert_eq!(&fresh, &table);
                let slots = table.iter().filter(|(_, sandbox)| sandbox.holds().slots == 1).count();
                prop_assert_eq!(table.used().slots, slots as u64);
                let cpu: u64 = table.iter().map(|(_, sandbox)| sandbox.holds().cpu_millis).sum();
                prop_assert_eq!(table.used().cpu_millis, cpu);
            }
        }
    }

    #[test]
    fn only_running_sandboxes_are_overdue() {
        let mut table = Table::default();
        for (id, deadline) in [(1, 30), (2, 10), (3, 20)] {
            let sandbox = Sandbox::creating(order(id, 1, id.into(), Some(deadline)));
            table.put(sandbox.in_phase(if id == 3 { Phase::Ending } else { Phase::Running }));
        }
        assert_eq!(table.next_deadline(), Some(BootTime(10)));
        assert_eq!(table.overdue(BootTime(9)).count(), 0);
        assert_eq!(table.overdue(BootTime(30)).collect::<Vec<_>>(), ["s2", "s1"]);
    }
}
