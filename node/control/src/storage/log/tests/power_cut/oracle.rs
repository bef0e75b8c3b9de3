//! What a log may be after a power cut, given what the victim said.

use std::fmt;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::*;

/// An entry, whose content follows from this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spec {
    pub term: u64,
    pub index: u64,
    pub size: usize,
}

impl Spec {
    pub(super) fn entry(&self) -> LogEntry {
        entry(self.term, self.index, self.size)
    }
}

/// What the victim does to its store, one after the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Op {
    Append(Vec<Spec>),
    Vote(u64),
    /// Removes the entries from this index on.
    Truncate(u64),
    /// Term and index.
    Purge(u64, u64),
    Trim(u64),
    /// Remembered, and written with the next block: it may be lost.
    Commit(u64),
}

/// What is in a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// The index of the oldest entry that can be read.
    pub history: u64,
    /// Term and index.
    pub purged: Option<(u64, u64)>,
    /// From `history` on.
    pub entries: Vec<Spec>,
    pub vote: u64,
    pub committed: Option<u64>,
}

impl State {
    /// The first index that Raft can read.
    pub(super) fn first(&self) -> u64 {
        self.purged.map_or(self.history, |(_, index)| index + 1)
    }

    /// Term and index of the last entry, or of what was purged last.
    pub(super) fn last(&self) -> Option<(u64, u64)> {
        self.entries.last().map(|spec| (spec.term, spec.index)).max(self.purged)
    }

    pub(super) fn next(&self) -> u64 {
        self.last().map_or(self.history, |(_, index)| index + 1)
    }

    /// The entries that are not purged.
    pub(super) fn of_raft(&self) -> &[Spec] {
        let purged = self.entries.partition_point(|spec| spec.index < self.first());
        &self.entries[purged..]
    }

    pub(super) fn get(&self, index: u64) -> Option<Spec> {
        let place = usize::try_from(index.checked_sub(self.history)?).unwrap();
        self.entries.get(place).copied()
    }

    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::Append(specs) => self.entries.extend(specs),
            Op::Vote(term) => self.vote = *term,
            Op::Truncate(from) => self.entries.retain(|spec| spec.index < *from),
            Op::Purge(term, index) => {
                if *index >= self.next() {
                    self.entries.clear();
                    self.history = index + 1;
                }
                self.purged = Some((*term, *index));
                self.committed = self.committed.max(Some(*index));
            }
            Op::Trim(index) => {
                self.history = *index;
                self.entries.retain(|spec| spec.index >= *index);
            }
            Op::Commit(index) => self.committed = self.committed.max(Some(*index)),
        }
    }

    /// What may be there when an operation has been begun: it is done entry by entry, forward or backward.
    fn during(&self, op: &Op) -> Vec<Self> {
        let with = |op: &Op| {
            let mut state = self.clone();
            state.apply(op);
            state
        };
        match op {
            Op::Append(specs) => {
                (1..=specs.len()).map(|count| with(&Op::Append(specs[..count].to_vec()))).collect()
            }
            Op::Truncate(from) => (*from..self.next()).rev().map(|from| with(&Op::Truncate(from))).collect(),
            other => vec![with(other)],
        }
    }

    /// Whether a store that has `found` has this, but for what is committed.
    fn is(&self, found: &Self) -> bool {
        *found == Self { committed: found.committed, ..self.clone() }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { history, purged, vote, committed, .. } = self;
        let (next, last) = (self.next(), self.last());
        write!(
            f,
            "{history}..{next} (last {last:?}, purged {purged:?}, committed {committed:?}, vote {vote})"
        )
    }
}

/// What the victim says, a line each.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Line {
    /// The store was opened, and has this.
    Opened(State),
    /// This is going to be asked for.
    Begun(Op),
    /// The oldest of what was asked for is told to be durable.
    Done,
}

const PREFIX: &str = "power-cut ";

