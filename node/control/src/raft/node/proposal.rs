//! Proposing entries, several in flight, in order.

use std::time::Duration;

use openraft::alias::OneshotReceiverOf;
use openraft::errors::{ClientWriteError, ForwardToLeader};
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use tokio::time::{Instant, timeout, timeout_at};

use super::RaftNode;
use crate::raft::types::{Applied, EntryData, Member, NodeId, TypeConfig};

/// How long openraft may take to accept a proposal into its queue. It holds tens of thousands.
const ENQUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why it is not known that an entry was applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead in that term, or reaches no majority. The entry was not appended.
    #[error("this node does not lead")]
    NotLeader {
        /// Who does, if it is known.
        leader: Option<(NodeId, Member)>,
    },
    /// This node lost its leadership after it had appended the entry, which may still be applied: by compare and
    /// append at most once, and request ids tell.
    #[error("this node lost its leadership, and the entry may still be applied")]
    Unknown {
        /// Who leads now, if it is known.
        leader: Option<(NodeId, Member)>,
    },
    /// The deadline passed; the entry may still be applied.
    #[error("the entry was not applied in time, and may still be")]
    Timeout,
    /// This node is stopping, or has failed.
    #[error("Raft stopped: {0}")]
    Fatal(String),
}

/// An entry on its way.
#[must_use = "the outcome says whether the entry was applied"]
pub struct Proposal {
    outcome: OneshotReceiverOf<TypeConfig, ClientWriteResult<TypeConfig>>,
}

impl RaftNode {
    /// Proposes an entry as the leader of `term`. When this returns, the entry has its place behind those proposed
    /// before; the next may be proposed while this one is on its way.
    ///
    /// # Errors
    /// If openraft takes it no more. That this node does not lead shows in [`Proposal::outcome`].
    pub async fn propose(&self, term: u64, data: EntryData) -> Result<Proposal, ProposeError> {
        let (responder, outcome) = ProgressResponder::complete_only();
        let write = self.inner.raft.write(data).with_leader(term).responder(responder);
        match timeout(ENQUEUE_TIMEOUT, write.into_future()).await {
            Ok(Ok(())) => Ok(Proposal { outcome }),
            Ok(Err(fatal)) => Err(ProposeError::Fatal(fatal.to_string())),
            Err(_) => Err(ProposeError::Timeout),
        }
    }
}

impl Proposal {
    /// Waits until the entry is applied here (and published: see [`crate::raft::replica`]).
    ///
    /// # Errors
    /// See [`ProposeError`]; only [`ProposeError::NotLeader`] says that it never will be.
    pub async fn outcome(self, deadline: Instant) -> Result<Applied, ProposeError> {
        match timeout_at(deadline, self.outcome).await {
            Err(_) => Err(ProposeError::Timeout),
            Ok(Err(_)) => Err(ProposeError::Fatal("the proposal was dropped".to_owned())),
            Ok(Ok(Ok(response))) => Ok(response.data),
            Ok(Ok(Err(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(ProposeError::NotLeader { leader: leader_of(forward) })
            }
            Ok(Ok(Err(ClientWriteError::LogEntryDiscarded(forward)))) => {
                Err(ProposeError::Unknown { leader: leader_of(forward) })
            }
            Ok(Ok(Err(other))) => Err(ProposeError::Fatal(other.to_string())),
        }
    }
}

fn leader_of(forward: ForwardToLeader<TypeConfig>) -> Option<(NodeId, Member)> {
    forward.leader_id.zip(forward.leader_node)
}
