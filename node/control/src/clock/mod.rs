//! The leader's time: agreed with a majority when its term begins, then monotonic.
//!
//! Entries carry the leader's time, and what is over is over by it. A leader whose wall clock is an hour ahead would end
//! everybody's sandboxes an hour early. So no wall clock counts alone: before its first decision a leader asks the other
//! voters for their clocks, and takes the middle one ([`survey`]). From then on time goes by its monotonic clock; it asks
//! again from time to time, and corrects what it owes slowly ([`Course`]), so that time never jumps and never goes back.

mod survey;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandkeeper_statemachine::{Term, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use survey::keep;

use crate::raft::types::NodeId;

/// A correction goes by at most one part in so many: a second takes twenty. Time goes on all the while.
const SLEW: i64 = 20;

/// This machine's wall clock.
pub(crate) fn wall() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(nanos(since_epoch)).plus(wrong_by())
}

/// For cluster tests, and in debug builds only: how far this node's wall clock is wrong, from the environment variable
/// `SANDKEEPER_TEST_CLOCK_WRONG_BY_SECONDS`.
fn wrong_by() -> i64 {
    #[cfg(debug_assertions)]
    {
        static SECONDS: std::sync::OnceLock<i64> = std::sync::OnceLock::new();
        let read = || {
            let text = std::env::var("SANDKEEPER_TEST_CLOCK_WRONG_BY_SECONDS").ok()?;
            text.parse::<i64>().ok()
        };
        SECONDS.get_or_init(|| read().unwrap_or(0)).saturating_mul(1_000_000_000)
    }
    #[cfg(not(debug_assertions))]
    0
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Time as it was at a moment, how it goes on from there, and what it still owes.
#[derive(Clone, Copy, Debug)]
struct Course {
    time: i64,
    at: Instant,
    /// To be added while time passes; or taken off, if it is negative.
    owed: i64,
}

impl Course {
    fn time_at(&self, now: Instant) -> i64 {
        let elapsed = nanos(now.saturating_duration_since(self.at));
        let most = elapsed / SLEW;
        self.time.saturating_add(elapsed).saturating_add(self.owed.clamp(-most, most))
    }

    /// Goes on from where it is now, toward what is right.
    fn toward(&self, right: i64, now: Instant) -> Self {
        let time = self.time_at(now);
        Self { time, at: now, owed: right.saturating_sub(time) }
    }
}

#[derive(Clone, Copy, Debug)]
struct State {
    course: Course,
    /// Whether a majority has been asked.
    agreed: bool,
}

/// The time of one term. All clones are one clock.
#[derive(Clone, Debug)]
pub struct LeaderClock {
    state: Arc<watch::Sender<State>>,
    /// The time of the history's last event when the term began: no clock starts before it.
    not_before: Timestamp,
}

impl LeaderClock {
    /// By this machine's wall clock, until something is agreed.
    fn start(not_before: Timestamp) -> Self {
        let course = Course { time: wall().max(not_before).0, at: Instant::now(), owed: 0 };
        Self { state: Arc::new(watch::channel(State { course, agreed: false }).0), not_before }
    }

    /// Unix time, nanoseconds. Only once it is agreed may anything be decided by it.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.state.borrow().course.time_at(Instant::now()))
    }

    /// Whether a majority's clocks stand behind it.
    pub fn is_agreed(&self) -> bool {
        self.state.borrow().agreed
    }

    /// Waits until a majority's clocks stand behind it.
    pub async fn agreed(&self) {
        // The sender lives in `self`.
        let _ = self.state.subscribe().wait_for(|state| state.agreed).await;
    }

    /// A majority agrees that it is `right` now. The first time that is taken as it is: nothing has been decided yet.
    fn agree(&self, right: Timestamp) {
        let now = Instant::now();
        self.state.send_modify(|state| {
            state.course = if state.agreed {
                state.course.toward(right.0, now)
            } else {
                Course { time: right.max(self.not_before).0, at: now, owed: 0 }
            };
            state.agreed = true;
        });
    }
}

