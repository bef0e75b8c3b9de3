//! The leader's time.

use std::time::{SystemTime, UNIX_EPOCH};

use sandkeeper_statemachine::Timestamp;
use tokio::time::Instant;

/// The time that a decider writes into entries: the wall clock as it was when the decider began, plus monotonic time
/// since. A wall clock that jumps later moves nothing.
#[derive(Clone, Copy, Debug)]
pub struct LeaderClock {
    anchor: i64,
    since: Instant,
}

impl LeaderClock {
    /// Reads the wall clock, once.
    pub fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let anchor = i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX);
        Self { anchor, since: Instant::now() }
    }

    /// Unix time, nanoseconds.
    pub fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.since.elapsed().as_nanos()).unwrap_or(i64::MAX);
        Timestamp(self.anchor).plus(elapsed)
    }
}
