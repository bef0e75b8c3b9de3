//! Agents and capacity.

use sandkeeper_proto::v1;
use sandkeeper_statemachine::limits::MAX_TEXT_BYTES;
use sandkeeper_statemachine::{
    Actor, Agent, AgentId, AgentStatus, CallerId, Capacity, Command, Drain, Incarnation, Phase, Rejection,
    Request, State,
};

use super::create::duration;
use super::target::agent_id;
use super::{Fields, Retention, invalid};

/// Reads a cordon.
///
/// # Errors
/// Every violation.
pub(crate) fn cordon(
    wire: v1::CordonAgentRequest,
    actor: Actor,
    retention: &Retention,
) -> Result<Request, Rejection> {
    let mut fields = Fields::default();
    let bytes = wire.reason.len();
    fields.require(bytes <= MAX_TEXT_BYTES, "reason", format!("at most {MAX_TEXT_BYTES} bytes, has {bytes}"));
    let command = |agent| Command::CordonAgent { agent, reason: wire.reason };
    about_agent(fields, &wire.request_id, &wire.agent_id, actor, retention, command)
}

/// Reads a drain.
///
/// # Errors
/// Every violation.
pub(crate) fn drain(
    wire: v1::DrainAgentRequest,
    actor: Actor,
    retention: &Retention,
) -> Result<Request, Rejection> {
    let mut fields = Fields::default();
    let (bytes, terminate) = (wire.reason.len(), wire.terminate);
    fields.require(bytes <= MAX_TEXT_BYTES, "reason", format!("at most {MAX_TEXT_BYTES} bytes, has {bytes}"));
    let deadline = wire.deadline.and_then(|deadline| {
        let at_once = deadline == prost_types::Duration::default();
        if at_once { Some(0) } else { duration(&mut fields, "deadline", &deadline) }
    });
    let command = |agent| Command::DrainAgent { agent, reason: wire.reason, deadline, terminate };
    about_agent(fields, &wire.request_id, &wire.agent_id, actor, retention, command)
}

/// Reads the end of a cordon.
///
/// # Errors
/// Every violation.
pub(crate) fn uncordon(
    wire: &v1::UncordonAgentRequest,
    actor: Actor,
    retention: &Retention,
) -> Result<Request, Rejection> {
    let fields = Fields::default();
    about_agent(fields, &wire.request_id, &wire.agent_id, actor, retention, Command::UncordonAgent)
}

/// Reads that what an agent ran is to be recovered.
///
/// # Errors
/// Every violation.
pub(crate) fn recover(
    wire: &v1::RecoverAgentRequest,
    actor: Actor,
    retention: &Retention,
) -> Result<Request, Rejection> {
    let fields = Fields::default();
    about_agent(fields, &wire.request_id, &wire.agent_id, actor, retention, Command::RecoverAgent)
}

/// Reads the removal of an agent.
///
/// # Errors
/// Every violation.
pub(crate) fn remove(
    wire: &v1::RemoveAgentRequest,
    actor: Actor,
    retention: &Retention,
) -> Result<Request, Rejection> {
    let command = |agent| Command::RemoveAgent { agent, fenced: wire.fenced };
    about_agent(Fields::default(), &wire.request_id, &wire.agent_id, actor, retention, command)
}

fn about_agent(
    mut fields: Fields,
    request_id: &str,
    agent: &str,
    actor: Actor,
    retention: &Retention,
    command: impl FnOnce(AgentId) -> Command,
) -> Result<Request, Rejection> {
    let caller: CallerId = retention.caller_id(&mut fields, request_id);
    let agent = agent_id(&mut fields, agent);
    fields.done()?;
    // A bad name was noted as a violation before.
    let agent = agent.ok_or_else(|| invalid("agent_id", "must name an agent"))?;
    Ok(Request { actor, id: Some(caller), command: command(agent) })
}

/// Reads the name of an agent that nothing else comes with.
///
/// # Errors
/// If it is none.
pub(crate) fn only_agent_id(text: &str) -> Result<AgentId, Rejection> {
    text.parse().map_err(|error: sandkeeper_statemachine::InvalidName| invalid("agent_id", error.to_string()))
}

/// A capacity, as the wire tells it.
pub(crate) fn capacity(capacity: Capacity) -> v1::Capacity {
    let Capacity { slots, cpu_millis, memory_bytes } = capacity;
    v1::Capacity { slots, cpu_millis, memory_bytes }
}

fn incarnation(incarnation: Incarnation) -> v1::Incarnation {
    v1::Incarnation { ledger_id: incarnation.ledger.to_string(), start: incarnation.start }
}

/// Agents as they are in this state, as the wire tells them. `connection_id`: of an agent's session with this node, if there
/// is one.
pub(crate) fn agents<'a>(
    state: &State,
    agents: impl IntoIterator<Item = &'a Agent>,
    connection_id: impl Fn(&AgentId) -> Option<String>,
) -> Vec<v1::Agent> {
    let paused = state.recovery_paused();
    let tell = |told: &Agent| {
        let id = &told.spec.agent_id;
        let drain = state.drain(id).map(drain_of);
        v1::Agent { drain, ..agent(told, connection_id(id), paused.contains(id)) }
    };
    agents.into_iter().map(tell).collect()
}

fn drain_of(drain: &Drain) -> v1::Drain {
    let deadline = drain.deadline.map_or(0, |time| time.0);
    v1::Drain { since: drain.since.0, deadline, terminate: drain.terminate }
}

fn agent(agent: &Agent, connection_id: Option<String>, recovery_paused: bool) -> v1::Agent {
    let spec = &agent.spec;
    let status = match agent.status {
        AgentStatus::Ready => v1::AgentStatus::Ready,
        AgentStatus::Lost => v1::AgentStatus::Lost,
    };
    v1::Agent {
        agent_id: spec.agent_id.to_string(),
        status: status.into(),
        cordoned: agent.cordoned,
        incarnation: Some(incarnation(spec.incarnation)),
        total: Some(capacity(spec.capacity)),
        allocated: Some(capacity(agent.allocated)),
        free: Some(capacity(agent.free())),
        labels: spec.labels.clone(),
        pool: spec.pool.to_string(),
        runtime: spec.runtime.clone(),
        version: spec.version.clone(),
        host: spec.host.clone(),
        revision: agent.revision,
        connected: connection_id.is_some(),
        connection_id: connection_id.unwrap_or_default(),
        reason: agent.reason.clone(),
        lost_since: agent.lost_since.map_or(0, |time| time.0),
        recovery_paused,
        drain: None,
    }
}

/// What all agents together have, as the wire tells it, without header and agents.
pub(crate) fn fleet(state: &State) -> v1::GetCapacityResponse {
    let fleet = state.capacity();
    v1::GetCapacityResponse {
        total: Some(capacity(fleet.total)),
        allocated: Some(capacity(fleet.allocated)),
        free: Some(capacity(fleet.free)),
        revision: state.revision(),
        history_digest: state.history_digest().to_string(),
        state_digest: state.state_digest().to_string(),
        sandboxes: state.sandbox_count() as u64,
        pending: state.count_in(Phase::Pending),
        ..v1::GetCapacityResponse::default()
    }
}
