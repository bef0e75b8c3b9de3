//! Pages of a list: all of one revision.
//!
//! A page token names the revision, the filter and the last sandbox of its page. The state of that revision is kept
//! for a while (a clone is O(1)); when it is gone, the caller lists again.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sandkeeper_statemachine::{Rejection, Revision, SandboxId, State};
use tokio::time::Instant;

use super::convert::invalid;

/// States that are kept for pages to come. Each pins only the records that have changed since.
const MAX_STATES: usize = 64;
/// How long after its last page a state is kept.
const KEEP: Duration = Duration::from_mins(1);
/// The version of the token's form.
const VERSION: u8 = 1;
/// version, revision, filter, checksum.
const FIXED_BYTES: usize = 1 + 8 + 4 + 4;

/// Where a list goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageToken {
    /// Of all its pages.
    pub revision: Revision,
    /// A checksum of the filter: a token is good for one list only.
    pub filter: u32,
    /// The last sandbox of the page before.
    pub last: SandboxId,
}

impl PageToken {
    /// The token as text: hex of version, revision, filter, id, checksum.
    pub(crate) fn encode(&self) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend(self.revision.to_be_bytes());
        bytes.extend(self.filter.to_be_bytes());
        bytes.extend(self.last.to_string().bytes());
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        bytes
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .filter_map(|digit| char::from_digit(digit.into(), 16))
            .collect()
    }

    /// Reads a token of a list with this filter.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if it is none.
    pub(crate) fn decode(text: &str, filter: u32) -> Result<Self, Rejection> {
        let bad = || invalid("page_token", "is not a token that a list has given");
        let token = Self::parse(text).ok_or_else(bad)?;
        if token.filter != filter {
            return Err(invalid("page_token", "is of a list with another filter"));
        }
        Ok(token)
    }

    fn parse(text: &str) -> Option<Self> {
        let bytes = unhex(text)?;
        let (body, checksum) = bytes.split_last_chunk::<4>()?;
        if bytes.len() < FIXED_BYTES || crc32fast::hash(body) != u32::from_be_bytes(*checksum) {
            return None;
        }
        let (version, rest) = body.split_first()?;
        let (revision, rest) = rest.split_first_chunk::<8>()?;
        let (filter, id) = rest.split_first_chunk::<4>()?;
        let last = std::str::from_utf8(id).ok()?.parse().ok()?;
        let (revision, filter) = (u64::from_be_bytes(*revision), u32::from_be_bytes(*filter));
        (*version == VERSION).then_some(Self { revision, filter, last })
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    // The longest id has 63 bytes.
    if text.len() > 2 * (FIXED_BYTES + 64) || !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pair = |pair: &[u8]| u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok();
    text.as_bytes().chunks_exact(2).map(pair).collect()
}

/// The states of lists that are not at their end.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    states: Mutex<VecDeque<Kept>>,
}

#[derive(Debug)]
struct Kept {
    state: State,
    until: Instant,
}

impl Pages {
    /// Keeps a state for the pages to come.
    pub(crate) fn keep(&self, state: &State, now: Instant) {
        self.change(|states| {
            states.retain(|kept| kept.until > now && kept.state.revision() != state.revision());
            if states.len() >= MAX_STATES {
                states.pop_front();
            }
            states.push_back(Kept { state: state.clone(), until: now + KEEP });
        });
    }

    /// The state of a revision, if it is still kept.
    pub(crate) fn get(&self, revision: Revision, now: Instant) -> Option<State> {
        self.change(|states| {
            let kept = states.iter().find(|kept| kept.state.revision() == revision);
            kept.filter(|kept| kept.until > now).map(|kept| kept.state.clone())
        })
    }

    /// Lets go of what nobody came back for.
    pub(crate) fn sweep(&self, now: Instant) {
        self.change(|states| states.retain(|kept| kept.until > now));
    }

    fn change<T>(&self, change: impl FnOnce(&mut VecDeque<Kept>) -> T) -> T {
        // The deque is whole after every statement, so a panic elsewhere has not torn it.
        change(&mut self.states.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sandkeeper_statemachine::{Command, Draft, Request, Surroundings, Timestamp};

    use super::*;

    fn token() -> PageToken {
        PageToken { revision: 71, filter: 9, last: "e4b85f2f7d8fb1918a47168a87c62761".parse().unwrap() }
    }

    #[test]
    fn a_token_reads_back_and_is_of_one_list() {
        let text = token().encode();
        assert_eq!(PageToken::decode(&text, 9).unwrap(), token());
        assert!(PageToken::decode(&text, 8).is_err(), "another filter");
        for id in ["67e55044-10b1-426f-9247-bb680e5fe0c8", "legacy-web", &"x".repeat(63)] {
            let token = PageToken { last: id.parse().unwrap(), ..token() };
            assert_eq!(PageToken::decode(&token.encode(), 9).unwrap(), token);
        }
    }

    #[test]
    fn a_changed_token_is_refused() {
        let text = token().encode();
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(PageToken::decode(&changed, 9).is_err(), "{changed}");
        }
        for bad in ["", "zz", "0", &text[2..], &format!("{text}00"), &"0".repeat(100_000), "üü"] {
            assert!(PageToken::decode(bad, 9).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}", hex in "[0-9a-f]{0,200}") {
            let _ = PageToken::decode(&text, 0);
            let _ = PageToken::decode(&hex, 0);
        }
    }

    struct NoUuids;
    impl Surroundings for NoUuids {
        fn new_uuid(&mut self) -> uuid::Uuid {
            uuid::Uuid::nil()
        }
        fn agents_with_image(
            &self,
            _: &str,
        ) -> Option<&std::collections::BTreeSet<sandkeeper_statemachine::AgentId>> {
            None
        }
    }

    /// A state of revision 1.
    fn state() -> State {
        let command = Command::CreateCluster { cluster_id: uuid::Uuid::nil(), cluster_version: 1 };
        let mut draft = Draft::new(State::new(), Timestamp(1));
        let actor = sandkeeper_statemachine::Actor::Leader;
        draft.decide(&Request { actor, id: None, command }, &mut NoUuids).unwrap();
        draft.seal(1).1
    }

    #[test]
    fn states_are_kept_for_a_while_and_bounded() {
        let pages = Pages::default();
        let now = Instant::now();
        pages.keep(&State::new(), now);
        pages.keep(&state(), now);
        assert_eq!(pages.get(1, now).unwrap().revision(), 1);
        assert_eq!(pages.get(0, now).unwrap().revision(), 0);
        assert!(pages.get(2, now).is_none());
        pages.keep(&state(), now + KEEP / 2);
        assert_eq!(pages.states.lock().unwrap().len(), 2, "one for each revision");
        assert!(pages.get(0, now + KEEP).is_none());
        assert!(pages.get(1, now + KEEP).is_some());
        pages.sweep(now + KEEP * 2);
        assert!(pages.states.lock().unwrap().is_empty());
    }
}
