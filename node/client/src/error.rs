//! What can go wrong with a call: the cluster refused it, nobody could be asked, or time ran out.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use sandkeeper_proto::v1;
use tonic::{Code, ConnectError, Status, TimeoutExpired};
use tonic_types::StatusExt;

/// The reason of a server that has no session with an agent; another one may have it.
const AGENT_NOT_CONNECTED: &str = "AGENT_NOT_CONNECTED";

/// A wish to come back later than this is for the caller, who may have something better to do than to wait.
pub(crate) const MOMENT: Duration = Duration::from_secs(10);

/// Settings of which no client can be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The list of servers is empty.
    #[error("no control node is named: give at least one address, host:port")]
    NoServers,
    /// An address that is not `host:port`.
    #[error("`{address}` is not the address of a control node, host:port: {reason}")]
    BadAddress {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why a call has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The cluster answered, and the answer is no. The same call would be refused again.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// No server could be reached, or none of those that could was able to serve (no leader).
    #[error("no control node could serve the call{}", tried(.0))]
    Unreachable(Vec<ServerFailure>),
    /// There was no answer in time. A mutating call may still take effect: repeat it with the same request id.
    #[error("no answer within {}{}", seconds(.deadline), tried(.failures))]
    Deadline {
        /// The time that the call had.
        deadline: Duration,
        /// The last failure of each server that was tried.
        failures: Vec<ServerFailure>,
    },
    /// The client can't be made of these settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl ClientError {
    /// The refusal, if it is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// The gRPC code of the refusal, if it is one.
    pub fn code(&self) -> Option<Code> {
        self.refusal().map(|refusal| refusal.code)
    }

    pub(crate) fn refused(server: &str, status: &Status) -> Self {
        Self::Refused(Box::new(Refusal::new(server, status)))
    }
}

/// A field of the request that was not accepted (`google.rpc.BadRequest`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// The path of the field in the request.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

/// A "no" of the cluster, with all that it said about it.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The server that answered.
    pub server: String,
    /// The gRPC code.
    pub code: Code,
    /// For people.
    pub message: String,
    /// For programs: the reason of `google.rpc.ErrorInfo`, such as `NAME_TAKEN`.
    pub reason: Option<String>,
    /// What `google.rpc.ErrorInfo` adds to its reason.
    pub details: BTreeMap<String, String>,
    /// The fields that were not accepted.
    pub violations: Vec<FieldViolation>,
    /// When it is worth to ask again, if the server said so.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    pub(crate) fn new(server: &str, status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        Self {
            server: server.to_owned(),
            code: status.code(),
            message: status.message().to_owned(),
            reason: info.map(|info| info.reason.clone()),
            details: info
                .map(|info| info.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
                .unwrap_or_default(),
            violations: details.bad_request().map_or_else(Vec::new, |bad| {
                let one = |violation: &tonic_types::FieldViolation| FieldViolation {
                    field: violation.field.clone(),
                    description: violation.description.clone(),
                };
                bad.field_violations.iter().map(one).collect()
            }),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }
    }

    /// A refusal inside of a stream.
    pub(crate) fn of_stream(server: &str, wire: v1::CallRefusal) -> Self {
        let violation =
            |found: v1::FieldViolation| FieldViolation { field: found.field, description: found.description };
        Self {
            server: server.to_owned(),
            code: Code::from_i32(wire.code),
            message: wire.message,
            reason: Some(wire.reason).filter(|reason| !reason.is_empty()),
            details: wire.metadata,
            violations: wire.violations.into_iter().map(violation).collect(),
            retry_after: wire.retry_delay.and_then(|delay| delay.try_into().ok()),
        }
    }

    /// The code's name as gRPC writes it, such as `ALREADY_EXISTS`.
    pub fn code_name(&self) -> &'static str {
        code_name(self.code)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = if self.message.is_empty() { "refused without a message" } else { &self.message };
        write!(f, "{message} ({}", self.code_name())?;
        if let Some(reason) = self.reason.as_ref().filter(|reason| *reason != self.code_name()) {
            write!(f, ", {reason}")?;
        }
        write!(f, ")")?;
        for violation in self.violations.iter().filter(|violation| !message.contains(&violation.description))
        {
            write!(f, "\n  {}: {}", violation.field, violation.description)?;
        }
        Ok(())
    }
}

