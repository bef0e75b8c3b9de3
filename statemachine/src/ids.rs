//! Names and numbers that identify things. All of them are checked when they are made, so that the rest of the
//! core never meets a bad one.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The position of an event in the history: 1, 2, 3 …, without gaps. 0: before the first.
pub type Revision = u64;

/// Which assignment of a sandbox to an agent this is: 1, 2, … 0: none yet.
pub type Generation = u64;

/// A Raft term.
pub type Term = u64;

/// The most bytes of a name (RFC 1123: a DNS label).
pub const MAX_LABEL_BYTES: usize = 63;

/// The most bytes of a request id: room for a UUID, a ULID or a trace id with a prefix, and a bound for the table.
pub const MAX_REQUEST_ID_BYTES: usize = 128;

/// Unix time, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The time `nanos` later, at most the end of time.
    pub fn plus(self, nanos: i64) -> Self {
        Self(self.0.saturating_add(nanos))
    }
}

/// Why a text is not the name that it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(String);

/// A DNS label: `[a-z0-9]([-a-z0-9]*[a-z0-9])?`, at most 63 bytes. Names, namespaces and pools are such.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Arc<str>", into = "Arc<str>")]
pub struct Label(Arc<str>);

impl Label {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What an empty namespace or pool stands for.
    pub fn default_name() -> Self {
        Self("default".into())
    }
}

fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn check_name(text: &str, dots: bool) -> Result<(), InvalidName> {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return Err(InvalidName("must not be empty".into()));
    };
    if bytes.len() > MAX_LABEL_BYTES {
        return Err(InvalidName(format!(
            "must have at most {MAX_LABEL_BYTES} characters, has {}",
            bytes.len()
        )));
    }
    let inner = |b: u8| is_alphanumeric(b) || b == b'-' || (dots && b == b'.');
    if is_alphanumeric(*first) && is_alphanumeric(*last) && bytes.iter().all(|b| inner(*b)) {
        return Ok(());
    }
    let dots = if dots { ", '.'" } else { "" };
    Err(InvalidName(format!(
        "must consist of a-z, 0-9, '-'{dots} and begin and end with a letter or digit, is {text:?}"
    )))
}

impl TryFrom<Arc<str>> for Label {
    type Error = InvalidName;

    fn try_from(text: Arc<str>) -> Result<Self, InvalidName> {
        check_name(&text, false).map(|()| Self(text))
    }
}

impl FromStr for Label {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        check_name(text, false).map(|()| Self(text.into()))
    }
}

impl From<Label> for Arc<str> {
    fn from(label: Label) -> Self {
        label.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of an agent: like a [`Label`], but a host's full name, with dots, will do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Arc<str>", into = "Arc<str>")]
pub struct AgentId(Arc<str>);

impl AgentId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<Arc<str>> for AgentId {
    type Error = InvalidName;

    fn try_from(text: Arc<str>) -> Result<Self, InvalidName> {
        check_name(&text, true).map(|()| Self(text))
    }
}

impl FromStr for AgentId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        check_name(text, true).map(|()| Self(text.into()))
    }
}

impl From<AgentId> for Arc<str> {
    fn from(id: AgentId) -> Self {
        id.0
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What people call a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SandboxName {
    /// The namespace.
    pub namespace: Label,
    /// The name, unique among the live sandboxes of the namespace.
    pub name: Label,
}

impl fmt::Display for SandboxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What machines call a sandbox. Never given twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SandboxId {
    /// FAST: `md5("{name}:{namespace}:{create_timestamp_unix_nanos}")`.
    Fast([u8; 16]),
    /// STRONG: a UUID (v4) that the leader drew.
    Strong(Uuid),
    /// Adopted: ran before this cluster knew it, under its own name.
    Adopted(Label),
}

impl SandboxId {
    /// The id of a FAST sandbox. Names can't hold a `:`, so no two (name, namespace) give one text.
    pub fn fast(name: &SandboxName, created: Timestamp) -> Self {
        let text = format!("{}:{}:{}", name.name, name.namespace, created.0);
        Self::Fast(Md5::digest(text.as_bytes()).into())
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fast(bytes) => write!(f, "{}", Uuid::from_bytes(*bytes).simple()),
            Self::Strong(uuid) => write!(f, "{}", uuid.hyphenated()),
            Self::Adopted(name) => write!(f, "{name}"),
        }
    }
}

impl FromStr for SandboxId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if let Some(uuid) = canonical_uuid(text, 32) {
            return Ok(Self::Fast(uuid.into_bytes()));
        }
        if let Some(uuid) = canonical_uuid(text, 36) {
            return Ok(Self::Strong(uuid));
        }
        text.parse().map(Self::Adopted)
    }
}

