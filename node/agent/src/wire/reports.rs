//! What the agent says of its sandboxes, as the wire has it.

use prost::Message as _;
use sandkeeper_proto::v1;

use crate::plan::{Fence, Origin, Refusal, RefusalKind, State};
use crate::spec::SandboxSpec;
use crate::table::{Phase, Sandbox};

/// The most reports in one message: some 200 bytes each, far below what a message may hold.
const REPORTS_PER_MESSAGE: usize = 500;
/// The most bytes of reports in one message, but for the last one: what may be adopted is described whole.
const BYTES_PER_MESSAGE: usize = 512 * 1024;

/// How it is with one generation of a sandbox.
pub(crate) fn report(state: &State, sandbox_id: &str, generation: u64, host: &str) -> v1::SandboxReport {
    let absent = || v1::SandboxReport {
        sandbox_id: sandbox_id.to_owned(),
        generation,
        state: v1::SandboxState::Absent.into(),
        ..v1::SandboxReport::default()
    };
    let Some(sandbox) = state.table.get(sandbox_id) else { return absent() };
    if let Some(next) = sandbox.next()
        && next.spec.generation == generation
    {
        return describe(&state.fence, &Sandbox::creating(next.clone()), host);
    }
    // A terminate may have raised the number that the sandbox is known by: until it is gone, all of them are stopping.
    let stopping = matches!(sandbox.phase, Phase::Stopping { .. })
        && (sandbox.order.spec.generation..=sandbox.generation).contains(&generation);
    if generation == sandbox.generation || stopping {
        v1::SandboxReport { generation, ..describe(&state.fence, sandbox, host) }
    } else {
        absent()
    }
}

fn describe(fence: &Fence, sandbox: &Sandbox, host: &str) -> v1::SandboxReport {
    let spec = &sandbox.order.spec;
    let (origin, adoptable) = match fence.origin(&spec.cluster_id) {
        Origin::Ours => (v1::SandboxOrigin::Ours, None),
        Origin::Unlabelled => (v1::SandboxOrigin::Unlabelled, Some(create_command(spec))),
        Origin::Other => (v1::SandboxOrigin::Other, None),
    };
    let (state, exit_code, reason) = match &sandbox.phase {
        Phase::Creating => (v1::SandboxState::Creating, None, String::new()),
        Phase::Running => (v1::SandboxState::Running, None, String::new()),
        Phase::Ending => (v1::SandboxState::Stopping, None, "its time is over".to_owned()),
        Phase::Stopping { .. } => (v1::SandboxState::Stopping, None, String::new()),
        Phase::Exited { exit_code, reason } => (v1::SandboxState::Exited, *exit_code, reason.clone()),
        Phase::Failed { reason } => (v1::SandboxState::Failed, None, reason.clone()),
    };
    let endpoints = match sandbox.phase {
        Phase::Running => spec.ports.iter().map(|port| endpoint(host, *port)).collect(),
        _ => Vec::new(),
    };
    v1::SandboxReport {
        sandbox_id: spec.sandbox_id.clone(),
        generation: sandbox.generation,
        state: state.into(),
        expires: sandbox.order.expires_at.is_some(),
        lease: sandbox.guarded.map(|terms| v1::Lease {
            length_millis: u64::try_from(terms.length.as_millis()).unwrap_or(u64::MAX),
            revision: terms.revision,
        }),
        lease_over: sandbox.lease_over,
        exit_code,
        reason,
        endpoints,
        expired: sandbox.expired,
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        origin: origin.into(),
        spec: adoptable,
    }
}