/// How one server failed to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFailureKind {
    /// No connection could be made: the request was certainly not sent.
    NotConnected,
    /// The connection broke, or the server said that it can't serve now. The request may have taken effect.
    Unavailable,
    /// It did not answer in time. The request may have taken effect.
    TimedOut,
}

/// A server that was tried, and why that gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFailure {
    /// Its address.
    pub server: String,
    /// In which way it failed.
    pub kind: ServerFailureKind,
    /// What it, or the connection to it, said.
    pub message: String,
}

impl fmt::Display for ServerFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.server, self.message)
    }
}

/// What one try at one server came to, if it was not an answer.
pub(crate) enum Failure {
    /// Final: the caller is told.
    Refused(ClientError),
    /// A refusal that speaks only for the server that gave it: final if no other one knows better.
    Elsewhere(ClientError),
    /// Another server, or a later moment, may do.
    Passing {
        failure: ServerFailure,
        /// The server's own wish for the time of the next try.
        retry_after: Option<Duration>,
    },
}

impl Failure {
    pub(crate) fn timed_out(server: &str, after: Duration) -> Self {
        let message = format!("no answer within {}", seconds(&after));
        Self::passing(server, ServerFailureKind::TimedOut, message)
    }

    pub(crate) fn passing(server: &str, kind: ServerFailureKind, message: String) -> Self {
        Self::Passing {
            failure: ServerFailure { server: server.to_owned(), kind, message },
            retry_after: None,
        }
    }

    /// Sorts a status into refusals and failures that may pass.
    pub(crate) fn of(server: &str, status: &Status) -> Self {
        // Only errors that arose on this side have a source; what a server says comes without one.
        if let Some(source) = status.source() {
            if find::<ConnectError>(source).is_some() {
                return Self::passing(server, ServerFailureKind::NotConnected, deepest(source));
            }
            if find::<TimeoutExpired>(source).is_some() {
                return Self::passing(server, ServerFailureKind::TimedOut, "no answer in time".to_owned());
            }
            return Self::passing(server, ServerFailureKind::Unavailable, deepest(source));
        }
        let message = if status.message().is_empty() { code_name(status.code()) } else { status.message() };
        match status.code() {
            // A hint when to come back is for those that know one server only: another one may do at once, and this
            // client's own pauses are short first and long later.
            // Cancelled: it is stopping; this client cancels no call whose answer it still reads.
            Code::Unavailable | Code::Cancelled => {
                Self::passing(server, ServerFailureKind::Unavailable, message.to_owned())
            }
            Code::FailedPrecondition if reason(status).as_deref() == Some(AGENT_NOT_CONNECTED) => {
                Self::Elsewhere(ClientError::refused(server, status))
            }
            // The server's clock ran out first, by the deadline that this client gave it.
            Code::DeadlineExceeded => Self::passing(server, ServerFailureKind::TimedOut, message.to_owned()),
            // A full queue invites to come back, which a lack of room for the sandbox, or on a disk, does not.
            Code::ResourceExhausted => {
                match status.get_details_retry_info().and_then(|info| info.retry_delay) {
                    Some(delay) if delay <= MOMENT => Self::Passing {
                        failure: ServerFailure {
                            server: server.to_owned(),
                            kind: ServerFailureKind::Unavailable,
                            message: message.to_owned(),
                        },
                        retry_after: Some(delay),
                    },
                    _ => Self::Refused(ClientError::refused(server, status)),
                }
            }
            _ => Self::Refused(ClientError::refused(server, status)),
        }
    }
}

fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The innermost error says what happened ("Connection refused"); those around it say "transport error".
fn deepest(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn tried(failures: &[ServerFailure]) -> String {
    let mut text = String::new();
    for failure in failures {
        text += if text.is_empty() { "; tried:\n  " } else { "\n  " };
        text += &failure.to_string();
    }
    text
}

fn seconds(duration: &Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds >= 1.0 { format!("{seconds:.1} s") } else { format!("{:.0} ms", seconds * 1000.0) }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
