//! Events, and which of them are wanted.

use sandkeeper_proto::v1;
use sandkeeper_statemachine::{AgentId, Event, EventKind, Label, Rejection, Revision, SandboxId, Timestamp};

use super::{Fields, sandbox};

/// Which events are wanted: those that match all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub namespace: Option<Label>,
    pub name: Option<Label>,
    pub sandbox: Option<SandboxId>,
    pub agent: Option<AgentId>,
    pub types: Vec<v1::EventType>,
}

/// Reads a filter.
///
/// # Errors
/// Every violation.
pub(crate) fn filter(wire: Option<&v1::EventFilter>) -> Result<Filter, Rejection> {
    let Some(wire) = wire else { return Ok(Filter::default()) };
    let mut fields = Fields::default();
    let mut types = Vec::new();
    for value in &wire.types {
        match fields.enum_value("filter.types", *value) {
            Some(v1::EventType::Unspecified) => fields.refuse("filter.types", "must be types of events"),
            Some(kind) if !types.contains(&kind) => types.push(kind),
            _ => {}
        }
    }
    let filter = Filter {
        namespace: given(&mut fields, "filter.namespace", &wire.namespace),
        name: given(&mut fields, "filter.name", &wire.name),
        sandbox: given(&mut fields, "filter.sandbox_id", &wire.sandbox_id),
        agent: given(&mut fields, "filter.agent_id", &wire.agent_id),
        types,
    };
    fields.done()?;
    Ok(filter)
}

fn given<T: std::str::FromStr<Err: std::fmt::Display>>(
    fields: &mut Fields,
    field: &str,
    text: &str,
) -> Option<T> {
    if text.is_empty() { None } else { fields.parsed(field, text) }
}

impl Filter {
    /// Reads the filter of a list, which has to say whose history is wanted.
    ///
    /// # Errors
    /// Every violation.
    pub(crate) fn of_list(wire: Option<&v1::EventFilter>) -> Result<Self, Rejection> {
        let mut filter = filter(wire)?;
        let nothing = filter.sandbox.is_none() && filter.agent.is_none() && filter.namespace.is_none();
        if nothing && filter.name.is_none() {
            let whose = "must say whose history: sandbox_id, namespace and name, agent_id, or namespace";
            return Err(super::invalid("filter", whose));
        }
        if filter.name.is_some() {
            filter.namespace.get_or_insert_with(Label::default_name);
        }
        Ok(filter)
    }

    /// As a peer is asked.
    pub(crate) fn to_wire(&self) -> v1::EventFilter {
        fn text<T: ToString>(value: Option<&T>) -> String {
            value.map(ToString::to_string).unwrap_or_default()
        }
        v1::EventFilter {
            namespace: text(self.namespace.as_ref()),
            name: text(self.name.as_ref()),
            sandbox_id: text(self.sandbox.as_ref()),
            agent_id: text(self.agent.as_ref()),
            types: self.types.iter().map(|kind| (*kind).into()).collect(),
        }
    }

    /// Whether an event is wanted.
    pub(crate) fn matches(&self, event: &Event) -> bool {
        let subject = &event.header.subject;
        let named = subject.sandbox.as_ref();
        let is = |wanted: bool, found: Option<bool>| !wanted || found == Some(true);
        is(self.sandbox.is_some(), named.map(|(id, _)| self.sandbox.as_ref() == Some(id)))
            && is(
                self.namespace.is_some(),
                named.map(|(_, name)| self.namespace.as_ref() == Some(&name.namespace)),
            )
            && is(self.name.is_some(), named.map(|(_, name)| self.name.as_ref() == Some(&name.name)))
            && is(self.agent.is_some(), Some(self.agent == subject.agent))
            && (self.types.is_empty() || self.types.contains(&event_type(&event.kind)))
    }
}

