//! What agents run and the state does not know: told to operators, and adopted if it bears nobody's label.
//!
//! An adopted sandbox keeps its name as its id. It is created and allocated in one entry, on the agent that runs it; the
//! applier then has the agent label it, and nothing of it is restarted.

use serde::{Deserialize, Serialize};

use super::Surroundings;
use crate::command::CreateSandbox;
use crate::decide::Outcome;
use crate::draft::{Cause, Draft};
use crate::event::{EventKind, SandboxCreated, Subject};
use crate::ids::{AgentId, Label, RequestId, SandboxId, SandboxName};
use crate::limits::{DEFAULT_RECOVERY_TIMEOUT_SECONDS, MAX_ADOPTION_BYTES, MAX_UNKNOWN_TOLD, check_create};
use crate::placement::lack_of_room;
use crate::rejection::Rejection;
use crate::spec::{FailurePolicy, SandboxSpec};
use crate::state::{Agent, AgentStatus};
use crate::unknown::{Adoptable, Origin, UnknownSandbox};

/// What became of one sandbox that was to be adopted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// Which.
    pub id: SandboxId,
    /// Why it was not; None: it was.
    pub refused: Option<String>,
}

impl Draft {
    /// What is there and not in the state, of one agent or all: at most [`MAX_UNKNOWN_TOLD`].
    pub(super) fn tell_unknown(
        &self,
        agent: Option<&AgentId>,
        around: &dyn Surroundings,
    ) -> Result<Outcome, Rejection> {
        if let Some(id) = agent {
            self.agent_named(id)?;
        }
        let wanted = |unknown: &&UnknownSandbox| agent.is_none_or(|agent| unknown.agent == *agent);
        let strange = |unknown: &&UnknownSandbox| self.state().sandbox(&unknown.id).is_none();
        let there = around.unknown();
        let asked = |record: &&Agent| agent.is_none_or(|agent| record.spec.agent_id == *agent);
        let silent = |record: &&Agent| !there.contains_key(&record.spec.agent_id);
        let unheard = self.state().agents().filter(asked).filter(silent).count();
        let found = there.values().flat_map(|of_agent| of_agent.iter());
        let mut told: Vec<UnknownSandbox> = Vec::new();
        let mut more = false;
        for unknown in found.filter(wanted).filter(strange) {
            more = told.len() == MAX_UNKNOWN_TOLD;
            if more {
                break;
            }
            let UnknownSandbox { agent, id, generation, origin, adoptable: _ } = unknown;
            let (agent, id) = (agent.clone(), id.clone());
            told.push(UnknownSandbox {
                agent,
                id,
                generation: *generation,
                origin: *origin,
                adoptable: None,
            });
        }
        Ok(Outcome::Unknown { sandboxes: told, more, unheard })
    }

    /// Adopts these sandboxes of an agent, or all that can be. `namespace`: where they get their names.
    pub(super) fn adopt_sandboxes(
        &mut self,
        cause: &mut Cause,
        agent: &AgentId,
        namespace: &Label,
        ids: &[SandboxId],
        around: &dyn Surroundings,
    ) -> Result<Outcome, Rejection> {
        if self.agent_named(agent)?.status != AgentStatus::Ready {
            return Err(Rejection::FailedPrecondition(format!(
                "agent {agent} is lost: wait until it is back, and try again"
            )));
        }
        let there = around.unknown().get(agent).cloned().unwrap_or_default();
        let all: Vec<_>;
        let ids = if ids.is_empty() {
            let unlabelled = there.iter().filter(|unknown| unknown.adoptable.is_some());
            // One that the state knows by now has been adopted, and is only not labelled yet.
            all = unlabelled
                .map(|unknown| unknown.id.clone())
                .filter(|id| self.state().sandbox(id).is_none())
                .collect();
            &all[..]
        } else {
            ids
        };
        let end = self.encoded_bytes() + MAX_ADOPTION_BYTES;
        let mut adoptions = Vec::new();
        for id in ids {
            let refused = if self.encoded_bytes() >= end {
                Some("too many at once: give the same command again".to_owned())
            } else {
                let found = there.iter().find(|unknown| unknown.id == *id);
                self.adopt(cause, agent, namespace, id, found).err()
            };
            adoptions.push(Adoption { id: id.clone(), refused });
        }
        Ok(Outcome::Adopted(adoptions))
    }

