//! The agents' wire types and the core's.

use sandkeeper_proto::v1;
use sandkeeper_statemachine::{
    AgentSpec, Capacity, Generation, Incarnation, InvalidName, Label, Sandbox, SandboxId,
};
use uuid::Uuid;

use crate::api::convert::resources;
use crate::applier::Actual;

/// What a hello says of an agent.
pub(crate) fn agent_spec(hello: &v1::Hello) -> Result<AgentSpec, String> {
    let incarnation = hello.incarnation.as_ref().ok_or("hello.incarnation is missing")?;
    let capacity = hello.capacity.unwrap_or_default();
    let pool =
        if hello.pool.is_empty() { Label::default_name() } else { named("hello.pool", hello.pool.parse())? };
    Ok(AgentSpec {
        agent_id: named("hello.agent_id", hello.agent_id.parse())?,
        incarnation: Incarnation {
            ledger: Uuid::try_parse(&incarnation.ledger_id)
                .map_err(|_| "hello.incarnation.ledger_id is not a UUID".to_owned())?,
            start: incarnation.start,
        },
        capacity: Capacity {
            slots: capacity.slots,
            cpu_millis: capacity.cpu_millis,
            memory_bytes: capacity.memory_bytes,
        },
        labels: hello.labels.clone(),
        pool,
        runtime: hello.runtime.clone(),
        version: hello.version.clone(),
        host: hello.host.clone(),
    })
}

fn named<T>(field: &str, parsed: Result<T, InvalidName>) -> Result<T, String> {
    parsed.map_err(|error| format!("{field}: {error}"))
}

pub(crate) fn incarnation(incarnation: Incarnation) -> v1::Incarnation {
    v1::Incarnation { ledger_id: incarnation.ledger.to_string(), start: incarnation.start }
}

/// The command to create a generation of a sandbox. `remaining`: of its time, nanoseconds; None: no end.
pub(crate) fn create_command(
    sandbox: &Sandbox,
    generation: Generation,
    remaining: Option<i64>,
) -> v1::CreateCommand {
    let spec = &sandbox.spec;
    v1::CreateCommand {
        sandbox_id: sandbox.id.to_string(),
        generation,
        namespace: spec.name.namespace.to_string(),
        name: spec.name.name.to_string(),
        create_timestamp: sandbox.created.0,
        image: spec.image.clone(),
        command: spec.command.clone(),
        args: spec.args.clone(),
        envs: spec.envs.clone(),
        working_dir: spec.working_dir.clone(),
        exposed_ports: spec.ports.iter().map(|port| i32::from(*port)).collect(),
        resources: Some(resources(spec.resources)),
        labels: sandbox.status.labels.clone(),
        expires_in_nanos: remaining,
        lease: lease(sandbox),
    }
}

/// When a sandbox has to be dead, if no leader acknowledges its agent's heartbeats; None: it may run on.
pub(crate) fn lease(sandbox: &Sandbox) -> Option<v1::Lease> {
    sandbox.status.wanted_lease().map(|seconds| v1::Lease {
        length_millis: u64::from(seconds) * 1_000,
        revision: sandbox.status.lease_revision,
    })
}

/// What a report says; `None` inside: that it is not there. `Err`: it is not a report that an agent of ours makes.
pub(crate) fn actual(report: &v1::SandboxReport) -> Result<(SandboxId, Option<Actual>), String> {
    let id = report.sandbox_id.parse().map_err(|error| format!("report.sandbox_id: {error}"))?;
    let reason = || report.reason.clone();
    let actual = match report.state() {
        v1::SandboxState::Creating => Some(Actual::Creating),
        v1::SandboxState::Running => {
            let lease_revision = report.lease.map_or(0, |lease| lease.revision);
            Some(Actual::Running { endpoints: report.endpoints.clone(), lease_revision })
        }
        v1::SandboxState::Stopping => Some(Actual::Stopping),
        v1::SandboxState::Exited => {
            let (exit_code, expired, lease_over) = (report.exit_code, report.expired, report.lease_over);
            Some(Actual::Exited { exit_code, reason: reason(), expired, lease_over })
        }
        v1::SandboxState::Failed => Some(Actual::Failed { reason: reason() }),
        v1::SandboxState::Absent => None,
        v1::SandboxState::Unspecified => return Err("report.state is not set".into()),
    };
    Ok((id, actual))
}
