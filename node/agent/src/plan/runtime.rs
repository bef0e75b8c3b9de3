//! What the runtime has said, and what time alone brings.

use std::sync::Arc;

use super::{Action, Ended, State};
use crate::boottime::BootTime;
use crate::lease::LeaseTerms;
use crate::table::{Order, Phase, Sandbox};

pub(super) fn created(state: &State, order: &Order, result: &Result<(), String>) -> Vec<Action> {
    let id = &order.spec.sandbox_id;
    let Some(sandbox) = state.table.get(id) else { return Vec::new() };
    let report = Action::Report { sandbox_id: id.clone(), generation: sandbox.generation };
    match (&sandbox.phase, result) {
        (Phase::Creating, Ok(())) => {
            let running = Sandbox { guarded: order.lease, ..sandbox.in_phase(Phase::Running) };
            let mut actions = vec![Action::Put(Box::new(running))];
            let Order { expires_at, lease, .. } = sandbox.order;
            if (expires_at, lease) != (order.expires_at, order.lease) {
                // An update came in while it was being started with what was known before.
                actions.push(Action::Instruct { sandbox_id: id.clone(), expires_at, lease });
            }
            actions.push(report);
            actions
        }
        (Phase::Creating, Err(reason)) => {
            vec![Action::Put(Box::new(sandbox.in_phase(Phase::Failed { reason: reason.clone() }))), report]
        }
        (Phase::Stopping { creating: true, ended, next }, Ok(())) => {
            let stopping = Phase::Stopping { creating: false, ended: *ended, next: next.clone() };
            vec![Action::Put(Box::new(sandbox.in_phase(stopping))), Action::Remove { sandbox_id: id.clone() }]
        }
        (Phase::Stopping { creating: true, .. }, Err(_)) => gone(id, sandbox),
        // Its exit came first.
        _ => Vec::new(),
    }
}

pub(super) fn exited(state: &State, id: &str, exit: &Ended) -> Vec<Action> {
    let Some(sandbox) = state.table.get(id) else { return Vec::new() };
    match sandbox.phase {
        Phase::Creating | Phase::Running | Phase::Ending => {
            let phase = Phase::Exited { exit_code: exit.exit_code, reason: exit.reason.clone() };
            let expired = sandbox.expired || exit.expired;
            let exited = Sandbox { expired, lease_over: exit.lease_over, ..sandbox.in_phase(phase) };
            vec![
                Action::Put(Box::new(exited)),
                Action::Report { sandbox_id: id.to_owned(), generation: sandbox.generation },
            ]
        }
        // It is being removed: its absence is what will be told.
        Phase::Stopping { .. } | Phase::Exited { .. } | Phase::Failed { .. } => Vec::new(),
    }
}

/// Only now may a leader count on the lease: the guard has it, whatever becomes of this agent.
pub(super) fn instructed(state: &State, id: &str, lease: Option<LeaseTerms>) -> Vec<Action> {
    match state.table.get(id) {
        // Newer terms may be on their way to the guard.
        Some(sandbox) if sandbox.order.lease == lease && sandbox.guarded != lease => {
            let generation = sandbox.generation;
            let guarded = Sandbox { guarded: lease, ..sandbox.clone() };
            vec![Action::Put(Box::new(guarded)), Action::Report { sandbox_id: id.to_owned(), generation }]
        }
        _ => Vec::new(),
    }
}

pub(super) fn adopted(state: &State, id: &str, cluster_id: &str) -> Vec<Action> {
    let Some(sandbox) = state.table.get(id) else { return Vec::new() };
    let mut labelled = sandbox.clone();
    cluster_id.clone_into(&mut Arc::make_mut(&mut labelled.order.spec).cluster_id);
    let report = Action::Report { sandbox_id: id.to_owned(), generation: sandbox.generation };
    vec![Action::Put(Box::new(labelled)), report]
}

pub(super) fn removed(state: &State, id: &str) -> Vec<Action> {
    match state.table.get(id) {
        Some(sandbox) if matches!(sandbox.phase, Phase::Stopping { creating: false, .. }) => {
            gone(id, sandbox)
        }
        _ => Vec::new(),
    }
}

/// Nothing of `sandbox` is left: the next generation starts, if one waits.
fn gone(id: &str, sandbox: &Sandbox) -> Vec<Action> {
    let report = |generation| Action::Report { sandbox_id: id.to_owned(), generation };
    match sandbox.next() {
        None => vec![Action::Drop { sandbox_id: id.to_owned() }, report(sandbox.generation)],
        Some(next) => vec![
            Action::Put(Box::new(Sandbox::creating(next.clone()))),
            Action::Create(next.clone()),
            report(sandbox.generation),
            report(next.spec.generation),
        ],
    }
}

pub(super) fn tick(state: &State, now: BootTime) -> Vec<Action> {
    let mut actions = Vec::new();
    for id in state.table.overdue(now) {
        let sandbox = state.table.get(id).expect("a deadline is kept only for a sandbox in the table");
        let ending = Sandbox { expired: true, ..sandbox.in_phase(Phase::Ending) };
        actions.push(Action::Put(Box::new(ending)));
        actions.push(Action::End { sandbox_id: id.to_owned() });
        actions.push(Action::Report { sandbox_id: id.to_owned(), generation: sandbox.generation });
    }
    actions
}
