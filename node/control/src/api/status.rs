//! What went wrong, as gRPC says it: a code, a text for people, and `google.rpc` details for programs.
//!
//! Every refusal carries an `ErrorInfo` (domain "sandkeeper", a stable reason); bad fields a `BadRequest`; what may
//! work in a moment a `RetryInfo`.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use sandkeeper_proto::v1;
use sandkeeper_statemachine::{Rejection, Revision};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::commands::SubmitError;
use crate::history::HistoryError;
use crate::raft::MembershipError;
use crate::raft::ReadError;
use crate::raft::replica::WaitError;

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "sandkeeper";

/// When it is worth to ask again without a leader: about an election.
const RETRY_WITHOUT_LEADER: Duration = Duration::from_millis(200);
/// When it is worth to ask again after the queue was full: it is emptied many times a second.
const RETRY_OVERLOADED: Duration = Duration::from_millis(100);

/// When it is worth to ask again after a disk was low: somebody has to make room first.
const RETRY_DISK_LOW: Duration = Duration::from_secs(30);

/// Details travel in HTTP/2 headers, of which peers take 8 to 16 KiB: so many violations are named at most, …
const MAX_VIOLATIONS: usize = 16;
/// … with texts of so many bytes, …
const MAX_DESCRIPTION_BYTES: usize = 200;
/// … and a message of so many.
const MAX_MESSAGE_BYTES: usize = 1024;

/// A refusal in the making.
pub(crate) struct Problem {
    code: Code,
    message: String,
    details: ErrorDetails,
    metadata: HashMap<String, String>,
    reason: &'static str,
}

impl Problem {
    /// A refusal with a stable, upper-case reason.
    pub(crate) fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        let message = clip(&message.into(), MAX_MESSAGE_BYTES);
        Self { code, message, details: ErrorDetails::new(), metadata: HashMap::new(), reason }
    }

    /// Adds to the `ErrorInfo`.
    pub(crate) fn with(mut self, key: &str, value: &dyn fmt::Display) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// Says when to ask again.
    pub(crate) fn retry_after(mut self, delay: Duration) -> Self {
        self.details.set_retry_info(Some(delay));
        self
    }

    /// The gRPC status.
    pub(crate) fn status(mut self) -> Status {
        self.details.set_error_info(self.reason, DOMAIN, self.metadata);
        Status::with_error_details(self.code, self.message, self.details)
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        problem.status()
    }
}

/// At most so many bytes of a text.
fn clip(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(most);
    format!("{}…", &text[..end])
}

fn code_of(rejection: &Rejection) -> Code {
    match rejection {
        Rejection::Invalid(_) => Code::InvalidArgument,
        Rejection::SandboxNotFound(_) | Rejection::AgentNotFound(_) => Code::NotFound,
        Rejection::NameTaken { .. } | Rejection::RequestIdReused(_) | Rejection::StreamClientExists(_) => {
            Code::AlreadyExists
        }
        Rejection::NoCapacity(_)
        | Rejection::QueueFull
        | Rejection::TooManyRequests
        | Rejection::TooManyAgents
        | Rejection::TooManyStreamClients
        | Rejection::StreamWindowFull { .. } => Code::ResourceExhausted,
        Rejection::RevisionMoved { .. } | Rejection::StreamSuperseded(_) => Code::Aborted,
        Rejection::RolledBack { .. }
        | Rejection::FailedPrecondition(_)
        | Rejection::StreamForgotten(_)
        | Rejection::Acknowledged { .. } => Code::FailedPrecondition,
        Rejection::InBatch { why, .. } => code_of(why),
    }
}

/// A refusal by the core.
pub(crate) fn rejected(rejection: &Rejection) -> Status {
    describe(Problem::new(code_of(rejection), rejection.code(), rejection.to_string()), rejection).status()
}

