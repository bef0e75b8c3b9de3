//! The proof that fetched entries are this node's history.

use openraft::EntryPayload;
use sandkeeper_statemachine::chain;

use crate::history::checkpoints::{Checkpoint, Checkpoints};
use crate::history::fold::{SourceError, revision_after};
use crate::raft::types::LogEntry;

/// Follows entries from a position that a peer claims. If the chain ends in a digest of this node's own state, then the
/// claimed digest, and each entry that counts, are what led to that state: nobody finds others that do.
pub(super) struct Chain {
    at: Checkpoint,
    passed: Checkpoints,
}

impl Chain {
    /// Begins at a position.
    pub(super) fn new(start: Checkpoint) -> Self {
        let mut passed = Checkpoints::default();
        passed.keep(start);
        Self { at: start, passed }
    }

    /// Where it is.
    pub(super) fn at(&self) -> Checkpoint {
        self.at
    }

    /// Takes the next entry.
    ///
    /// # Errors
    /// If it is not the next one, or none that this version reads.
    pub(super) fn take(&mut self, entry: &LogEntry) -> Result<(), SourceError> {
        let index = entry.log_id.index();
        if index != self.at.index {
            return Err(SourceError::Fault(format!("entry {index} came where {} belongs", self.at.index)));
        }
        self.passed.pass(self.at);
        if let (Some(revision), EntryPayload::Normal(data)) =
            (revision_after(entry, self.at.revision)?, &entry.payload)
        {
            self.at.revision = revision;
            self.at.digest = chain(self.at.digest, data.bytes());
        }
        self.at.index += 1;
        Ok(())
    }

    /// The positions that were passed, if it leads to a position of this node's own.
    ///
    /// # Errors
    /// With what it leads to instead.
    pub(super) fn leads_to(self, own: Checkpoint) -> Result<Checkpoints, Checkpoint> {
        if self.at == own { Ok(self.passed) } else { Err(self.at) }
    }
}

#[cfg(test)]
mod tests {
    use sandkeeper_statemachine::State;

    use super::*;
    use crate::history::testing::filler;
    use crate::raft::types::{EntryData, LogId};

    fn entry(index: u64, term: u64, base: u64, decided: u64, count: usize) -> LogEntry {
        let data = EntryData::new(filler(base, decided, count));
        LogEntry { log_id: LogId::new(term.into(), index), payload: EntryPayload::Normal(data) }
    }

    /// What a state says after some entries of which two are skipped, and the entries.
    fn history() -> (Vec<LogEntry>, Checkpoint) {
        let blank = LogEntry { log_id: LogId::new(1.into(), 0), payload: EntryPayload::Blank };
        let entries = vec![
            blank,
            entry(1, 1, 0, 1, 2),
            entry(2, 1, 0, 1, 5),
            entry(3, 2, 2, 1, 5),
            entry(4, 2, 2, 2, 3),
        ];
        let mut state = State::new();
        for entry in &entries {
            if let EntryPayload::Normal(data) = &entry.payload {
                state.apply(&data.entry().unwrap(), entry.log_id.committed_leader_id().term);
            }
        }
        assert_eq!(state.revision(), 5);
        (entries, Checkpoint { index: 5, revision: 5, digest: state.history_digest() })
    }

    fn follow(start: Checkpoint, entries: &[LogEntry]) -> Chain {
        let mut chain = Chain::new(start);
        for entry in entries {
            chain.take(entry).unwrap();
        }
        chain
    }

    #[test]
    fn the_history_leads_to_the_state_from_every_position_in_it() {
        let (entries, own) = history();
        assert_eq!(
            follow(Checkpoint::ORIGIN, &entries).leads_to(own).unwrap().to_vec(),
            [Checkpoint::ORIGIN]
        );
        for cut in 1..=entries.len() {
            let middle = follow(Checkpoint::ORIGIN, &entries[..cut]).at();
            assert!(follow(middle, &entries[cut..]).leads_to(own).is_ok(), "from {cut}");
        }
    }

    #[test]
    fn no_other_history_does() {
        let (entries, own) = history();
        let mut changed = entries.clone();
        changed[1] = entry(1, 1, 0, 1, 3);
        assert!(follow(Checkpoint::ORIGIN, &changed).leads_to(own).is_err(), "an event more");
        let mut changed = entries.clone();
        changed[4] = entry(4, 3, 2, 3, 3);
        assert!(
            follow(Checkpoint::ORIGIN, &changed).leads_to(own).is_err(),
            "the same events of another term"
        );
        let start = follow(Checkpoint::ORIGIN, &entries[..2]).at();
        let forged = Checkpoint { digest: sandkeeper_statemachine::Digest([1; 32]), ..start };
        assert!(follow(forged, &entries[2..]).leads_to(own).is_err(), "another claimed start");
        assert!(follow(Checkpoint::ORIGIN, &entries[..4]).leads_to(own).is_err(), "a part of it");
        assert!(Chain::new(Checkpoint::ORIGIN).take(&entries[1]).is_err(), "a hole");
    }
}