/// A UUID in lower case: with hyphens if `length` is 36, without if it is 32. Nothing else, so that text and value
/// stand for each other.
fn canonical_uuid(text: &str, length: usize) -> Option<Uuid> {
    let lower = text.bytes().all(|b| is_alphanumeric(b) || b == b'-');
    if text.len() == length && lower { Uuid::try_parse(text).ok() } else { None }
}

/// Names one request of a caller, within a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RequestId {
    /// A UUID in canonical form: what servers and our client make. Half the memory of the text.
    Uuid(Uuid),
    /// Anything else: printable ASCII without spaces, at most [`MAX_REQUEST_ID_BYTES`].
    Text(Arc<str>),
    /// A create of a stream.
    Stream {
        /// The stream's client, which drew this id.
        client: Uuid,
        /// Which of its creates: 1, 2, 3, …
        sequence: u64,
    },
}

impl FromStr for RequestId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if let Some(uuid) = canonical_uuid(text, 36) {
            return Ok(Self::Uuid(uuid));
        }
        if text.is_empty() || text.len() > MAX_REQUEST_ID_BYTES {
            return Err(InvalidName(format!(
                "must have 1 to {MAX_REQUEST_ID_BYTES} characters, has {}",
                text.len()
            )));
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(InvalidName("must consist of printable ASCII characters without spaces".into()));
        }
        Ok(Self::Text(text.into()))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => write!(f, "{}", uuid.hyphenated()),
            Self::Text(text) => f.write_str(text),
            Self::Stream { client, sequence } => write!(f, "{}#{sequence}", client.hyphenated()),
        }
    }
}

/// One life of an agent's ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// The UUID of the ledger.
    pub ledger: Uuid,
    /// How often the agent has started with this ledger: 1, 2, …
    pub start: u64,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.ledger.simple(), self.start)
    }
}

/// A 256-bit digest: of the history, or of the state.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(namespace: &str, name: &str) -> SandboxName {
        SandboxName { namespace: namespace.parse().unwrap(), name: name.parse().unwrap() }
    }

    #[test]
    fn fast_ids_match_the_vectors_of_the_design() {
        let id = SandboxId::fast(&name("default", "test-sb"), Timestamp(1_234_567_890_123_456_789));
        assert_eq!(id.to_string(), "e4b85f2f7d8fb1918a47168a87c62761");
        let id = SandboxId::fast(&name("prod", "web"), Timestamp(1_700_000_000_000_000_001));
        assert_eq!(id.to_string(), "eff299c43a3b336c56ea67c28c2fb5d7");
    }

    #[test]
    fn sandbox_ids_read_back_what_they_print() {
        let text = ["e4b85f2f7d8fb1918a47168a87c62761", "67e55044-10b1-426f-9247-bb680e5fe0c8", "legacy-web"];
        for text in text {
            assert_eq!(text.parse::<SandboxId>().unwrap().to_string(), text);
        }
        assert!("E4B85F2F7D8FB1918A47168A87C62761".parse::<SandboxId>().is_err());
    }

    #[test]
    fn labels_are_dns_labels() {
        for good in ["a", "0", "a-b", "web1", &"x".repeat(63)] {
            assert!(good.parse::<Label>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a:b", "a_b", "ü", &"x".repeat(64)] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
        assert!("host-1.example.com".parse::<AgentId>().is_ok());
        assert!("host..".parse::<AgentId>().is_err());
    }

    #[test]
    fn request_ids_are_bounded_printable_text() {
        let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        assert!(matches!(uuid.parse::<RequestId>().unwrap(), RequestId::Uuid(_)));
        assert!(matches!("order-17".parse::<RequestId>().unwrap(), RequestId::Text(_)));
        for bad in ["", "a b", "a\n", &"x".repeat(129)] {
            assert!(bad.parse::<RequestId>().is_err(), "{bad:?}");
        }
    }
}
