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
    BatchCreateSandboxesResponse,
    ConfirmRestoreResponse,
    CordonAgentResponse,
    CreateSandboxResponse,
    DrainAgentResponse,
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
    StreamedAnswer,
    TerminateSandboxResponse,
    TransferLeadershipResponse,
    TriggerSnapshotResponse,
    UncordonAgentResponse,
    UpdateSandboxResponse,
    VerifyResponse,
    WaitSandboxResponse,
);

/// Creates, as files describe them.
pub mod read {
    use anyhow::{Context, Result, bail};
    use prost_reflect::DynamicMessage;
    use sandkeeper_proto::v1;
    use serde::Deserializer;
    use serde::de::Deserialize;
    use serde_yaml_ng::Value;

    use super::POOL;

    const NAME: &str = "sandkeeper.v1.CreateSandboxRequest";

    /// One create, of a text of JSON.
    pub fn one(text: &str) -> Result<v1::CreateSandboxRequest> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let create = create(&mut deserializer)?;
        deserializer.end()?;
        Ok(create)
    }

    /// All creates of a text: a list, or one after another, as JSON or YAML.
    pub fn many(text: &str) -> Result<Vec<v1::CreateSandboxRequest>> {
        let mut creates = Vec::new();
        let mut add = |value: Value| -> Result<()> {
            let at = creates.len();
            creates.push(create(value).with_context(|| format!("creates[{at}]"))?);
            Ok(())
        };
        // YAML knows lists of JSON, but not objects one after another.
        if text.trim_start().starts_with('{') {
            for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
                add(value?)?;
            }
        } else {
            for document in serde_yaml_ng::Deserializer::from_str(text) {
                match Value::deserialize(document)? {
                    Value::Null => {}
                    Value::Sequence(values) => values.into_iter().try_for_each(&mut add)?,
                    value => add(value)?,
                }
            }
        }
        if creates.is_empty() {
            bail!("it describes no sandbox");
        }
        Ok(creates)
    }

    fn create<'de, D>(deserializer: D) -> Result<v1::CreateSandboxRequest>
    where
        D: Deserializer<'de>,
        D::Error: Send + Sync + 'static,
    {
        let descriptor =
            POOL.get_message_by_name(NAME).with_context(|| format!("this build does not know {NAME}"))?;
        Ok(DynamicMessage::deserialize(descriptor, deserializer)?.transcode_to()?)
    }
}

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
    fn creates_are_read_from_json_and_yaml_alike() {
        let json = r#"{"name": "a", "command": ["sleep", "1"], "ttl": "90s", "mode": "MODE_STRONG"}
            {"name": "b", "resources": {"cpu_millis": "500"}, "exposed_ports": [80]}"#;
        let yaml = "name: a\ncommand: [sleep, '1']\nttl: 90s\nmode: MODE_STRONG\n---\n\
            - name: b\n  resources: {cpu_millis: '500'}\n  exposed_ports: [80]\n";
        let creates = read::many(json).unwrap();
        assert_eq!(creates, read::many(yaml).unwrap());
        assert_eq!(
            creates,
            read::many(
                "[{name: a, command: [sleep, '1'], ttl: 90s, mode: MODE_STRONG}, \
            {name: b, resources: {cpu_millis: 500}, exposed_ports: [80]}]"
            )
            .unwrap()
        );
        assert_eq!(
            (creates[0].mode(), creates[1].exposed_ports.as_slice()),
            (v1::Mode::Strong, [80].as_slice())
        );
        assert_eq!(read::one(r#"{"name": "a"}"#).unwrap().name, "a");
        for wrong in ["", "- name: [a]", "name: a\ncomand: [x]", "{\"name\": \"a\"} x", "just text"] {
            assert!(read::many(wrong).is_err(), "{wrong:?}");
        }
        let error = format!("{:#}", read::many("- name: a\n- nmae: b\n").unwrap_err());
        assert!(error.starts_with("creates[1]: ") && error.contains("nmae"), "{error}");
        assert!(read::one("{\"name\": \"a\"} {\"name\": \"b\"}").is_err());
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
