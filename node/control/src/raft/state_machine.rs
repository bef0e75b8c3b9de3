//! The state machine that openraft drives: applies committed entries to the state, in batches, and publishes each
//! batch as one [`View`].
//!
//! An entry that can't be decoded, or that the state finds impossible, is a fault: this node's history is corrupt,
//! so it stops, and says at which entry.
//!
//! Architecture invariant: the state lives in memory only. After a restart it is the newest snapshot and the
//! committed entries behind it, which openraft applies again.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use sandkeeper_statemachine::{Applied as CoreApplied, State};
use tokio::task::{spawn_blocking, yield_now};

#[cfg(debug_assertions)]
use super::corruption::Corruption;
use super::history::position_of;
use super::local_node::LocalNode;
use super::replica::{Publisher, Replica, View};
use super::snapshots::{SnapshotBuilder, SnapshotHeader, SnapshotState, load};
use super::types::{
    Applied, EntryData, LogEntry, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig,
};
use crate::history::checkpoints::{Checkpoint, Checkpoints};
use crate::history::{AppliedEntry, FEED_BYTES, Recorder, digests_of};
use crate::storage::log::LogReader;
use crate::storage::snapshot::{SnapshotFile, SnapshotStore};

/// Entries that are applied before the result is published, at most: bounds how long a proposer waits for others.
const BATCH_ENTRIES: usize = 64;

/// See the module.
pub struct StateMachine {
    local: Arc<LocalNode>,
    state: State,
    applied: Option<LogId>,
    membership: StoredMembership,
    recorder: Recorder,
    publisher: Publisher,
    log: LogReader,
    store: SnapshotStore,
    snapshots: SnapshotState,
    #[cfg(debug_assertions)]
    corruption: Corruption,
}

/// What else looks at the state machine.
pub(crate) struct Observers {
    pub(crate) replica: Replica,
    pub(crate) recorder: Recorder,
    pub(crate) snapshots: SnapshotState,
}

impl StateMachine {
    /// An empty one; openraft then gives it the newest snapshot and the committed log. Reads and verifies the newest
    /// snapshot: blocks for as long as that takes.
    ///
    /// # Errors
    /// If there are snapshots and none of them can be used.
    pub(crate) fn open(
        local: Arc<LocalNode>,
        store: SnapshotStore,
        log: LogReader,
    ) -> io::Result<(Self, Observers)> {
        let snapshots = SnapshotState::default();
        let reaches_back = |id: crate::storage::snapshot::SnapshotId| log.first_raft_index() <= id.index + 1;
        if let Some(file) = store.open_newest(reaches_back)? {
            snapshots.set_newest(SnapshotHeader::read(&file)?.meta, file);
        }
        let (publisher, replica) = Publisher::new();
        let recorder = Recorder::new(FEED_BYTES);
        let observers = Observers { replica, recorder: recorder.clone(), snapshots: snapshots.clone() };
        let membership = StoredMembership::default();
        let machine = Self {
            local,
            state: State::new(),
            applied: None,
            membership,
            recorder,
            publisher,
            log,
            store,
            snapshots,
            #[cfg(debug_assertions)]
            corruption: Corruption::from_environment()?,
        };
        Ok((machine, observers))
    }

    /// From now on nothing keeps the digest of the state, or reads the state, until [`Self::show`].
    pub(super) fn hide(&mut self) {
        self.state = std::mem::take(&mut self.state).without_digest();
    }

    /// Everybody sees the state from now on.
    pub(super) fn show(&mut self) -> io::Result<()> {
        self.state = std::mem::take(&mut self.state).with_digest();
        self.publish(&mut Vec::new())
    }

    /// The last log entry that is in the state.
    pub(super) fn applied(&self) -> Option<LogId> {
        self.applied
    }

    fn view(&self) -> View {
        View { state: self.state.clone(), applied: self.applied, membership: self.membership.clone() }
    }

    /// Applies an entry, and notes it for those who read the history.
    fn apply_one(&mut self, entry: LogEntry) -> io::Result<Applied> {
        let (answer, applied) = self.fold_one(entry)?;
        if let Some(applied) = applied {
            self.recorder.applied(applied, digests_of(&self.state));
        }
        Ok(answer)
    }

