//! The only place where wire types meet the agent's own.

use std::sync::Arc;
use std::time::Duration;

use sandkeeper_proto::v1;

use crate::boottime::BootTime;
use crate::config::Capacity;
use crate::lease::LeaseTerms;
use crate::ledger::Incarnation;
use crate::plan::{Body, Command, Refusal, RefusalKind};
use crate::spec::{SandboxSpec, is_usable_id};
use crate::table::{Order, Phase, Sandbox, Table};

/// The most reports in one message: some 200 bytes each, far below what a message may hold.
const REPORTS_PER_MESSAGE: usize = 500;

pub(crate) fn capacity(capacity: Capacity) -> v1::Capacity {
    v1::Capacity {
        slots: capacity.slots,
        cpu_millis: capacity.cpu_millis,
        memory_bytes: capacity.memory_bytes,
    }
}

pub(crate) fn incarnation(incarnation: &Incarnation) -> v1::Incarnation {
    v1::Incarnation { ledger_id: incarnation.ledger_id.clone(), start: incarnation.start }
}

/// The command that a message carries; `None` if its body is none. `now`: when it was received; `heard`: see [`Order`].
pub(crate) fn command(
    session: u64,
    message: v1::ServerMessage,
    now: BootTime,
    heard: Option<BootTime>,
) -> Option<Command> {
    use v1::server_message::Body as Wire;
    let body = match message.body? {
        Wire::Create(create) => create_body(create, now, heard),
        Wire::Terminate(terminate) => {
            Body::Terminate { sandbox_id: terminate.sandbox_id, generation: terminate.generation }
        }
        Wire::Update(update) => Body::Update {
            sandbox_id: update.sandbox_id,
            generation: update.generation,
            expires_at: update.expires_in_nanos.map(|nanos| now.after_nanos(nanos)),
            lease: update.lease.map(terms),
        },
        Wire::InventoryRequest(v1::InventoryRequest {}) => Body::Inventory,
        Wire::Welcome(_)
        | Wire::HeartbeatAck(_)
        | Wire::OpenTunnel(_)
        | Wire::Goodbye(_)
        | Wire::Members(_) => return None,
    };
    let incarnation = message.incarnation.unwrap_or_default();
    Some(Command {
        session,
        term: message.term,
        sequence: message.sequence,
        incarnation: Incarnation { ledger_id: incarnation.ledger_id, start: incarnation.start },
        body,
    })
}

fn create_body(create: v1::CreateCommand, now: BootTime, heard: Option<BootTime>) -> Body {
    let (sandbox_id, generation) = (create.sandbox_id.clone(), create.generation);
    match order(create, now, heard) {
        Ok(order) => Body::Create(order),
        Err(reason) => Body::Unusable { sandbox_id, generation, reason },
    }
}

fn terms(lease: v1::Lease) -> LeaseTerms {
    LeaseTerms { length: Duration::from_millis(lease.length_millis), revision: lease.revision }
}

fn order(create: v1::CreateCommand, now: BootTime, heard: Option<BootTime>) -> Result<Order, String> {
    if !is_usable_id(&create.sandbox_id) {
        return Err(format!("sandbox id {:?} can't be used as the name of a folder", create.sandbox_id));
    }
    let resources = create.resources.unwrap_or_default();
    let amount = |name: &str, value: Option<i64>| {
        let value = value.unwrap_or(0);
        u64::try_from(value).map_err(|_| format!("{name} is {value}, and must not be negative"))
    };
    let port = |port: i32| {
        u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(|| format!("{port} is not a port"))
    };
    Ok(Order {
        expires_at: create.expires_in_nanos.map(|nanos| now.after_nanos(nanos)),
        lease: create.lease.map(terms),
        heard,
        spec: Arc::new(SandboxSpec {
            cpu_millis: amount("cpu_millis", resources.cpu_millis)?,
            memory_bytes: amount("memory_bytes", resources.memory_bytes)?,
            ports: create.exposed_ports.into_iter().map(port).collect::<Result<_, _>>()?,
            sandbox_id: create.sandbox_id,
            generation: create.generation,
            namespace: create.namespace,
            name: create.name,
            create_timestamp: create.create_timestamp,
            image: create.image,
            command: create.command,
            args: create.args,
            envs: create.envs,
            working_dir: create.working_dir,
            labels: create.labels,
        }),
    })
}

/// How it is with one generation of a sandbox.
pub(crate) fn report(table: &Table, sandbox_id: &str, generation: u64, host: &str) -> v1::SandboxReport {
    let absent = || v1::SandboxReport {
        sandbox_id: sandbox_id.to_owned(),
        generation,
        state: v1::SandboxState::Absent.into(),
        ..v1::SandboxReport::default()
    };
    let Some(sandbox) = table.get(sandbox_id) else { return absent() };
    if let Some(next) = sandbox.next()
        && next.spec.generation == generation
    {
        return describe(&Sandbox::creating(next.clone()), host);
    }
    // A terminate may have raised the number that the sandbox is known by: until it is gone, all of them are stopping.
    let stopping = matches!(sandbox.phase, Phase::Stopping { .. })
        && (sandbox.order.spec.generation..=sandbox.generation).contains(&generation);
    if generation == sandbox.generation || stopping {
        v1::SandboxReport { generation, ..describe(sandbox, host) }
    } else {
        absent()
    }
}

fn describe(sandbox: &Sandbox, host: &str) -> v1::SandboxReport {
    let spec = &sandbox.order.spec;
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
    }
}