    /// `Err`: why not, for people.
    fn adopt(
        &mut self,
        cause: &mut Cause,
        agent: &AgentId,
        namespace: &Label,
        id: &SandboxId,
        found: Option<&UnknownSandbox>,
    ) -> Result<(), String> {
        if let Some(known) = self.state().sandbox(id) {
            let where_it_is = match known.holder() {
                Some(holder) if holder == agent => "of this agent".to_owned(),
                Some(holder) => format!("of agent {holder}"),
                None => "without an agent".to_owned(),
            };
            return Err(format!("{id} is in the state already, as {} {where_it_is}", known.spec.name));
        }
        let found = found.ok_or_else(|| {
            format!("agent {agent} has no sandbox {id} that is unknown: see `agents unknown {agent}`")
        })?;
        let Some(adoptable) = &found.adoptable else {
            return Err(match found.origin {
                Origin::Other => format!("{id} bears the label of another cluster: it is not ours"),
                Origin::Ours | Origin::Unlabelled => {
                    format!(
                        "{id} was made by this cluster, which has forgotten it: it is an orphan, and is removed"
                    )
                }
            });
        };
        let SandboxId::Adopted(name) = id else {
            return Err(format!("{id} is no name, and an adopted sandbox keeps its name as its id"));
        };
        let name = SandboxName { namespace: namespace.clone(), name: name.clone() };
        if let Some(holder) = self.state().sandbox_named(&name) {
            return Err(Rejection::NameTaken { name, holder: holder.id.clone() }.to_string());
        }
        let pool = self.state().agent(agent).map(|agent| agent.spec.pool.clone());
        let pool = pool.ok_or_else(|| Rejection::AgentNotFound(agent.clone()).to_string())?;
        let create = as_asked_for(adoptable, name, pool);
        check_create(&create).map_err(|violations| Rejection::Invalid(violations).to_string())?;
        let record = self.state().agent(agent);
        if let Some(lack) = record.and_then(|record| lack_of_room(record, &create.spec.shape())) {
            return Err(format!("agent {agent} has {lack}: end some of its sandboxes, or let it offer more"));
        }
        let CreateSandbox { spec, labels, .. } = create;
        let subject = Subject { sandbox: Some((id.clone(), spec.name.clone())), agent: None };
        let kind = EventKind::SandboxCreated(Box::new(SandboxCreated {
            spec: spec.into(),
            labels,
            expire_time: None,
            failure_policy: FailurePolicy::Manual,
            recovery_timeout_seconds: DEFAULT_RECOVERY_TIMEOUT_SECONDS,
            wait_until: None,
        }));
        self.push(cause, subject, 0, kind, format!("adopted: agent {agent} ran it already"));
        self.allocate(cause, id, agent.clone(), "");
        Ok(())
    }
}

/// The create that would have made it.
fn as_asked_for(adoptable: &Adoptable, name: SandboxName, pool: Label) -> CreateSandbox {
    let spec = SandboxSpec {
        name,
        pool,
        request_id: RequestId::Text("adopted".into()),
        agent_selector: std::collections::BTreeMap::new(),
        ..adoptable.spec.clone()
    };
    CreateSandbox {
        spec,
        labels: adoptable.labels.clone(),
        expiry: None,
        failure_policy: FailurePolicy::Manual,
        recovery_timeout_seconds: DEFAULT_RECOVERY_TIMEOUT_SECONDS,
        wait: None,
    }
}
