//! Which heartbeats have been acknowledged, as far as leases rest on it: the newest one, and the gaps before it.
//!
//! A lease is unbroken if at every moment some heartbeat had been acknowledged that was sent less than its length ago. The
//! newest acknowledgement alone does not say so to who looks late: it may have come after the lease was over, and another
//! agent may have been given the sandbox in between. So gaps are kept: from the sending of one acknowledged heartbeat until
//! the acknowledgement of the next one *was known*.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::LeaseTerms;
use crate::boottime::BootTime;

/// A gap that is shorter breaks no lease: the shortest lease that leaders give is 5 s, and 4.4 s less its margin. Longer
/// than the pause between two heartbeats, so that what is usual leaves no traces.
const SHORTEST_GAP: Duration = Duration::from_secs(2);
/// The most gaps that are kept. Only those are that a later one is not as long as, so they get shorter from each to the next:
/// 16 tell leases from five seconds to one day apart by less than a factor of two.
const MAX_GAPS: usize = 16;

/// See the module. In `lease.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Acknowledged {
    /// When the newest acknowledged heartbeat was sent; zero: none was, in this boot.
    #[serde(rename = "acknowledged")]
    newest: BootTime,
    /// The oldest and longest first.
    gaps: Vec<Gap>,
}

/// No acknowledgement was known that could have covered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Gap {
    /// From the sending of the heartbeat before it.
    nanos: u64,
    /// When the next acknowledgement was known.
    until: BootTime,
}

impl Acknowledged {
    /// When the newest acknowledged heartbeat was sent; zero: none was.
    pub(super) fn newest(&self) -> BootTime {
        self.newest
    }

    /// That the heartbeat which was sent at `sent` is acknowledged, is known at `known`. False: a newer one is acknowledged
    /// already, which says as much.
    pub(super) fn take(&mut self, sent: BootTime, known: BootTime) -> bool {
        if sent <= self.newest {
            return false;
        }
        let nanos = known.0.saturating_sub(self.newest.0);
        if u128::from(nanos) >= SHORTEST_GAP.as_nanos() {
            self.gaps.retain(|gap| gap.nanos > nanos);
            self.gaps.push(Gap { nanos, until: known });
        }
        if self.gaps.len() > MAX_GAPS {
            self.join_two_gaps();
        }
        self.newest = sent;
        true
    }

    /// Makes one gap of the two that differ least: as long as the longer one, as late as the later one. So a lease may seem
    /// to have been broken that was not, but never the other way round.
    fn join_two_gaps(&mut self) {
        let differences = self.gaps.windows(2).map(|pair| pair[0].nanos - pair[1].nanos);
        if let Some((at, _)) = differences.enumerate().min_by_key(|(_, difference)| *difference) {
            let later = self.gaps.remove(at + 1);
            self.gaps[at].until = later.until;
        }
    }

