//! Which sandboxes a list wants.

use std::collections::BTreeMap;

use prost::Message;
use sandkeeper_proto::v1;
use sandkeeper_statemachine::{AgentId, Label, Rejection, Sandbox};

use super::Fields;
use super::sandbox::{agent_of, phase, phases};

/// Sandboxes of a page, if the caller does not say.
pub const DEFAULT_PAGE_SIZE: u32 = 500;
/// The most sandboxes of a page.
pub const MAX_PAGE_SIZE: u32 = 5_000;
/// How many sandboxes a page has.
pub(crate) fn page_size(wire: &v1::ListSandboxesRequest) -> usize {
    if wire.page_size == 0 { DEFAULT_PAGE_SIZE as usize } else { wire.page_size as usize }
}

/// Which sandboxes are wanted: those that match all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    namespace: Option<Label>,
    labels: BTreeMap<String, String>,
    phases: Vec<v1::Phase>,
    agent: Option<AgentId>,
}

impl Filter {
    /// Reads what a list wants.
    ///
    /// # Errors
    /// Every violation.
    pub(crate) fn read(wire: &v1::ListSandboxesRequest) -> Result<Self, Rejection> {
        let mut fields = Fields::default();
        let namespace = match wire.namespace.as_str() {
            "" => None,
            text => fields.parsed("namespace", text),
        };
        let agent = match wire.agent_id.as_str() {
            "" => None,
            text => fields.parsed("agent_id", text),
        };
        let phases = phases(&mut fields, &wire.phases);
        let size = wire.page_size;
        fields.require(size <= MAX_PAGE_SIZE, "page_size", format!("at most {MAX_PAGE_SIZE}, is {size}"));
        fields.done()?;
        Ok(Self { namespace, labels: wire.label_selector.clone(), phases, agent })
    }

    /// Whether a sandbox is wanted.
    pub(crate) fn matches(&self, sandbox: &Sandbox) -> bool {
        let status = &sandbox.status;
        self.namespace.as_ref().is_none_or(|namespace| *namespace == sandbox.spec.name.namespace)
            && (self.phases.is_empty() || self.phases.contains(&phase(status.phase)))
            && self.agent.as_ref().is_none_or(|agent| agent_of(sandbox) == Some(agent))
            && self.labels.iter().all(|(key, value)| status.labels.get(key) == Some(value))
    }
}

/// A checksum of what a list asks for, beside its place: its pages have to ask for the same.
pub(crate) fn checksum(wire: &v1::ListSandboxesRequest) -> u32 {
    let asked =
        v1::ListSandboxesRequest { page_size: 0, page_token: String::new(), read: None, ..wire.clone() };
    crc32fast::hash(&asked.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::World;

    fn request() -> v1::ListSandboxesRequest {
        v1::ListSandboxesRequest::default()
    }

    #[test]
    fn a_filter_matches_all_that_is_set() {
        let mut world = World::with_agent();
        let (id, _) = world.create_strong("web");
        let sandbox = world.state.sandbox(&id).unwrap();
        let labels = |value: &str| BTreeMap::from([("app".to_owned(), value.to_owned())]);
        let yes = [
            request(),
            v1::ListSandboxesRequest { namespace: "default".into(), ..request() },
            v1::ListSandboxesRequest { agent_id: "a1".into(), ..request() },
            v1::ListSandboxesRequest { phases: vec![v1::Phase::Allocated.into()], ..request() },
            v1::ListSandboxesRequest { label_selector: labels("web"), ..request() },
        ];
        for wire in yes {
            assert!(Filter::read(&wire).unwrap().matches(sandbox), "{wire:?}");
        }
        let no = [
            v1::ListSandboxesRequest { namespace: "prod".into(), ..request() },
            v1::ListSandboxesRequest { agent_id: "a2".into(), ..request() },
            v1::ListSandboxesRequest { phases: vec![v1::Phase::Running.into()], ..request() },
            v1::ListSandboxesRequest { label_selector: labels("db"), ..request() },
        ];
        for wire in no {
            assert!(!Filter::read(&wire).unwrap().matches(sandbox), "{wire:?}");
        }
    }

    #[test]
    fn bad_filters_are_refused_and_tokens_are_of_one_filter() {
        let bad = [
            v1::ListSandboxesRequest { namespace: "NO".into(), ..request() },
            v1::ListSandboxesRequest { agent_id: "NO".into(), ..request() },
            v1::ListSandboxesRequest { phases: vec![99], ..request() },
            v1::ListSandboxesRequest { phases: vec![0], ..request() },
            v1::ListSandboxesRequest { page_size: MAX_PAGE_SIZE + 1, ..request() },
        ];
        for wire in bad {
            assert!(matches!(Filter::read(&wire), Err(Rejection::Invalid(_))), "{wire:?}");
        }
        let sized = v1::ListSandboxesRequest { page_size: 3, page_token: "x".into(), ..request() };
        assert_eq!(checksum(&sized), checksum(&request()));
        let other = v1::ListSandboxesRequest { namespace: "prod".into(), ..request() };
        assert_ne!(checksum(&other), checksum(&request()));
    }
}
