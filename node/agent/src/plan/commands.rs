//! Commands: first the fence, then what is wanted.

use planted_bugs::{Bug, planted};

use super::{Action, Body, Command, Origin, Refusal, RefusalKind, State, admission};
use crate::boottime::BootTime;
use crate::lease::LeaseTerms;
use crate::table::{Order, Phase, Sandbox};

/// What a command means.
pub(super) fn plan(state: &State, command: &Command) -> Vec<Action> {
    let Some(session) = state.fence.sessions.get(&command.session) else {
        // Of a session that is over. Its leader has no way to hear an answer, and draws no conclusion without one.
        return Vec::new();
    };
    if !session.welcomed {
        let reason = "it sent a command before its welcome".to_owned();
        return vec![Action::Close { session: command.session, reason }];
    }
    if command.sequence <= session.processed {
        let reason = format!("command {} came after command {}", command.sequence, session.processed);
        return vec![Action::Close { session: command.session, reason }];
    }
    let mut actions = vec![Action::Processed { session: command.session, sequence: command.sequence }];
    match fence(state, command) {
        Fenced::Refused(refusal) => actions.push(Action::Refuse(refusal)),
        Fenced::Ignored => {}
        Fenced::Obeyed => {
            if command.term > state.fence.term {
                actions.push(Action::RaiseTerm { term: command.term });
            }
            if command.session != state.fence.obeyed {
                actions.push(Action::Obey { session: command.session });
            }
            actions.extend(obey(state, command));
        }
    }
    actions
}

enum Fenced {
    Obeyed,
    Refused(Refusal),
    Ignored,
}

fn fence(state: &State, command: &Command) -> Fenced {
    if planted(Bug::NoFence) {
        return Fenced::Obeyed;
    }
    let ours = &state.fence.incarnation;
    if command.incarnation != *ours {
        let reason = format!(
            "it was for start {} of ledger {}; this is start {} of ledger {}",
            command.incarnation.start, command.incarnation.ledger_id, ours.start, ours.ledger_id
        );
        return Fenced::Refused(refusal(state, command, RefusalKind::WrongIncarnation, reason));
    }
    // Term 0 is nobody's: only a leader may command.
    if command.term < state.fence.term || command.term == 0 {
        let reason = format!("term {} is over: term {} has been seen", command.term, state.fence.term);
        return Fenced::Refused(refusal(state, command, RefusalKind::StaleTerm, reason));
    }
    if command.term == state.fence.term && command.session < state.fence.obeyed {
        // There is one leader a term: this is an older session with the node that has a newer one.
        return Fenced::Ignored;
    }
    Fenced::Obeyed
}

fn refusal(state: &State, command: &Command, kind: RefusalKind, reason: String) -> Refusal {
    let (sandbox_id, generation) = command.body.subject();
    Refusal {
        session: command.session,
        term: state.fence.term.max(if kind == RefusalKind::WrongIncarnation { 0 } else { command.term }),
        sequence: command.sequence,
        sandbox_id: sandbox_id.to_owned(),
        generation,
        kind,
        reason,
    }
}

fn obey(state: &State, command: &Command) -> Vec<Action> {
    match &command.body {
        Body::Create(order) => create(state, command, order),
        Body::Unusable { reason, .. } => {
            vec![Action::Refuse(refusal(state, command, RefusalKind::Admission, reason.clone()))]
        }
        Body::Terminate { sandbox_id, generation } => terminate(state, command, sandbox_id, *generation),
        Body::Update { sandbox_id, generation, expires_at, lease } => {
            update(state, command, (sandbox_id, *generation), *expires_at, *lease)
        }
        Body::Adopt { sandbox_id, generation } => adopt(state, command, sandbox_id, *generation),
        Body::Inventory => vec![Action::Inventory { session: command.session }],
    }
}

/// Of what is not ours nothing is touched, whoever asks.
fn not_ours(state: &State, command: &Command, sandbox: &Sandbox) -> Option<Vec<Action>> {
    let whose = match state.fence.origin(&sandbox.order.spec.cluster_id) {
        Origin::Ours => return None,
        Origin::Unlabelled => "nobody's: it has to be adopted first",
        Origin::Other => "another cluster's",
    };
    let reason = format!("sandbox {} of this agent is {whose}", sandbox.order.spec.sandbox_id);
    let kind = match command.body {
        Body::Create(_) => RefusalKind::Admission,
        _ => RefusalKind::NotOurs,
    };
    Some(vec![Action::Refuse(refusal(state, command, kind, reason))])
}

fn adopt(state: &State, command: &Command, id: &str, generation: u64) -> Vec<Action> {
    let found = state.table.get(id).filter(|sandbox| sandbox.generation == generation);
    let label = found.map(|sandbox| state.fence.origin(&sandbox.order.spec.cluster_id));
    match (found, label, &state.fence.cluster_id) {
        (Some(_), Some(Origin::Unlabelled), Some(cluster_id)) => {
            vec![Action::Adopt { sandbox_id: id.to_owned(), cluster_id: cluster_id.clone() }]
        }
        (Some(sandbox), Some(Origin::Other), _) => not_ours(state, command, sandbox).unwrap_or_default(),
        _ => vec![Action::Report { sandbox_id: id.to_owned(), generation }],
    }
}

