//! I3: allocated is the sum of the unreleased allocations, on every replica, and never over capacity.

use std::collections::HashMap;

use sandkeeper_client::v1::{self, EventType};

use crate::chaos::fold::{Fold, Load};
use crate::chaos::versions::At;
use crate::chaos::violation::{Breach, Invariant};

/// What agents have.
#[derive(Debug, Default)]
pub struct Totals {
    totals: HashMap<String, Load>,
}

impl Totals {
    /// An allocation has to fit, at the revision at which it is made.
    ///
    /// # Errors
    /// If it does not.
    pub fn fits(&self, fold: &Fold, event: &v1::Event) -> Result<(), Breach> {
        if event.r#type() != EventType::SandboxAllocated {
            return Ok(());
        }
        let Some(total) = self.totals.get(&event.agent_id) else { return Ok(()) };
        match fold.load(&event.agent_id, event.revision) {
            At::Value(load) if !load.is_within(*total) => {
                let what = format!("{} has {total:?}, and {load:?} is allocated", event.agent_id);
                Err(Breach::new(Invariant::Capacity, event, what))
            }
            _ => Ok(()),
        }
    }

    /// What a replica tells of its agents is what the history says, at the answer's revision. All breaches.
    pub fn told(&mut self, fold: &Fold, node: usize, answer: &v1::GetCapacityResponse) -> Vec<Breach> {
        let revision = answer.revision;
        let breach = |what: String| {
            Breach::of(Invariant::Capacity, format!("n{node} at revision {revision}: {what}")).at(revision)
        };
        let mut breaches = Vec::new();
        let mut sum = Load::default();
        for agent in &answer.agents {
            let (total, allocated) = (Load::of(agent.total.as_ref()), Load::of(agent.allocated.as_ref()));
            self.totals.insert(agent.agent_id.clone(), total);
            sum = sum.plus(allocated);
            let id = &agent.agent_id;
            if !allocated.is_within(total) {
                breaches.push(breach(format!("{id} has {total:?}, and {allocated:?} is allocated")));
            }
            if let At::Value(expected) = fold.load(id, revision)
                && expected != allocated
            {
                breaches.push(breach(format!(
                    "{id} has allocated {allocated:?}, and its unreleased allocations are {expected:?}"
                )));
            }
        }
        let told = Load::of(answer.allocated.as_ref());
        if told != sum {
            breaches.push(breach(format!("{told:?} is allocated, and the sum of all agents is {sum:?}")));
        }
        if let At::Value(count) = fold.count(revision)
            && count != answer.sandboxes
        {
            breaches.push(breach(format!("{} sandboxes are told, and there are {count}", answer.sandboxes)));
        }
        breaches
    }
}

impl Load {
    fn of(wire: Option<&v1::Capacity>) -> Self {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        wire.map_or_else(Self::default, |wire| Self {
            slots: number(wire.slots),
            cpu_millis: number(wire.cpu_millis),
            memory_bytes: number(wire.memory_bytes),
        })
    }

    fn plus(self, other: Self) -> Self {
        Self {
            slots: self.slots + other.slots,
            cpu_millis: self.cpu_millis + other.cpu_millis,
            memory_bytes: self.memory_bytes + other.memory_bytes,
        }
    }

    fn is_within(self, total: Self) -> bool {
        self.slots <= total.slots
            && self.cpu_millis <= total.cpu_millis
            && self.memory_bytes <= total.memory_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::invariants::testing::{allocated, created, fold, removed};

    fn answer(revision: u64, slots: u64, sandboxes: u64) -> v1::GetCapacityResponse {
        let allocated = Some(v1::Capacity { slots, ..v1::Capacity::default() });
        let total = Some(v1::Capacity { slots: 1, ..v1::Capacity::default() });
        let agent = v1::Agent { agent_id: "a".into(), total, allocated, ..v1::Agent::default() };
        v1::GetCapacityResponse { revision, allocated, agents: vec![agent], sandboxes, ..Default::default() }
    }

    #[test]
    fn what_is_told_is_what_the_history_says() {
        let fold = fold(&[created(1, "x"), allocated(2, "x", 1), removed(3, "x", 1)]);
        let mut totals = Totals::default();
        assert!(totals.told(&fold, 0, &answer(2, 1, 1)).is_empty());
        assert!(totals.told(&fold, 0, &answer(3, 0, 0)).is_empty());
        assert_eq!(totals.told(&fold, 0, &answer(3, 1, 0)).len(), 1, "it was released");
        assert_eq!(totals.told(&fold, 0, &answer(2, 1, 2)).len(), 1, "there is one");
        assert_eq!(
            totals.told(&fold, 0, &answer(2, 2, 1)).len(),
            2,
            "more than there is, and than was given"
        );
    }

    #[test]
    fn an_allocation_has_to_fit() {
        let second = allocated(4, "y", 1);
        let good = fold(&[created(1, "x"), allocated(2, "x", 1)]);
        let mut totals = Totals::default();
        totals.told(&good, 0, &answer(2, 1, 1));
        assert_eq!(totals.fits(&good, &allocated(2, "x", 1)), Ok(()));
        let over = fold(&[created(1, "x"), allocated(2, "x", 1), created(3, "y"), second.clone()]);
        assert!(totals.fits(&over, &second).is_err());
    }
}
