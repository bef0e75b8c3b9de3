//! Points in time on CLOCK_BOOTTIME: it never jumps, and it goes on while the machine is suspended.

use std::fmt;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Nanoseconds since this machine was booted. It means nothing in another boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct BootTime(pub u64);

impl BootTime {
    /// The time now.
    ///
    /// # Panics
    /// If the kernel has no CLOCK_BOOTTIME, which every Linux since 2.6.39 has.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every supported kernel has CLOCK_BOOTTIME");
        Self(
            u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000
                + u64::try_from(now.tv_nsec()).unwrap_or(0),
        )
    }

    /// This time and `nanos` more; a negative number counts as nothing, for what is over is over now.
    pub fn after_nanos(self, nanos: i64) -> Self {
        Self(self.0.saturating_add(u64::try_from(nanos).unwrap_or(0)))
    }

    /// This time and `duration` more.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// What remains until `later`; zero if it has passed.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_nanos(later.0.saturating_sub(self.0))
    }
}

impl fmt::Display for BootTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negative_rest_is_over_now() {
        assert_eq!(BootTime(5).after_nanos(-7), BootTime(5));
        assert_eq!(BootTime(5).after_nanos(7), BootTime(12));
        assert_eq!(BootTime(u64::MAX).after_nanos(7), BootTime(u64::MAX));
        assert_eq!(BootTime(9).until(BootTime(5)), Duration::ZERO);
    }

    #[test]
    fn it_goes_forward() {
        let first = BootTime::now();
        assert!(BootTime::now() >= first);
    }
}
