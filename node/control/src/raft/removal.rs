//! A node finds out that it was removed from the cluster: nobody sends it the log any more, so nobody tells it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use sandkeeper_proto::internal::DescribeResponse;
use tokio::time::sleep;

use super::leadership::metrics;
use super::local_node::LocalNode;
use super::node::RaftNode;

/// How often the others are asked which membership they have applied.
const LOOK: Duration = Duration::from_secs(2);
/// What is said wherever a removed node is asked.
pub const REMOVED: &str =
    "this node was removed from the cluster: stop it, or clear its data directory to let it join again";

impl RaftNode {
    /// Whether the other nodes have taken this one out of the cluster.
    pub fn is_removed(&self) -> bool {
        self.inner.removed.load(Ordering::Relaxed)
    }
}

/// Looks from time to time, until it is cancelled by being dropped.
pub(super) async fn watch(node: RaftNode) {
    let mut suspected_at = None;
    loop {
        sleep(LOOK).await;
        let last = metrics(&node.inner.raft).last_log_index;
        let missing = !node.leads() && missing_from_others(&node).await;
        // A node that is being added may be missing where the change is not applied yet; but then its log grows.
        let removed = missing && suspected_at == Some(last);
        suspected_at = missing.then_some(last);
        if node.inner.removed.swap(removed, Ordering::Relaxed) != removed {
            if removed {
                tracing::warn!("{REMOVED}");
            } else {
                tracing::info!("this node belongs to the cluster again");
            }
        }
    }
}

/// Whether another node has applied a membership, newer than this node's, in which this node is not.
async fn missing_from_others(node: &RaftNode) -> bool {
    let local = node.local();
    let view = node.replica().view();
    let ours = view.membership.log_id().map_or(0, |id| id.index());
    let others: Vec<String> = view
        .membership
        .nodes()
        .filter(|(id, _)| **id != local.node_id)
        .map(|(_, member)| member.peer_address.clone())
        .collect();
    let answers = join_all(others.iter().map(|address| node.describe_peer(address))).await;
    let answers: Vec<_> = answers.into_iter().flatten().collect();
    is_missing(local, ours, &answers)
}

/// The newest membership that anybody has decides.
fn is_missing(local: &LocalNode, our_index: u64, answers: &[DescribeResponse]) -> bool {
    let same = |answer: &&DescribeResponse| {
        !answer.member_ids.is_empty() && answer.cluster_id == local.cluster_id().unwrap_or_default()
    };
    let newest = answers.iter().filter(same).max_by_key(|answer| answer.membership_index);
    newest.is_some_and(|newest| {
        newest.membership_index >= our_index && !newest.member_ids.contains(&local.node_id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Member;

    fn says(membership_index: u64, member_ids: &[u64]) -> DescribeResponse {
        let (cluster_id, member_ids) = ("c".to_owned(), member_ids.to_vec());
        DescribeResponse { membership_index, member_ids, cluster_id, ..DescribeResponse::default() }
    }

    #[test]
    fn the_newest_membership_of_this_cluster_decides() {
        let local = LocalNode::new(3, Member::default(), 0, Some("c".to_owned()));
        let missing = |answers: &[DescribeResponse]| is_missing(&local, 5, answers);
        assert!(!missing(&[]), "nobody answers: nothing is known");
        assert!(missing(&[says(7, &[1, 2])]));
        assert!(missing(&[says(4, &[1, 2, 3]), says(7, &[1, 2])]), "one that lags knows less");
        assert!(!missing(&[says(6, &[1, 2]), says(8, &[1, 2, 3])]), "it was added again");
        assert!(!missing(&[says(4, &[1, 2])]), "older than what this node has");
        let other = DescribeResponse { cluster_id: "d".to_owned(), ..says(9, &[1, 2]) };
        assert!(!missing(&[other]));
        assert!(!missing(&[says(9, &[])]), "a version that does not tell");
    }
}
