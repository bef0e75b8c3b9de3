//! I7: reads are linearizable, by revision: an answer's revision is at least the highest that anybody had been told before
//! the call began (or that a local read asked for), and its content is the fold of the history up to it. A refusal says
//! something of the state too: it has to have been true between the call's beginning and its end.

use sandkeeper_client::v1;

use crate::chaos::fold::Fold;
use crate::chaos::record::{Action, Operation, Outcome, Wanted};
use crate::chaos::versions::At;
use crate::chaos::violation::{Breach, Invariant};

/// No read is older than it may be. (The answer to a change that is asked for again is the first answer again.)
///
/// # Errors
/// If it is.
pub fn fresh(operation: &Operation) -> Result<(), Breach> {
    let Some(at) = operation.outcome.revision().filter(|_| operation.is_read()) else { return Ok(()) };
    let least = operation.least_revision();
    if at >= least {
        return Ok(());
    }
    let what = format!("answered at revision {at}, and {least} was known to somebody before: {operation}");
    Err(Breach::of(Invariant::Linearizable, what).at(at))
}

/// What was told is the fold at the answer's revision, which the fold has reached.
///
/// # Errors
/// If it is not.
pub fn content(fold: &Fold, operation: &Operation) -> Result<(), Breach> {
    match (&operation.action, &operation.outcome) {
        (Action::Get { wanted, .. }, Outcome::Sandbox { sandbox, at }) => {
            named(fold, operation, wanted, sandbox, *at)?;
            same(fold, operation, sandbox, *at)
        }
        // As it was left: perhaps other events had come before the answer.
        (Action::Change { .. }, Outcome::Sandbox { sandbox, .. }) if sandbox.phase() != v1::Phase::Gone => {
            same(fold, operation, sandbox, sandbox.revision)
        }
        (Action::List { namespace, .. }, Outcome::Listed { sandboxes, at }) => {
            for sandbox in sandboxes {
                same(fold, operation, sandbox, *at)?;
            }
            let Some(expected) = fold.of_namespace(namespace, *at) else { return Ok(()) };
            if expected.len() == sandboxes.len() {
                return Ok(());
            }
            let what = format!(
                "{} sandboxes are listed, and there were {}: {operation}",
                sandboxes.len(),
                expected.len()
            );
            Err(Breach::of(Invariant::Linearizable, what).at(*at))
        }
        _ => Ok(()),
    }
}

fn same(fold: &Fold, operation: &Operation, told: &v1::Sandbox, at: u64) -> Result<(), Breach> {
    let id = &told.sandbox_id;
    let breach = |what: String| Err(Breach::of(Invariant::Linearizable, what).at(at).about(id));
    match fold.sandbox(id, at) {
        At::Forgotten => Ok(()),
        At::Value(Some(record)) => match record.differs(told) {
            Some(difference) => breach(format!("{difference}: {operation}")),
            None => Ok(()),
        },
        found => breach(format!("{id} is told of, and was {found:?} at revision {at}: {operation}")),
    }
}

fn named(
    fold: &Fold,
    operation: &Operation,
    wanted: &Wanted,
    told: &v1::Sandbox,
    at: u64,
) -> Result<(), Breach> {
    let right = match wanted {
        Wanted::Id(id) => *id == told.sandbox_id,
        Wanted::Name(namespace, name) => match fold.named(namespace, name, at) {
            At::Value(holder) => holder.as_ref() == Some(&told.sandbox_id),
            At::Nothing => false,
            At::Forgotten => true,
        },
    };
    if right {
        return Ok(());
    }
    let what = format!("another sandbox is told of than was asked for: {operation}");
    Err(Breach::of(Invariant::Linearizable, what).at(at).about(&told.sandbox_id))
}

