//! Messages as the canonical JSON form of protobuf, with the field names of the .proto files.
//!
//! Every field is there, also with its default, so that scripts need not know which are left out; a field with
//! presence (`optional`, a message) is there when it is set. 64-bit integers are strings, as the canonical form has
//! them: a JSON number can't hold a timestamp in nanoseconds.

use std::sync::LazyLock;

use anyhow::Context;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use sandkeeper_proto::{descriptor_pool, v1};
use serde::{Serialize, Serializer};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(descriptor_pool);

/// A message that knows its full name.
pub trait Named: Message {
    /// As in the .proto file, with its package.
    const NAME: &'static str;
}

macro_rules! named {
    ($($message:ident),* $(,)?) => {
        $(impl Named for v1::$message {
            const NAME: &'static str = concat!("sandkeeper.v1.", stringify!($message));
        })*
        #[cfg(test)]
        const NAMES: &[&str] = &[$(<v1::$message as Named>::NAME),*];
    };
}

named!(
    AddMemberResponse,
    AdoptSandboxesResponse,
    ConfirmRestoreResponse,
    CordonAgentResponse,
    CreateSandboxResponse,
    Event,
    GetAgentResponse,
    GetCapacityResponse,
    GetSandboxResponse,
    GetStatusResponse,
    ListAgentsResponse,
    ListEventsResponse,
    ListMembersResponse,
    ListSandboxesResponse,
    ListUnknownResponse,
    RehomeAgentsResponse,
    RemoveAgentResponse,
    RemoveMemberResponse,
    ResetSandboxResponse,
    TerminateSandboxResponse,
    TransferLeadershipResponse,
    TriggerSnapshotResponse,
    UncordonAgentResponse,
    UpdateSandboxResponse,
    VerifyResponse,
    WaitSandboxResponse,
);

/// A message in the form in which it is shown, its fields in the order of the .proto file.
#[derive(Debug)]
pub struct Shown(DynamicMessage);

impl Shown {
    /// Of a message.
    pub fn new<M: Named>(message: &M) -> anyhow::Result<Self> {
        let descriptor = POOL
            .get_message_by_name(M::NAME)
            .with_context(|| format!("this build does not know {}", M::NAME))?;
        let mut dynamic = DynamicMessage::new(descriptor);
        dynamic.transcode_from(message).with_context(|| format!("{} can't be shown", M::NAME))?;
        Ok(Self(dynamic))
    }
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(false);
        self.0.serialize_with_options(serializer, &options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_in_the_descriptors() {
        for name in NAMES {
            assert!(POOL.get_message_by_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn canonical_with_the_names_of_the_proto() {
        let sandbox = v1::Sandbox {
            sandbox_id: "abc".into(),
            phase: v1::Phase::Running.into(),
            create_timestamp: 1_700_000_000_000_000_001,
            exit_code: Some(0),
            ..Default::default()
        };
        let shown = Shown::new(&v1::GetSandboxResponse { sandbox: Some(sandbox), header: None }).unwrap();
        let value = serde_json::to_value(shown).unwrap();
        let sandbox = &value["sandbox"];
        assert_eq!(sandbox["sandbox_id"], "abc");
        assert_eq!(sandbox["phase"], "PHASE_RUNNING");
        assert_eq!(sandbox["create_timestamp"], "1700000000000000001");
        assert_eq!(sandbox["exit_code"], 0);
        assert_eq!(sandbox["namespace"], "", "defaults are shown");
        assert!(value.get("header").is_none(), "what has presence is shown when it is set");
    }
}
