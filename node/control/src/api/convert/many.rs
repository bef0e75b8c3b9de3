//! Many creates: batches and streams.

use sandkeeper_proto::v1;
use sandkeeper_statemachine::limits::MAX_BATCH_CREATES;
use sandkeeper_statemachine::{
    Actor, CallerId, Command, CreateSandbox, Label, Rejection, Request, RequestId, StreamKey, StreamPosition,
};
use uuid::Uuid;

use super::{Fields, Retention, create, invalid};

/// Reads a batch.
///
/// # Errors
/// Every violation.
pub(crate) fn batch(
    wire: v1::BatchCreateSandboxesRequest,
    actor: Actor,
    retention: &Retention,
) -> Result<Request, Rejection> {
    let mut fields = Fields::default();
    fields.size(&wire);
    let caller = retention.caller_id(&mut fields, &wire.request_id);
    let namespace = fields.label_or_default("namespace", &wire.namespace);
    let count = wire.creates.len();
    let good = (1..=MAX_BATCH_CREATES).contains(&count);
    fields.require(good, "creates", format!("1 to {MAX_BATCH_CREATES} creates, has {count}"));
    let mut creates = Vec::with_capacity(count.min(MAX_BATCH_CREATES));
    for (index, wire) in wire.creates.into_iter().take(MAX_BATCH_CREATES).enumerate() {
        let mut one = Fields::default();
        creates.push(one_of_many(&mut one, wire, &namespace, caller.id.clone()));
        fields.take_in(&format!("creates[{index}]."), one);
    }
    fields.done()?;
    Ok(Request { actor, id: Some(caller), command: Command::CreateSandboxes(creates) })
}

/// One of many creates: what they share stands beside them.
fn one_of_many(
    fields: &mut Fields,
    mut wire: v1::CreateSandboxRequest,
    namespace: &Label,
    request_id: RequestId,
) -> CreateSandbox {
    let shared = wire.namespace.is_empty() || wire.namespace == namespace.as_str();
    fields.require(shared, "namespace", format!("must be empty, or {namespace} as that of all others"));
    fields.require(wire.request_id.is_empty(), "request_id", "must be empty: this create is named otherwise");
    wire.namespace = namespace.to_string();
    create::what(fields, wire, request_id)
}

/// What a client opens its stream with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub stream: StreamKey,
    pub resume: bool,
    pub acknowledged_below: u64,
}

/// Reads the first message of a stream.
///
/// # Errors
/// Every violation.
pub(crate) fn opening(wire: &v1::OpenCreateStream) -> Result<Opening, Rejection> {
    let mut fields = Fields::default();
    let namespace = fields.label_or_default("open.namespace", &wire.namespace);
    // In one form only, so that a client is found again.
    let client = Uuid::try_parse(&wire.client_id).ok().filter(|id| id.to_string() == wire.client_id);
    let rule = "must be a UUID that the client has drawn, in lower case with hyphens";
    fields.require(client.is_some(), "open.client_id", rule);
    fields.done()?;
    let stream = StreamKey { namespace, client: client.unwrap_or_default() };
    Ok(Opening { stream, resume: wire.resume, acknowledged_below: wire.acknowledged_below })
}

/// Reads a create of a stream.
///
/// # Errors
/// Every violation.
pub(crate) fn in_stream(
    wire: v1::StreamedCreate,
    stream: &StreamKey,
    position: StreamPosition,
    actor: Actor,
) -> Result<Request, Rejection> {
    let asked = wire.create.ok_or_else(|| invalid("create", "must say what is to be made"))?;
    let mut fields = Fields::default();
    fields.size(&asked);
    let id = RequestId::Stream { client: stream.client, sequence: wire.sequence };
    let create = Box::new(one_of_many(&mut fields, asked, &stream.namespace, id.clone()));
    fields.done()?;
    // How long it is remembered is its client's matter.
    let caller = CallerId { id, retention: 0 };
    Ok(Request { actor, id: Some(caller), command: Command::CreateInStream { position, create } })
}
