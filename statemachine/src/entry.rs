//! Entries: what one Raft log entry carries, and its encoded form.
//!
//! ```text
//! byte  0        format version (1)
//! bytes 1..9     base revision, u64 little-endian
//! bytes 9..17    decided term, u64 little-endian
//! bytes 17..25   time of the first event, i64 little-endian, unix nanoseconds
//! bytes 25..29   number of events, u32 little-endian
//! bytes 29..     the events, one after another, bincode 2 `standard()`
//! ```

use bytes::Bytes;

use crate::event::Event;
use crate::ids::{Revision, Term, Timestamp};

/// The version of the encoding that this code writes.
pub const ENTRY_FORMAT: u8 = 1;

/// The largest encoded entry, bytes. A request is at most 1 MiB; this leaves room for the events that it causes.
pub const MAX_ENTRY_BYTES: usize = 1024 * 1024 + 256 * 1024;

pub(crate) const FIXED_BYTES: usize = 29;

/// A batch of events, decided together on one state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The revision of the state that it was decided on: its first event gets the next one.
    pub base_revision: Revision,
    /// The term of the leader that decided it.
    pub decided_term: Term,
    /// The time of the first event; event i has `time + i` nanoseconds.
    pub time: Timestamp,
    /// In the order of the history. Without spare room: many entries are held for long.
    pub events: Box<[Event]>,
    encoded: Bytes,
}

/// What the fixed part of an encoded entry says: enough to tell whether it counts, and which revisions it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHead {
    /// See [`Entry::base_revision`].
    pub base_revision: Revision,
    /// See [`Entry::decided_term`].
    pub decided_term: Term,
    /// How many events it says that it has.
    pub events: u32,
}

/// Why bytes are not an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than the fixed part.
    #[error("an entry has at least {FIXED_BYTES} bytes, this has {0}")]
    TooShort(usize),
    /// Longer than any entry that is ever written.
    #[error("an entry has at most {MAX_ENTRY_BYTES} bytes, this has {0}")]
    TooLong(usize),
    /// Written by a newer program.
    #[error("the entry has format {0}; this program reads format {ENTRY_FORMAT}: upgrade it")]
    NewerFormat(u8),
    /// The events do not decode.
    #[error("the events do not decode: {0}")]
    Events(String),
    /// Bytes are left after the events.
    #[error("{0} bytes follow the events")]
    Trailing(usize),
}

impl Entry {
    /// Makes an entry, and its encoded form.
    ///
    /// # Panics
    /// If there are 2^32 events, which [`MAX_ENTRY_BYTES`] excludes.
    pub fn new(base_revision: Revision, decided_term: Term, time: Timestamp, events: Vec<Event>) -> Self {
        let mut body = Vec::with_capacity(FIXED_BYTES + events.len() * 128);
        body.resize(FIXED_BYTES, 0);
        for event in &events {
            encode_event(event, &mut body);
        }
        Self::from_body(base_revision, decided_term, time, events, body)
    }

    /// Makes an entry of events that stand encoded in `body` behind [`FIXED_BYTES`] bytes left free.
    pub(crate) fn from_body(
        base_revision: Revision,
        decided_term: Term,
        time: Timestamp,
        events: Vec<Event>,
        mut body: Vec<u8>,
    ) -> Self {
        let events = events.into_boxed_slice();
        let count = u32::try_from(events.len()).expect("the size of an entry bounds its events");
        body[0] = ENTRY_FORMAT;
        body[1..9].copy_from_slice(&base_revision.to_le_bytes());
        body[9..17].copy_from_slice(&decided_term.to_le_bytes());
        body[17..25].copy_from_slice(&time.0.to_le_bytes());
        body[25..29].copy_from_slice(&count.to_le_bytes());
        Self { base_revision, decided_term, time, events, encoded: body.into_boxed_slice().into() }
    }

    /// The encoded form.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// About how much memory it takes, bytes: the encoded form; the events themselves; and their strings, which are
    /// most of the encoded form once more.
    pub fn memory_bytes(&self) -> usize {
        2 * self.encoded.len() + size_of_val(&*self.events)
    }

    /// Reads the encoded form.
    ///
    /// # Errors
    /// See [`DecodeError`]. Never panics, whatever the bytes.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_ENTRY_BYTES {
            return Err(DecodeError::TooLong(bytes.len()));
        }
        let fixed: &[u8; FIXED_BYTES] = bytes.first_chunk().ok_or(DecodeError::TooShort(bytes.len()))?;
        if fixed[0] != ENTRY_FORMAT {
            return Err(DecodeError::NewerFormat(fixed[0]));
        }
        let config = bincode::config::standard().with_limit::<MAX_ENTRY_BYTES>();
        let mut count = [0; 4];
        count.copy_from_slice(&fixed[25..29]);
        let mut rest = &bytes[FIXED_BYTES..];
        let mut events = Vec::new();
        for _ in 0..u32::from_le_bytes(count) {
            let (event, read) = bincode::serde::decode_from_slice(rest, config)
                .map_err(|error| DecodeError::Events(error.to_string()))?;
            events.push(event);
            rest = &rest[read..];
        }
        if !rest.is_empty() {
            return Err(DecodeError::Trailing(rest.len()));
        }
        Ok(Self {
            base_revision: u64_at(fixed, 1),
            decided_term: u64_at(fixed, 9),
            time: Timestamp(u64_at(fixed, 17).cast_signed()),
            events: events.into_boxed_slice(),
            encoded: bytes.clone(),
        })
    }

    /// The head of an encoded entry, without decoding its events. None if it is not an entry of this format.
    pub fn peek(bytes: &[u8]) -> Option<EntryHead> {
        let fixed: &[u8; FIXED_BYTES] = bytes.first_chunk()?;
        let events = u32::from_le_bytes([fixed[25], fixed[26], fixed[27], fixed[28]]);
        (fixed[0] == ENTRY_FORMAT).then(|| EntryHead {
            base_revision: u64_at(fixed, 1),
            decided_term: u64_at(fixed, 9),
            events,
        })
    }

    /// The time of event `index`.
    pub fn time_of(&self, index: usize) -> Timestamp {
        self.time.plus(index as i64)
    }

    /// The revision after the last event, if it is applied.
    pub fn last_revision(&self) -> Revision {
        self.base_revision + self.events.len() as u64
    }
}

/// Appends the encoded form of one event.
pub(crate) fn encode_event(event: &Event, out: &mut Vec<u8>) {
    bincode::serde::encode_into_std_write(event, out, bincode::config::standard())
        .expect("events are plain data, and a Vec never refuses bytes");
}

fn u64_at(bytes: &[u8; FIXED_BYTES], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}
