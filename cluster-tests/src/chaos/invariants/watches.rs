//! I9: a watch tells every event that matches, once and in order, across reconnects to any replica.

use std::collections::VecDeque;

use sandkeeper_client::v1;

use super::durable::hash_of;
use crate::chaos::violation::{Breach, Invariant};

/// What one watcher was told, until it is compared with the history.
#[derive(Debug)]
pub struct Watcher {
    /// For messages.
    name: String,
    /// Of which namespace events are told; None: all are.
    namespace: Option<String>,
    /// The first revision of which it was not told yet.
    next: u64,
    /// Told, and not compared yet: revision and hash; and up to which revision all was told then.
    told: VecDeque<(u64, u64)>,
    /// The first revision that was not compared yet.
    compared: u64,
}

impl Watcher {
    /// One that begins at a revision.
    pub fn new(name: String, namespace: Option<String>, from: u64) -> Self {
        Self { name, namespace, next: from, told: VecDeque::new(), compared: from }
    }

    /// Where it goes on.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Of which namespace.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// It was told nothing of the revisions before this one, and that is as it should be: they are compacted.
    pub fn skip_to(&mut self, revision: u64) {
        self.next = self.next.max(revision);
        self.compared = self.next;
        self.told.clear();
    }

    /// It is told something.
    ///
    /// # Errors
    /// If that is out of order, or told again.
    pub fn hear(&mut self, message: &v1::WatchEventsResponse) -> Result<(), Breach> {
        for event in &message.events {
            if event.revision < self.next {
                let what =
                    format!("{} waits for {}, and is told of it by {}", self.name, self.next, message.node);
                return Err(Breach::new(Invariant::Watches, event, what));
            }
            self.told.push_back((event.revision, hash_of(event)));
            self.next = event.revision + 1;
        }
        self.next = self.next.max(message.revision + 1);
        Ok(())
    }

    /// What it was told, compared with the history as far as both go. `truth` says of a revision the hash of its event,
    /// and of which namespace it is. How many events were compared.
    ///
    /// # Errors
    /// If something is missing, or other than it was.
    pub fn compare(
        &mut self,
        head: u64,
        truth: impl Fn(u64) -> Option<(u64, String)>,
    ) -> Result<u64, Breach> {
        let mut count = 0;
        while self.compared < self.next && self.compared <= head {
            let revision = self.compared;
            self.compared += 1;
            let told = self.told.front().filter(|(told, _)| *told == revision).map(|(_, hash)| *hash);
            if told.is_some() {
                self.told.pop_front();
            }
            let Some((hash, namespace)) = truth(revision) else { continue };
            let expected = self.namespace.as_ref().is_none_or(|mine| *mine == namespace).then_some(hash);
            count += 1;
            if told != expected {
                let what = match (told, expected) {
                    (None, _) => "was not told of it",
                    (_, None) => "was told of it, and did not ask for it",
                    _ => "was told another event",
                };
                let what = format!("{} {what}: revision {revision}", self.name);
                return Err(Breach::of(Invariant::Watches, what).at(revision));
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::invariants::testing::{created, removed};

    fn message(revision: u64, events: Vec<v1::Event>) -> v1::WatchEventsResponse {
        v1::WatchEventsResponse { node: "n0".into(), revision, events }
    }

    /// Events 1 to 3; the second is of another namespace.
    fn truth(revision: u64) -> Option<(u64, String)> {
        let event = events().into_iter().find(|event| event.revision == revision)?;
        Some((hash_of(&event), event.namespace))
    }

    fn events() -> Vec<v1::Event> {
        let other = v1::Event { namespace: "other".into(), ..created(2, "y") };
        vec![created(1, "x"), other, removed(3, "x", 0)]
    }

    fn mine() -> Vec<v1::Event> {
        events().into_iter().filter(|event| event.namespace == "ns").collect()
    }

    #[test]
    fn all_that_matches_in_order_is_good() {
        let mut all = Watcher::new("w".into(), None, 1);
        let [first, rest @ ..] = &events()[..] else { unreachable!() };
        assert_eq!(all.hear(&message(1, vec![first.clone()])), Ok(()));
        assert_eq!(all.hear(&message(3, rest.to_vec())), Ok(()));
        assert_eq!(all.compare(2, truth), Ok(2));
        assert_eq!((all.compare(9, truth), all.next()), (Ok(1), 4));
        let mut filtered = Watcher::new("w".into(), Some("ns".into()), 1);
        assert_eq!(filtered.hear(&message(3, mine())), Ok(()));
        assert_eq!(filtered.compare(3, truth), Ok(3));
    }

    #[test]
    fn a_gap_a_repetition_and_another_event_are_found() {
        let mut gap = Watcher::new("w".into(), None, 1);
        gap.hear(&message(3, mine())).unwrap();
        assert_eq!(gap.compare(3, truth).unwrap_err().revision, 2);
        let mut again = Watcher::new("w".into(), None, 1);
        again.hear(&message(3, events())).unwrap();
        assert!(again.hear(&message(3, events())).is_err());
        let mut other = Watcher::new("w".into(), None, 1);
        other.hear(&message(1, vec![created(1, "z")])).unwrap();
        assert!(other.compare(3, truth).is_err());
        let mut lost = Watcher::new("w".into(), Some("ns".into()), 1);
        lost.hear(&message(3, mine()[..1].to_vec())).unwrap();
        assert_eq!(lost.compare(3, truth).unwrap_err().revision, 3, "a bookmark says that there was nothing");
    }
}