/// The command that would have made it.
fn create_command(spec: &SandboxSpec) -> v1::CreateCommand {
    let amount = |value: u64| i64::try_from(value).ok().filter(|value| *value > 0);
    let resources =
        v1::Resources { cpu_millis: amount(spec.cpu_millis), memory_bytes: amount(spec.memory_bytes) };
    v1::CreateCommand {
        sandbox_id: spec.sandbox_id.clone(),
        generation: spec.generation,
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        create_timestamp: spec.create_timestamp,
        image: spec.image.clone(),
        command: spec.command.clone(),
        args: spec.args.clone(),
        envs: spec.envs.clone(),
        working_dir: spec.working_dir.clone(),
        exposed_ports: spec.ports.iter().map(|port| i32::from(*port)).collect(),
        resources: Some(resources),
        labels: spec.labels.clone(),
        expires_in_nanos: None,
        lease: None,
    }
}

fn endpoint(host: &str, port: u16) -> String {
    match host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{port}"),
        Err(_) => format!("{host}:{port}"),
    }
}

/// The whole table as it is now, in parts.
pub(crate) fn inventory(state: &State, processed_sequence: u64, host: &str) -> Vec<v1::AgentMessage> {
    let all = state.table.iter().flat_map(|(_, sandbox)| {
        let next = sandbox.next().map(|next| describe(&state.fence, &Sandbox::creating(next.clone()), host));
        std::iter::once(describe(&state.fence, sandbox, host)).chain(next)
    });
    let mut parts = in_parts(all);
    if parts.is_empty() {
        parts.push(Vec::new());
    }
    let (term, last) = (state.fence.term, parts.len() - 1);
    let said = |(part, sandboxes)| {
        let last = part == last;
        let part = part as u32;
        let inventory = v1::Inventory { term, processed_sequence, sandboxes, last, part };
        message(v1::agent_message::Body::Inventory(inventory))
    };
    parts.into_iter().enumerate().map(said).collect()
}

/// Reports of changes, in as many messages as it takes. Only the last says what was processed: until then, what the
/// leader has not heard of may be in a later one.
pub(crate) fn reports(
    term: u64,
    processed_sequence: u64,
    reports: Vec<v1::SandboxReport>,
) -> Vec<v1::AgentMessage> {
    let parts = in_parts(reports.into_iter());
    let count = parts.len();
    let said = |(part, reports)| {
        let processed_sequence = if part + 1 == count { processed_sequence } else { 0 };
        let reports = v1::SandboxReports { term, processed_sequence, reports };
        message(v1::agent_message::Body::Reports(reports))
    };
    parts.into_iter().enumerate().map(said).collect()
}

/// Cuts reports into as many as one message takes each.
fn in_parts(reports: impl Iterator<Item = v1::SandboxReport>) -> Vec<Vec<v1::SandboxReport>> {
    let mut parts: Vec<Vec<_>> = Vec::new();
    let mut bytes = 0;
    for report in reports {
        let size = report.encoded_len();
        match parts.last_mut() {
            Some(part) if part.len() < REPORTS_PER_MESSAGE && bytes + size <= BYTES_PER_MESSAGE => {
                bytes += size;
                part.push(report);
            }
            _ => {
                bytes = size;
                parts.push(vec![report]);
            }
        }
    }
    parts
}

pub(crate) fn refusal(refusal: &Refusal) -> v1::AgentMessage {
    let kind = match refusal.kind {
        RefusalKind::Admission => v1::RefusalKind::Admission,
        RefusalKind::StaleTerm => v1::RefusalKind::StaleTerm,
        RefusalKind::StaleGeneration => v1::RefusalKind::StaleGeneration,
        RefusalKind::WrongIncarnation => v1::RefusalKind::WrongIncarnation,
        RefusalKind::NotOurs => v1::RefusalKind::NotOurs,
    };
    message(v1::agent_message::Body::Refusal(v1::Refusal {
        term: refusal.term,
        processed_sequence: refusal.sequence,
        sandbox_id: refusal.sandbox_id.clone(),
        generation: refusal.generation,
        kind: kind.into(),
        reason: refusal.reason.clone(),
        sequence: refusal.sequence,
    }))
}

