//! Waiting for a sandbox: until a STRONG create runs, or until a phase is reached. Woken by changes of this replica's
//! state, never by time.

use sandkeeper_proto::v1;
use sandkeeper_statemachine::{
    Phase, Rejection, RequestKey, RequestResult, Revision, Sandbox, SandboxRef, State,
};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::Api;
use super::convert::sandbox as convert;
use super::convert::target::find;
use super::status::{Problem, rejected, shutting_down};
use crate::raft::replica::WaitError;

/// What has become of a STRONG create.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// It runs, or ran.
    Ran,
    /// It failed, and was rolled back.
    RolledBack(String),
    /// Somebody ended it, or its time was over.
    Ended,
}

/// What a state says of a STRONG create; `None`: not yet known. `made`: the sandbox as it was when the request was decided, which
/// is later than its creation if it was asked again.
fn progress(state: &State, made: &Sandbox, key: &RequestKey) -> Option<Progress> {
    if made.status.ever_ran {
        return Some(Progress::Ran);
    }
    let Some(sandbox) = state.sandbox(&made.id) else {
        return Some(match state.result_of(key) {
            Some(RequestResult::RolledBack { reason }) => Progress::RolledBack(reason.clone()),
            _ => Progress::Ended,
        });
    };
    match sandbox.status.phase {
        // A short program may be over before this replica's readers saw it run; a later generation may not run yet.
        _ if sandbox.status.ever_ran => Some(Progress::Ran),
        Phase::Terminating => Some(Progress::Ended),
        // One that failed is rolled back as soon as nothing is held for it any more.
        Phase::Pending | Phase::Allocated | Phase::Running | Phase::Lost | Phase::Failed => None,
    }
}

impl Api {
    /// Waits until a sandbox that a STRONG create has made runs. `revision`: of the event that created it.
    pub(super) async fn until_it_runs(
        &self,
        made: &Sandbox,
        revision: Revision,
        key: &RequestKey,
        deadline: Instant,
    ) -> Result<(v1::Sandbox, Revision), Status> {
        let id = &made.id;
        let replica = self.parts().raft.replica();
        let mut known = None;
        let wait = replica.wait_for(deadline, |view| {
            known = if view.revision() < revision { None } else { progress(&view.state, made, key) };
            known.is_some()
        });
        let view = match self.unless_stopped(wait).await? {
            Ok(view) => view,
            Err(WaitError::Stopped) => return Err(shutting_down()),
            Err(WaitError::Timeout { .. }) => {
                return Err(not_running_yet(replica.state().sandbox(id).unwrap_or(made), key));
            }
        };
        match known {
            Some(Progress::Ran) => {
                let sandbox = match view.state.sandbox(id) {
                    Some(now) => convert::sandbox(now, &view.state),
                    None => convert::gone(convert::sandbox(made, &view.state)),
                };
                Ok((sandbox, view.revision()))
            }
            Some(Progress::RolledBack(reason)) => Err(rejected(&Rejection::RolledBack { reason })),
            Some(Progress::Ended) | None => {
                let text = format!("sandbox {id} was terminated before it was seen running");
                Err(Problem::new(Code::FailedPrecondition, "TERMINATED", text)
                    .with("sandbox_id", id)
                    .status())
            }
        }
    }

    /// Waits until a sandbox is in one of the phases, or gone.
    pub(super) async fn wait(
        &self,
        wire: &v1::WaitSandboxRequest,
        deadline: Instant,
    ) -> Result<v1::WaitSandboxResponse, Status> {
        let (wanted, phases) = convert::wait(wire).map_err(|rejection| rejected(&rejection))?;
        let read = self.read(None, deadline).await?;
        let found = match find(&read.state, &wanted) {
            Ok(found) => Some(found),
            Err(_) if phases.contains(&v1::Phase::Gone) => leaving(&read.state, &wanted),
            Err(rejection) => return Err(rejected(&rejection)),
        };
        let Some(found) = found else {
            // What is waited for has come: nothing of that name or id is there.
            let sandbox = Some(convert::never_seen(&wanted));
            return Ok(v1::WaitSandboxResponse { header: Some(self.header(&read)), sandbox });
        };
        let id = found.id.clone();
        let mut last = found.clone();
        let replica = self.parts().raft.replica();
        let wait = replica.wait_for(deadline, |view| match view.state.sandbox(&id) {
            // A reader that began after the linearizable read sees nothing older.
            None => true,
            Some(now) => {
                last = now.clone();
                phases.contains(&convert::phase(now.status.phase))
            }
        });
        match self.unless_stopped(wait).await? {
            Ok(view) => {
                let sandbox = match view.state.sandbox(&id) {
                    Some(now) => convert::sandbox(now, &view.state),
                    None => convert::gone(convert::sandbox(&last, &view.state)),
                };
                let header = Some(self.header_at(view.revision(), true));
                Ok(v1::WaitSandboxResponse { header, sandbox: Some(sandbox) })
            }
            Err(WaitError::Stopped) => Err(shutting_down()),
            Err(WaitError::Timeout { .. }) => Err(still(&last, &phases)),
        }
    }
}

