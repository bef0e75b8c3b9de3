//! Which fault comes next, and for how long: from the seed. Each kind comes once before any comes again.

use std::time::Duration;

use anyhow::bail;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::faults::{Fault, KINDS, Kind, Part};
use super::rig::Means;

/// How often a fault of agents begins when none is.
const AGENTS_TOO: f64 = 0.6;

/// Draws faults.
pub struct Schedule {
    dice: StdRng,
    nodes: Bag,
    agents: Bag,
}

/// All kinds of one part, and those that are left in this round.
struct Bag {
    all: Vec<Kind>,
    left: Vec<Kind>,
}

/// A fault that was drawn.
pub struct Drawn {
    /// Of which kind it is.
    pub name: &'static str,
    /// What is done.
    pub fault: Box<dyn Fault>,
    /// For how long.
    pub lasts: Duration,
}

impl Bag {
    fn draw(&mut self, dice: &mut StdRng) -> Option<Drawn> {
        if self.left.is_empty() {
            self.left.clone_from(&self.all);
            self.left.shuffle(dice);
        }
        let kind = self.left.pop()?;
        let fault = (kind.make)();
        let lasts = Duration::from_millis(dice.random_range(fault.lasts()));
        Some(Drawn { name: kind.name, fault, lasts })
    }
}

impl Schedule {
    /// Of these kinds.
    pub fn new(seed: u64, kinds: &[Kind]) -> Self {
        let bag = |part| {
            let all = kinds.iter().filter(|kind| kind.part == part).copied().collect();
            Bag { all, left: Vec::new() }
        };
        Self { dice: StdRng::seed_from_u64(seed), nodes: bag(Part::Nodes), agents: bag(Part::Agents) }
    }

    /// The next fault of the control nodes; None: there is no such kind.
    pub fn next_of_nodes(&mut self) -> Option<Drawn> {
        self.nodes.draw(&mut self.dice)
    }

    /// A fault of the agents, if the dice want one now.
    pub fn maybe_of_agents(&mut self) -> Option<Drawn> {
        let alone = self.nodes.all.is_empty();
        if alone || self.dice.random_bool(AGENTS_TOO) { self.agents.draw(&mut self.dice) } else { None }
    }
}

/// The kinds that these names stand for (none: all), and those of them that this machine can't do.
///
/// # Errors
/// If a name is none.
pub fn choose(names: &[String], means: &Means) -> anyhow::Result<(Vec<Kind>, Vec<&'static str>)> {
    for name in names {
        if KINDS.iter().all(|kind| kind.name != name) {
            let all: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
            bail!("no fault is called `{name}`; there are: {}", all.join(", "));
        }
    }
    let wanted = |kind: &&Kind| names.is_empty() || names.iter().any(|name| name == kind.name);
    let (can, can_not): (Vec<_>, Vec<_>) =
        KINDS.iter().filter(wanted).partition(|kind| kind.needs.are_met(means));
    Ok((can.into_iter().copied().collect(), can_not.into_iter().map(|kind| kind.name).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEANS: Means = Means { root: true, faketime: true };

    fn drawn(seed: u64) -> Vec<(&'static str, Duration)> {
        let mut schedule = Schedule::new(seed, KINDS);
        (0..100).filter_map(|_| schedule.next_of_nodes()).map(|drawn| (drawn.name, drawn.lasts)).collect()
    }

    #[test]
    fn the_seed_fixes_the_faults_and_each_kind_has_its_turn() {
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        let count = KINDS.iter().filter(|kind| kind.part == Part::Nodes).count();
        let mut names: Vec<_> = drawn(7)[..count].iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn names_are_known_or_refused_and_what_the_machine_lacks_is_said() {
        let all = choose(&[], &MEANS).unwrap();
        assert_eq!((all.0.len(), all.1.len()), (KINDS.len(), 0));
        let poor = Means { root: false, faketime: true };
        let (can, can_not) = choose(&["kill-leader".into(), "full-disk".into()], &poor).unwrap();
        assert_eq!((can.len(), can[0].name, can_not), (1, "kill-leader", vec!["full-disk"]));
        let error = choose(&["flood".into()], &MEANS).err().unwrap().to_string();
        assert!(error.contains("`flood`") && error.contains("kill-leader"), "{error}");
    }
}