/// Adds what a program needs to know of a refusal.
fn describe(mut problem: Problem, rejection: &Rejection) -> Problem {
    match rejection {
        Rejection::Invalid(violations) => {
            let wire = violations.iter().take(MAX_VIOLATIONS).map(|violation| {
                let field = clip(&violation.field, MAX_DESCRIPTION_BYTES);
                FieldViolation::new(field, clip(&violation.description, MAX_DESCRIPTION_BYTES))
            });
            problem.details.set_bad_request(wire.collect::<Vec<_>>());
            problem
        }
        Rejection::SandboxNotFound(sandbox) => problem.with("sandbox", sandbox),
        Rejection::AgentNotFound(agent) => problem.with("agent_id", agent),
        Rejection::NameTaken { name, holder } => {
            problem.with("namespace", &name.namespace).with("name", &name.name).with("sandbox_id", holder)
        }
        Rejection::RequestIdReused(id) => problem.with("request_id", id),
        Rejection::NoCapacity(shortage) => problem
            .with("pool", &shortage.pool)
            .with("agents", &shortage.agents)
            .with("unavailable", &shortage.unavailable)
            .with("without_labels", &shortage.labels)
            .with("without_slots", &shortage.slots)
            .with("without_cpu", &shortage.cpu)
            .with("without_memory", &shortage.memory)
            .with("without_ports", &shortage.ports)
            .with("waiting", &shortage.waiting),
        Rejection::RevisionMoved { sandbox_id, expected, actual } => problem
            .with("sandbox_id", sandbox_id)
            .with("expected_revision", expected)
            .with("revision", actual),
        Rejection::InBatch { index, why, .. } => describe(problem, why).with("index", index),
        Rejection::StreamForgotten(client)
        | Rejection::StreamSuperseded(client)
        | Rejection::StreamClientExists(client) => problem.with("client_id", client),
        Rejection::Acknowledged { sequence, acknowledged_below }
        | Rejection::StreamWindowFull { sequence, acknowledged_below } => {
            problem.with("sequence", sequence).with("acknowledged_below", acknowledged_below)
        }
        Rejection::RolledBack { .. }
        | Rejection::QueueFull
        | Rejection::TooManyRequests
        | Rejection::TooManyAgents
        | Rejection::TooManyStreamClients
        | Rejection::FailedPrecondition(_) => problem,
    }
}

/// A status, for a stream that goes on after it.
pub(crate) fn refusal(status: &Status) -> v1::CallRefusal {
    let details = status.get_error_details();
    let violations = details.bad_request().into_iter().flat_map(|bad| &bad.field_violations);
    let violation = |found: &FieldViolation| v1::FieldViolation {
        field: found.field.clone(),
        description: found.description.clone(),
    };
    let info = details.error_info();
    let delay = details.retry_info().and_then(|info| info.retry_delay);
    v1::CallRefusal {
        code: status.code().into(),
        message: status.message().to_owned(),
        reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
        metadata: info.map(|info| info.metadata.clone().into_iter().collect()).unwrap_or_default(),
        violations: violations.map(violation).collect(),
        retry_delay: delay.and_then(|delay| delay.try_into().ok()),
    }
}

/// A command that has no good outcome.
pub(crate) fn submit(error: &SubmitError) -> Status {
    match error {
        SubmitError::Rejected(rejection) => rejected(rejection),
        SubmitError::Unavailable(why) => unavailable(why),
        SubmitError::DiskLow(low) => {
            let mut problem = Problem::new(Code::ResourceExhausted, "DISK_LOW", low.to_string());
            if let Some(first) = low.0.first() {
                problem = problem
                    .with("node", &first.node)
                    .with("free_bytes", &first.free)
                    .with("low_water_bytes", &first.mark);
            }
            problem.retry_after(RETRY_DISK_LOW).status()
        }
        SubmitError::Overloaded(why) => {
            Problem::new(Code::ResourceExhausted, "OVERLOADED", why).retry_after(RETRY_OVERLOADED).status()
        }
    }
}

/// What became of a command, for metrics.
pub(crate) fn result_of(error: &SubmitError) -> &'static str {
    match error {
        SubmitError::Rejected(rejection) => rejection.code(),
        SubmitError::Unavailable(_) => "UNAVAILABLE",
        SubmitError::Overloaded(_) => "OVERLOADED",
        SubmitError::DiskLow(_) => "DISK_LOW",
    }
}

/// No leader, or not in time. Another node, or a moment later, may do.
pub(crate) fn unavailable(why: &str) -> Status {
    Problem::new(Code::Unavailable, "UNAVAILABLE", why).retry_after(RETRY_WITHOUT_LEADER).status()
}

/// This node stops: another one will do.
pub(crate) fn shutting_down() -> Status {
    Problem::new(Code::Unavailable, "SHUTTING_DOWN", "node is shutting down")
        .retry_after(Duration::ZERO)
        .status()
}

/// A fault of this node.
pub(crate) fn fault(why: &str) -> Status {
    tracing::error!(%why, "a request met a fault of this node");
    Problem::new(Code::Internal, "FAULT", why).status()
}

