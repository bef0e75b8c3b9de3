//! I6: the same request id gives the same sandbox, whoever answers, and however often it is asked.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use sandkeeper_client::v1::{self, EventType};

use crate::chaos::record::{Action, Operation, Outcome};
use crate::chaos::violation::{Breach, Invariant};

/// Request ids of batches begin with this: they make several sandboxes.
pub const BATCH: &str = "b-";

/// What came of requests.
#[derive(Debug, Default)]
pub struct RequestIds {
    /// By namespace and id: the sandbox that the history says it made.
    made: HashMap<(String, String), (String, u64)>,
    /// By namespace and id: the sandboxes that were answered.
    answered: HashMap<(String, String), Vec<String>>,
}

impl RequestIds {
    /// The sandbox that a request has made, as the history says.
    pub fn made_by(&self, namespace: &str, request_id: &str) -> Option<&String> {
        self.made.get(&(namespace.to_owned(), request_id.to_owned())).map(|(id, _)| id)
    }

    /// A refusal, some time after it came: what stands in the way of a request is not what it has made itself, and if it had
    /// made it before it was asked again, it is not refused as a new one would be. (The campaign asks again only as long as
    /// requests are remembered.)
    ///
    /// # Errors
    /// If it was carried out, and not told so.
    pub fn refusal(&self, operation: &Operation) -> Result<(), Breach> {
        let (Action::Create { namespace, request_id, .. }, Outcome::Refused(refused)) =
            (&operation.action, &operation.outcome)
        else {
            return Ok(());
        };
        let Some((id, revision)) = self.made.get(&(namespace.clone(), request_id.clone())) else {
            return Ok(());
        };
        let as_new = matches!(refused.reason.as_str(), "NAME_TAKEN" | "NO_CAPACITY");
        let known = as_new && *revision <= operation.floor;
        if !known && refused.holder.as_ref() != Some(id) {
            return Ok(());
        }
        let what = format!("the request has made {id} itself, at revision {revision}: {operation}");
        Err(Breach::of(Invariant::RequestIds, what).at(*revision).about(id))
    }

    /// An event of the history.
    ///
    /// # Errors
    /// If its request has made another sandbox before.
    pub fn event(&mut self, event: &v1::Event) -> Result<(), Breach> {
        let made = event.r#type() == EventType::SandboxCreated && !event.request_id.is_empty();
        if !made || event.request_id.starts_with(BATCH) {
            return Ok(());
        }
        match self.made.entry((event.namespace.clone(), event.request_id.clone())) {
            Entry::Vacant(entry) => {
                entry.insert((event.sandbox_id.clone(), event.revision));
                Ok(())
            }
            Entry::Occupied(entry) => {
                let what = format!("request {} has made {} before", event.request_id, entry.get().0);
                Err(Breach::new(Invariant::RequestIds, event, what))
            }
        }
    }

    /// An answer.
    ///
    /// # Errors
    /// If the request was answered otherwise before.
    pub fn answer(&mut self, operation: &Operation) -> Result<(), Breach> {
        let (key, ids) = match (&operation.action, &operation.outcome) {
            (Action::Create { namespace, request_id, .. }, Outcome::Created { sandbox, .. })
                if !request_id.is_empty() =>
            {
                ((namespace.clone(), request_id.clone()), vec![sandbox.sandbox_id.clone()])
            }
            (Action::Batch { namespace, request_id, .. }, Outcome::CreatedAll { sandboxes, .. }) => {
                let ids = sandboxes.iter().map(|sandbox| sandbox.sandbox_id.clone());
                ((namespace.clone(), request_id.clone()), ids.collect())
            }
            _ => return Ok(()),
        };
        let breach = |what: String| {
            Err(Breach::of(Invariant::RequestIds, what).about(ids.first().map_or("", String::as_str)))
        };
        if let Action::Batch { count, .. } = operation.action
            && ids.len() != count
        {
            return breach(format!("{count} were asked for: {operation}"));
        }
        if let Some((made, _)) = self.made.get(&key)
            && ids != [made.clone()]
        {
            return breach(format!("the request has made {made}: {operation}"));
        }
        match self.answered.entry(key) {
            Entry::Occupied(entry) if *entry.get() != ids => {
                breach(format!("answered before: {:?}, now {ids:?}: {operation}", entry.get()))
            }
            Entry::Occupied(_) => Ok(()),
            Entry::Vacant(entry) => {
                entry.insert(ids);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::invariants::testing::{created, operation};
    use crate::chaos::record::Refused;

    fn answered(request: &str, id: &str) -> Operation {
        let (namespace, name) = ("ns".to_owned(), "n".to_owned());
        let sandbox = Box::new(v1::Sandbox { sandbox_id: id.to_owned(), ..v1::Sandbox::default() });
        let action = Action::Create { namespace, name, request_id: request.to_owned() };
        operation(action, 0, Outcome::Created { sandbox, revision: 1, at: 1 })
    }

    #[test]
    fn a_request_is_answered_with_one_sandbox() {
        let mut ids = RequestIds::default();
        assert_eq!(ids.answer(&answered("c-x", "x")), Ok(()));
        assert_eq!(ids.answer(&answered("c-x", "x")), Ok(()));
        assert_eq!(ids.answer(&answered("c-y", "y")), Ok(()));
        assert!(ids.answer(&answered("c-x", "y")).is_err());
    }

    #[test]
    fn a_request_that_has_made_one_is_not_refused_as_a_new_one() {
        let mut ids = RequestIds::default();
        ids.event(&created(3, "x")).unwrap();
        let refused = |request: &str, floor, holder: &str| {
            let holder = Some(holder.to_owned());
            let refused = Refused { reason: "NAME_TAKEN".into(), message: String::new(), holder };
            Operation { floor, outcome: Outcome::Refused(refused), ..answered(request, "x") }
        };
        assert_eq!(ids.refusal(&refused("c-x", 2, "y")), Ok(()), "nobody had been told of it");
        assert!(ids.refusal(&refused("c-x", 3, "y")).is_err());
        assert!(ids.refusal(&refused("c-x", 2, "x")).is_err(), "it is its own");
        assert_eq!(ids.refusal(&refused("c-y", 3, "x")), Ok(()));
    }

    #[test]
    fn a_request_makes_one_sandbox() {
        let mut ids = RequestIds::default();
        assert_eq!(ids.event(&created(1, "x")), Ok(()));
        assert!(ids.answer(&answered("c-x", "z")).is_err(), "the history says another");
        let again = v1::Event { request_id: "c-x".into(), ..created(2, "y") };
        assert!(ids.event(&again).is_err());
        let batch = |revision, id| v1::Event { request_id: "b-1".into(), ..created(revision, id) };
        assert_eq!((ids.event(&batch(3, "b1")), ids.event(&batch(4, "b2"))), (Ok(()), Ok(())));
    }
}
