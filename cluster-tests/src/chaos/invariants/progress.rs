//! I8: the cluster works again within 5 s after the end of a fault.

use std::time::Duration;

use crate::chaos::violation::{Breach, Invariant};

/// How long the first create after a fault may take.
pub const WITHIN: Duration = Duration::from_secs(5);

/// A create was begun when a fault had ended; how long it took, retries included. None: it was given up.
///
/// # Errors
/// If it took too long.
pub fn after(fault: &str, took: Option<Duration>, why: &str) -> Result<(), Breach> {
    match took {
        Some(took) if took <= WITHIN => Ok(()),
        Some(took) => {
            let what = format!("the first create after {fault} took {took:?}");
            Err(Breach::of(Invariant::Progress, what))
        }
        None => {
            let what = format!("no create was answered after {fault}: {why}");
            Err(Breach::of(Invariant::Progress, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_seconds_are_enough() {
        assert_eq!(after("kill", Some(Duration::from_secs(4)), ""), Ok(()));
        assert!(after("kill", Some(Duration::from_secs(6)), "").is_err());
        assert!(after("kill", None, "nobody leads").is_err());
    }
}
