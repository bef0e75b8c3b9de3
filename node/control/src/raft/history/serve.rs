//! What a peer is given of this node's history.

use sandkeeper_proto::internal::{
    HistoryEntriesRequest, HistoryEntriesResponse, HistoryStartRequest, HistoryStartResponse,
    ReadHistoryRequest, ReadHistoryResponse,
};
use sandkeeper_statemachine::DIGEST_FORM;
use tonic::Status;

use crate::history::HistoryError;
use crate::raft::codec::{self, APPEND_TARGET_BYTES};
use crate::raft::node::RaftNode;
#[cfg(test)]
use crate::raft::types::LogEntry;
use crate::storage::describe;
use crate::storage::log::HistoryError as LogError;

/// What a test does to the entries that a node gives to its peers.
#[cfg(test)]
pub(in crate::raft) type Tamper = Box<dyn Fn(&mut Vec<LogEntry>) -> Result<(), Status> + Send + Sync>;

/// Entries in one answer to a peer that fetches, bytes: little enough that its appends are not held up.
const ENTRIES_BYTES: usize = 256 * 1024;

impl RaftNode {
    /// From where on a peer could fetch what it lacks.
    pub(in crate::raft) fn history_start(
        &self,
        request: HistoryStartRequest,
    ) -> Result<HistoryStartResponse, Status> {
        let position = self.history().position_for(request.wanted_index);
        let position = position.ok_or_else(|| Status::out_of_range("this node has no history yet"))?;
        Ok(HistoryStartResponse {
            index: position.index,
            revision: position.revision,
            history_digest: position.digest.0.to_vec().into(),
            form: DIGEST_FORM,
        })
    }

    /// Log entries for a peer that fetches. Only what is applied here: nothing else is history.
    pub(in crate::raft) async fn history_entries(
        &self,
        request: &HistoryEntriesRequest,
    ) -> Result<HistoryEntriesResponse, Status> {
        let applied = self.replica().view().applied_index();
        let end = request.before_index.min(applied.map_or(0, |index| index + 1));
        if request.from_index >= end {
            return Err(Status::out_of_range(format!("entry {} is not applied here", request.from_index)));
        }
        let read = self.inner.log.reader().entries_from(request.from_index, ENTRIES_BYTES).await;
        let mut entries = read.map_err(|error| match error {
            LogError::Purged { .. } => Status::out_of_range(error.to_string()),
            LogError::Fault(fault) => Status::internal(describe(&fault)),
        })?;
        entries.retain(|entry| entry.log_id.index() < end);
        #[cfg(test)]
        if let Some(tamper) = &*self.inner.tamper.lock().expect("no test panics in here") {
            tamper(&mut entries)?;
        }
        Ok(HistoryEntriesResponse { entries: codec::encode_entries(&entries) })
    }

    /// Entries for a peer that reads for its callers.
    pub(in crate::raft) async fn read_history(
        &self,
        request: &ReadHistoryRequest,
    ) -> Result<ReadHistoryResponse, Status> {
        let max_bytes = usize::try_from(request.max_bytes).unwrap_or(usize::MAX).min(APPEND_TARGET_BYTES);
        match self.history().read_encoded(request.from_revision, max_bytes).await {
            Ok(entries) => Ok(ReadHistoryResponse {
                entries: codec::encode_entries(&entries),
                oldest_revision: self.history().oldest_revision(),
            }),
            Err(HistoryError::Compacted { oldest }) => {
                Ok(ReadHistoryResponse { oldest_revision: oldest, ..ReadHistoryResponse::default() })
            }
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}