fn endpoint(host: &str, port: u16) -> String {
    match host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{port}"),
        Err(_) => format!("{host}:{port}"),
    }
}

/// The whole table as it is now, in parts.
pub(crate) fn inventory(
    table: &Table,
    term: u64,
    processed_sequence: u64,
    host: &str,
) -> Vec<v1::AgentMessage> {
    let all: Vec<_> = table
        .iter()
        .flat_map(|(_, sandbox)| {
            let next = sandbox.next().map(|next| describe(&Sandbox::creating(next.clone()), host));
            std::iter::once(describe(sandbox, host)).chain(next)
        })
        .collect();
    let parts = all.len().div_ceil(REPORTS_PER_MESSAGE).max(1);
    let mut rest = all.into_iter();
    (0..parts)
        .map(|part| {
            let sandboxes = rest.by_ref().take(REPORTS_PER_MESSAGE).collect();
            let inventory = v1::Inventory {
                term,
                processed_sequence,
                sandboxes,
                last: part + 1 == parts,
                part: part as u32,
            };
            message(v1::agent_message::Body::Inventory(inventory))
        })
        .collect()
}

/// Reports of changes, in as many messages as it takes. Only the last says what was processed: until then, what the
/// leader has not heard of may be in a later one.
pub(crate) fn reports(
    term: u64,
    processed_sequence: u64,
    reports: Vec<v1::SandboxReport>,
) -> Vec<v1::AgentMessage> {
    let mut rest = reports;
    let mut messages = Vec::with_capacity(rest.len().div_ceil(REPORTS_PER_MESSAGE));
    while !rest.is_empty() {
        let later = rest.split_off(rest.len().min(REPORTS_PER_MESSAGE));
        let processed_sequence = if later.is_empty() { processed_sequence } else { 0 };
        let reports = v1::SandboxReports { term, processed_sequence, reports: rest };
        messages.push(message(v1::agent_message::Body::Reports(reports)));
        rest = later;
    }
    messages
}

pub(crate) fn refusal(refusal: &Refusal) -> v1::AgentMessage {
    let kind = match refusal.kind {
        RefusalKind::Admission => v1::RefusalKind::Admission,
        RefusalKind::StaleTerm => v1::RefusalKind::StaleTerm,
        RefusalKind::StaleGeneration => v1::RefusalKind::StaleGeneration,
        RefusalKind::WrongIncarnation => v1::RefusalKind::WrongIncarnation,
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
    use super::*;

    fn create(id: &str) -> v1::CreateCommand {
        v1::CreateCommand { sandbox_id: id.to_owned(), generation: 1, ..v1::CreateCommand::default() }
    }

    fn table(phases: &[(&str, u64, Phase)]) -> Table {
        let mut table = Table::default();
        for (id, generation, phase) in phases {
            let order = order(create(id), BootTime(0), None).unwrap();
            let sandbox = Sandbox::creating(order).in_phase(phase.clone());
            table.put(Sandbox { generation: *generation, ..sandbox });
        }
        table
    }

    #[test]
    fn what_can_not_be_obeyed_says_which_field_and_value() {
        let resources = Some(v1::Resources { cpu_millis: Some(-5), memory_bytes: None });
        for (bad, says) in [
            (create("../etc"), "../etc"),
            (v1::CreateCommand { resources, ..create("a") }, "cpu_millis is -5"),
            (v1::CreateCommand { exposed_ports: vec![80, 65_536], ..create("a") }, "65536 is not a port"),
            (v1::CreateCommand { exposed_ports: vec![0], ..create("a") }, "0 is not a port"),
        ] {
            let Body::Unusable { reason, .. } = create_body(bad, BootTime(0), None) else {
                panic!("{says} is usable")
            };
            assert!(reason.contains(says), "{reason}");
        }
    }

    #[test]
    fn a_raised_generation_is_stopping_in_all_its_numbers_until_it_is_gone() {
        let table = table(&[("a", 3, Phase::Stopping { creating: false, ended: false, next: None })]);
        let state = |generation| report(&table, "a", generation, "h").state();
        assert_eq!((1..=4).map(state).collect::<Vec<_>>(), {
            use v1::SandboxState::{Absent, Stopping};
            [Stopping, Stopping, Stopping, Absent]
        });
    }

    #[test]
    fn an_inventory_in_parts_says_everything_once_and_last_only_at_its_end() {
        let names: Vec<_> = (0..1_001).map(|i| format!("s{i}")).collect();
        let phases: Vec<_> = names.iter().map(|name| (name.as_str(), 1, Phase::Running)).collect();
        let parts: Vec<_> = inventory(&table(&phases), 7, 9, "h")
            .into_iter()
            .map(|message| match message.body {
                Some(v1::agent_message::Body::Inventory(inventory)) => inventory,
                other => panic!("{other:?}"),
            })
            .collect();
        let shape: Vec<_> = parts.iter().map(|p| (p.part, p.last, p.sandboxes.len())).collect();
        assert_eq!(shape, [(0, false, 500), (1, false, 500), (2, true, 1)]);
        assert!(parts.iter().all(|part| part.term == 7 && part.processed_sequence == 9));
        let empty = inventory(&Table::default(), 1, 1, "h");
        assert_eq!(empty.len(), 1);
    }

    #[test]
    fn endpoints_are_host_and_port() {
        assert_eq!(endpoint("10.0.0.1", 80), "10.0.0.1:80");
        assert_eq!(endpoint("fe80::1", 80), "[fe80::1]:80");
        assert_eq!(endpoint("worker", 80), "worker:80");
    }
}
