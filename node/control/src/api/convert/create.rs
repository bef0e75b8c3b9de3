//! What a create asks for.

use prost_types::Duration as WireDuration;
use sandkeeper_proto::v1;
use sandkeeper_proto::v1::create_sandbox_request::Expiry as WireExpiry;
use sandkeeper_statemachine::limits::{MAX_DURATION_NANOS, check_create};
use sandkeeper_statemachine::{
    Actor, Command, CreateSandbox, Expiry, FailurePolicy, Mode, Rejection, Request, RequestId, Resources,
    SandboxName, SandboxSpec, Timestamp,
};

use super::{Fields, Retention};

/// After which time a LOST sandbox is made anew, if the caller does not say, seconds. A machine that reboots is back
/// in less.
pub use sandkeeper_statemachine::limits::DEFAULT_RECOVERY_TIMEOUT_SECONDS;
/// How long a create waits for capacity, if the caller does not say, nanoseconds: one hour.
pub const DEFAULT_CAPACITY_TIMEOUT_NANOS: i64 = 3600 * NANOS_PER_SECOND;

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// Reads a create.
///
/// # Errors
/// Every violation.
pub(crate) fn create(
    wire: v1::CreateSandboxRequest,
    actor: Actor,
    retention: &Retention,
) -> Result<Request, Rejection> {
    let mut fields = Fields::default();
    fields.size(&wire);
    let caller = retention.caller_id(&mut fields, &wire.request_id);
    let create = what(&mut fields, wire, caller.id.clone());
    fields.done()?;
    Ok(Request { actor, id: Some(caller), command: Command::CreateSandbox(Box::new(create)) })
}

/// Reads what is to be made, but for the id of the request that makes it; `fields` knows what is wrong with it.
pub(super) fn what(
    fields: &mut Fields,
    wire: v1::CreateSandboxRequest,
    request_id: RequestId,
) -> CreateSandbox {
    let failure_policy = failure_policy(fields, wire.failure_policy);
    let wait = wait(fields, &wire);
    let expiry = wire.expiry.and_then(|expiry| read_expiry(fields, expiry));
    let spec = SandboxSpec {
        name: SandboxName {
            namespace: fields.label_or_default("namespace", &wire.namespace),
            name: fields.label("name", &wire.name),
        },
        image: wire.image,
        command: wire.command,
        args: wire.args,
        envs: wire.envs,
        working_dir: wire.working_dir,
        ports: ports(fields, &wire.exposed_ports),
        resources: wanted_resources(fields, wire.resources),
        pool: fields.label_or_default("pool_ref", &wire.pool_ref),
        agent_selector: wire.agent_selector,
        mode: mode(fields, wire.mode),
        request_id,
    };
    let create = CreateSandbox {
        spec,
        labels: wire.labels,
        expiry,
        failure_policy,
        recovery_timeout_seconds: recovery_timeout(wire.recovery_timeout_seconds),
        wait,
    };
    fields.check(check_create(&create));
    create
}

fn mode(fields: &mut Fields, value: i32) -> Mode {
    match fields.enum_value("mode", value) {
        Some(v1::Mode::Strong) => Mode::Strong,
        Some(v1::Mode::Unspecified | v1::Mode::Fast) | None => Mode::Fast,
    }
}

pub(super) fn failure_policy(fields: &mut Fields, value: i32) -> FailurePolicy {
    match fields.enum_value("failure_policy", value) {
        Some(v1::FailurePolicy::AutoRecreate) => FailurePolicy::AutoRecreate,
        Some(v1::FailurePolicy::Unspecified | v1::FailurePolicy::Manual) | None => FailurePolicy::Manual,
    }
}

pub(super) fn recovery_timeout(seconds: u32) -> u32 {
    if seconds == 0 { DEFAULT_RECOVERY_TIMEOUT_SECONDS } else { seconds }
}

fn wait(fields: &mut Fields, wire: &v1::CreateSandboxRequest) -> Option<i64> {
    match (wire.wait_for_capacity, &wire.capacity_timeout) {
        (false, None) => None,
        (false, Some(_)) => {
            fields.refuse("capacity_timeout", "has a meaning only with wait_for_capacity");
            None
        }
        (true, None) => Some(DEFAULT_CAPACITY_TIMEOUT_NANOS),
        (true, Some(timeout)) => duration(fields, "capacity_timeout", timeout),
    }
}

fn read_expiry(fields: &mut Fields, wire: WireExpiry) -> Option<Expiry> {
    match wire {
        WireExpiry::Ttl(ttl) => duration(fields, "ttl", &ttl).map(Expiry::After),
        WireExpiry::ExpireTime(time) if time > 0 => Some(Expiry::At(Timestamp(time))),
        WireExpiry::ExpireTime(_) => {
            fields.refuse(
                "expire_time",
                "must lie in the future; leave it out for a sandbox that never expires",
            );
            None
        }
    }
}

/// More than 0, at most ten years; nanoseconds. What is not is noted.
pub(super) fn duration(fields: &mut Fields, field: &str, wire: &WireDuration) -> Option<i64> {
    let nanos = wire
        .seconds
        .checked_mul(NANOS_PER_SECOND)
        .and_then(|nanos| nanos.checked_add(wire.nanos.into()))
        .filter(|nanos| (1..=MAX_DURATION_NANOS).contains(nanos));
    // The two parts of a Duration have one sign, and nanos stays below a second.
    let normal = (0..NANOS_PER_SECOND).contains(&wire.nanos.into()) && wire.seconds >= 0;
    fields.require(normal && nanos.is_some(), field, "must be more than 0 and at most ten years");
    nanos.filter(|_| normal)
}

fn ports(fields: &mut Fields, wire: &[i32]) -> Vec<u16> {
    let valid = |port: &i32| u16::try_from(*port).ok().filter(|port| *port > 0);
    if let Some(bad) = wire.iter().find(|port| valid(port).is_none()) {
        fields.refuse("exposed_ports", format!("a port is 1 to 65535, not {bad}"));
    }
    wire.iter().filter_map(valid).collect()
}

fn wanted_resources(fields: &mut Fields, wire: Option<v1::Resources>) -> Resources {
    let mut amount = |field: &str, value: Option<i64>| match value {
        None => 0,
        Some(value) if value > 0 => value.cast_unsigned(),
        Some(value) => {
            fields.refuse(
                field,
                format!("must be more than 0, is {value}; leave it out to ask for none in particular"),
            );
            0
        }
    };
    let wire = wire.unwrap_or_default();
    Resources {
        cpu_millis: amount("resources.cpu_millis", wire.cpu_millis),
        memory_bytes: amount("resources.memory_bytes", wire.memory_bytes),
    }
}