fn stale_generation(state: &State, command: &Command, known: u64) -> Vec<Action> {
    let (_, generation) = command.body.subject();
    let reason = format!("generation {generation} is over: generation {known} is known");
    vec![Action::Refuse(refusal(state, command, RefusalKind::StaleGeneration, reason))]
}

fn create(state: &State, command: &Command, order: &Order) -> Vec<Action> {
    let (id, generation) = (&order.spec.sandbox_id, order.spec.generation);
    let report = |generation| Action::Report { sandbox_id: id.clone(), generation };
    let known = state.table.get(id);
    if let Some(sandbox) = known {
        if let Some(refused) = not_ours(state, command, sandbox) {
            return refused;
        }
        let newest = sandbox.next().map_or(sandbox.generation, |next| next.spec.generation);
        if generation < newest {
            return stale_generation(state, command, newest);
        }
        if generation == newest {
            // Said twice: it is as it is.
            return vec![report(generation)];
        }
    }
    if let Some(reason) = admission::obstacle(state, order) {
        return vec![Action::Refuse(refusal(state, command, RefusalKind::Admission, reason))];
    }
    let start = || {
        vec![
            Action::Put(Box::new(Sandbox::creating(order.clone()))),
            Action::Create(order.clone()),
            report(generation),
        ]
    };
    // Two generations never run at once: an older one is gone before this one starts.
    let Some(older) = known else { return start() };
    if matches!(older.phase, Phase::Failed { .. }) {
        return start();
    }
    let mut actions = stop(older, older.generation, Some(order.clone()));
    actions.extend([report(older.generation), report(generation)]);
    actions
}

fn terminate(state: &State, command: &Command, id: &str, generation: u64) -> Vec<Action> {
    let report = Action::Report { sandbox_id: id.to_owned(), generation };
    let Some(sandbox) = state.table.get(id) else { return vec![report] };
    if let Some(refused) = not_ours(state, command, sandbox) {
        return refused;
    }
    let next = sandbox.next().filter(|next| next.spec.generation > generation);
    if generation < sandbox.generation || (generation == sandbox.generation && next.is_some()) {
        // That generation is gone already, or going to make room for a higher one, which this command is not about.
        return vec![report];
    }
    if matches!(sandbox.phase, Phase::Failed { .. }) {
        return vec![Action::Drop { sandbox_id: id.to_owned() }, report];
    }
    // A terminate of generation n covers what is lower: it is not "absent" before those are gone.
    let mut actions = stop(sandbox, generation, next.cloned());
    actions.push(report);
    actions
}

/// Begins to remove `sandbox`, known as `generation` from now on, or goes on with it; then `next` starts.
fn stop(sandbox: &Sandbox, generation: u64, next: Option<Order>) -> Vec<Action> {
    let (creating, ended, begun) = match sandbox.phase {
        // The removal begins when the start has been answered.
        Phase::Creating => (true, false, true),
        Phase::Stopping { creating, ended, .. } => (creating, ended, true),
        Phase::Exited { .. } => (false, true, false),
        Phase::Running | Phase::Ending | Phase::Failed { .. } => (false, false, false),
    };
    let stopping = sandbox.in_phase(Phase::Stopping { creating, ended, next });
    let mut actions = vec![Action::Put(Box::new(Sandbox { generation, ..stopping }))];
    if !begun {
        actions.push(Action::Remove { sandbox_id: sandbox.order.spec.sandbox_id.clone() });
    }
    actions
}

fn update(
    state: &State,
    command: &Command,
    (id, generation): (&str, u64),
    expires_at: Option<BootTime>,
    lease: Option<LeaseTerms>,
) -> Vec<Action> {
    let report = Action::Report { sandbox_id: id.to_owned(), generation };
    let Some(sandbox) = state.table.get(id) else { return vec![report] };
    if let Some(refused) = not_ours(state, command, sandbox) {
        return refused;
    }
    let mut changed = sandbox.clone();
    if let Phase::Stopping { next: Some(next), .. } = &mut changed.phase
        && next.spec.generation == generation
    {
        (next.expires_at, next.lease) = (expires_at, lease);
        return vec![Action::Put(Box::new(changed)), report];
    }
    if generation < sandbox.generation {
        return stale_generation(state, command, sandbox.generation);
    }
    if generation > sandbox.generation {
        return vec![report];
    }
    (changed.order.expires_at, changed.order.lease) = (expires_at, lease);
    let mut actions = vec![Action::Put(Box::new(changed))];
    if sandbox.phase == Phase::Running {
        actions.push(Action::Instruct { sandbox_id: id.to_owned(), expires_at, lease });
    }
    actions.push(report);
    actions
}
