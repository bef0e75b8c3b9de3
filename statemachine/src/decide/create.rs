//! Making a sandbox.

use super::Surroundings;
use crate::command::{CreateSandbox, Expiry};
use crate::decide::Outcome;
use crate::draft::{Cause, Draft};
use crate::event::{EventKind, SandboxCreated, Subject};
use crate::ids::{SandboxId, Timestamp};
use crate::limits::{MAX_WAITING, MAX_WAITING_SHAPES, check_create};
use crate::placement::{place, shortage};
use crate::rejection::Rejection;
use crate::spec::{Mode, Shape};
use crate::state::Phase;

impl Draft {
    pub(super) fn create_sandbox(
        &mut self,
        cause: &mut Cause,
        create: &CreateSandbox,
        around: &mut dyn Surroundings,
    ) -> Result<Outcome, Rejection> {
        check_create(create).map_err(Rejection::Invalid)?;
        let spec = &create.spec;
        if cause.request.as_ref().is_some_and(|request| request.id != spec.request_id) {
            return Err(Rejection::invalid(
                "request_id",
                "must be the id of the request that makes the sandbox",
            ));
        }
        if let Some(holder) = self.state().sandbox_named(&spec.name) {
            return Err(Rejection::NameTaken { name: spec.name.clone(), holder: holder.id.clone() });
        }
        let created = self.next_time();
        let expire_time = expire_time(create.expiry, created)?;
        let shape = spec.shape();
        let ahead = self.state().queue_length(&shape);
        let agent = if ahead > 0 {
            None // those that wait come first
        } else {
            let with_image = around.agents_with_image(&spec.image);
            place(self.state(), &shape, with_image, None).map(|agent| agent.spec.agent_id.clone())
        };
        if agent.is_none() && create.wait.is_none() {
            return Err(Rejection::NoCapacity(shortage(self.state(), &shape)));
        }
        let too_many = self.state().count_in(Phase::Pending) >= MAX_WAITING as u64
            || (ahead == 0 && self.state().queue_count() >= MAX_WAITING_SHAPES);
        if agent.is_none() && too_many {
            return Err(Rejection::QueueFull);
        }
        let id = match spec.mode {
            Mode::Fast => SandboxId::fast(&spec.name, created),
            Mode::Strong => SandboxId::Strong(around.new_uuid()),
        };
        if self.state().sandbox(&id).is_some() {
            return Err(Rejection::FailedPrecondition(format!(
                "id {id} is taken already: send the request again"
            )));
        }
        let reason = if agent.is_some() { String::new() } else { self.why_it_waits(&shape, ahead) };
        let kind = EventKind::SandboxCreated(Box::new(SandboxCreated {
            spec: spec.clone().into(),
            labels: create.labels.clone(),
            expire_time,
            failure_policy: create.failure_policy,
            recovery_timeout_seconds: create.recovery_timeout_seconds,
            wait_until: create.wait.filter(|_| agent.is_none()).map(|nanos| created.plus(nanos)),
        }));
        let subject = Subject { sandbox: Some((id.clone(), spec.name.clone())), agent: None };
        self.push(cause, subject, 0, kind, reason);
        let revision = self.state().revision();
        if let Some(agent) = agent {
            self.allocate(cause, &id, agent, "");
        }
        Ok(self.answer_sandbox(&id, &spec.name, created, revision, false))
    }
}

impl Draft {
    /// What is missing is looked up only for the first of a shape: it costs a look at all agents.
    fn why_it_waits(&self, shape: &Shape, ahead: usize) -> String {
        if ahead == 0 {
            return format!("no agent has room: {}", shortage(self.state(), shape));
        }
        format!("no agent has room: {ahead} of the same shape wait already")
    }
}

/// When a sandbox ends that is created at `created`.
pub(super) fn expire_time(
    expiry: Option<Expiry>,
    created: Timestamp,
) -> Result<Option<Timestamp>, Rejection> {
    match expiry {
        None => Ok(None),
        Some(Expiry::After(nanos)) => Ok(Some(created.plus(nanos))),
        Some(Expiry::At(time)) if time > created => Ok(Some(time)),
        Some(Expiry::At(time)) => {
            let past = created.0.saturating_sub(time.0) / 1_000_000_000;
            Err(Rejection::invalid("expire_time", format!("must lie in the future, is {past} s in the past")))
        }
    }
}