/// What a refusal says was true at some revision from the least that the call had to reflect up to `upper`, which was
/// the history's end some time after the answer.
///
/// # Errors
/// If it was true at none.
pub fn refusal(fold: &Fold, operation: &Operation, upper: u64) -> Result<(), Breach> {
    let Outcome::Refused(refused) = &operation.outcome else { return Ok(()) };
    let from = operation.least_revision().min(upper);
    let holders = |namespace: &str, name: &str| fold.holders(namespace, name, from, upper);
    let (was_so, id) = match (&operation.action, refused.reason.as_str()) {
        (Action::Create { namespace, name, .. }, "NAME_TAKEN") => {
            let holder = refused.holder.clone();
            (holders(namespace, name).map(|found| found.contains(&holder)), holder.unwrap_or_default())
        }
        (Action::Get { wanted: Wanted::Name(namespace, name), .. }, "SANDBOX_NOT_FOUND") => {
            (holders(namespace, name).map(|found| found.contains(&None)), String::new())
        }
        (
            Action::Get { wanted: Wanted::Id(id), .. } | Action::Change { sandbox_id: id, .. },
            "SANDBOX_NOT_FOUND",
        ) => (fold.presence(id, from, upper).map(|(_, absent)| absent), id.clone()),
        _ => return Ok(()),
    };
    if was_so.unwrap_or(true) {
        return Ok(());
    }
    let what = format!("this was true at no revision from {from} to {upper}: {operation}");
    Err(Breach::of(Invariant::Linearizable, what).at(from).about(&id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::invariants::testing::{
        allocated, created, fold, linearizable, local, operation, removed,
    };
    use crate::chaos::record::Refused;

    fn history() -> Fold {
        fold(&[created(1, "x"), allocated(2, "x", 1), removed(3, "x", 1), created(4, "y")])
    }

    fn get(wanted: Wanted, read: v1::ReadOptions, floor: u64, outcome: Outcome) -> Operation {
        operation(Action::Get { wanted, read }, floor, outcome)
    }

    fn told(fold: &Fold, id: &str, at: u64) -> Outcome {
        let At::Value(Some(record)) = fold.sandbox(id, at) else { panic!("it is there at {at}") };
        let mut sandbox = record.seen.clone();
        if sandbox.phase() == v1::Phase::Pending {
            sandbox.agent_id.clear();
        }
        Outcome::Sandbox { sandbox: Box::new(sandbox), at }
    }

    fn refused(reason: &str, holder: Option<&str>) -> Outcome {
        let (reason, holder) = (reason.to_owned(), holder.map(str::to_owned));
        Outcome::Refused(Refused { reason, message: String::new(), holder })
    }

    #[test]
    fn an_answer_is_not_older_than_what_was_known() {
        let fold = history();
        let by_id = || Wanted::Id("x".into());
        assert_eq!(fresh(&get(by_id(), linearizable(), 2, told(&fold, "x", 2))), Ok(()));
        assert!(fresh(&get(by_id(), linearizable(), 3, told(&fold, "x", 2))).is_err());
        assert_eq!(fresh(&get(by_id(), local(0), 3, told(&fold, "x", 2))), Ok(()), "a local read may be");
        assert!(
            fresh(&get(by_id(), local(3), 0, told(&fold, "x", 2))).is_err(),
            "but not older than it asked"
        );
    }

    #[test]
    fn the_content_is_the_fold() {
        let fold = history();
        let by_name = || Wanted::Name("ns".into(), "name-of-x".into());
        assert_eq!(content(&fold, &get(by_name(), linearizable(), 0, told(&fold, "x", 2))), Ok(()));
        let Outcome::Sandbox { sandbox, .. } = told(&fold, "x", 1) else { unreachable!() };
        let old = Outcome::Sandbox { sandbox: sandbox.clone(), at: 2 };
        assert!(content(&fold, &get(by_name(), linearizable(), 0, old)).is_err(), "it was allocated by then");
        let gone = Outcome::Sandbox { sandbox, at: 3 };
        assert!(content(&fold, &get(by_name(), linearizable(), 0, gone)).is_err(), "it was gone by then");
        let list = |at, sandboxes| {
            let action = Action::List { namespace: "ns".into(), read: linearizable() };
            operation(action, 0, Outcome::Listed { sandboxes, at })
        };
        assert_eq!(content(&fold, &list(3, Vec::new())), Ok(()));
        assert!(content(&fold, &list(2, Vec::new())).is_err(), "one is missing");
    }

    #[test]
    fn a_refusal_was_true_some_time() {
        let fold = history();
        let create = |floor, holder| {
            let (namespace, name) = ("ns".to_owned(), "name-of-x".to_owned());
            let action = Action::Create { namespace, name, request_id: "c-z".into() };
            operation(action, floor, refused("NAME_TAKEN", Some(holder)))
        };
        assert_eq!(refusal(&fold, &create(1, "x"), 4), Ok(()));
        assert!(refusal(&fold, &create(3, "x"), 4).is_err(), "the name was free");
        assert!(refusal(&fold, &create(1, "z"), 4).is_err(), "nobody of that id ever had it");
        let absent =
            |floor| get(Wanted::Id("x".into()), linearizable(), floor, refused("SANDBOX_NOT_FOUND", None));
        assert_eq!(refusal(&fold, &absent(1), 4), Ok(()));
        assert!(refusal(&fold, &absent(1), 2).is_err(), "it was there all the time");
    }
}
