//! I4: replicas at the same revision have the same digests.

use std::collections::BTreeMap;

use sandkeeper_client::v1;

use crate::chaos::violation::{Breach, Invariant};

/// So many revisions behind the newest are kept.
const KEPT: usize = 20_000;

/// Who told which digests.
#[derive(Debug, Default)]
pub struct Digests {
    told: BTreeMap<u64, (usize, String, String)>,
    compared: u64,
}

impl Digests {
    /// How often two replicas were seen at one revision.
    pub fn compared(&self) -> u64 {
        self.compared
    }

    /// A replica tells its digests.
    ///
    /// # Errors
    /// If another replica had others at that revision.
    pub fn told(&mut self, node: usize, answer: &v1::GetCapacityResponse) -> Result<(), Breach> {
        let digests = (node, answer.history_digest.clone(), answer.state_digest.clone());
        let Some(known) = self.told.get(&answer.revision) else {
            self.told.insert(answer.revision, digests);
            if self.told.len() > KEPT {
                self.told.pop_first();
            }
            return Ok(());
        };
        self.compared += u64::from(known.0 != node);
        if (&known.1, &known.2) == (&digests.1, &digests.2) {
            return Ok(());
        }
        let what =
            format!("at revision {}, history and state: n{known:?}, and n{digests:?}", answer.revision);
        Err(Breach::of(Invariant::Digests, what).at(answer.revision))
    }

    /// The cluster has compared itself.
    ///
    /// # Errors
    /// If two that answered have other digests.
    pub fn verified(&mut self, answer: &v1::VerifyResponse) -> Result<(), Breach> {
        let answered: Vec<_> = answer.nodes.iter().filter(|node| node.error.is_empty()).collect();
        let digests =
            |node: &v1::verify_response::Node| (node.history_digest.clone(), node.state_digest.clone());
        let here = |node: &&&v1::verify_response::Node| node.revision == answer.revision;
        let mut at_one: Vec<_> = answered.iter().filter(here).map(|node| digests(node)).collect();
        self.compared += (at_one.len() as u64).saturating_sub(1);
        at_one.dedup();
        if at_one.len() <= 1 {
            return Ok(());
        }
        let what = format!("verified at revision {}: {answered:?}", answer.revision);
        Err(Breach::of(Invariant::Digests, what).at(answer.revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(revision: u64, state: &str) -> v1::GetCapacityResponse {
        v1::GetCapacityResponse { revision, state_digest: state.into(), ..Default::default() }
    }

    #[test]
    fn equal_revisions_have_equal_digests() {
        let mut digests = Digests::default();
        assert_eq!(digests.told(0, &answer(1, "a")), Ok(()));
        assert_eq!(digests.told(1, &answer(1, "a")), Ok(()));
        assert_eq!(digests.told(1, &answer(2, "b")), Ok(()));
        assert_eq!(digests.compared(), 1);
        assert!(digests.told(2, &answer(1, "b")).is_err());
    }

    #[test]
    fn a_verification_that_finds_a_difference_is_a_breach() {
        let node = |state: &str, error: &str| v1::verify_response::Node {
            revision: 7,
            state_digest: state.into(),
            error: error.into(),
            ..Default::default()
        };
        let verified = |nodes| v1::VerifyResponse { revision: 7, identical: false, nodes };
        let mut digests = Digests::default();
        assert_eq!(digests.verified(&verified(vec![node("a", ""), node("", "down"), node("a", "")])), Ok(()));
        assert!(digests.verified(&verified(vec![node("a", ""), node("b", "")])).is_err());
    }
}
