//! What the digests of several nodes at one revision mean. Pure.

use crate::history::Digests;
use crate::raft::types::NodeId;

/// The digests of another voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who it is.
    pub node: NodeId,
    /// What it has at the revision that it was asked for.
    pub digests: Digests,
}

/// Where a node stands among the voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A majority has these very digests.
    Confirmed,
    /// A majority has others, and agrees on them: this node has diverged.
    Outvoted(Digests),
    /// Neither: too few answered, or they don't agree.
    Open,
}

/// Judges a node's digests. `votes`: whether it is a voter itself; `voters`: how many there are, all of them; `answers`:
/// one of each of the other voters, as far as they have answered.
///
/// A voter that is silent counts for neither side, and the majority is that of all voters, not of those that answered:
/// a node never stops because others can't be heard. What is of another revision proves nothing, and does not count.
pub fn judge(own: Digests, votes: bool, answers: &[Answer], voters: usize) -> Verdict {
    let majority = voters / 2 + 1;
    let count = |digests: Digests| answers.iter().filter(|answer| answer.digests == digests).count();
    if count(own) + usize::from(votes) >= majority {
        return Verdict::Confirmed;
    }
    let mut against = dissenters(own, answers).map(|answer| answer.digests);
    against.find(|digests| count(*digests) >= majority).map_or(Verdict::Open, Verdict::Outvoted)
}

/// Those whose digests, at the same revision, are others.
pub fn dissenters(own: Digests, answers: &[Answer]) -> impl Iterator<Item = Answer> {
    let differs = move |answer: &&Answer| answer.digests.revision == own.revision && answer.digests != own;
    answers.iter().filter(differs).copied()
}

#[cfg(test)]
mod tests {
    use sandkeeper_statemachine::Digest;

    use super::*;

    /// Digests at revision 7, by a letter.
    fn digests(letter: char) -> Digests {
        let digest = Digest([letter as u8; 32]);
        Digests { revision: 7, history: Digest([1; 32]), state: digest }
    }

    /// One answer for each letter. This node has `a`.
    fn verdict(votes: bool, answers: &str, voters: usize) -> Verdict {
        judge(digests('a'), votes, &answers_of(answers), voters)
    }

    fn answers_of(letters: &str) -> Vec<Answer> {
        let answer = |(node, letter)| Answer { node, digests: digests(letter) };
        (1..).zip(letters.chars()).map(answer).collect()
    }

    #[test]
    fn the_majority_of_all_voters_decides() {
        let outvoted = Verdict::Outvoted(digests('b'));
        let table = [
            // (voters, answers of the others, verdict)
            (1, "", Verdict::Confirmed),
            (2, "", Verdict::Open),
            (2, "a", Verdict::Confirmed),
            (2, "b", Verdict::Open),
            (3, "", Verdict::Open),
            (3, "a", Verdict::Confirmed),
            (3, "aa", Verdict::Confirmed),
            (3, "ab", Verdict::Confirmed),
            (3, "b", Verdict::Open),
            (3, "bb", outvoted),
            (3, "bc", Verdict::Open),
            (4, "ab", Verdict::Open),
            (4, "bb", Verdict::Open),
            (4, "bbb", outvoted),
            (4, "abb", Verdict::Open),
            (5, "aa", Verdict::Confirmed),
            (5, "bb", Verdict::Open),
            (5, "bbb", outvoted),
            (5, "abbb", outvoted),
            (5, "aabb", Verdict::Confirmed),
            (5, "bbcc", Verdict::Open),
            (5, "cbbb", outvoted),
        ];
        for (voters, answers, expected) in table {
            assert_eq!(
                verdict(true, answers, voters),
                expected,
                "{voters} voters, the others say {answers:?}"
            );
        }
    }

    #[test]
    fn one_without_a_vote_is_judged_and_does_not_count() {
        let outvoted = Verdict::Outvoted(digests('b'));
        let table = [
            (1, "", Verdict::Open),
            (1, "a", Verdict::Confirmed),
            (1, "b", outvoted),
            (3, "a", Verdict::Open),
            (3, "aab", Verdict::Confirmed),
            (3, "abb", outvoted),
        ];
        for (voters, answers, expected) in table {
            assert_eq!(verdict(false, answers, voters), expected, "{voters} voters say {answers:?}");
        }
    }

    #[test]
    fn either_digest_makes_a_difference() {
        let other_history = Digests { history: Digest([9; 32]), ..digests('a') };
        let answers = [1, 2].map(|node| Answer { node, digests: other_history });
        assert_eq!(judge(digests('a'), true, &answers, 3), Verdict::Outvoted(other_history));
        assert_eq!(dissenters(digests('a'), &answers).count(), 2);
    }

    #[test]
    fn what_is_of_another_revision_proves_nothing() {
        let late = |node, letter| Answer { node, digests: Digests { revision: 8, ..digests(letter) } };
        let answers = [late(1, 'b'), late(2, 'b')];
        assert_eq!(judge(digests('a'), true, &answers, 3), Verdict::Open);
        assert_eq!(dissenters(digests('a'), &answers).count(), 0);
        assert_eq!(judge(digests('a'), true, &[late(1, 'a')], 3), Verdict::Open);
    }

    #[test]
    fn dissenters_are_named() {
        let answers = answers_of("abac");
        let nodes: Vec<_> = dissenters(digests('a'), &answers).map(|answer| answer.node).collect();
        assert_eq!(nodes, [2, 4]);
    }
}
