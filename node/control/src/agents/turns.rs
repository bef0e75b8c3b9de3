//! Agents take turns: a leader that has a thousand sessions at once, because it has just been elected or has come back, does
//! not register all of them and read all their inventories at the same time. Callers' commands and heartbeats come between.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::RngExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Agents that have a turn at once. A turn is one command to the decider and one inventory, some milliseconds each; so many
/// fill a batch of the decider, and more would only stand in its queue before callers' commands.
pub(crate) const TURNS: usize = 64;
/// The most agents that wait for a turn before more are sent away for a while: each costs a session with its buffers, and
/// who would wait for more than some seconds is better told when to come back.
pub(crate) const MAX_WAITING: usize = 20_000;
/// A turn that takes longer is over: the agent does not answer, and others wait.
pub(crate) const LONGEST_TURN: Duration = Duration::from_secs(2);
/// Who is sent away comes back within so long, each after a time of its own.
const COME_BACK: std::ops::RangeInclusive<u32> = 1_000..=10_000;

/// See the module. All clones are one.
#[derive(Clone, Debug)]
pub struct Turns {
    free: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(TURNS)), waiting: Arc::default() }
    }
}

/// Counts one that waits.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Turns {
    /// Waits for a turn, in the order of those who wait. It ends when what this answers is dropped.
    ///
    /// # Panics
    /// Never: the semaphore is not closed.
    pub(crate) async fn take(self) -> OwnedSemaphorePermit {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(self.waiting);
        self.free.acquire_owned().await.expect("nobody closes it")
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// If too many wait for one more: when it may come back, milliseconds, drawn anew for each.
    pub(crate) fn come_back_in(&self) -> Option<u32> {
        (self.waiting() >= MAX_WAITING).then(|| rand::rng().random_range(COME_BACK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn so_many_have_a_turn_and_the_others_come_in_their_order() {
        let turns = Turns::default();
        let mut taken = Vec::new();
        for _ in 0..TURNS {
            taken.push(turns.clone().take().await);
        }
        let (mut first, mut second) = (Box::pin(turns.clone().take()), Box::pin(turns.clone().take()));
        assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
        assert_eq!(turns.waiting(), 2);
        taken.pop();
        assert!(futures::poll!(&mut second).is_pending(), "the first one is before it");
        assert!(futures::poll!(&mut first).is_ready());
        drop(second);
        assert_eq!(turns.waiting(), 0, "who goes away waits no more");
    }

    #[tokio::test]
    async fn beyond_the_bound_agents_are_sent_away_for_times_of_their_own() {
        let turns = Turns::default();
        assert_eq!(turns.come_back_in(), None);
        turns.waiting.store(MAX_WAITING, Ordering::Relaxed);
        let times: std::collections::BTreeSet<_> = (0..100).filter_map(|_| turns.come_back_in()).collect();
        assert!(times.len() > 50 && times.iter().all(|time| COME_BACK.contains(time)), "{times:?}");
    }
}
