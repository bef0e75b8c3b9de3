//! Who this node is, as its peers are told, and which cluster it belongs to.

use std::sync::OnceLock;

use super::types::{Member, NodeId};

/// This node's data directory belongs to another cluster than the one that it meets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this node belongs to cluster {ours}, and cluster {theirs} was met: one of them has the wrong address or data directory"
)]
pub struct OtherCluster {
    /// The cluster of this node.
    pub ours: String,
    /// The one that was met.
    pub theirs: String,
}

/// This node. The cluster's id is learned once, and never changes.
#[derive(Debug)]
pub struct LocalNode {
    /// Its number in the Raft group.
    pub node_id: NodeId,
    /// What the membership records of it.
    pub member: Member,
    /// How many nodes it waits for before it forms a cluster; 0 if it forms none.
    pub bootstrap_expect: u64,
    cluster_id: OnceLock<String>,
}

impl LocalNode {
    /// A node that knows its cluster's id if it has been a member before.
    pub fn new(node_id: NodeId, member: Member, bootstrap_expect: u64, cluster_id: Option<String>) -> Self {
        let known = OnceLock::new();
        if let Some(id) = cluster_id {
            known.get_or_init(|| id);
        }
        Self { node_id, member, bootstrap_expect, cluster_id: known }
    }

    /// The cluster's id, once it is known.
    pub fn cluster_id(&self) -> Option<&str> {
        self.cluster_id.get().map(String::as_str)
    }

    /// Learns the cluster's id from the state. True if it was not known before.
    ///
    /// # Errors
    /// If another one is known.
    pub fn learn_cluster_id(&self, id: &str) -> Result<bool, OtherCluster> {
        let mut learned = false;
        let known = self.cluster_id.get_or_init(|| {
            learned = true;
            id.to_owned()
        });
        if known == id {
            Ok(learned)
        } else {
            Err(OtherCluster { ours: known.clone(), theirs: id.to_owned() })
        }
    }

    /// Checks the cluster id that somebody names. Nodes that know none yet are let through: they are new.
    ///
    /// # Errors
    /// If both are known and differ.
    pub fn check_cluster_id(&self, theirs: &str) -> Result<(), OtherCluster> {
        match self.cluster_id() {
            Some(ours) if ours != theirs => {
                Err(OtherCluster { ours: ours.to_owned(), theirs: theirs.to_owned() })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_is_learned_once() {
        let node = LocalNode::new(1, Member::default(), 0, None);
        assert!(node.check_cluster_id("a").is_ok(), "a new node refuses nobody");
        assert_eq!(node.learn_cluster_id("a"), Ok(true));
        assert_eq!(node.learn_cluster_id("a"), Ok(false));
        let other = OtherCluster { ours: "a".to_owned(), theirs: "b".to_owned() };
        assert_eq!(node.learn_cluster_id("b"), Err(other.clone()));
        assert_eq!(node.check_cluster_id("b"), Err(other));
        assert_eq!(node.cluster_id(), Some("a"));
    }
}