    /// Applies an entry. Returns it too, if it is part of the history.
    pub(super) fn fold_one(&mut self, entry: LogEntry) -> io::Result<(Applied, Option<AppliedEntry>)> {
        let LogEntry { log_id, payload } = entry;
        self.recorder.pass(position_before(log_id.index(), &self.state));
        let folded = match payload {
            EntryPayload::Blank => (Applied::Internal, None),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(log_id), membership);
                (Applied::Internal, None)
            }
            EntryPayload::Normal(data) => self.fold_data(log_id, &data)?,
        };
        self.applied = Some(log_id);
        Ok(folded)
    }

    fn fold_data(&mut self, log_id: LogId, data: &EntryData) -> io::Result<(Applied, Option<AppliedEntry>)> {
        let corrupt = |what: &str| {
            let text =
                format!("log entry {} (term {}) can't be applied: {what}", log_id.index(), term_of(log_id));
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        self.snapshots.count(data.bytes().len());
        let entry = data.entry().map_err(|error| corrupt(&error.to_string()))?;
        let state = &mut self.state;
        // A panic would end openraft's task for the state machine, and leave the rest of the node up.
        let applied = catch_unwind(AssertUnwindSafe(|| state.apply(&entry, term_of(log_id))))
            .map_err(|panic| corrupt(panic_text(panic.as_ref())))?;
        #[cfg(debug_assertions)]
        self.corruption.strike(&mut self.state);
        let revision = self.state.revision();
        match applied {
            CoreApplied::Skipped => Ok((Applied::Skipped { revision }, None)),
            CoreApplied::Done { first, .. } => {
                let (term, index) = (term_of(log_id), log_id.index());
                let applied = (!entry.events.is_empty()).then_some(AppliedEntry {
                    first_revision: first,
                    term,
                    index,
                    entry,
                });
                Ok((Applied::Done { revision }, applied))
            }
        }
    }

    /// The cluster's id is in its first event. A node that knows another one has the wrong data directory.
    fn learn_cluster_id(&self) -> io::Result<()> {
        let Some(cluster) = self.state.cluster() else { return Ok(()) };
        if self.local.cluster_id().is_none() {
            tracing::info!(cluster_id = %cluster.id, "the cluster's id is known");
        }
        match self.local.learn_cluster_id(&cluster.id.to_string()) {
            Ok(_) => Ok(()),
            Err(other) => Err(io::Error::new(io::ErrorKind::InvalidData, other)),
        }
    }

    /// Publishes the batch, then answers its proposers: who is answered finds its entry in the next view.
    fn publish(&self, answers: &mut Vec<(ApplyResponder<TypeConfig>, Applied)>) -> io::Result<()> {
        self.learn_cluster_id()?;
        self.publisher.publish(self.view());
        for (responder, applied) in answers.drain(..) {
            responder.send(applied);
        }
        Ok(())
    }

    /// Whether this node's log holds the entry that a snapshot ends with, and so the history before it.
    async fn has_logged(&self, last: LogId) -> bool {
        let entries = self.log.entries_from(last.index(), 1).await;
        entries.is_ok_and(|entries| entries.first().is_some_and(|entry| entry.log_id == last))
    }
}

fn term_of(log_id: LogId) -> u64 {
    log_id.committed_leader_id().term
}

fn position_before(index: u64, state: &State) -> Checkpoint {
    Checkpoint { index, revision: state.revision(), digest: state.history_digest() }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked")
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        // What is there is taken at once; the last, smaller batch does not wait for more.
        let mut batches = entries.ready_chunks(BATCH_ENTRIES);
        let mut answers = Vec::new();
        while let Some(batch) = batches.next().await {
            for item in batch {
                let (entry, responder) = item?;
                let applied = self.apply_one(entry)?;
                answers.extend(responder.map(|responder| (responder, applied)));
                // An entry can hold thousands of events. Raft itself may wait behind this task on its thread, and its
                // heartbeats must not.
                yield_now().await;
            }
            self.publish(&mut answers)?;
            yield_now().await;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        if self.snapshots.is_building() && !force {
            return None;
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let checkpoints = self.recorder.checkpoints();
        SnapshotBuilder::new(self.view(), checkpoints, self.store.clone(), self.snapshots.clone())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let file = snapshot.clone();
        let (header, state) = spawn_blocking(move || load(&file)).await.map_err(io::Error::other)??;
        let last = header.meta.last_log_id.ok_or_else(|| io::Error::other("a snapshot of nothing"))?;
        if header.meta != *meta {
            let text = format!("a snapshot of {} came as one of {meta}", header.meta);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let kept = if self.has_logged(last).await {
            let mut kept = Checkpoints::restore(header.checkpoints).map_err(|at| {
                io::Error::other(format!("the snapshot's checkpoint {at:?} is out of order"))
            })?;
            kept.extend_back(self.log.history_start().and_then(position_of).as_slice());
            kept
        } else {
            Checkpoints::default()
        };
        let next = position_before(last.index() + 1, &state);
        self.recorder.restart(kept, next);
        self.state = state;
        self.applied = Some(last);
        self.membership = header.meta.last_membership;
        self.snapshots.set_newest(meta.clone(), snapshot);
        self.snapshots.restart_count();
        tracing::info!(
            revision = header.revision,
            log_index = last.index(),
            "the state was read from a snapshot"
        );
        self.publish(&mut Vec::new())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.snapshots.newest())
    }
}
