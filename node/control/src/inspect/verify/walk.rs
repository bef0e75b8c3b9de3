//! Following the log from its beginning: no entry is missing, terms never fall, and the chain of digests and the states that
//! it leads to are those that the snapshots name.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use openraft::EntryPayload;
use sandkeeper_statemachine::{Digest, Revision, State, chain};

use super::SoundSnapshot;
use crate::history::checkpoints::Checkpoint;
use crate::history::digests_of;
use crate::history::fold::revision_after;
use crate::inspect::fold::Folded;
use crate::raft::snapshots::load;
use crate::raft::types::{LogEntry, LogId, StoredMembership};
use crate::storage::describe;
use crate::storage::log::check::Recorded;
use crate::storage::snapshot::{SnapshotFile, SnapshotId};

pub(super) struct Walk {
    begins: Option<u64>,
    durable: Option<(u64, Option<u64>)>,
    durable_term: Option<u64>,
    committed: Option<u64>,
    /// The index that comes next; `None` where that is not known.
    next: Option<u64>,
    first: Option<u64>,
    last: Option<LogId>,
    /// How many entries were read.
    pub(super) count: u64,
    /// Where the chain of digests is, as far as it could be followed.
    chain: Option<Checkpoint>,
    /// The state at `next`, as far as it could be folded.
    state: Option<Folded>,
    snapshots: VecDeque<SoundSnapshot>,
    checkpoints: BTreeMap<u64, Checkpoint>,
}

impl Walk {
    pub(super) fn new(recorded: &Recorded, snapshots: Vec<SoundSnapshot>) -> Self {
        let purged = recorded.purged.map(|id| id.index());
        let begins = recorded.history.map(|start| start.index).or(purged.map(|purged| purged + 1));
        let newest = snapshots.last().map(|snapshot| snapshot.id.index);
        let (mut chain, mut state) = (None, None);
        if begins.unwrap_or(0) == 0 {
            chain = Some(Checkpoint::ORIGIN);
            let empty = (State::new(), StoredMembership::default());
            state = Some(Folded { state: empty.0, applied: None, membership: empty.1, whole: true });
        } else if let Some((index, (revision, digest))) =
            recorded.history.and_then(|start| Some((start.index, start.before?)))
        {
            chain = Some(Checkpoint { index, revision, digest: Digest(digest) });
        }
        let positions = snapshots.iter().flat_map(|snapshot| &snapshot.header.checkpoints);
        Self {
            begins,
            durable: recorded.durable,
            durable_term: None,
            committed: recorded.committed.map(|id| id.index()).max(purged).max(newest),
            next: None,
            first: None,
            last: None,
            count: 0,
            chain,
            state,
            checkpoints: positions.map(|position| (position.index, *position)).collect(),
            snapshots: snapshots.into(),
        }
    }

    /// The index from which on the log is kept, if that is recorded.
    pub(super) fn begins(&self) -> Option<u64> {
        self.begins
    }

    pub(super) fn was_durable(&self, index: u64) -> bool {
        self.durable.is_some_and(|(durable, _)| durable >= index)
    }

    /// The term of the entry that was durable last, if it was read.
    pub(super) fn durable_term(&self) -> Option<u64> {
        self.durable_term
    }

    pub(super) fn last_term(&self) -> u64 {
        self.last.map_or(0, term_of)
    }

    /// The first and the last entry that was read.
    pub(super) fn entries(&self) -> Option<(u64, u64)> {
        self.first.zip(self.last.map(|id| id.index()))
    }

    pub(super) fn committed(&self) -> Option<u64> {
        self.committed
    }

    /// The database that begins with `first` comes next.
    pub(super) fn begin_database(&mut self, first: u64, wrong: &mut Vec<String>) {
        if let Some(next) = self.next.filter(|next| *next != first) {
            wrong.push(format!("a hole: entry {next} comes next, and this database begins with {first}"));
            self.lose();
        }
        self.next = Some(first);
    }

    /// Something could not be read: what comes next is not known.
    pub(super) fn lose(&mut self) {
        (self.next, self.chain, self.state) = (None, None, None);
    }

    pub(super) fn take(&mut self, entry: &LogEntry, wrong: &mut Vec<String>) {
        let (index, term) = (entry.log_id.index(), term_of(entry.log_id));
        if let Some(next) = self.next.filter(|next| *next != index) {
            wrong.push(format!("key {index}: a hole: {next} comes next"));
            self.lose();
        }
        if let Some(last) = self.last.filter(|last| term_of(*last) > term) {
            let before = term_of(last);
            wrong.push(format!("key {index}: it is of term {term}, and the entry before it of {before}"));
        }
        if self.durable.is_some_and(|(durable, _)| durable == index) {
            self.durable_term = Some(term);
        }
        self.first.get_or_insert(index);
        (self.last, self.next) = (Some(entry.log_id), Some(index + 1));
        self.count += 1;
        if let EntryPayload::Normal(data) = &entry.payload
            && let Err(error) = data.entry()
        {
            wrong.push(format!("key {index}: {}", describe(&error)));
            return self.lose();
        }
        // What is not known to be committed may be another entry in the end.
        if self.committed.is_some_and(|committed| index <= committed) {
            self.follow(entry, wrong);
            self.compare(index, wrong);
        }
    }