/// A linearizable read that was not possible. `knows`: what this node knows of the cluster.
pub(crate) fn read(error: &ReadError, knows: &str) -> Status {
    match error {
        ReadError::NoLeader(_) | ReadError::Behind { .. } => unavailable(&format!("{error} ({knows})")),
        ReadError::Stopped => shutting_down(),
    }
}

/// A replica that did not reach what was waited for.
pub(crate) fn wait(error: WaitError, wanted: Revision) -> Status {
    match error {
        WaitError::Timeout { revision } => {
            let text = format!("this node is at revision {revision}, and did not reach {wanted} in time");
            Problem::new(Code::Unavailable, "BEHIND", text)
                .with("revision", &revision)
                .retry_after(RETRY_WITHOUT_LEADER)
                .status()
        }
        WaitError::Stopped => shutting_down(),
    }
}

/// A part of the history that can't be read.
pub(crate) fn history(error: &HistoryError) -> Status {
    match error {
        HistoryError::Compacted { oldest } => {
            Problem::new(Code::OutOfRange, "HISTORY_COMPACTED", error.to_string())
                .with("oldest_revision", oldest)
                .status()
        }
        HistoryError::NotYet { .. } | HistoryError::Busy => unavailable(&error.to_string()),
        HistoryError::Fault(_) => fault(&error.to_string()),
    }
}

/// A membership that was not changed.
pub(crate) fn membership(error: &MembershipError) -> Status {
    match error {
        MembershipError::Refused(why) => {
            Problem::new(Code::FailedPrecondition, "MEMBERSHIP_REFUSED", why).status()
        }
        MembershipError::NoRoom(why) => {
            Problem::new(Code::ResourceExhausted, "DISK_LOW", why).retry_after(RETRY_DISK_LOW).status()
        }
        MembershipError::NotFound(_) => {
            Problem::new(Code::NotFound, "MEMBER_NOT_FOUND", error.to_string()).status()
        }
        MembershipError::Unreachable(why) => {
            Problem::new(Code::FailedPrecondition, "PEER_UNREACHABLE", why).status()
        }
        MembershipError::Unavailable(why) => unavailable(why),
    }
}

#[cfg(test)]
mod tests {
    use sandkeeper_statemachine::limits::Violation;
    use sandkeeper_statemachine::{SandboxName, Shortage};
    use uuid::Uuid;

    use super::*;

    fn in_batch(why: Rejection) -> Rejection {
        let name = SandboxName { namespace: "default".parse().unwrap(), name: "web".parse().unwrap() };
        Rejection::InBatch { index: 7, name, why: Box::new(why) }
    }

    fn all() -> Vec<(Rejection, Code)> {
        let name = SandboxName { namespace: "default".parse().unwrap(), name: "web".parse().unwrap() };
        let holder: sandkeeper_statemachine::SandboxId = "e4b85f2f7d8fb1918a47168a87c62761".parse().unwrap();
        let reason = "exec failed".to_owned();
        vec![
            (Rejection::Invalid(vec![Violation::new("name", "is bad")]), Code::InvalidArgument),
            (Rejection::SandboxNotFound("default/web".into()), Code::NotFound),
            (Rejection::AgentNotFound("a1".parse().unwrap()), Code::NotFound),
            (Rejection::NameTaken { name, holder: holder.clone() }, Code::AlreadyExists),
            (Rejection::RequestIdReused("r1".parse().unwrap()), Code::AlreadyExists),
            (Rejection::RolledBack { reason }, Code::FailedPrecondition),
            (Rejection::NoCapacity(Shortage::default()), Code::ResourceExhausted),
            (Rejection::QueueFull, Code::ResourceExhausted),
            (Rejection::TooManyRequests, Code::ResourceExhausted),
            (Rejection::TooManyAgents, Code::ResourceExhausted),
            (Rejection::RevisionMoved { sandbox_id: holder, expected: 3, actual: 5 }, Code::Aborted),
            (Rejection::FailedPrecondition("no".into()), Code::FailedPrecondition),
            (Rejection::StreamForgotten(Uuid::nil()), Code::FailedPrecondition),
            (Rejection::StreamSuperseded(Uuid::nil()), Code::Aborted),
            (Rejection::StreamClientExists(Uuid::nil()), Code::AlreadyExists),
            (Rejection::Acknowledged { sequence: 3, acknowledged_below: 5 }, Code::FailedPrecondition),
            (Rejection::StreamWindowFull { sequence: 9_000, acknowledged_below: 5 }, Code::ResourceExhausted),
            (Rejection::TooManyStreamClients, Code::ResourceExhausted),
            (in_batch(Rejection::NoCapacity(Shortage::default())), Code::ResourceExhausted),
        ]
    }