    /// When a lease that holds since `since` was over for the first time, or will be if nothing more is acknowledged.
    pub(crate) fn end_of(&self, terms: LeaseTerms, since: BootTime) -> BootTime {
        let patience = u64::try_from(terms.patience().as_nanos()).unwrap_or(u64::MAX);
        let broken_by = self.gaps.iter().filter(|gap| gap.until > since && gap.nanos >= patience);
        let ends = broken_by.map(|gap| BootTime(gap.until.0.saturating_sub(gap.nanos - patience)));
        ends.min().unwrap_or_else(|| terms.deadline(self.newest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: u64) -> BootTime {
        BootTime(seconds * SECOND)
    }

    fn terms(seconds: u64) -> LeaseTerms {
        LeaseTerms { length: Duration::from_secs(seconds), revision: 1 }
    }

    /// Heartbeats that were acknowledged at once.
    fn acknowledged(seconds: &[u64]) -> Acknowledged {
        let mut acknowledged = Acknowledged::default();
        for second in seconds {
            assert!(acknowledged.take(at(*second), at(*second)));
        }
        acknowledged
    }

    #[test]
    fn what_came_after_the_end_of_a_lease_does_not_bring_it_back() {
        let unbroken = acknowledged(&[100, 101, 102, 103, 104, 105]);
        assert_eq!(unbroken.end_of(terms(5), at(100)), terms(5).deadline(at(105)));
        let broken = acknowledged(&[100, 110, 111]);
        assert_eq!(broken.end_of(terms(5), at(100)), terms(5).deadline(at(100)));
        assert_eq!(
            broken.end_of(terms(20), at(100)),
            terms(20).deadline(at(111)),
            "it is long enough for the gap"
        );
        assert_eq!(broken.end_of(terms(5), at(110)), terms(5).deadline(at(111)), "it began after the gap");
        // The first of all in this boot ends a gap too: what was under a lease before it was under none.
        assert_eq!(broken.end_of(terms(5), at(99)), terms(5).deadline(at(0)));
    }

    #[test]
    fn it_counts_when_an_acknowledgement_was_known_not_what_it_was_for() {
        let mut late = acknowledged(&[100]);
        // The agent was stopped, and the acknowledgement waited for it in its buffers.
        assert!(late.take(at(101), at(110)));
        assert_eq!(late.end_of(terms(5), at(100)), terms(5).deadline(at(100)));
        assert!(!late.take(at(101), at(111)), "one of another session, no newer");
        assert!(!late.take(at(99), at(111)));
        assert_eq!(late.newest(), at(101));
    }

    #[test]
    fn a_longer_gap_makes_shorter_ones_before_it_needless() {
        let mut times = vec![100];
        for gap in [30, 20, 10, 25] {
            times.push(times.last().unwrap() + gap);
        }
        let gaps: Vec<_> = acknowledged(&times).gaps.iter().map(|gap| gap.nanos / SECOND).collect();
        assert_eq!(gaps, [100, 30, 25]);
    }

    #[test]
    fn the_shortest_lease_is_longer_than_any_gap_that_is_not_kept() {
        assert!(terms(5).patience() > SHORTEST_GAP);
        assert_eq!(acknowledged(&[100, 101, 102]).gaps.len(), 1);
    }

    proptest! {
        /// Against a list of all gaps: never later than that says, and the same while nothing had to be joined.
        #[test]
        fn what_is_kept_is_enough(
            steps in prop::collection::vec((1u64..90_000, 0u64..90_000), 1..60),
            length in 5u64..86_400,
            since in 0u64..400_000,
        ) {
            let (mut kept, mut all) = (Acknowledged::default(), Vec::new());
            let (mut newest, mut known, mut joined) = (BootTime(0), BootTime(0), false);
            for (pause, delay) in steps {
                let sent = BootTime(newest.0 + pause * SECOND / 10);
                known = BootTime(known.0.max(sent.0 + delay * SECOND / 10));
                all.push((newest, known));
                kept.take(sent, known);
                joined |= kept.gaps.len() == MAX_GAPS;
                newest = sent;
            }
            prop_assert!(kept.gaps.len() <= MAX_GAPS);
            prop_assert!(kept.gaps.windows(2).all(|pair| pair[0].nanos > pair[1].nanos && pair[0].until <= pair[1].until));
            let (terms, since) = (terms(length), at(since));
            let is_broken = |(from, until): &&(BootTime, BootTime)| *until > since && terms.deadline(*from) <= *until;
            let first = all.iter().find(is_broken).map_or(newest, |(from, _)| *from);
            let found = kept.end_of(terms, since);
            let last_known = all.last().unwrap().1;
            // Whether it is over is what counts; of two breaks either may be named.
            let (over, should) = (found <= last_known, terms.deadline(first) <= last_known);
            prop_assert!(over || !should, "{kept:?} {all:?}");
            prop_assert!(over == should || joined, "{kept:?} {all:?}");
        }
    }
}