/// A sandbox whose name is free already, while it is still going away: the newest, if there are several.
fn leaving<'a>(state: &'a State, wanted: &SandboxRef) -> Option<&'a Sandbox> {
    let SandboxRef::Name(name) = wanted else { return None };
    if state.count_in(Phase::Terminating) == 0 {
        return None;
    }
    state.sandboxes().filter(|sandbox| sandbox.spec.name == *name).max_by_key(|sandbox| sandbox.created)
}

fn not_running_yet(sandbox: &Sandbox, key: &RequestKey) -> Status {
    let phase = sandbox.status.phase.as_str();
    let reason = if sandbox.status.reason.is_empty() {
        String::new()
    } else {
        format!(" ({})", sandbox.status.reason)
    };
    let text = format!(
        "sandbox {} is still {phase}{reason}; it goes on: send the same request with request_id {} to wait on",
        sandbox.id, key.id
    );
    Problem::new(Code::DeadlineExceeded, "NOT_RUNNING_YET", text)
        .with("sandbox_id", &sandbox.id)
        .with("phase", &phase)
        .with("request_id", &key.id)
        .status()
}

fn still(sandbox: &Sandbox, phases: &[v1::Phase]) -> Status {
    let phase = sandbox.status.phase.as_str();
    let wanted: Vec<&str> =
        phases.iter().map(|phase| phase.as_str_name().trim_start_matches("PHASE_")).collect();
    let text = format!("sandbox {} is still {phase}, not {}", sandbox.id, wanted.join(" or "));
    Problem::new(Code::DeadlineExceeded, "STILL_WAITING", text)
        .with("sandbox_id", &sandbox.id)
        .with("phase", &phase)
        .status()
}

#[cfg(test)]
mod tests {
    use sandkeeper_statemachine::{ReportedState, Timestamp};

    use super::*;
    use crate::api::testing::World;

    #[test]
    fn a_strong_create_is_followed_to_its_end() {
        let mut world = World::with_agent();
        let (id, key) = world.create_strong("web");
        let made = world.state.sandbox(&id).unwrap().clone();
        assert_eq!(progress(&world.state, &made, &key), None, "allocated, not yet running");
        let mut ran = world.clone();
        ran.report(&id, ReportedState::Running { endpoints: vec![], lease_revision: 0 });
        assert_eq!(progress(&ran.state, &made, &key), Some(Progress::Ran));
        let asked_again = ran.state.sandbox(&id).unwrap().clone();
        ran.report(
            &id,
            ReportedState::Exited {
                exit_code: Some(0),
                reason: String::new(),
                expired: false,
                lease_over: false,
            },
        );
        assert_eq!(progress(&ran.state, &made, &key), Some(Progress::Ran), "over, but it ran");
        ran.terminate(&id);
        assert!(ran.state.sandbox(&id).is_none());
        assert_eq!(progress(&ran.state, &asked_again, &key), Some(Progress::Ran), "the first answer again");
        let mut ended = world.clone();
        ended.terminate(&id);
        assert_eq!(progress(&ended.state, &made, &key), Some(Progress::Ended));
        world.report(&id, ReportedState::StartFailed { reason: "no such program".into() });
        assert_eq!(progress(&world.state, &made, &key), Some(Progress::RolledBack("no such program".into())));
    }

    #[test]
    fn a_name_that_is_free_again_still_finds_what_goes_away() {
        let mut world = World::with_agent();
        let (id, _) = world.create_strong("web");
        let name = SandboxRef::Name(World::name("web"));
        world.terminate(&id);
        assert!(find(&world.state, &name).is_err());
        assert_eq!(leaving(&world.state, &name).map(|sandbox| &sandbox.id), Some(&id));
        world.report(&id, ReportedState::Absent);
        assert!(leaving(&world.state, &name).is_none());
        assert_eq!(convert::never_seen(&name).phase(), v1::Phase::Gone);
        assert!(world.state.last_time() > Timestamp(0));
    }

    #[test]
    fn a_wait_names_phases_and_a_sandbox() {
        let wire = v1::WaitSandboxRequest { r#ref: None, phases: vec![] };
        let Err(Rejection::Invalid(violations)) = convert::wait(&wire) else { panic!("it must be refused") };
        let fields: Vec<&str> = violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["ref", "phases"]);
    }
}