    #[test]
    fn every_rejection_has_its_code_and_says_why() {
        for (rejection, code) in all() {
            let status = rejected(&rejection);
            assert_eq!(status.code(), code, "{rejection:?}");
            assert_eq!(status.message(), rejection.to_string());
            let details = status.get_error_details();
            let info = details.error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (rejection.code(), "sandkeeper"));
            assert!(details.retry_info().is_none(), "asking again at once is no help: {rejection:?}");
        }
    }

    #[test]
    fn details_name_what_a_program_needs() {
        let metadata = |at: usize| {
            let status = rejected(&all()[at].0);
            status.get_error_details().error_info().unwrap().metadata.clone()
        };
        assert_eq!(metadata(3)["sandbox_id"], "e4b85f2f7d8fb1918a47168a87c62761");
        assert_eq!(metadata(4)["request_id"], "r1");
        assert_eq!(metadata(10)["revision"], "5");
        assert_eq!(metadata(15)["acknowledged_below"], "5");
        assert_eq!((metadata(18)["index"].as_str(), metadata(18)["agents"].as_str()), ("7", "0"));
        let status = rejected(&all()[0].0);
        let details = status.get_error_details();
        let bad = &details.bad_request().unwrap().field_violations;
        assert_eq!((bad[0].field.as_str(), bad[0].description.as_str()), ("name", "is bad"));
    }

    #[test]
    fn faults_and_lack_of_a_leader_are_no_refusals() {
        let status = submit(&SubmitError::Unavailable("no leader".into()));
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.get_error_details().retry_info().is_some());
        let status = submit(&SubmitError::Overloaded("full".into()));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.get_error_details().retry_info().is_some());
        let status = membership(&MembershipError::NoRoom("the disk has 1 MiB free".into()));
        let info = status.get_error_details().error_info().unwrap().clone();
        assert_eq!((status.code(), info.reason.as_str()), (Code::ResourceExhausted, "DISK_LOW"));
        let low = crate::disk::LowNode { node: "n1".into(), free: 3 << 20, mark: 9 << 20 };
        let status = submit(&SubmitError::DiskLow(crate::disk::LowDisks(vec![low])));
        let info = status.get_error_details().error_info().unwrap().clone();
        assert_eq!((status.code(), info.reason.as_str()), (Code::ResourceExhausted, "DISK_LOW"));
        assert_eq!((info.metadata["node"].as_str(), info.metadata["free_bytes"].as_str()), ("n1", "3145728"));
        assert!(status.message().contains("node n1 has 3 MiB free, and its mark is 9 MiB"), "{status}");
        assert!(status.get_error_details().retry_info().is_some());
        let status = history(&HistoryError::Compacted { oldest: 17 });
        assert_eq!(status.code(), Code::OutOfRange);
        assert_eq!(status.get_error_details().error_info().unwrap().metadata["oldest_revision"], "17");
        let status = read(&ReadError::NoLeader("none".into()), "term 3");
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("term 3"), "{status}");
    }

    #[test]
    fn a_refusal_in_a_stream_says_all_that_a_status_says() {
        let told = refusal(&rejected(&all()[3].0));
        assert_eq!((told.code, told.reason.as_str()), (i32::from(Code::AlreadyExists), "NAME_TAKEN"));
        assert_eq!(told.metadata["sandbox_id"], "e4b85f2f7d8fb1918a47168a87c62761");
        let told = refusal(&rejected(&all()[0].0));
        let violation = v1::FieldViolation { field: "name".into(), description: "is bad".into() };
        assert_eq!(told.violations, [violation]);
        let told = refusal(&submit(&SubmitError::Unavailable("no leader".into())));
        assert_eq!(told.retry_delay.unwrap().nanos, 200_000_000);
    }

    #[test]
    fn details_fit_into_headers_whatever_the_caller_sent() {
        let violations = (0..5000).map(|_| Violation::new("labels", "ü".repeat(5000))).collect();
        let status = rejected(&Rejection::Invalid(violations));
        assert!(status.message().len() <= MAX_MESSAGE_BYTES + 3);
        assert!(status.details().len() < 6 * 1024, "{}", status.details().len());
        assert_eq!(status.get_error_details().bad_request().unwrap().field_violations.len(), MAX_VIOLATIONS);
    }
}
