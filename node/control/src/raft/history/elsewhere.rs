//! Reading from peers what this node does not have (yet).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use sandkeeper_proto::internal::ReadHistoryRequest;
use sandkeeper_statemachine::Revision;
use tokio::time::timeout;

use crate::history::fold;
use crate::history::{AppliedEntry, Elsewhere, HistoryError};
use crate::raft::codec;
use crate::raft::peers::{PeerClient, Peers, reason};
use crate::raft::replica::Replica;
use crate::raft::types::{Member, NodeId};
use crate::storage::log::LogReader;

/// A peer that does not answer for this long is passed over: it reads about a megabyte from its disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The other members of the cluster, as places where history is.
pub(crate) struct OtherNodes {
    peers: Arc<Peers>,
    replica: Replica,
    log: LogReader,
    /// Who had something last: asked first the next time.
    last: Mutex<Option<NodeId>>,
}

impl OtherNodes {
    pub(in crate::raft) fn new(peers: Arc<Peers>, replica: Replica, log: LogReader) -> Self {
        Self { peers, replica, log, last: Mutex::default() }
    }

    /// All members but this node, the one that had something last before the others.
    pub(crate) fn all(&self) -> Vec<(NodeId, Member)> {
        let this = self.peers.local().node_id;
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let view = self.replica.view();
        let mut others: Vec<_> = view.membership.nodes().map(|(id, member)| (*id, member.clone())).collect();
        others.retain(|(id, _)| *id != this);
        others.sort_by_key(|(id, _)| Some(*id) != last);
        others
    }

    /// A client of a member.
    pub(crate) fn client(&self, id: NodeId, member: &Member) -> Result<PeerClient, String> {
        self.peers.client(&member.peer_address, Some(id)).map_err(|error| error.to_string())
    }

    /// Takes note of who had something.
    pub(super) fn note(&self, id: NodeId) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
    }

    /// Whether a snapshot has jumped over history that is not fetched yet.
    pub(crate) fn is_cut(&self) -> bool {
        self.log.history_start().is_some_and(|start| start.before.is_none())
    }

    /// What no peer has is compacted; while this node still fetches, a peer that does not answer may have it.
    pub(crate) fn nowhere(&self, oldest: Revision, silent: &[String]) -> HistoryError {
        if silent.is_empty() || !self.is_cut() {
            HistoryError::Compacted { oldest }
        } else {
            HistoryError::NotYet { oldest, why: silent.join("; ") }
        }
    }

    /// Asks one member: its entries, or the oldest revision that it has.
    async fn ask(
        &self,
        id: NodeId,
        member: &Member,
        from: Revision,
        max_bytes: usize,
    ) -> Result<Result<Vec<AppliedEntry>, Revision>, String> {
        let request = ReadHistoryRequest { from_revision: from, max_bytes: max_bytes as u64 };
        let answer = timeout(ANSWER_TIMEOUT, self.client(id, member)?.read_history(request)).await;
        let answer = answer.map_err(|_| "no answer in time".to_owned())?;
        let answer = answer.map_err(|status| reason(&status))?.into_inner();
        let log_entries = codec::decode_entries(answer.entries).map_err(|error| error.to_string())?;
        if log_entries.is_empty() {
            // One that is behind has neither the events nor a reason.
            let is_older = answer.oldest_revision > from;
            return if is_older { Ok(Err(answer.oldest_revision)) } else { Err("it is behind".to_owned()) };
        }
        let mut entries: Vec<AppliedEntry> = Vec::with_capacity(log_entries.len());
        for log_entry in &log_entries {
            let applied = fold::applied(log_entry).map_err(|error| error.to_string())?;
            let follows = match entries.last() {
                Some(before) => before.last_revision() + 1 == applied.first_revision,
                None => (applied.first_revision..=applied.last_revision()).contains(&from),
            };
            if !follows {
                return Err(format!("it sent revision {} where another belongs", applied.first_revision));
            }
            entries.push(applied);
            tokio::task::yield_now().await;
        }
        Ok(Ok(entries))
    }
}

impl Elsewhere for OtherNodes {
    fn read(
        &self,
        from: Revision,
        max_bytes: usize,
        mut oldest: Revision,
    ) -> BoxFuture<'_, Result<Vec<AppliedEntry>, HistoryError>> {
        Box::pin(async move {
            let mut silent = Vec::new();
            for (id, member) in self.all() {
                match self.ask(id, &member, from, max_bytes).await {
                    Ok(Ok(entries)) => {
                        self.note(id);
                        return Ok(entries);
                    }
                    Ok(Err(theirs)) => oldest = oldest.min(theirs),
                    Err(why) => silent.push(format!("{}: {why}", member.name)),
                }
            }
            Err(self.nowhere(oldest, &silent))
        })
    }
}
