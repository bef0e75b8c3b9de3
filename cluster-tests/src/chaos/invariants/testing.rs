//! Histories for the tests of the invariants.

use std::time::Duration;

use sandkeeper_client::v1::{self, EventType, Phase};

use crate::chaos::fold::Fold;
use crate::chaos::record::{Action, Operation, Outcome};

/// An event about sandbox `id`, named as its id in namespace "ns".
pub fn event(revision: u64, kind: EventType, id: &str) -> v1::Event {
    v1::Event {
        revision,
        r#type: kind.into(),
        sandbox_id: id.to_owned(),
        namespace: "ns".to_owned(),
        name: format!("name-of-{id}"),
        ..v1::Event::default()
    }
}

/// The event that makes a sandbox, by request `c-{id}`.
pub fn created(revision: u64, id: &str) -> v1::Event {
    let name = format!("name-of-{id}");
    let sandbox = v1::Sandbox {
        sandbox_id: id.to_owned(),
        namespace: "ns".to_owned(),
        name,
        phase: Phase::Pending.into(),
        revision,
        ..v1::Sandbox::default()
    };
    let request_id = format!("c-{id}");
    v1::Event { sandbox: Some(sandbox), request_id, ..event(revision, EventType::SandboxCreated, id) }
}

/// The event that gives a generation to agent "a".
pub fn allocated(revision: u64, id: &str, generation: u64) -> v1::Event {
    let agent_id = "a".to_owned();
    v1::Event { generation, agent_id, ..event(revision, EventType::SandboxAllocated, id) }
}

/// The event that a sandbox is gone, and its generation released.
pub fn removed(revision: u64, id: &str, generation: u64) -> v1::Event {
    v1::Event { generation, ..event(revision, EventType::SandboxRemoved, id) }
}

/// The fold of a good history.
pub fn fold(events: &[v1::Event]) -> Fold {
    let mut fold = Fold::default();
    for event in events {
        fold.apply(event).expect("the history is good");
    }
    fold
}

/// A call that anybody made.
pub fn operation(action: Action, floor: u64, outcome: Outcome) -> Operation {
    let (began, ended) = (Duration::ZERO, Duration::ZERO);
    Operation { client: "c".to_owned(), node: 0, action, began, ended, floor, outcome }
}

/// A linearizable read's options.
pub fn linearizable() -> v1::ReadOptions {
    v1::ReadOptions { consistency: v1::Consistency::Linearizable.into(), min_revision: 0 }
}

/// A local read's options.
pub fn local(min_revision: u64) -> v1::ReadOptions {
    v1::ReadOptions { consistency: v1::Consistency::Local.into(), min_revision }
}
