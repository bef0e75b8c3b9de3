//! Where in the log a revision is found: sparse positions from which entries are folded.

use std::collections::VecDeque;

use sandkeeper_statemachine::{Digest, Revision};
use serde::{Deserialize, Serialize};

/// A position is kept for every so many log entries: finding a revision then looks at the heads of at most this many.
pub const INTERVAL: u64 = 256;

/// "Before the log entry `index`, the state was at `revision`, and the history had `digest`."
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// An index of the Raft log.
    pub index: u64,
    /// The revision before that entry.
    pub revision: Revision,
    /// The chain over all entries before it.
    pub digest: Digest,
}

impl Checkpoint {
    /// Where every history begins.
    pub const ORIGIN: Self = Self { index: 0, revision: 0, digest: Digest([0; 32]) };
}

/// Checkpoints in the order of the log. 48 bytes for every [`INTERVAL`] entries, in memory and in snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoints {
    positions: VecDeque<Checkpoint>,
}

impl Checkpoints {
    /// Takes over what a snapshot carried.
    ///
    /// # Errors
    /// With the first position that does not follow the one before it.
    pub fn restore(positions: Vec<Checkpoint>) -> Result<Self, Checkpoint> {
        let disordered = positions
            .windows(2)
            .find(|pair| pair[1].index <= pair[0].index || pair[1].revision < pair[0].revision);
        match disordered {
            Some(pair) => Err(pair[1]),
            None => Ok(Self { positions: positions.into() }),
        }
    }

    /// All positions, oldest first.
    pub fn to_vec(&self) -> Vec<Checkpoint> {
        self.positions.iter().copied().collect()
    }

    /// At most `limit` positions, spread evenly, the oldest and the newest among them: finding a revision from them
    /// takes longer, and finds the same.
    pub fn thinned(&self, limit: usize) -> Vec<Checkpoint> {
        let step = self.positions.len().div_ceil(limit.max(2) - 1).max(1);
        let newest = self.positions.len().saturating_sub(1);
        let kept = self.positions.iter().enumerate().filter(|(at, _)| at % step == 0 || *at == newest);
        kept.map(|(_, position)| *position).collect()
    }

    /// Says that the entry at a position is about to be applied. Keeps the position if it is due.
    pub fn pass(&mut self, position: Checkpoint) {
        if position.index.is_multiple_of(INTERVAL) {
            self.keep(position);
        }
    }

    /// Adds positions before the oldest one: those of a history that came later.
    pub fn extend_back(&mut self, older: &[Checkpoint]) {
        for position in older.iter().rev() {
            if self.positions.front().is_none_or(|first| position.index < first.index) {
                self.positions.push_front(*position);
            }
        }
    }

    /// Keeps a position whatever its index: the one after a snapshot, where this node's own log begins.
    pub fn keep(&mut self, position: Checkpoint) {
        if self.positions.back().is_none_or(|last| last.index < position.index) {
            self.positions.push_back(position);
        }
    }

    /// The nearest position from which the event with this revision is found by folding forward.
    pub fn before(&self, revision: Revision) -> Option<Checkpoint> {
        let after = self.positions.partition_point(|position| position.revision < revision);
        after.checked_sub(1).map(|at| self.positions[at])
    }

    /// The newest position at or before an index.
    pub fn at_or_before(&self, index: u64) -> Option<Checkpoint> {
        let after = self.positions.partition_point(|position| position.index <= index);
        after.checked_sub(1).map(|at| self.positions[at])
    }

    /// The oldest position at or behind an index.
    pub fn at_or_behind(&self, index: u64) -> Option<Checkpoint> {
        let at = self.positions.partition_point(|position| position.index < index);
        self.positions.get(at).copied()
    }

    /// The oldest position.
    pub fn oldest(&self) -> Option<Checkpoint> {
        self.positions.front().copied()
    }

