//! Changing, resetting and ending a sandbox.

use super::Surroundings;
use crate::command::{Expiry, SandboxRef, Target};
use crate::decide::Outcome;
use crate::decide::create::expire_time;
use crate::draft::{Cause, Draft};
use crate::event::{EventKind, SandboxUpdate};
use crate::limits::check_update;
use crate::rejection::Rejection;
use crate::state::{Phase, Sandbox};

impl Draft {
    /// The sandbox that a caller means.
    fn target(&self, target: &Target) -> Result<Sandbox, Rejection> {
        let found = match &target.sandbox {
            SandboxRef::Id { id, .. } => {
                self.state().sandbox(id).ok_or_else(|| Rejection::SandboxNotFound(id.to_string()))?
            }
            SandboxRef::Name(name) => self
                .state()
                .sandbox_named(name)
                .ok_or_else(|| Rejection::SandboxNotFound(name.to_string()))?,
        };
        match target.expected_revision {
            Some(expected) if expected != found.status.revision => Err(Rejection::RevisionMoved {
                sandbox_id: found.id.clone(),
                expected,
                actual: found.status.revision,
            }),
            _ => Ok(found.clone()),
        }
    }

    pub(super) fn update_sandbox(
        &mut self,
        cause: &mut Cause,
        target: &Target,
        update: &SandboxUpdate,
    ) -> Result<Outcome, Rejection> {
        check_update(update).map_err(Rejection::Invalid)?;
        let sandbox = self.target(target)?;
        if sandbox.status.phase == Phase::Terminating {
            return Err(being_terminated(&sandbox));
        }
        if let Some(Some(time)) = update.expire_time {
            expire_time(Some(Expiry::At(time)), self.next_time())?;
        }
        let status = &sandbox.status;
        let unchanged = update.expire_time.is_none_or(|time| time == status.expire_time)
            && update.labels.as_ref().is_none_or(|labels| *labels == status.labels)
            && update.failure_policy.is_none_or(|policy| policy == status.failure_policy)
            && update
                .recovery_timeout_seconds
                .is_none_or(|timeout| timeout == status.recovery_timeout_seconds);
        if unchanged {
            return Ok(self.answer_about(&sandbox, status.revision));
        }
        self.push_sandbox(cause, &sandbox, EventKind::SandboxUpdated(update.clone()), "");
        Ok(self.answer_about(&sandbox, self.state().revision()))
    }

    pub(super) fn reset_sandbox(
        &mut self,
        cause: &mut Cause,
        target: &Target,
        around: &mut dyn Surroundings,
    ) -> Result<Outcome, Rejection> {
        let sandbox = self.target(target)?;
        match sandbox.status.phase {
            Phase::Allocated | Phase::Running | Phase::Failed => {}
            Phase::Terminating => return Err(being_terminated(&sandbox)),
            Phase::Pending => {
                return Err(Rejection::FailedPrecondition(format!(
                    "sandbox {} waits for capacity already: there is nothing to reset",
                    sandbox.id
                )));
            }
            Phase::Lost => {
                let agent = sandbox.holder().map_or("?", |agent| agent.as_str());
                return Err(Rejection::FailedPrecondition(format!(
                    "sandbox {} may still run on agent {agent}, which is lost: wait until the agent is back, or \
                     make sure that it is off and say so with `agents remove {agent} --fenced`",
                    sandbox.id
                )));
            }
        }
        if sandbox.status.held.len() > 1 {
            return Err(Rejection::FailedPrecondition(format!(
                "sandbox {} was reset before, and its earlier generation is not yet known to be gone: wait for it",
                sandbox.id
            )));
        }
        self.push_sandbox(cause, &sandbox, EventKind::SandboxReset, "reset by the caller");
        let revision = self.state().revision();
        self.place_again(cause, &sandbox, None, around);
        Ok(self.answer_about(&sandbox, revision))
    }

    pub(super) fn terminate_sandbox(
        &mut self,
        cause: &mut Cause,
        target: &Target,
    ) -> Result<Outcome, Rejection> {
        let sandbox = self.target(target)?;
        if sandbox.status.phase == Phase::Terminating {
            return Ok(self.answer_about(&sandbox, sandbox.status.revision));
        }
        let revision = self.state().revision() + 1;
        self.terminate(cause, &sandbox, "terminated by the caller");
        Ok(self.answer_about(&sandbox, revision))
    }

    /// A sandbox is to end; if nothing of it is on any agent, it is gone at once.
    pub(super) fn terminate(&mut self, cause: &mut Cause, sandbox: &Sandbox, reason: &str) {
        self.push_sandbox(cause, sandbox, EventKind::SandboxTerminating, reason);
        if sandbox.status.held.is_empty() {
            self.push_sandbox(cause, sandbox, EventKind::SandboxRemoved { released: None }, reason);
        }
    }
}

fn being_terminated(sandbox: &Sandbox) -> Rejection {
    Rejection::FailedPrecondition(format!("sandbox {} is being terminated", sandbox.id))
}
