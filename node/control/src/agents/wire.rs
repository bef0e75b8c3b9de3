//! The agents' wire types and the core's.

use sandkeeper_proto::v1;
use sandkeeper_statemachine::{
    Adoptable, AgentSpec, Capacity, Generation, Incarnation, InvalidName, Label, Labels, Mode, Origin,
    RequestId, Resources, Sandbox, SandboxId, SandboxName, SandboxSpec,
};
use uuid::Uuid;

use crate::api::convert::resources;
use crate::applier::{Actual, Heard, Stranger};

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

pub(crate) fn welcome(welcome: v1::Welcome) -> v1::ServerMessage {
    let body = Some(v1::server_message::Body::Welcome(welcome));
    v1::ServerMessage { body, ..v1::ServerMessage::default() }
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

/// What a report says. `Err`: it is not a report that an agent of ours makes.
pub(crate) fn heard(report: &v1::SandboxReport) -> Result<(SandboxId, Heard), String> {
    let id: SandboxId = named("report.sandbox_id", report.sandbox_id.parse())?;
    let origin = match report.origin() {
        v1::SandboxOrigin::Unspecified | v1::SandboxOrigin::Ours => {
            return Ok((id, Heard::Ours(actual(report)?)));
        }
        v1::SandboxOrigin::Unlabelled => Origin::Unlabelled,
        v1::SandboxOrigin::Other => Origin::Other,
    };
    let adoptable = match (&report.spec, origin) {
        (Some(spec), Origin::Unlabelled) => Some(Box::new(adoptable(spec)?)),
        _ => None,
    };
    Ok((id, Heard::Stranger(Stranger { generation: report.generation, origin, adoptable })))
}

/// How an unlabelled sandbox was started. Whether that is within our limits is decided when it is adopted.
fn adoptable(create: &v1::CreateCommand) -> Result<Adoptable, String> {
    let port = |port: &i32| u16::try_from(*port).map_err(|_| format!("report.spec: {port} is not a port"));
    let resources = create.resources.unwrap_or_default();
    let amount = |value: Option<i64>| u64::try_from(value.unwrap_or(0)).unwrap_or(0);
    let spec = SandboxSpec {
        // What it is called is decided when it is adopted.
        name: SandboxName { namespace: Label::default_name(), name: Label::default_name() },
        image: create.image.clone(),
        command: create.command.clone(),
        args: create.args.clone(),
        envs: create.envs.clone(),
        working_dir: create.working_dir.clone(),
        ports: create.exposed_ports.iter().map(port).collect::<Result<_, _>>()?,
        resources: Resources {
            cpu_millis: amount(resources.cpu_millis),
            memory_bytes: amount(resources.memory_bytes),
        },
        pool: Label::default_name(),
        agent_selector: Labels::new(),
        mode: Mode::Fast,
        request_id: RequestId::Uuid(Uuid::nil()),
    };
    Ok(Adoptable { spec, labels: create.labels.clone() })
}

/// `None`: that it is not there.
fn actual(report: &v1::SandboxReport) -> Result<Option<Actual>, String> {
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
    Ok(actual)
}
