//! Asking the other voters how much room they have.

use std::time::Duration;

use futures::future::join_all;
use sandkeeper_proto::internal::DiskRequest;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::LowNode;
use crate::raft::node::RaftNode;
use crate::raft::replica::View;
use crate::raft::types::NodeId;

/// Between two surveys, while this node leads. A mark is far more than is written in this time.
const INTERVAL: Duration = Duration::from_secs(2);
/// One that does not answer by then counts as having room: while it is away it writes nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// Has the leader know which voters' disks are low, until `stop`.
pub async fn keep(raft: RaftNode, stop: CancellationToken) {
    let mut leads = raft.leadership();
    loop {
        let leadership = *leads.borrow_and_update();
        let surveys = async {
            if leadership.is_none() {
                raft.disk_space().note_others(0, Vec::new());
                return std::future::pending().await;
            }
            loop {
                survey(&raft).await;
                sleep(INTERVAL).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leads.changed() => if changed.is_err() { return },
            () = surveys => {}
        }
    }
}

async fn survey(raft: &RaftNode) {
    let view = raft.replica().view();
    let this = raft.local().node_id;
    let voters: Vec<NodeId> = view.membership.voter_ids().collect();
    let others = voters.iter().filter(|id| **id != this);
    let low = join_all(others.map(|id| ask(raft, &view, *id))).await;
    raft.disk_space().note_others(voters.len(), low.into_iter().flatten().collect());
}

/// What it says, if its disk is low.
async fn ask(raft: &RaftNode, view: &View, id: NodeId) -> Option<LowNode> {
    let member = view.membership.get_node(&id)?;
    let mut client = raft.peers().client(&member.peer_address, Some(id)).ok()?;
    let answer = timeout(PATIENCE, client.disk(DiskRequest {})).await.ok()?.ok()?.into_inner();
    let low = LowNode { node: member.name.clone(), free: answer.free_bytes, mark: answer.low_water_bytes };
    answer.low.then_some(low)
}