impl Line {
    pub(super) fn encode(&self) -> String {
        let bytes = bincode::serde::encode_to_vec(self, bincode::config::standard()).unwrap();
        let mut line = PREFIX.to_owned();
        for byte in bytes {
            write!(line, "{byte:02x}").unwrap();
        }
        line.push('\n');
        line
    }

    /// None: it is not the victim's, but of the test harness around it.
    pub(super) fn decode(line: &str) -> Option<Self> {
        let digits = line.strip_prefix(PREFIX)?.trim_end();
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
        Some(bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).unwrap().0)
    }
}

/// Knows what must be there, and what may be there.
#[derive(Clone, Debug, Default)]
pub(super) struct Oracle {
    /// What was there when the store was opened.
    base: State,
    /// What was asked for since, in its order.
    ops: Vec<Op>,
    /// How many of them were told to be durable.
    done: usize,
    /// How many were, over all.
    pub acknowledged: u64,
}

impl Oracle {
    /// The store has this, and all of it is durable.
    pub(super) fn restart(&mut self, base: State) {
        (self.base, self.ops, self.done) = (base, Vec::new(), 0);
    }

    /// Fails if a store was opened on something that could not be there.
    pub(super) fn hear(&mut self, line: Line) -> Result<(), String> {
        match line {
            Line::Opened(found) => {
                self.check(&found)?;
                self.restart(found);
            }
            Line::Begun(op) => self.ops.push(op),
            Line::Done => {
                self.done += 1;
                self.acknowledged += 1;
                assert!(self.done <= self.ops.len(), "only what was begun is done");
            }
        }
        Ok(())
    }

    /// All that was told to be durable must have been found, and nothing that was never asked for: what is there is what
    /// all operations up to some point, and perhaps a part of the next one, have made.
    pub(super) fn check(&self, found: &State) -> Result<(), String> {
        let mut state = self.base.clone();
        for op in &self.ops[..self.done] {
            state.apply(op);
        }
        let acknowledged = state.clone();
        let mut fits = state.is(found);
        for op in &self.ops[self.done..] {
            let steps = state.during(op);
            fits |= steps.iter().any(|step| step.is(found));
            state.apply(op);
        }
        // What is committed is written with any later block, so it may be forgotten, and overtake what waits; it is not
        // invented.
        if fits && found.committed <= state.committed {
            return Ok(());
        }
        let under_way = &self.ops[self.done..];
        Err(format!("{acknowledged} was acknowledged, then {under_way:?} begun, and {found} was found"))
    }
}

#[test]
fn the_oracle_knows_what_is_lost_and_what_was_never_there() {
    let spec = |index| Spec { term: 1, index, size: 10 };
    let ops =
        [Op::Append(vec![spec(0), spec(1)]), Op::Vote(2), Op::Append(vec![spec(2), spec(3)]), Op::Vote(3)];
    let mut oracle = Oracle::default();
    for op in ops {
        oracle.hear(Line::Begun(op)).unwrap();
    }
    oracle.hear(Line::Done).unwrap();
    oracle.hear(Line::Done).unwrap();
    let found =
        |entries: u64, vote| State { entries: (0..entries).map(spec).collect(), vote, ..State::default() };
    for good in [found(2, 2), found(3, 2), found(4, 2), found(4, 3)] {
        oracle.check(&good).unwrap();
    }
    let other = State { entries: vec![spec(0), Spec { term: 2, ..spec(1) }], ..found(2, 2) };
    let missing = State { history: 1, entries: vec![spec(1)], ..found(2, 2) };
    for bad in [found(1, 2), found(2, 0), found(2, 3), found(4, 4), found(5, 3), other, missing] {
        oracle.check(&bad).unwrap_err();
    }
    oracle.hear(Line::Begun(Op::Truncate(1))).unwrap();
    oracle.check(&found(2, 3)).unwrap();
    oracle.check(&found(0, 3)).unwrap_err();
    let line = Line::Opened(found(4, 3)).encode();
    oracle.hear(Line::decode(&line).unwrap()).unwrap();
    oracle.check(&found(2, 3)).unwrap_err();
}
