//! Confirming with a quorum that this node leads in a term.

use super::RaftNode;
use crate::raft::reads::ReadError;

impl RaftNode {
    /// Ends well if, after this call, a quorum took this node for the leader of `term`.
    ///
    /// # Errors
    /// If it leads no more, or in another term, or reaches no quorum.
    pub async fn confirm_leadership(&self, term: u64) -> Result<(), ReadError> {
        // A leader's read index stands in its own term: at least its first, blank entry does.
        let read_index = self.inner.reads.as_leader().await?;
        if read_index.committed_leader_id().term == term {
            return Ok(());
        }
        Err(ReadError::NoLeader(format!("this node leads no more in term {term}")))
    }
}
