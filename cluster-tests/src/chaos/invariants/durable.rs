//! I1: no acknowledged event is lost, and the history is the same on every replica.
//!
//! Every replica's history is read all the time, event by event; the first to tell an event fixes it for all of them, and
//! for ever. What was acknowledged has to be in it, where the answer said.

use std::hash::{DefaultHasher, Hash, Hasher};

use prost::Message;
use sandkeeper_client::v1;

use crate::chaos::fold::Fold;
use crate::chaos::record::{Action, Operation, Outcome};
use crate::chaos::versions::At;
use crate::chaos::violation::{Breach, Invariant};

/// What all replicas have to tell.
#[derive(Debug, Default)]
pub struct Durable {
    /// Of each event from revision 1 on.
    hashes: Vec<u64>,
}

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nobody had told it before.
    New,
    /// It is what others told.
    Known,
    /// What comes before it is not known yet.
    Early,
}

/// Of an event's bytes; its fields are in a fixed order, maps too.
pub fn hash_of(event: &v1::Event) -> u64 {
    let mut hasher = DefaultHasher::new();
    event.encode_to_vec().hash(&mut hasher);
    hasher.finish()
}

impl Durable {
    /// A replica tells an event.
    ///
    /// # Errors
    /// If another one is known at its revision.
    pub fn hear(&mut self, node: usize, event: &v1::Event) -> Result<Heard, Breach> {
        let known = self.hashes.len() as u64;
        let hash = hash_of(event);
        if event.revision == known + 1 {
            self.hashes.push(hash);
            return Ok(Heard::New);
        }
        match self.hash(event.revision) {
            None => Ok(Heard::Early),
            Some(known) if known == hash => Ok(Heard::Known),
            Some(_) => {
                let what = format!("n{node} tells another event than was told before: {event:?}");
                Err(Breach::new(Invariant::Durable, event, what))
            }
        }
    }

    /// Of the event at a revision, if it is known.
    pub fn hash(&self, revision: u64) -> Option<u64> {
        self.hashes.get(usize::try_from(revision.checked_sub(1)?).ok()?).copied()
    }
}

/// What was acknowledged is in the history, which reaches as far as the answer.
///
/// # Errors
/// If it is not.
pub fn acknowledged(fold: &Fold, operation: &Operation) -> Result<(), Breach> {
    if let Some(at) = operation.outcome.revision().filter(|at| *at > fold.head()) {
        let what =
            format!("revision {at} was acknowledged, and the history ends at {}: {operation}", fold.head());
        return Err(Breach::of(Invariant::Durable, what).at(at));
    }
    match &operation.outcome {
        Outcome::Created { sandbox, revision, .. } => is_made(fold, operation, sandbox, *revision),
        Outcome::CreatedAll { sandboxes, revision, .. } => match sandboxes.first() {
            Some(first) => is_made(fold, operation, first, *revision),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn is_made(fold: &Fold, operation: &Operation, sandbox: &v1::Sandbox, revision: u64) -> Result<(), Breach> {
    let id = &sandbox.sandbox_id;
    let lost = |what: String| Err(Breach::of(Invariant::Durable, what).at(revision).about(id));
    match fold.sandbox(id, revision) {
        At::Value(Some(record)) if record.seen.revision == revision => {
            let asked = match &operation.action {
                Action::Create { namespace, name, .. } => Some((namespace, name)),
                _ => None,
            };
            let other = asked.filter(|asked| *asked != (&record.seen.namespace, &record.seen.name));
            match other {
                Some(asked) => {
                    lost(format!("{asked:?} was asked for, and {:?} made: {operation}", record.seen))
                }
                None => Ok(()),
            }
        }
        At::Forgotten => Ok(()),
        found => lost(format!("no sandbox was made by event {revision}, but {found:?}: {operation}")),
    }
}

#[cfg(test)]
mod tests {
    use sandkeeper_client::v1::EventType;

    use super::*;
    use crate::chaos::invariants::testing::{allocated, created, event, fold, operation};

    fn create(id: &str, revision: u64) -> Operation {
        let (namespace, name) = ("ns".to_owned(), format!("name-of-{id}"));
        let sandbox = Box::new(v1::Sandbox { sandbox_id: id.to_owned(), ..v1::Sandbox::default() });
        let action = Action::Create { namespace, name, request_id: "c-x".into() };
        operation(action, 0, Outcome::Created { sandbox, revision, at: revision + 1 })
    }

    #[test]
    fn replicas_that_tell_the_same_are_good_and_others_not() {
        let mut durable = Durable::default();
        assert_eq!(durable.hear(0, &created(1, "x")), Ok(Heard::New));
        assert_eq!(durable.hear(1, &created(1, "x")), Ok(Heard::Known));
        assert_eq!(durable.hear(1, &allocated(3, "x", 1)), Ok(Heard::Early));
        assert_eq!(durable.hear(2, &allocated(2, "x", 1)), Ok(Heard::New));
        let breach = durable.hear(0, &event(2, EventType::SandboxTerminating, "x")).unwrap_err();
        assert_eq!((breach.invariant, breach.revision), (Invariant::Durable, 2));
    }

    #[test]
    fn what_was_acknowledged_has_to_be_there() {
        let fold = fold(&[created(1, "x"), allocated(2, "x", 1)]);
        assert_eq!(acknowledged(&fold, &create("x", 1)), Ok(()));
        assert!(acknowledged(&fold, &create("y", 1)).is_err(), "another sandbox");
        assert!(acknowledged(&fold, &create("x", 2)).is_err(), "made by another event, and beyond the end");
    }
}
