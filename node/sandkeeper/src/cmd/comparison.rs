//! What the digests of all control nodes, side by side, say.

use std::collections::{BTreeMap, BTreeSet};

/// The digests of a node, at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Digests can only be compared at one revision.
    pub revision: u64,
    /// Of the history, and of the state.
    pub digests: (String, String),
}

/// What they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A majority answered, with the same digests at the same revision.
    Identical,
    /// Two nodes at one revision have different digests.
    Different,
    /// Nodes at different revisions: nothing can be said.
    DifferentRevisions,
    /// Fewer than a majority answered: what they agree on may not be what the cluster has.
    Minority,
    /// Nobody answered.
    NoneAnswered,
}

/// All nodes, compared.
#[derive(Debug)]
pub struct Comparison {
    /// What came out.
    pub verdict: Verdict,
    nodes: usize,
    /// The names of those that did not answer.
    silent: Vec<String>,
    revision: u64,
}

impl Comparison {
    /// Of each node's name, and its digests if it answered.
    pub fn new(nodes: impl IntoIterator<Item = (String, Option<Digests>)>) -> Self {
        let mut at_revision: BTreeMap<u64, BTreeSet<(String, String)>> = BTreeMap::new();
        let (mut count, mut silent) = (0, Vec::new());
        for (name, digests) in nodes {
            count += 1;
            match digests {
                Some(found) => drop(at_revision.entry(found.revision).or_default().insert(found.digests)),
                None => silent.push(name),
            }
        }
        silent.sort();
        let answered = count - silent.len();
        let verdict = if at_revision.values().any(|digests| digests.len() > 1) {
            Verdict::Different
        } else if answered == 0 {
            Verdict::NoneAnswered
        } else if answered <= count / 2 {
            Verdict::Minority
        } else if at_revision.len() > 1 {
            Verdict::DifferentRevisions
        } else {
            Verdict::Identical
        };
        let revision = at_revision.keys().next_back().copied().unwrap_or_default();
        Self { verdict, nodes: count, silent, revision }
    }

    /// In a sentence.
    pub fn sentence(&self) -> String {
        let Self { verdict, nodes, silent, revision } = self;
        let answered = nodes - silent.len();
        let but = match silent.as_slice() {
            [] => String::new(),
            silent => format!("; {} did not answer", silent.join(" and ")),
        };
        match verdict {
            Verdict::Identical if *nodes == 1 => format!("There is one node, at revision {revision}."),
            Verdict::Identical if silent.is_empty() => {
                format!("Identical: {nodes} nodes have the same digests at revision {revision}.")
            }
            Verdict::Identical => {
                format!("Identical among {answered} of {nodes} nodes, at revision {revision}{but}.")
            }
            Verdict::Different => {
                format!("NOT IDENTICAL: nodes at the same revision have different digests{but}.")
            }
            Verdict::DifferentRevisions => format!(
                "The cluster is busy: the nodes answered from different revisions{but}. `sandkeeper cluster verify` \
                 compares at one revision."
            ),
            Verdict::Minority => format!(
                "Nothing is proved: only {answered} of {nodes} nodes answered, which is no majority{but}."
            ),
            Verdict::NoneAnswered => "No node answered.".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, revision: u64, digest: &str) -> (String, Option<Digests>) {
        let digests = (format!("h{digest}"), format!("s{digest}"));
        (name.to_owned(), Some(Digests { revision, digests }))
    }

    fn silent(name: &str) -> (String, Option<Digests>) {
        (name.to_owned(), None)
    }

    #[test]
    fn digests_are_compared_at_one_revision_only() {
        let verdict = |nodes: &[(String, Option<Digests>)]| Comparison::new(nodes.to_vec()).verdict;
        assert_eq!(verdict(&[node("a", 7, "1"), node("b", 7, "1")]), Verdict::Identical);
        assert_eq!(verdict(&[node("a", 7, "1"), node("b", 8, "2")]), Verdict::DifferentRevisions);
        let differ = [node("a", 7, "1"), node("b", 8, "2"), node("c", 8, "3")];
        assert_eq!(verdict(&differ), Verdict::Different);
        assert_eq!(verdict(&[node("a", 7, "1"), node("b", 7, "1"), silent("c")]), Verdict::Identical);
        assert_eq!(verdict(&[node("a", 7, "1"), silent("b"), silent("c")]), Verdict::Minority);
        assert_eq!(verdict(&[node("a", 7, "1"), silent("b")]), Verdict::Minority, "half is no majority");
        assert_eq!(verdict(&[node("a", 7, "1"), node("b", 7, "2"), silent("c")]), Verdict::Different);
        assert_eq!(verdict(&[silent("a")]), Verdict::NoneAnswered);
    }

    #[test]
    fn the_sentence_names_those_that_did_not_answer() {
        let say = |nodes: &[(String, Option<Digests>)]| Comparison::new(nodes.to_vec()).sentence();
        assert_eq!(
            say(&[node("node-1", 7, "1"), node("node-2", 7, "1"), silent("node-3")]),
            "Identical among 2 of 3 nodes, at revision 7; node-3 did not answer."
        );
        assert_eq!(
            say(&[silent("node-3"), node("node-1", 7, "1"), silent("node-2")]),
            "Nothing is proved: only 1 of 3 nodes answered, which is no majority; node-2 and node-3 did not answer."
        );
        assert_eq!(say(&[node("node-1", 7, "1")]), "There is one node, at revision 7.");
    }
}
