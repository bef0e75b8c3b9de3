//! The only place where wire types meet core types.
//!
//! Requests become core commands in a canonical form: defaults are filled in here, so that equal requests have equal
//! digests. Whatever is wrong with a request is found at once, field by field, named as in the .proto files, before a
//! leader is asked.
//!
//! Architecture invariant: no clock and no randomness, but for the request id that the server makes.

pub(crate) mod cluster;
pub(crate) mod create;
pub(crate) mod event;
mod fields;
pub(crate) mod fleet;
pub(crate) mod list;
pub(crate) mod many;
pub(crate) mod sandbox;
pub(crate) mod target;
#[cfg(test)]
mod tests;

use std::time::Duration;

use sandkeeper_proto::v1;
use sandkeeper_statemachine::limits::Violation;
use sandkeeper_statemachine::{CallerId, Rejection, RequestId, Resources, Revision};
use uuid::Uuid;

pub(crate) use fields::Fields;

/// The largest request, bytes: it has to fit into one log entry, with the events that it causes.
pub const MAX_REQUEST_BYTES: usize = 1024 * 1024;

/// How long request ids are remembered.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Of ids that a caller chose.
    pub caller: Duration,
    /// Of ids that the server made.
    pub server: Duration,
}

impl Retention {
    /// The id of a request: the caller's, or a new one.
    pub(crate) fn caller_id(&self, fields: &mut Fields, text: &str) -> CallerId {
        if text.is_empty() {
            return CallerId { id: RequestId::Uuid(Uuid::new_v4()), retention: nanos(self.server) };
        }
        let id = fields.parsed("request_id", text).unwrap_or(RequestId::Uuid(Uuid::nil()));
        CallerId { id, retention: nanos(self.caller) }
    }
}

/// Nanoseconds, at most as many as there can be.
pub(crate) fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// How fresh a read has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Freshness {
    /// Whether it has to reflect everything that was acknowledged before it began.
    pub linearizable: bool,
    /// The least revision.
    pub min_revision: Revision,
}

/// Reads the read options.
///
/// # Errors
/// If the consistency is none that this version knows.
pub(crate) fn freshness(options: Option<v1::ReadOptions>) -> Result<Freshness, Rejection> {
    let options = options.unwrap_or_default();
    let linearizable = match v1::Consistency::try_from(options.consistency) {
        Ok(v1::Consistency::Unspecified | v1::Consistency::Linearizable) => true,
        Ok(v1::Consistency::Local) => false,
        Err(_) => return Err(invalid("read.consistency", unknown_value(options.consistency))),
    };
    Ok(Freshness { linearizable, min_revision: options.min_revision })
}

/// A refusal for one field.
pub(crate) fn invalid(field: &str, description: impl Into<String>) -> Rejection {
    Rejection::Invalid(vec![Violation::new(field, description)])
}

fn unknown_value(value: i32) -> String {
    format!("{value} is no value that this version knows")
}

pub(crate) fn resources(wire: Resources) -> v1::Resources {
    let given = |value: u64| (value > 0).then(|| i64::try_from(value).unwrap_or(i64::MAX));
    v1::Resources { cpu_millis: given(wire.cpu_millis), memory_bytes: given(wire.memory_bytes) }
}

/// 0 stands for "none": what proto3 can't tell apart from a value that is left out.
fn non_zero(revision: Revision) -> Option<Revision> {
    (revision != 0).then_some(revision)
}
