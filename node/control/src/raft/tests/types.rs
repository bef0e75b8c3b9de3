//! What the type config promises.

use openraft::alias::LeaderIdOf;
use openraft::vote::RaftLeaderId;

use crate::raft::types::{LogId, TypeConfig, Vote};

/// `decided_term` names a decider, which holds only if a term has one leader: two nodes can't both be voted for in
/// one term, so their votes must not be ordered, and a log id must be the term and the index alone.
#[test]
fn a_term_has_one_leader() {
    let leader = |term, node| LeaderIdOf::<TypeConfig>::new(term, node);
    assert_eq!(leader(5, 1).partial_cmp(&leader(5, 2)), None);
    assert!(leader(5, 9) < leader(6, 1));
    assert_eq!(Vote::new(5, 1).partial_cmp(&Vote::new(5, 2)), None);
    assert_eq!(leader(5, 1).to_committed(), leader(5, 2).to_committed());
    assert_eq!(LogId::new(leader(5, 1).to_committed(), 3), LogId::new(5.into(), 3));
}
