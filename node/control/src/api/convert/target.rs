//! Which sandbox or agent a request means.

use sandkeeper_proto::v1;
use sandkeeper_statemachine::{AgentId, Label, Rejection, Sandbox, SandboxName, SandboxRef, State, Target};

use super::{Fields, non_zero};

/// Reads a reference. `None` if it is not one; `fields` knows why.
pub(crate) fn sandbox_ref(fields: &mut Fields, wire: Option<&v1::SandboxRef>) -> Option<SandboxRef> {
    let Some(wire) = wire else {
        fields.refuse("ref", "must name a sandbox: by sandbox_id, or by namespace and name");
        return None;
    };
    let namespace = if wire.namespace.is_empty() {
        Some(Label::default_name())
    } else {
        fields.parsed("ref.namespace", &wire.namespace)
    };
    match (wire.sandbox_id.is_empty(), wire.name.is_empty()) {
        (true, true) => {
            fields.refuse("ref", "must name a sandbox: by sandbox_id, or by namespace and name");
            None
        }
        (false, false) => {
            fields.refuse("ref", "must name a sandbox either by sandbox_id or by name, not by both");
            None
        }
        (false, true) => {
            let id = fields.parsed("ref.sandbox_id", &wire.sandbox_id);
            Some(SandboxRef::Id { namespace: namespace?, id: id? })
        }
        (true, false) => {
            let name = fields.parsed("ref.name", &wire.name);
            Some(SandboxRef::Name(SandboxName { namespace: namespace?, name: name? }))
        }
    }
}

/// Reads a reference that nothing else comes with.
///
/// # Errors
/// If it is none.
pub(crate) fn only_sandbox_ref(wire: Option<&v1::SandboxRef>) -> Result<SandboxRef, Rejection> {
    let mut fields = Fields::default();
    let found = sandbox_ref(&mut fields, wire);
    fields.done()?;
    found.ok_or_else(|| super::invalid("ref", "must name a sandbox"))
}

/// Reads a reference and the revision that it has to be at.
pub(crate) fn target(
    fields: &mut Fields,
    wire: Option<&v1::SandboxRef>,
    expected_revision: u64,
) -> Option<Target> {
    let sandbox = sandbox_ref(fields, wire)?;
    Some(Target { sandbox, expected_revision: non_zero(expected_revision) })
}

/// Reads the name of an agent.
pub(crate) fn agent_id(fields: &mut Fields, text: &str) -> Option<AgentId> {
    fields.parsed("agent_id", text)
}

/// The sandbox that is meant.
///
/// # Errors
/// If it is not in the state.
pub(crate) fn find<'a>(state: &'a State, wanted: &SandboxRef) -> Result<&'a Sandbox, Rejection> {
    match wanted {
        SandboxRef::Id { id, .. } => {
            state.sandbox(id).ok_or_else(|| Rejection::SandboxNotFound(id.to_string()))
        }
        SandboxRef::Name(name) => {
            state.sandbox_named(name).ok_or_else(|| Rejection::SandboxNotFound(name.to_string()))
        }
    }
}
