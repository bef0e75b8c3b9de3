//! I8: the cluster works again within 5 s after the end of a fault.

use std::time::Duration;

use crate::chaos::violation::{Breach, Invariant};

/// A create was begun when a fault had ended; how long it took, retries included. None: it was given up.
///
/// # Errors
/// If it took too long.
pub fn after(fault: &str, took: Option<Duration>, within: Duration, why: &str) -> Result<(), Breach> {
    match took {
        Some(took) if took <= within => Ok(()),
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
        let seconds = Duration::from_secs;
        assert_eq!(after("kill", Some(seconds(4)), seconds(5), ""), Ok(()));
        assert!(after("kill", Some(seconds(6)), seconds(5), "").is_err());
        assert!(after("kill", None, seconds(5), "nobody leads").is_err());
    }
}
