//! The types that Raft is made of here: what an entry of the log carries, who a member is.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf};
use sandkeeper_statemachine::{DecodeError, Entry as CoreEntry};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::storage::snapshot::SnapshotFile;

/// A control node's number in the Raft group. Drawn at random when its data directory is made, so that it is
/// never given a second time (a re-used id would let a wiped node vote twice, openraft #2002).
pub type NodeId = u64;

/// What the membership records of a control node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The name that the operator gave it, unique in the cluster.
    pub name: String,
    /// `host:port` where its peers reach it.
    pub peer_address: String,
    /// `host:port` where clients and agents reach it.
    pub api_address: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.peer_address)
    }
}

/// What one Raft log entry carries: a [`CoreEntry`], encoded once by the leader; log, network and followers pass
/// the same bytes on. The leader keeps the decoded form beside them, so that it never decodes its own entries.
#[derive(Clone)]
pub struct EntryData {
    bytes: Bytes,
    decoded: Option<Arc<CoreEntry>>,
}

impl EntryData {
    /// Encodes an entry that the decider has just made.
    pub fn new(entry: CoreEntry) -> Self {
        Self { bytes: entry.encoded().clone(), decoded: Some(Arc::new(entry)) }
    }

    /// Wraps bytes read from the log or from a peer. They are decoded when they are applied.
    pub fn from_bytes(bytes: Bytes) -> Self {
        Self { bytes, decoded: None }
    }

    /// The encoded form, as it stands in the log.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// About how much memory it takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        self.decoded.as_ref().map_or(self.bytes.len(), |entry| entry.memory_bytes())
    }

    /// The same, decoded already if it can be: who applies it need not do it.
    #[must_use]
    pub fn into_decoded(self) -> Self {
        let decoded = self.entry().ok();
        Self { decoded, ..self }
    }

    /// The entry itself.
    ///
    /// # Errors
    /// If the bytes are not an entry that this version can read.
    pub fn entry(&self) -> Result<Arc<CoreEntry>, DecodeError> {
        match &self.decoded {
            Some(entry) => Ok(Arc::clone(entry)),
            None => CoreEntry::decode(&self.bytes).map(Arc::new),
        }
    }
}

impl PartialEq for EntryData {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for EntryData {}

impl fmt::Debug for EntryData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryData({} bytes)", self.bytes.len())
    }
}

impl fmt::Display for EntryData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

// openraft's `serde` feature asks for these of every entry; the log and the network have formats of their own.
impl Serialize for EntryData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.bytes[..].serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for EntryData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(|bytes| Self::from_bytes(bytes.into()))
    }
}

/// What became of an entry when it was applied, told to the one who proposed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// Its events are in the history; `revision` is that of the state after them.
    Done {
        /// The revision after the entry.
        revision: u64,
    },
    /// It was decided on another state, or by the leader of another term, and changed nothing.
    Skipped {
        /// The revision of the state, which did not move.
        revision: u64,
    },
    /// An entry of Raft's own (blank, membership).
    Internal,
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { revision } => write!(f, "done at revision {revision}"),
            Self::Skipped { revision } => write!(f, "skipped at revision {revision}"),
            Self::Internal => write!(f, "internal"),
        }
    }
}

openraft::declare_raft_types!(
    /// One leader a term (`leader_id_std`): the decider's `decided_term` names exactly one decider.
    pub TypeConfig:
        D = EntryData,
        R = Applied,
        NodeId = NodeId,
        Node = Member,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

/// A log id of this type config.
pub type LogId = LogIdOf<TypeConfig>;
/// A vote of this type config.
pub type Vote = VoteOf<TypeConfig>;
/// A Raft log entry of this type config.
pub type LogEntry = EntryOf<TypeConfig>;
/// The membership, with the log id that set it.
pub type StoredMembership = StoredMembershipOf<TypeConfig>;
/// What openraft knows of a snapshot.
pub type SnapshotMeta = SnapshotMetaOf<TypeConfig>;
/// A snapshot: openraft's meta and our file.
pub type Snapshot = SnapshotOf<TypeConfig, SnapshotFile>;
