//! What agents say of their sandboxes. A report is never refused: what is late, or of another life, changes nothing.

use planted_bugs::{Bug, planted};

use super::Surroundings;
use crate::command::{Report, ReportedState};
use crate::decide::Outcome;
use crate::draft::{Cause, Draft};
use crate::event::EventKind;
use crate::ids::{Generation, Revision, SandboxId};
use crate::limits::{MAX_ENDPOINT_BYTES, MAX_PORTS, MAX_REFUSALS};
use crate::placement::place;
use crate::spec::Mode;
use crate::state::{AgentStatus, Phase, Sandbox};

impl Draft {
    pub(super) fn hear_report(
        &mut self,
        cause: &mut Cause,
        report: &Report,
        around: &mut dyn Surroundings,
    ) -> Outcome {
        let Some(sandbox) = self.state().sandbox(&report.sandbox_id).cloned() else { return Outcome::Done };
        let agent = self.state().agent(&report.agent);
        let same_life = agent.is_some_and(|agent| agent.spec.incarnation == report.incarnation);
        // What a lost agent says of the past still holds; that something runs may have been true before it was lost.
        let heard_of = agent.is_some_and(|agent| agent.status == AgentStatus::Ready);
        let unchecked = planted(Bug::GenerationNotChecked);
        let generation = if unchecked { sandbox.status.generation } else { report.generation };
        let holds = |held: &crate::state::Held| {
            held.generation == generation && (held.agent == report.agent || unchecked)
        };
        if !same_life || !sandbox.status.held.iter().any(holds) {
            return Outcome::Done;
        }
        let phase = sandbox.status.phase;
        let current = generation == sandbox.status.generation;
        let wanted = current && matches!(phase, Phase::Allocated | Phase::Running | Phase::Lost);
        match &report.state {
            ReportedState::Running { endpoints, lease_revision } if wanted && heard_of => {
                self.hear_running(cause, &sandbox, endpoints);
                self.hear_lease(cause, &sandbox, *lease_revision);
            }
            ReportedState::Exited { exit_code, reason, expired, lease_over } if wanted => {
                // Its time may have been taken off while the agent ended it.
                if *expired && sandbox.status.expire_time.is_some() {
                    self.push_sandbox(cause, &sandbox, EventKind::SandboxTerminating, "expired");
                } else if *lease_over && sandbox.status.wanted_lease().is_some() {
                    self.push_sandbox(cause, &sandbox, EventKind::AllocationReleased { generation }, reason);
                    // What it is told did not get there in time, and may not again.
                    self.place_again(cause, &sandbox, Some(&report.agent), around);
                } else {
                    self.fail(cause, &sandbox, Some(generation), *exit_code, reason);
                }
            }
            ReportedState::StartFailed { reason } if wanted => {
                self.fail(cause, &sandbox, Some(generation), None, reason);
            }
            ReportedState::AdmissionRefused { reason } if current && phase == Phase::Allocated => {
                self.move_on(cause, &sandbox, reason, around);
            }
            ReportedState::Absent => self.absent(cause, &sandbox, generation, around),
            _ => {}
        }
        Outcome::Done
    }

    fn hear_running(&mut self, cause: &mut Cause, sandbox: &Sandbox, endpoints: &[String]) {
        let status = &sandbox.status;
        let within = endpoints.iter().filter(|endpoint| endpoint.len() <= MAX_ENDPOINT_BYTES);
        let endpoints: Vec<_> = within.take(MAX_PORTS).cloned().collect();
        if status.phase == Phase::Running && status.endpoints == endpoints {
            return;
        }
        let reason = if status.phase == Phase::Lost { "its agent is back, and it still runs" } else { "" };
        let kind = EventKind::SandboxRunning { generation: status.generation, endpoints };
        self.push_sandbox(cause, sandbox, kind, reason);
    }