    fn follow(&mut self, entry: &LogEntry, wrong: &mut Vec<String>) {
        let index = entry.log_id.index();
        if let Some(at) = self.chain.as_mut().filter(|at| at.index == index) {
            if let Some(claimed) = self.checkpoints.get(&index).filter(|claimed| *claimed != at) {
                let (digest, named) = (at.digest, claimed.digest);
                wrong.push(format!(
                    "key {index}: the history digest before it is {digest}, and a snapshot names {named}"
                ));
            }
            if let (Ok(Some(revision)), EntryPayload::Normal(data)) =
                (revision_after(entry, at.revision), &entry.payload)
            {
                at.revision = revision;
                at.digest = chain(at.digest, data.bytes());
            }
            at.index += 1;
        }
        if let Some(state) = self.state.as_mut().filter(|state| state.next_index() == index)
            && let Err(error) = state.take(entry, None)
        {
            wrong.push(error.to_string());
            self.state = None;
        }
    }

    /// What was followed must be at the digests that the snapshot that ends here names; else it begins there anew.
    fn compare(&mut self, index: u64, wrong: &mut Vec<String>) {
        while self.snapshots.front().is_some_and(|snapshot| snapshot.id.index < index) {
            self.snapshots.pop_front();
        }
        let Some(snapshot) = self.snapshots.pop_front_if(|snapshot| snapshot.id.index == index) else {
            return;
        };
        let (digests, name) = (snapshot.header.digests(), snapshot.path.display().to_string());
        if self.last.map(SnapshotId::from) != Some(snapshot.id) {
            wrong.push(format!("key {index}: it is not the entry that {name} ends with"));
        }
        let here = self.chain.filter(|at| at.index == index + 1);
        if let Some(at) = here.filter(|at| (at.revision, at.digest) != (digests.revision, digests.history)) {
            let what = format!("the history up to here leads to revision {} and {}", at.revision, at.digest);
            wrong.push(format!(
                "key {index}: {what}; {name} names {} and {}",
                digests.revision, digests.history
            ));
        }
        match self.state.as_ref().filter(|state| state.next_index() == index + 1) {
            Some(state) if digests_of(&state.state) == digests => {}
            Some(_) => {
                wrong.push(format!("key {index}: the log up to here leads to another state than {name}"))
            }
            None => self.begin_at(&snapshot),
        }
        if here.is_none() {
            let (revision, digest) = (digests.revision, digests.history);
            self.chain = Some(Checkpoint { index: index + 1, revision, digest });
        }
    }

    fn begin_at(&mut self, snapshot: &SoundSnapshot) {
        // It was sound a moment ago; if it is not now, the state can't be followed, and that is shown.
        let loaded = SnapshotFile::open(&snapshot.path).ok().and_then(|file| load(&file).ok());
        self.state = loaded.map(|(header, state)| {
            let (applied, membership) = (header.meta.last_log_id, header.meta.last_membership);
            Folded { state, applied, membership, whole: true }
        });
    }

    /// What could not be compared with the log.
    pub(super) fn leftovers(&self) -> Vec<(PathBuf, String)> {
        let end = self.last.map(|id| id.index());
        let inside = |snapshot: &&SoundSnapshot| {
            self.first.is_some_and(|first| first <= snapshot.id.index) && end >= Some(snapshot.id.index)
        };
        let skipped = self.snapshots.iter().filter(inside);
        skipped
            .map(|snapshot| (snapshot.path.clone(), "the log has no entry that it ends with".to_owned()))
            .collect()
    }

    /// Revision and history digest at the end of the committed log, and the digest of the state there.
    pub(super) fn ended(&self) -> (Option<(Revision, Digest)>, Option<Digest>) {
        let end = self.committed.min(self.last.map(|id| id.index())).map_or(0, |end| end + 1);
        let chain = self.chain.filter(|at| at.index == end).map(|at| (at.revision, at.digest));
        let state = self.state.as_ref().filter(|state| state.next_index() == end);
        (chain, state.map(|state| state.state.state_digest()))
    }
}

fn term_of(id: LogId) -> u64 {
    id.committed_leader_id().term
}
