//! The leader's time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use sandkeeper_statemachine::{Term, Timestamp};
use tokio::time::Instant;

/// The time of one term: the wall clock as it was when the term began (but not before the history's last event), plus
/// monotonic time since. A wall clock that jumps later moves nothing.
#[derive(Clone, Copy, Debug)]
pub struct LeaderClock {
    anchor: Timestamp,
    since: Instant,
}

impl LeaderClock {
    /// Reads the wall clock, once. `not_before`: the time of the history's last event; time goes on from there.
    fn start(not_before: Timestamp) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = Timestamp(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX));
        Self { anchor: wall.max(not_before), since: Instant::now() }
    }

    /// Unix time, nanoseconds.
    pub fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.since.elapsed().as_nanos()).unwrap_or(i64::MAX);
        self.anchor.plus(elapsed)
    }
}

/// The clock of the term in which this node leads: one for the decider and all workers of the applier, however often
/// they begin anew.
#[derive(Clone, Debug, Default)]
pub struct Clocks {
    newest: Arc<Mutex<Option<(Term, LeaderClock)>>>,
}

impl Clocks {
    /// The clock of `term`, which starts with the first call.
    pub fn of(&self, term: Term, not_before: Timestamp) -> LeaderClock {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        match *newest {
            Some((known, clock)) if known == term => clock,
            _ => {
                let clock = LeaderClock::start(not_before);
                *newest = Some((term, clock));
                clock
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_has_one_clock_which_does_not_fall_behind_the_history() {
        let clocks = Clocks::default();
        let ahead = LeaderClock::start(Timestamp(0)).now().plus(3_600_000_000_000);
        let clock = clocks.of(7, ahead);
        assert!(clock.now() >= ahead, "an earlier leader's clock was an hour ahead; time goes on from there");
        let again = clocks.of(7, Timestamp(0));
        assert!(again.now() >= ahead, "the same clock, whoever asks");
        assert!(clocks.of(8, Timestamp(0)).now() < ahead);
    }
}
