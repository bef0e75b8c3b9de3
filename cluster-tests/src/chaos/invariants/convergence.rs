//! I5: what agents really run becomes what the state says they run.

use std::collections::{BTreeMap, BTreeSet};

use crate::chaos::violation::{Breach, Invariant};

/// Sandbox ids, by agent.
pub type ByAgent = BTreeMap<String, BTreeSet<String>>;

/// What differs between the state and the agents.
///
/// # Errors
/// If anything does.
pub fn compare(state: &ByAgent, real: &ByAgent) -> Result<(), Breach> {
    let empty = BTreeSet::new();
    let agents: BTreeSet<_> = state.keys().chain(real.keys()).collect();
    for agent in agents {
        let (said, found) = (state.get(agent).unwrap_or(&empty), real.get(agent).unwrap_or(&empty));
        let (missing, surplus): (Vec<_>, Vec<_>) =
            (said.difference(found).collect(), found.difference(said).collect());
        if let Some(one) = missing.first().or(surplus.first()) {
            let what = format!(
                "{agent} does not run {missing:?}, and runs {surplus:?}, which the state does not say"
            );
            return Err(Breach::of(Invariant::Convergence, what).about(one));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_is_too_much_is_found() {
        let by =
            |ids: &[&str]| ByAgent::from([("a".into(), ids.iter().map(|id| (*id).to_owned()).collect())]);
        assert_eq!(compare(&by(&["x", "y"]), &by(&["y", "x"])), Ok(()));
        assert_eq!(compare(&by(&[]), &ByAgent::new()), Ok(()));
        assert!(compare(&by(&["x"]), &by(&[])).is_err());
        assert!(compare(&ByAgent::new(), &by(&["x"])).is_err());
    }
}
