//! The only place where wire types meet the agent's own.

use std::sync::Arc;
use std::time::Duration;

use sandkeeper_proto::v1;

use crate::boottime::BootTime;
use crate::config::Capacity;
use crate::lease::LeaseTerms;
use crate::ledger::Incarnation;
use crate::plan::{Body, Command};
use crate::spec::{SandboxSpec, is_usable_id};
use crate::table::Order;

mod reports;

pub(crate) use reports::{inventory, message, refusal, report, reports};

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

/// The command that a message carries; `None` if its body is none. `now`: when it was received; `heard`: see [`Order`];
/// `cluster_id`: the label of what it has started.
pub(crate) fn command(
    session: u64,
    message: v1::ServerMessage,
    now: BootTime,
    heard: Option<BootTime>,
    cluster_id: String,
) -> Option<Command> {
    use v1::server_message::Body as Wire;
    let body = match message.body? {
        Wire::Create(create) => create_body(create, now, heard, cluster_id),
        Wire::Adopt(adopt) => Body::Adopt { sandbox_id: adopt.sandbox_id, generation: adopt.generation },
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

fn create_body(
    create: v1::CreateCommand,
    now: BootTime,
    heard: Option<BootTime>,
    cluster_id: String,
) -> Body {
    let (sandbox_id, generation) = (create.sandbox_id.clone(), create.generation);
    match order(create, now, heard, cluster_id) {
        Ok(order) => Body::Create(order),
        Err(reason) => Body::Unusable { sandbox_id, generation, reason },
    }
}

fn terms(lease: v1::Lease) -> LeaseTerms {
    LeaseTerms { length: Duration::from_millis(lease.length_millis), revision: lease.revision }
}

fn order(
    create: v1::CreateCommand,
    now: BootTime,
    heard: Option<BootTime>,
    cluster_id: String,
) -> Result<Order, String> {
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
            cluster_id,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(id: &str) -> v1::CreateCommand {
        v1::CreateCommand { sandbox_id: id.to_owned(), generation: 1, ..v1::CreateCommand::default() }
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
            let Body::Unusable { reason, .. } = create_body(bad, BootTime(0), None, String::new()) else {
                panic!("{says} is usable")
            };
            assert!(reason.contains(says), "{reason}");
        }
    }
}