pub(crate) fn message(body: v1::agent_message::Body) -> v1::AgentMessage {
    v1::AgentMessage { body: Some(body) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::config::Capacity;
    use crate::ledger::Incarnation;
    use crate::table::{Order, Table};

    fn state(phases: &[(&str, u64, Phase)]) -> State {
        let mut table = Table::default();
        for (id, generation, phase) in phases {
            let spec = SandboxSpec {
                sandbox_id: (*id).to_owned(),
                generation: 1,
                cluster_id: "ours".to_owned(),
                ..SandboxSpec::default()
            };
            let order = Order { spec: Arc::new(spec), expires_at: None, lease: None, heard: None };
            let sandbox = Sandbox::creating(order).in_phase(phase.clone());
            table.put(Sandbox { generation: *generation, ..sandbox });
        }
        let fence = Fence {
            incarnation: Incarnation { ledger_id: "ledger".to_owned(), start: 1 },
            cluster_id: Some("ours".to_owned()),
            term: 7,
            obeyed: 0,
            sessions: BTreeMap::new(),
            former: BTreeMap::new(),
        };
        State { fence, table, capacity: Capacity::default() }
    }

    #[test]
    fn a_raised_generation_is_stopping_in_all_its_numbers_until_it_is_gone() {
        let state = state(&[("a", 3, Phase::Stopping { creating: false, ended: false, next: None })]);
        let of = |generation| report(&state, "a", generation, "h").state();
        assert_eq!((1..=4).map(of).collect::<Vec<_>>(), {
            use v1::SandboxState::{Absent, Stopping};
            [Stopping, Stopping, Stopping, Absent]
        });
    }

    #[test]
    fn an_inventory_in_parts_says_everything_once_and_last_only_at_its_end() {
        let names: Vec<_> = (0..1_001).map(|i| format!("s{i}")).collect();
        let phases: Vec<_> = names.iter().map(|name| (name.as_str(), 1, Phase::Running)).collect();
        let parts: Vec<_> = inventory(&state(&phases), 9, "h")
            .into_iter()
            .map(|message| match message.body {
                Some(v1::agent_message::Body::Inventory(inventory)) => inventory,
                other => panic!("{other:?}"),
            })
            .collect();
        let shape: Vec<_> = parts.iter().map(|p| (p.part, p.last, p.sandboxes.len())).collect();
        assert_eq!(shape, [(0, false, 500), (1, false, 500), (2, true, 1)]);
        assert!(parts.iter().all(|part| part.term == 7 && part.processed_sequence == 9));
        let empty = inventory(&state(&[]), 1, "h");
        assert_eq!(empty.len(), 1);
    }

    #[test]
    fn endpoints_are_host_and_port() {
        assert_eq!(endpoint("10.0.0.1", 80), "10.0.0.1:80");
        assert_eq!(endpoint("fe80::1", 80), "[fe80::1]:80");
        assert_eq!(endpoint("worker", 80), "worker:80");
    }

    #[test]
    fn what_has_no_label_is_described_whole_and_in_parts_that_a_message_takes() {
        let mut state = state(&[]);
        for number in 0..20 {
            let spec = SandboxSpec {
                sandbox_id: format!("old-{number}"),
                args: vec!["x".repeat(60_000)],
                ..SandboxSpec::default()
            };
            let order = Order { spec: Arc::new(spec), expires_at: None, lease: None, heard: None };
            state.table.put(Sandbox::creating(order).in_phase(Phase::Running));
        }
        let parts = inventory(&state, 1, "h");
        let sizes: Vec<_> = parts.iter().map(v1::AgentMessage::encoded_len).collect();
        assert!(sizes.iter().all(|size| *size < 1_000_000) && parts.len() < 5, "{sizes:?}");
        let report = report(&state, "old-7", 0, "h");
        assert_eq!(report.origin(), v1::SandboxOrigin::Unlabelled);
        assert_eq!(report.spec.unwrap().args[0].len(), 60_000);
    }
}