    /// Under which lease the agent keeps the current generation. Only the newest terms make a lease shorter: what an
    /// agent says of older ones may be overtaken by newer ones that are on their way.
    fn hear_lease(&mut self, cause: &mut Cause, sandbox: &Sandbox, revision: Revision) {
        let status = &sandbox.status;
        if revision == status.lease_revision && status.lease != status.wanted_lease() {
            let kind = EventKind::SandboxLeaseConfirmed { generation: status.generation };
            self.push_sandbox(cause, sandbox, kind, "");
        }
    }

    /// It is no longer there, or never came to be. A STRONG create that never ran is rolled back.
    pub(super) fn fail(
        &mut self,
        cause: &mut Cause,
        sandbox: &Sandbox,
        released: Option<Generation>,
        exit_code: Option<i32>,
        reason: &str,
    ) {
        self.push_sandbox(cause, sandbox, EventKind::SandboxFailed { released, exit_code }, reason);
        self.roll_back(cause, &sandbox.id);
    }

    /// Takes a STRONG create out that has failed without ever having run, once nothing is held for it any more.
    pub(super) fn roll_back(&mut self, cause: &mut Cause, id: &SandboxId) {
        let Some(sandbox) = self.state().sandbox(id).cloned() else { return };
        let status = &sandbox.status;
        let failed = status.phase == Phase::Failed && !status.ever_ran;
        if sandbox.spec.mode == Mode::Strong && failed && status.held.is_empty() {
            let reason = status.reason.clone();
            self.push_sandbox(cause, &sandbox, EventKind::SandboxRemoved { released: None }, reason);
        }
    }

    fn absent(
        &mut self,
        cause: &mut Cause,
        sandbox: &Sandbox,
        generation: Generation,
        around: &mut dyn Surroundings,
    ) {
        let status = &sandbox.status;
        let current = generation == status.generation;
        match status.phase {
            Phase::Terminating if status.held.len() == 1 => {
                let kind = EventKind::SandboxRemoved { released: Some(generation) };
                self.push_release(cause, sandbox, generation, kind, status.reason.clone());
            }
            // It was lost before it was started, and is proven not to have been since: another place is found for it.
            Phase::Lost if current && status.running_since.is_none() => {
                let kind = EventKind::AllocationReleased { generation };
                self.push_release(
                    cause,
                    sandbox,
                    generation,
                    kind,
                    "was never started by its agent".to_owned(),
                );
                self.place_again(cause, sandbox, None, around);
            }
            Phase::Running | Phase::Lost if current => {
                self.fail(cause, sandbox, Some(generation), None, "vanished from its agent");
            }
            // It was never started: the applier will have it started.
            Phase::Allocated if current => {}
            _ => {
                let kind = EventKind::AllocationReleased { generation };
                self.push_release(
                    cause,
                    sandbox,
                    generation,
                    kind,
                    format!("generation {generation} is gone"),
                );
                self.roll_back(cause, &sandbox.id);
            }
        }
    }

    /// An agent refused it before anything was started: it may go elsewhere at once.
    fn move_on(&mut self, cause: &mut Cause, sandbox: &Sandbox, reason: &str, around: &mut dyn Surroundings) {
        let generation = sandbox.status.generation;
        let reason = format!("refused by its agent: {reason}");
        if sandbox.status.refusals + 1 >= MAX_REFUSALS {
            self.fail(cause, sandbox, Some(generation), None, &reason);
            return;
        }
        let with_image = around.agents_with_image(&sandbox.spec.image);
        let refused_by = sandbox.status.agent.as_ref();
        let elsewhere = place(self.state(), &sandbox.spec.shape(), with_image, refused_by);
        let elsewhere = elsewhere.map(|agent| agent.spec.agent_id.clone());
        if elsewhere.is_none() && sandbox.spec.mode == Mode::Strong {
            self.fail(cause, sandbox, Some(generation), None, &reason);
            return;
        }
        self.push_sandbox(cause, sandbox, EventKind::AllocationReleased { generation }, reason);
        if let Some(agent) = elsewhere {
            self.allocate(cause, &sandbox.id, agent, "");
        }
    }
}