/// The clock of the term in which this node leads: one for the decider and all workers of the applier, however often
/// they begin anew.
#[derive(Clone, Debug, Default)]
pub struct Clocks {
    newest: Arc<Mutex<Option<(Term, LeaderClock)>>>,
    skews: Arc<Mutex<(Term, BTreeMap<NodeId, f64>)>>,
}

impl Clocks {
    /// The clock of `term`, which starts with the first call. `not_before`: the time of the history's last event.
    pub fn of(&self, term: Term, not_before: Timestamp) -> LeaderClock {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        match &*newest {
            Some((known, clock)) if *known == term => clock.clone(),
            _ => {
                let clock = LeaderClock::start(not_before);
                *newest = Some((term, clock.clone()));
                clock
            }
        }
    }

    /// How far each voter that this node asked last, as the leader of `term`, is ahead of the agreed time: seconds. Empty
    /// while it has asked nobody in that term.
    pub fn skews(&self, term: Term) -> BTreeMap<NodeId, f64> {
        let skews = self.skews.lock().unwrap_or_else(PoisonError::into_inner);
        if skews.0 == term { skews.1.clone() } else { BTreeMap::new() }
    }

    fn note_skews(&self, term: Term, skews: BTreeMap<NodeId, f64>) {
        *self.skews.lock().unwrap_or_else(PoisonError::into_inner) = (term, skews);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const HOUR: i64 = 3_600 * SECOND;

    #[test]
    fn a_term_has_one_clock_which_does_not_fall_behind_the_history() {
        let clocks = Clocks::default();
        let ahead = wall().plus(HOUR);
        let clock = clocks.of(7, ahead);
        assert!(clock.now() >= ahead, "an earlier leader's clock was an hour ahead; time goes on from there");
        let again = clocks.of(7, Timestamp(0));
        assert!(again.now() >= ahead, "the same clock, whoever asks");
        again.agree(wall());
        assert!(clock.is_agreed() && clock.now() >= ahead, "nor does what is agreed");
        assert!(clocks.of(8, Timestamp(0)).now() < ahead);
    }

    #[test]
    fn skews_are_of_one_term() {
        let clocks = Clocks::default();
        assert!(clocks.skews(0).is_empty());
        clocks.note_skews(3, BTreeMap::from([(7, -5.0)]));
        assert_eq!(clocks.skews(3), BTreeMap::from([(7, -5.0)]));
        assert!(clocks.skews(4).is_empty(), "it has asked nobody since it leads again");
    }

    #[test]
    fn what_is_agreed_first_counts_at_once() {
        let clock = Clocks::default().of(1, Timestamp(0));
        assert!(!clock.is_agreed());
        let right = wall().plus(-HOUR);
        clock.agree(right);
        let now = clock.now();
        assert!(now >= right && now < right.plus(60 * SECOND), "this machine's clock is an hour ahead");
    }

    #[test]
    fn later_corrections_are_slow_and_time_never_goes_back() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let course = Course { time: 0, at: start, owed: 0 };
        for (right, at_20, at_40, at_100) in [
            // A second ahead of it: two seconds' worth of correction would take forty.
            (SECOND, 21 * SECOND, 41 * SECOND, 101 * SECOND),
            (3 * SECOND, 21 * SECOND, 42 * SECOND, 103 * SECOND),
            (-2 * SECOND, 19 * SECOND, 38 * SECOND, 98 * SECOND),
            (HOUR, 21 * SECOND, 42 * SECOND, 105 * SECOND),
            (-HOUR, 19 * SECOND, 38 * SECOND, 95 * SECOND),
        ] {
            let corrected = course.toward(right, start);
            let times = [20, 40, 100].map(|seconds| corrected.time_at(after(seconds)));
            assert_eq!(times, [at_20, at_40, at_100], "toward {right}");
            let again = corrected.toward(right + 20 * SECOND, after(20));
            assert_eq!(again.time_at(after(20)), at_20, "no jump");
        }
    }
}