/// The type of an event, as the wire calls it.
pub(crate) fn event_type(kind: &EventKind) -> v1::EventType {
    match kind {
        EventKind::ClusterCreated { .. } => v1::EventType::ClusterCreated,
        EventKind::AgentRegistered(_) => v1::EventType::AgentRegistered,
        EventKind::AgentLost => v1::EventType::AgentLost,
        EventKind::AgentReturned => v1::EventType::AgentReturned,
        EventKind::AgentCordoned => v1::EventType::AgentCordoned,
        EventKind::AgentUncordoned => v1::EventType::AgentUncordoned,
        EventKind::AgentRemoved { .. } => v1::EventType::AgentRemoved,
        EventKind::AgentDraining { .. } => v1::EventType::AgentDraining,
        EventKind::AgentRecoveryResumed => v1::EventType::AgentRecoveryResumed,
        EventKind::SandboxCreated(_) => v1::EventType::SandboxCreated,
        EventKind::SandboxAllocated { .. } => v1::EventType::SandboxAllocated,
        EventKind::SandboxRunning { .. } => v1::EventType::SandboxRunning,
        EventKind::SandboxFailed { .. } => v1::EventType::SandboxFailed,
        EventKind::SandboxLost => v1::EventType::SandboxLost,
        EventKind::SandboxUpdated(_) => v1::EventType::SandboxUpdated,
        EventKind::SandboxReset => v1::EventType::SandboxReset,
        EventKind::SandboxTerminating => v1::EventType::SandboxTerminating,
        EventKind::AllocationReleased { .. } => v1::EventType::AllocationReleased,
        EventKind::SandboxRemoved { .. } => v1::EventType::SandboxRemoved,
        EventKind::RequestsPruned { .. } => v1::EventType::RequestsPruned,
        EventKind::SandboxLeaseConfirmed { .. } => v1::EventType::SandboxLeaseConfirmed,
        EventKind::ClusterRestored { .. } => v1::EventType::ClusterRestored,
        EventKind::RestoreConfirmed => v1::EventType::RestoreConfirmed,
        EventKind::AgentsRehomed { .. } => v1::EventType::AgentsRehomed,
        EventKind::BatchCreated { .. } => v1::EventType::BatchCreated,
        EventKind::StreamOpened { .. } => v1::EventType::StreamOpened,
        EventKind::StreamKept { .. } => v1::EventType::StreamKept,
    }
}

/// The generation that an event is about; 0 if it names none.
fn generation(kind: &EventKind) -> u64 {
    match kind {
        EventKind::SandboxAllocated { generation }
        | EventKind::SandboxRunning { generation, .. }
        | EventKind::AllocationReleased { generation }
        | EventKind::SandboxLeaseConfirmed { generation } => *generation,
        EventKind::SandboxFailed { released, .. } | EventKind::SandboxRemoved { released } => {
            released.unwrap_or(0)
        }
        _ => 0,
    }
}

/// An event, as the wire tells it.
pub(crate) fn event(revision: Revision, time: Timestamp, event: &Event) -> v1::Event {
    let header = &event.header;
    let subject = &header.subject;
    let mut wire = v1::Event {
        revision,
        time: time.0,
        r#type: event_type(&event.kind).into(),
        actor: header.actor.to_string(),
        reason: header.reason.clone(),
        request_id: header.request.as_ref().map(|request| request.id.to_string()).unwrap_or_default(),
        agent_id: subject.agent.as_ref().map(ToString::to_string).unwrap_or_default(),
        generation: generation(&event.kind),
        previous_revision: header.previous,
        ..v1::Event::default()
    };
    match &event.kind {
        EventKind::SandboxFailed { exit_code, .. } => wire.exit_code = *exit_code,
        EventKind::AgentDraining { deadline, terminate } => {
            let deadline = deadline.map_or(0, |time| time.0);
            wire.drain = Some(v1::Drain { since: 0, deadline, terminate: *terminate });
        }
        _ => {}
    }
    if let Some((id, name)) = &subject.sandbox {
        wire.sandbox_id = id.to_string();
        wire.namespace = name.namespace.to_string();
        wire.name = name.name.to_string();
        match &event.kind {
            EventKind::SandboxCreated(created) => {
                let asked = v1::Sandbox {
                    revision,
                    reason: header.reason.clone(),
                    ..sandbox::created(id, created, time)
                };
                wire.sandbox = Some(asked);
            }
            EventKind::SandboxRunning { endpoints, .. } => wire.endpoints.clone_from(endpoints),
            EventKind::SandboxUpdated(update) => {
                let (changed, values) = sandbox::updated(update);
                wire.changed = changed;
                wire.sandbox = Some(values);
            }
            _ => {}
        }
    }
    wire
}
