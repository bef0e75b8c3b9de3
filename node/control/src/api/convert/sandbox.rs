//! Sandboxes: what is asked of them beside a create, and what is told.

use sandkeeper_proto::v1;
use sandkeeper_statemachine::limits::check_update;
use sandkeeper_statemachine::{
    Actor, AgentId, CallerId, Command, FailurePolicy, Mode, Phase, Rejection, Request, Sandbox,
    SandboxCreated, SandboxId, SandboxName, SandboxRef, SandboxSpec, SandboxUpdate, State, Timestamp,
};

use super::create::{failure_policy, recovery_timeout};
use super::target::{sandbox_ref, target};
use super::{Fields, Retention, invalid, resources};

/// Reads an update.
///
/// # Errors
/// Every violation.
pub(crate) fn update(
    wire: v1::UpdateSandboxRequest,
    actor: Actor,
    retention: &Retention,
) -> Result<Request, Rejection> {
    let mut fields = Fields::default();
    fields.size(&wire);
    let caller = retention.caller_id(&mut fields, &wire.request_id);
    let target = target(&mut fields, wire.r#ref.as_ref(), wire.expected_revision);
    let mut update = SandboxUpdate::default();
    let paths = wire.update_mask.unwrap_or_default().paths;
    let known = "expire_time, labels, failure_policy, recovery_timeout_seconds";
    fields.require(!paths.is_empty(), "update_mask", format!("must name what changes: any of {known}"));
    let mut labels = Some(wire.labels);
    for path in &paths {
        match path.as_str() {
            "expire_time" => update.expire_time = Some(new_expire_time(&mut fields, wire.expire_time)),
            // Named twice, it is the same once.
            "labels" => update.labels = labels.take().or(update.labels),
            "failure_policy" => {
                update.failure_policy = Some(failure_policy(&mut fields, wire.failure_policy));
            }
            "recovery_timeout_seconds" => {
                update.recovery_timeout_seconds = Some(recovery_timeout(wire.recovery_timeout_seconds));
            }
            other => fields.refuse("update_mask", format!("{other:?} can't be changed: only {known}")),
        }
    }
    fields.check(check_update(&update));
    fields.done()?;
    command(actor, caller, target.map(|target| Command::UpdateSandbox { target, update }))
}

fn new_expire_time(fields: &mut Fields, time: i64) -> Option<Timestamp> {
    fields.require(time >= 0, "expire_time", "must lie in the future, or be 0: never");
    (time != 0).then_some(Timestamp(time))
}

/// Reads a reset.
///
/// # Errors
/// Every violation.
pub(crate) fn reset(
    wire: &v1::ResetSandboxRequest,
    actor: Actor,
    retention: &Retention,
) -> Result<Request, Rejection> {
    let mut fields = Fields::default();
    let caller = retention.caller_id(&mut fields, &wire.request_id);
    let target = target(&mut fields, wire.r#ref.as_ref(), wire.expected_revision);
    fields.done()?;
    command(actor, caller, target.map(Command::ResetSandbox))
}

/// Reads a terminate.
///
/// # Errors
/// Every violation.
pub(crate) fn terminate(
    wire: &v1::TerminateSandboxRequest,
    actor: Actor,
    retention: &Retention,
) -> Result<Request, Rejection> {
    let mut fields = Fields::default();
    let caller = retention.caller_id(&mut fields, &wire.request_id);
    let target = target(&mut fields, wire.r#ref.as_ref(), wire.expected_revision);
    fields.done()?;
    command(actor, caller, target.map(Command::TerminateSandbox))
}

fn command(actor: Actor, caller: CallerId, command: Option<Command>) -> Result<Request, Rejection> {
    // A target that is missing was noted as a violation before.
    let command = command.ok_or_else(|| invalid("ref", "must name a sandbox"))?;
    Ok(Request { actor, id: Some(caller), command })
}

/// Reads a wait.
///
/// # Errors
/// Every violation.
pub(crate) fn wait(wire: &v1::WaitSandboxRequest) -> Result<(SandboxRef, Vec<v1::Phase>), Rejection> {
    let mut fields = Fields::default();
    let wanted = sandbox_ref(&mut fields, wire.r#ref.as_ref());
    let phases = phases(&mut fields, &wire.phases);
    fields.require(!wire.phases.is_empty(), "phases", "must name at least one phase");
    fields.done()?;
    let wanted = wanted.ok_or_else(|| invalid("ref", "must name a sandbox"))?;
    Ok((wanted, phases))
}

/// Reads a list of phases; `fields` knows of those that are none.
pub(super) fn phases(fields: &mut Fields, wire: &[i32]) -> Vec<v1::Phase> {
    let mut phases: Vec<v1::Phase> = Vec::new();
    for value in wire {
        match fields.enum_value("phases", *value) {
            Some(v1::Phase::Unspecified) => fields.refuse("phases", "must be phases"),
            Some(phase) if !phases.contains(&phase) => phases.push(phase),
            _ => {}
        }
    }
    phases
}

/// A phase, as the wire calls it.
pub(crate) fn phase(phase: Phase) -> v1::Phase {
    match phase {
        Phase::Pending => v1::Phase::Pending,
        Phase::Allocated => v1::Phase::Allocated,
        Phase::Running => v1::Phase::Running,
        Phase::Terminating => v1::Phase::Terminating,
        Phase::Failed => v1::Phase::Failed,
        Phase::Lost => v1::Phase::Lost,
    }
}

fn wire_mode(mode: Mode) -> v1::Mode {
    match mode {
        Mode::Fast => v1::Mode::Fast,
        Mode::Strong => v1::Mode::Strong,
    }
}

fn wire_failure_policy(policy: FailurePolicy) -> v1::FailurePolicy {
    match policy {
        FailurePolicy::Manual => v1::FailurePolicy::Manual,
        FailurePolicy::AutoRecreate => v1::FailurePolicy::AutoRecreate,
    }
}

/// The agent of the current generation, if it has one: also of one that has failed, whose log is there.
pub(crate) fn agent_of(sandbox: &Sandbox) -> Option<&AgentId> {
    let status = &sandbox.status;
    status.agent.as_ref().filter(|_| status.phase != Phase::Pending)
}

/// A sandbox, as the wire tells it. `agents` knows where its agent is reached.
pub(crate) fn sandbox(sandbox: &Sandbox, agents: &State) -> v1::Sandbox {
    let status = &sandbox.status;
    v1::Sandbox {
        phase: phase(status.phase).into(),
        agent_id: agent_of(sandbox).map(ToString::to_string).unwrap_or_default(),
        generation: status.generation,
        endpoints: endpoints(sandbox, agents),
        labels: status.labels.clone(),
        expire_time: status.expire_time.map_or(0, |time| time.0),
        failure_policy: wire_failure_policy(status.failure_policy).into(),
        recovery_timeout_seconds: status.recovery_timeout_seconds,
        revision: status.revision,
        reason: status.reason.clone(),
        exit_code: status.exit_code,
        running_timestamp: status.running_since.map_or(0, |time| time.0),
        ..of_spec(&sandbox.id, &sandbox.spec, sandbox.created)
    }
}

/// Where its ports are reached: what the agent reported, or, before it has, where they are going to be.
fn endpoints(sandbox: &Sandbox, agents: &State) -> Vec<String> {
    let status = &sandbox.status;
    if !status.endpoints.is_empty() {
        return status.endpoints.clone();
    }
    let host = sandbox.holder().and_then(|agent| agents.agent(agent)).map(|agent| agent.spec.host.as_str());
    match host {
        Some(host) if status.phase == Phase::Allocated => {
            sandbox.spec.ports.iter().map(|port| endpoint(host, *port)).collect()
        }
        _ => Vec::new(),
    }
}

/// `host:port`, with brackets around an IPv6 address.
fn endpoint(host: &str, port: u16) -> String {
    let brackets = host.contains(':') && !host.starts_with('[');
    if brackets { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Whether the endpoints of a sandbox depend on an agent that this replica has not heard of yet.
pub(crate) fn lacks_agent(sandbox: &Sandbox, agents: &State) -> bool {
    let waits = sandbox.status.phase == Phase::Allocated && sandbox.status.endpoints.is_empty();
    let unknown = sandbox.holder().is_some_and(|agent| agents.agent(agent).is_none());
    waits && unknown && !sandbox.spec.ports.is_empty()
}

/// A sandbox that is not in the state any more, as it was last seen.
pub(crate) fn gone(last: v1::Sandbox) -> v1::Sandbox {
    v1::Sandbox { phase: v1::Phase::Gone.into(), endpoints: Vec::new(), ..last }
}

/// A sandbox that is not in the state any more, of which only this is known.
pub(crate) fn gone_named(id: &SandboxId, name: &SandboxName, created: Timestamp) -> v1::Sandbox {
    v1::Sandbox {
        sandbox_id: id.to_string(),
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        create_timestamp: created.0,
        phase: v1::Phase::Gone.into(),
        ..v1::Sandbox::default()
    }
}

/// What was asked for, gone before anybody looked.
pub(crate) fn never_seen(wanted: &SandboxRef) -> v1::Sandbox {
    let gone = v1::Sandbox { phase: v1::Phase::Gone.into(), ..v1::Sandbox::default() };
    match wanted {
        SandboxRef::Id { id, .. } => v1::Sandbox { sandbox_id: id.to_string(), ..gone },
        SandboxRef::Name(name) => {
            let (namespace, name) = (name.namespace.to_string(), name.name.to_string());
            v1::Sandbox { namespace, name, ..gone }
        }
    }
}

/// A sandbox as it was asked for.
pub(super) fn created(id: &SandboxId, created: &SandboxCreated, time: Timestamp) -> v1::Sandbox {
    v1::Sandbox {
        phase: v1::Phase::Pending.into(),
        labels: created.labels.clone(),
        expire_time: created.expire_time.map_or(0, |time| time.0),
        failure_policy: wire_failure_policy(created.failure_policy).into(),
        recovery_timeout_seconds: created.recovery_timeout_seconds,
        ..of_spec(id, &created.spec, time)
    }
}

/// The fields that an update changed, and their new values.
pub(super) fn updated(update: &SandboxUpdate) -> (Vec<String>, v1::Sandbox) {
    let SandboxUpdate { expire_time, labels, failure_policy, recovery_timeout_seconds } = update;
    let mut values = v1::Sandbox::default();
    let mut changed = Vec::new();
    if let Some(expire_time) = expire_time {
        values.expire_time = expire_time.map_or(0, |time| time.0);
        changed.push("expire_time".to_owned());
    }
    if let Some(labels) = labels {
        values.labels.clone_from(labels);
        changed.push("labels".to_owned());
    }
    if let Some(policy) = failure_policy {
        values.failure_policy = wire_failure_policy(*policy).into();
        changed.push("failure_policy".to_owned());
    }
    if let Some(seconds) = recovery_timeout_seconds {
        values.recovery_timeout_seconds = *seconds;
        changed.push("recovery_timeout_seconds".to_owned());
    }
    (changed, values)
}

fn of_spec(id: &SandboxId, spec: &SandboxSpec, created: Timestamp) -> v1::Sandbox {
    v1::Sandbox {
        sandbox_id: id.to_string(),
        namespace: spec.name.namespace.to_string(),
        name: spec.name.name.to_string(),
        create_timestamp: created.0,
        image: spec.image.clone(),
        command: spec.command.clone(),
        args: spec.args.clone(),
        envs: spec.envs.clone(),
        working_dir: spec.working_dir.clone(),
        exposed_ports: spec.ports.iter().map(|port| i32::from(*port)).collect(),
        resources: Some(resources(spec.resources)),
        pool_ref: spec.pool.to_string(),
        agent_selector: spec.agent_selector.clone(),
        mode: wire_mode(spec.mode).into(),
        request_id: spec.request_id.to_string(),
        ..v1::Sandbox::default()
    }
}
