//! What this node has applied, for everyone who reads: a shared handle to the newest [`View`].
//!
//! Architecture invariant: a reader takes an `Arc` and lets go of the cell at once, so no reader holds up the
//! state machine, and no reader sees half of a batch.

use std::sync::Arc;

use sandkeeper_statemachine::{Revision, State};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::types::{LogId, StoredMembership};

/// The state after some batch of entries, and where in the log that is.
#[derive(Clone)]
pub struct View {
    /// The state. A clone is O(1).
    pub state: State,
    /// The last log entry that it contains; `None` before the first.
    pub applied: Option<LogId>,
    /// The last applied membership.
    pub membership: StoredMembership,
}

impl View {
    /// The revision of the state.
    pub fn revision(&self) -> Revision {
        self.state.revision()
    }

    /// The index of the last applied log entry; `None` before the first.
    pub fn applied_index(&self) -> Option<u64> {
        self.applied.map(|id| id.index())
    }
}

/// Why a wait for the replica ended without what was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The deadline passed.
    #[error("this node is at revision {revision}, and did not reach what was waited for in time")]
    Timeout {
        /// The revision that it had reached.
        revision: Revision,
    },
    /// The node stops.
    #[error("this node is stopping")]
    Stopped,
}

/// A handle to what this node has applied. Cloning is cheap.
#[derive(Clone)]
pub struct Replica {
    views: watch::Receiver<Arc<View>>,
}

impl Replica {
    /// The newest view.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.views.borrow())
    }

    /// The newest state.
    pub fn state(&self) -> State {
        self.views.borrow().state.clone()
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.views.borrow().revision()
    }

    /// A receiver that is told of every new view (and sees only the newest, if it is slow).
    pub fn subscribe(&self) -> watch::Receiver<Arc<View>> {
        self.views.clone()
    }

    /// Waits until the state has this revision.
    ///
    /// # Errors
    /// If it has not by `deadline`, or the node stops.
    pub async fn wait_revision(&self, revision: Revision, deadline: Instant) -> Result<Arc<View>, WaitError> {
        self.wait_for(deadline, |view| view.revision() >= revision).await
    }

    /// Waits until the log entry with this index is applied.
    ///
    /// # Errors
    /// If it is not by `deadline`, or the node stops.
    pub async fn wait_applied_index(&self, index: u64, deadline: Instant) -> Result<Arc<View>, WaitError> {
        self.wait_for(deadline, |view| view.applied_index() >= Some(index)).await
    }

    /// Waits until a view satisfies `wanted`.
    ///
    /// # Errors
    /// If none does by `deadline`, or the node stops.
    pub async fn wait_for(
        &self,
        deadline: Instant,
        mut wanted: impl FnMut(&View) -> bool,
    ) -> Result<Arc<View>, WaitError> {
        let mut views = self.views.clone();
        let wait = async { views.wait_for(|view| wanted(view)).await.map(|view| Arc::clone(&view)) };
        match timeout_at(deadline, wait).await {
            Ok(Ok(view)) => Ok(view),
            Ok(Err(_)) => Err(WaitError::Stopped),
            Err(_) => Err(WaitError::Timeout { revision: self.revision() }),
        }
    }
}

/// The other end of a [`Replica`], held by the state machine.
pub(crate) struct Publisher {
    views: watch::Sender<Arc<View>>,
}

impl Publisher {
    /// A pair with an empty state.
    pub(crate) fn new() -> (Self, Replica) {
        let view = View { state: State::new(), applied: None, membership: StoredMembership::default() };
        let (sender, receiver) = watch::channel(Arc::new(view));
        (Self { views: sender }, Replica { views: receiver })
    }

    /// Makes `view` the newest.
    pub(crate) fn publish(&self, view: View) {
        self.views.send_replace(Arc::new(view));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(index: u64) -> View {
        let applied = Some(LogId::new(1.into(), index));
        View { state: State::new(), applied, membership: StoredMembership::default() }
    }

    #[tokio::test]
    async fn a_wait_ends_when_the_index_is_applied() {
        let (publisher, replica) = Publisher::new();
        let waiting = replica.clone();
        let deadline = Instant::now() + Duration::from_mins(1);
        let wait = tokio::spawn(async move { waiting.wait_applied_index(7, deadline).await });
        publisher.publish(at(6));
        publisher.publish(at(7));
        assert_eq!(wait.await.unwrap().unwrap().applied_index(), Some(7));
    }

    #[tokio::test]
    async fn a_wait_ends_at_its_deadline_and_with_the_node() {
        let (publisher, replica) = Publisher::new();
        let late = replica.wait_applied_index(0, Instant::now()).await.err();
        assert_eq!(late, Some(WaitError::Timeout { revision: 0 }));
        drop(publisher);
        let stopped = replica.wait_revision(1, Instant::now() + Duration::from_mins(1)).await.err();
        assert_eq!(stopped, Some(WaitError::Stopped));
    }
}
