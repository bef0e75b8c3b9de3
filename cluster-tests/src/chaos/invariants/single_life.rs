//! I2: no sandbox generation is on two agents, and no two lives of one sandbox are at one time, as the sandboxes
//! themselves have written it down.

use sandkeeper_client::v1::{self, EventType};

use crate::chaos::violation::{Breach, Invariant};
use crate::diary::{Life, overlaps};

/// The lives of what one request has made. All breaches.
pub fn lives(sandbox_id: &str, lives: &[Life]) -> Vec<Breach> {
    let breach = |(until, from): (u64, u64)| {
        let seconds = |hundredths: u64| hundredths as f64 / 100.0;
        let what = format!(
            "two lives of {sandbox_id} at once: one until {:.2} s after boot, another from {:.2} s: {lives:?}",
            seconds(until),
            seconds(from)
        );
        Breach::of(Invariant::SingleLife, what).about(sandbox_id)
    };
    overlaps(lives).into_iter().map(breach).collect()
}

/// A sandbox is gone from the state only when it is proved that it does not live any more. `gone`: when that was heard, which
/// was later.
///
/// # Errors
/// If it lived on.
pub fn ended(sandbox_id: &str, lives: &[Life], gone: Option<u64>) -> Result<(), Breach> {
    let last = lives.iter().map(|life| life.last).max().unwrap_or(0);
    match gone {
        Some(gone) if last > gone => {
            let late = (last - gone) as f64 / 100.0;
            let what =
                format!("{sandbox_id} lived on for {late} s after it was heard that it is gone: {lives:?}");
            Err(Breach::of(Invariant::SingleLife, what).about(sandbox_id))
        }
        _ => Ok(()),
    }
}

/// A generation is released only when it is proved that it does not live any more. `lives` knows it of an agent that the test
/// plays, which was not cut off.
///
/// # Errors
/// If it lives.
pub fn released(event: &v1::Event, lives: impl Fn(&str, u64) -> bool) -> Result<(), Breach> {
    let releases = matches!(
        event.r#type(),
        EventType::SandboxFailed | EventType::AllocationReleased | EventType::SandboxRemoved
    );
    if !releases || !lives(&event.sandbox_id, event.generation) {
        return Ok(());
    }
    let what = format!(
        "generation {} is released, and its agent has it, and never said otherwise",
        event.generation
    );
    Err(Breach::new(Invariant::SingleLife, event, what))
}

/// A life was on an agent to which the history gave the sandbox.
///
/// # Errors
/// If it was not.
pub fn place(sandbox_id: &str, agent: &str, was_given: Option<bool>) -> Result<(), Breach> {
    if was_given != Some(false) {
        return Ok(());
    }
    let what = format!("{sandbox_id} lived on {agent}, to which it was never given");
    Err(Breach::of(Invariant::SingleLife, what).about(sandbox_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::invariants::testing::removed;

    fn life(first: u64, last: u64) -> Life {
        Life { name: "l".into(), place: "/a0".into(), first, last }
    }

    #[test]
    fn lives_one_after_the_other_are_good_and_at_once_not() {
        assert!(lives("x", &[life(100, 200), life(300, 400)]).is_empty());
        assert_eq!(lives("x", &[life(100, 200), life(150, 400)]).len(), 1);
    }

    #[test]
    fn nobody_lives_on_when_he_is_said_to_be_gone() {
        let lived = [life(100, 200)];
        assert_eq!(ended("x", &lived, None), Ok(()));
        assert_eq!(ended("x", &lived, Some(200)), Ok(()));
        assert!(ended("x", &lived, Some(150)).is_err());
    }

    #[test]
    fn what_lives_is_not_released() {
        let event = |generation| removed(7, "x", generation);
        let lives = |id: &str, generation| (id, generation) == ("x", 2);
        assert_eq!(released(&event(1), lives), Ok(()));
        assert!(released(&event(2), lives).is_err());
    }

    #[test]
    fn a_sandbox_lives_where_it_was_given_to() {
        assert_eq!(place("x", "a", Some(true)), Ok(()));
        assert_eq!(place("x", "a", None), Ok(()), "nobody knows any more");
        assert!(place("x", "a", Some(false)).is_err());
    }
}
