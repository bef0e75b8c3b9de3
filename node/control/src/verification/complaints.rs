//! Who was complained about, and when: a peer that has diverged is not complained about twice a second.

use std::collections::BTreeMap;
use std::time::Duration;

use sandkeeper_statemachine::Revision;
use tokio::time::Instant;

use crate::raft::types::NodeId;

/// How often the log says again that a peer has other digests, while it has.
const REMINDER: Duration = Duration::from_mins(1);

/// See the module. Bounded by the number of nodes that were ever voters while this process runs.
#[derive(Default)]
pub(super) struct Complaints {
    peers: BTreeMap<NodeId, Peer>,
}

#[derive(Default)]
struct Peer {
    revision: Revision,
    told: Option<Instant>,
}

impl Complaints {
    /// Whether this revision was not counted for this peer before.
    pub(super) fn is_new(&mut self, peer: NodeId, revision: Revision) -> bool {
        let known = self.peers.entry(peer).or_default();
        std::mem::replace(&mut known.revision, revision) != revision
    }

    /// Whether it is to be said now, which it then is.
    pub(super) fn is_due(&mut self, peer: NodeId, now: Instant) -> bool {
        let known = self.peers.entry(peer).or_default();
        let due = known.told.is_none_or(|told| now.duration_since(told) >= REMINDER);
        if due {
            known.told = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_counts_once_for_each_peer() {
        let mut complaints = Complaints::default();
        assert!(complaints.is_new(1, 7));
        assert!(!complaints.is_new(1, 7));
        assert!(complaints.is_new(2, 7));
        assert!(complaints.is_new(1, 8));
    }

    #[test]
    fn it_is_said_at_once_and_then_from_time_to_time() {
        let (mut complaints, start) = (Complaints::default(), Instant::now());
        assert!(complaints.is_due(1, start));
        assert!(!complaints.is_due(1, start + REMINDER / 2));
        assert!(complaints.is_due(2, start + REMINDER / 2));
        assert!(complaints.is_due(1, start + REMINDER));
        assert!(!complaints.is_due(1, start + REMINDER + REMINDER / 2));
    }
}
