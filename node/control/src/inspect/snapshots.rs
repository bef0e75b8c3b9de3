//! The snapshots of a data directory, and the state to begin with.

use sandkeeper_statemachine::{Revision, State};
use tokio_util::sync::CancellationToken;

use super::copy::Copy;
use super::fold::Folded;
use super::{InspectError, InspectedSnapshot};
use crate::raft::snapshots::{SnapshotHeader, load};
use crate::raft::types::StoredMembership;
use crate::storage::snapshot::{SnapshotFile, SnapshotId};
use crate::storage::{StorageError, describe};

/// See the module.
pub(super) struct Snapshots {
    /// Newest first.
    found: Vec<InspectedSnapshot>,
    /// Those of `found` that can be opened, with their places there.
    files: Vec<(usize, SnapshotFile)>,
    /// What was found wrong, with places in the data directory.
    problems: Vec<String>,
    copy_path: (String, String),
}

impl Snapshots {
    /// Reads the headers.
    pub(super) fn list(copy: &Copy) -> Result<Self, InspectError> {
        let store = copy.snapshots()?;
        let mut snapshots =
            Self { found: Vec::new(), files: Vec::new(), problems: Vec::new(), copy_path: copy.paths() };
        for (place, id) in store.list()?.into_iter().enumerate() {
            snapshots.found.push(InspectedSnapshot { id, revision: None, bytes: 0, problem: None });
            let file = match store.open_snapshot(id) {
                Ok(file) => file,
                Err(corrupt @ StorageError::CorruptFile { .. }) => {
                    snapshots.report(place, &describe(&corrupt));
                    continue;
                }
                Err(other) => return Err(other.into()),
            };
            snapshots.found[place].bytes = file.length();
            match SnapshotHeader::read(&file) {
                Ok(header) => {
                    snapshots.found[place].revision = Some(header.revision);
                    snapshots.files.push((place, file));
                }
                Err(error) => snapshots.report(place, &error.to_string()),
            }
        }
        Ok(snapshots)
    }

    fn report(&mut self, place: usize, problem: &str) {
        let (from, to) = &self.copy_path;
        let problem = problem.replace(from, to);
        self.found[place].problem = Some(problem.clone());
        self.found[place].revision = None;
        self.problems.push(problem);
    }

    /// The state of the newest snapshot at or before a revision that is wholly sound; the empty state if there is none.
    pub(super) fn newest_state(
        &mut self,
        at: Option<Revision>,
        cancel: &CancellationToken,
    ) -> Result<Folded, InspectError> {
        let due = |revision: Option<Revision>| revision.is_some_and(|found| at.is_none_or(|at| found <= at));
        for (place, file) in std::mem::take(&mut self.files) {
            if cancel.is_cancelled() {
                return Err(InspectError::Cancelled);
            }
            if !due(self.found[place].revision) {
                continue;
            }
            match load(&file) {
                Ok((header, state)) => {
                    let (applied, membership) = (header.meta.last_log_id, header.meta.last_membership);
                    return Ok(Folded { state, applied, membership, whole: true });
                }
                Err(error) => self.report(place, &error.to_string()),
            }
        }
        let (state, membership) = (State::new(), StoredMembership::default());
        Ok(Folded { state, applied: None, membership, whole: true })
    }

    /// The newest one, as far as is known sound.
    pub(super) fn newest(&self) -> Option<(SnapshotId, Revision)> {
        self.found.iter().find_map(|snapshot| Some((snapshot.id, snapshot.revision?)))
    }

    /// The index behind the newest one's last entry, whether it can be read or not.
    pub(super) fn end(&self) -> Option<u64> {
        self.found.first().map(|snapshot| snapshot.id.index + 1)
    }

    /// The revision from which on all can be shown with a log that begins with `first_index`.
    pub(super) fn oldest_with_log(&self, first_index: u64) -> Option<Revision> {
        if first_index == 0 {
            return Some(0);
        }
        let newest = self.newest().map(|(id, _)| id);
        let leads_on = |id: SnapshotId| first_index <= id.index + 1 || Some(id) == newest;
        self.found
            .iter()
            .filter(|snapshot| leads_on(snapshot.id))
            .filter_map(|snapshot| snapshot.revision)
            .min()
    }

    /// The entries from `from` on, before `end`, are missing.
    pub(super) fn gap(&self, from: u64, end: u64) -> InspectError {
        InspectError::Gap { from, end, problems: self.problems.clone() }
    }

    /// What was found, and what was wrong with it.
    pub(super) fn finish(self) -> (Vec<InspectedSnapshot>, Vec<String>) {
        (self.found, self.problems)
    }
}