    /// Forgets what lies before `first_index`, the first entry that the log still has.
    pub fn prune_below(&mut self, first_index: u64) {
        let gone = self.positions.partition_point(|position| position.index < first_index);
        self.positions.drain(..gone);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position(index: u64, revision: Revision) -> Checkpoint {
        Checkpoint { index, revision, digest: Digest([index as u8; 32]) }
    }

    #[test]
    fn the_nearest_position_before_an_event_is_found() {
        let mut checkpoints = Checkpoints::default();
        for index in 0..1024 {
            checkpoints.pass(position(index, index / 2));
        }
        let kept = [position(0, 0), position(256, 128), position(512, 256), position(768, 384)];
        assert_eq!(checkpoints.to_vec(), kept);
        assert_eq!(checkpoints.before(0), None);
        assert_eq!(checkpoints.before(1), Some(kept[0]));
        assert_eq!(checkpoints.before(128), Some(kept[0]), "event 128 stands before entry 256");
        assert_eq!(checkpoints.before(129), Some(kept[1]));
        assert_eq!(checkpoints.before(u64::MAX), Some(kept[3]));
    }

    #[test]
    fn positions_are_found_by_index_and_added_in_front() {
        let mut checkpoints = Checkpoints::restore(vec![position(300, 9), position(512, 20)]).unwrap();
        assert_eq!(checkpoints.at_or_before(299), None);
        assert_eq!(checkpoints.at_or_before(511), Some(position(300, 9)));
        assert_eq!(checkpoints.at_or_behind(301), Some(position(512, 20)));
        assert_eq!(checkpoints.at_or_behind(513), None);
        checkpoints.extend_back(&[position(0, 0), position(256, 5), position(300, 9)]);
        assert_eq!(
            checkpoints.to_vec(),
            [position(0, 0), position(256, 5), position(300, 9), position(512, 20)]
        );
    }

    #[test]
    fn thinning_keeps_both_ends() {
        let mut checkpoints = Checkpoints::default();
        for index in 0..10 {
            checkpoints.keep(position(index, index));
        }
        assert_eq!(checkpoints.thinned(100), checkpoints.to_vec());
        let thinned = checkpoints.thinned(4);
        assert!(thinned.len() <= 4, "{thinned:?}");
        assert_eq!((thinned.first(), thinned.last()), (Some(&position(0, 0)), Some(&position(9, 9))));
        assert!(Checkpoints::default().thinned(2).is_empty());
    }

    #[test]
    fn what_the_log_lost_is_forgotten() {
        let mut checkpoints =
            Checkpoints::restore(vec![position(0, 0), position(256, 9), position(300, 9)]).unwrap();
        checkpoints.prune_below(256);
        assert_eq!(checkpoints.oldest(), Some(position(256, 9)));
        checkpoints.prune_below(301);
        assert_eq!(checkpoints.oldest(), None);
    }

    #[test]
    fn disorder_in_a_snapshot_is_refused() {
        let same = position(256, 9);
        assert_eq!(Checkpoints::restore(vec![same, same]), Err(same));
        assert_eq!(Checkpoints::restore(vec![same, position(512, 8)]), Err(position(512, 8)));
    }

    proptest! {
        #[test]
        fn folding_from_the_position_meets_the_event(
            counts in proptest::collection::vec(0_u64..4, 1..2000),
            wanted in any::<prop::sample::Index>(),
        ) {
            let mut checkpoints = Checkpoints::default();
            let mut revision = 0;
            let mut found_at = vec![0];
            for (index, count) in (0..).zip(&counts) {
                checkpoints.pass(position(index, revision));
                found_at.extend((0..*count).map(|_| index));
                revision += count;
            }
            let wanted = wanted.index(found_at.len()) as u64;
            if let Some(position) = checkpoints.before(wanted) {
                let at = found_at[wanted as usize];
                prop_assert!(position.index <= at && at - position.index < INTERVAL);
            } else {
                prop_assert_eq!(wanted, 0);
            }
        }
    }
}
