//! How a new node comes into a cluster: by forming one with others that are as new as it is, or by joining one that
//! exists.
//!
//! A cluster is formed once. All nodes that were started with `--bootstrap-expect N` look for each other; when one
//! sees exactly N of them, itself included, none of them initialized, all expecting N, it knows the whole membership,
//! and so does each of the others. The one with the lowest node id initializes Raft with all N; the others wait for
//! it. Nobody else initializes, so there are no two first entries (openraft #1535). More than N nodes are a mistake
//! of configuration, in which two groups of N could form: they are refused.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use openraft::errors::{InitializeError, RaftError};
use sandkeeper_proto::internal::change_membership_request::Change;
use sandkeeper_proto::internal::{ChangeMembershipRequest, DescribeResponse};
use tokio::net::lookup_host;
use tokio::time::{sleep, timeout};

use super::local_node::LocalNode;
use super::membership::DESCRIBE_TIMEOUT;
use super::node::RaftNode;
use super::peers::reason;
use super::types::{Member, NodeId};

/// Pause between two looks at the other nodes.
const ROUND_PAUSE: Duration = Duration::from_millis(250);
/// The same situation is reported again after this many rounds, so that a log shows that the node lives.
const REPORT_ROUNDS: u32 = 40;
/// Joining includes catching up.
const JOIN_TIMEOUT: Duration = Duration::from_mins(10);

/// Why a node can't come into a cluster, whatever the others do: somebody has to correct its configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// It has no way.
    #[error("this node is new, and was told neither --bootstrap-expect nor --join")]
    NoWay,
    /// It waits for others, and was not told where they are.
    #[error("this node expects {0} nodes, but was told no --join address")]
    NobodyToAsk(u64),
    /// Names must be unique.
    #[error("two nodes have the name {name:?}: the one at {first}, and the one at {second}")]
    SameName {
        /// The name.
        name: String,
        /// Where one of them is.
        first: String,
        /// Where the other is.
        second: String,
    },
    /// Two groups could form.
    #[error("{found} new nodes see each other, and they expect {expected}: {nodes}")]
    TooMany {
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: u64,
        /// Who they are.
        nodes: String,
    },
    /// The cluster does not take it.
    #[error("the cluster refuses this node: {0}")]
    Refused(String),
    /// Raft has stopped.
    #[error("Raft stopped: {0}")]
    Stopped(String),
}

/// How a node came into its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// It was in it before.
    Restarted,
    /// It formed it, or was made a member by the node that did.
    Formed,
    /// It joined it, and has a vote.
    Joined,
}

/// What one look showed.
#[derive(Debug, Default)]
struct Seen {
    /// The others that answered, by node id.
    nodes: BTreeMap<NodeId, DescribeResponse>,
    /// Addresses where nobody did, and why not.
    silent: Vec<(String, String)>,
}

/// Brings the node into a cluster, and returns when it is in one. Its peer service must be served already. Cancel it
/// by dropping it.
///
/// # Errors
/// If it can't come into any; see [`BootstrapError`].
pub async fn enter(node: &RaftNode, join: &[String]) -> Result<Entered, BootstrapError> {
    if is_initialized(node).await? {
        tracing::info!("this node was in its cluster before");
        return Ok(Entered::Restarted);
    }
    let expect = node.local().bootstrap_expect;
    match expect {
        0 if join.is_empty() => return Err(BootstrapError::NoWay),
        2.. if join.is_empty() => return Err(BootstrapError::NobodyToAsk(expect)),
        _ => {}
    }
    let mut progress = Progress::default();
    loop {
        let seen = look(node, join).await;
        if is_initialized(node).await? {
            tracing::info!("the cluster has formed");
            return Ok(Entered::Formed);
        }
        if let Some(member) = seen.nodes.values().find(|other| other.initialized) {
            tracing::info!(through = %member.name, "joining the cluster");
            match join_through(node, member.node_id, &member.peer_address).await {
                Ok(()) => {
                    tracing::info!("this node has joined the cluster");
                    return Ok(Entered::Joined);
                }
                Err(JoinError::Refused(why)) => return Err(BootstrapError::Refused(why)),
                Err(JoinError::NotNow(why)) => {
                    progress
                        .say(format!("{} is in a cluster, but can't add this node yet: {why}", member.name));
                }
            }
        } else if expect > 0 {
            match roll_call(node.local(), expect, &seen)? {
                Some(members) if members.keys().next() == Some(&node.local().node_id) => {
                    initialize(node, members).await?;
                    return Ok(Entered::Formed);
                }
                Some(members) => progress.say(format!(
                    "all {expect} nodes are here; waiting for {} to form the cluster",
                    members.values().next().map_or("", |member| &member.name)
                )),
                None => progress.say(waiting_text(node.local(), expect, &seen)),
            }
        } else {
            progress.say(format!("waiting for a member of the cluster: {}", silent_text(&seen)));
        }
        sleep(ROUND_PAUSE).await;
    }
}

/// Tells the cluster this node's addresses, if they are others than the membership has: after a restart under a new
/// address. Tries until it succeeds.
///
/// # Errors
/// If the cluster refuses.
pub async fn announce_addresses(node: &RaftNode) -> Result<(), BootstrapError> {
    let local = node.local();
    let mut progress = Progress::default();
    loop {
        // Not from the metrics, which are empty in the first moments.
        let members = effective_members(node).await?;
        if members.get(&local.node_id).is_none_or(|known| *known == local.member) {
            return Ok(());
        }
        // The leader does not reach this node where it was, so this node may not know who leads: it asks everybody.
        let others = members.iter().filter(|(id, _)| **id != local.node_id);
        let others = others.map(|(id, member)| (*id, &member.peer_address));
        // A cluster of this node alone (a restored one begins so) has nobody else to tell.
        let alone = (members.len() == 1).then_some((local.node_id, &local.member.peer_address));
        for (id, address) in others.chain(alone) {
            match join_through(node, id, address).await {
                Ok(()) => return Ok(()),
                Err(JoinError::Refused(why)) => return Err(BootstrapError::Refused(why)),
                Err(JoinError::NotNow(why)) => {
                    progress.say(format!(
                        "the cluster does not know this node's new address yet: {address}: {why}"
                    ));
                }
            }
        }
        sleep(ROUND_PAUSE).await;
    }
}

async fn is_initialized(node: &RaftNode) -> Result<bool, BootstrapError> {
    node.inner.raft.is_initialized().await.map_err(|fatal| BootstrapError::Stopped(fatal.to_string()))
}

async fn effective_members(node: &RaftNode) -> Result<BTreeMap<NodeId, Member>, BootstrapError> {
    let members = node.inner.raft.with_raft_state(|state| {
        let membership = state.membership_state.effective();
        membership.nodes().map(|(id, member)| (*id, member.clone())).collect()
    });
    members.await.map_err(|fatal| BootstrapError::Stopped(fatal.to_string()))
}

/// Asks everybody at the addresses who they are. A DNS name may stand for several.
async fn look(node: &RaftNode, join: &[String]) -> Seen {
    let mut seen = Seen::default();
    let mut addresses = Vec::new();
    for name in join {
        match timeout(DESCRIBE_TIMEOUT, lookup_host(name)).await {
            Ok(Ok(found)) => addresses.extend(found.map(|address| address.to_string())),
            Ok(Err(error)) => seen.silent.push((name.clone(), error.to_string())),
            Err(_) => seen.silent.push((name.clone(), "its name could not be looked up in time".to_owned())),
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    let answers = join_all(addresses.iter().map(|address| node.describe_peer(address))).await;
    for (address, answer) in addresses.into_iter().zip(answers) {
        match answer {
            // An own address in the list is no other node.
            Ok(other) if other.node_id == node.local().node_id => {}
            Ok(other) => {
                seen.nodes.insert(other.node_id, other);
            }
            Err(why) => seen.silent.push((address, why)),
        }
    }
    seen
}

/// Everybody, if exactly the expected nodes are here.
fn roll_call(
    local: &LocalNode,
    expect: u64,
    seen: &Seen,
) -> Result<Option<BTreeMap<NodeId, Member>>, BootstrapError> {
    let others = seen.nodes.values().filter(|other| other.bootstrap_expect == expect).map(|other| {
        let member = Member {
            name: other.name.clone(),
            peer_address: other.peer_address.clone(),
            api_address: other.api_address.clone(),
        };
        (other.node_id, member)
    });
    let mut members: BTreeMap<_, _> = others.collect();
    members.insert(local.node_id, local.member.clone());
    check_names(&members)?;
    if members.len() as u64 > expect {
        let nodes: Vec<_> = members.values().map(ToString::to_string).collect();
        return Err(BootstrapError::TooMany {
            found: nodes.len(),
            expected: expect,
            nodes: nodes.join(", "),
        });
    }
    Ok((members.len() as u64 == expect).then_some(members))
}

fn check_names(members: &BTreeMap<NodeId, Member>) -> Result<(), BootstrapError> {
    let mut names: BTreeMap<&str, &Member> = BTreeMap::new();
    for member in members.values() {
        if let Some(first) = names.insert(&member.name, member) {
            return Err(BootstrapError::SameName {
                name: member.name.clone(),
                first: first.peer_address.clone(),
                second: member.peer_address.clone(),
            });
        }
    }
    Ok(())
}

async fn initialize(node: &RaftNode, members: BTreeMap<NodeId, Member>) -> Result<(), BootstrapError> {
    let names: Vec<_> = members.values().map(ToString::to_string).collect();
    tracing::info!(members = names.join(", "), "forming the cluster");
    match node.inner.raft.initialize(members).await {
        // Not allowed: another node was here first, or an earlier call of ours. Either way there is a cluster.
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(BootstrapError::Stopped(error.to_string())),
    }
}

enum JoinError {
    Refused(String),
    NotNow(String),
}

/// Asks a member to have this node added, or its addresses renewed. The leader answers when this node has a vote.
async fn join_through(node: &RaftNode, member: NodeId, address: &str) -> Result<(), JoinError> {
    let add = ChangeMembershipRequest { change: Some(Change::Add(node.local().member.peer_address.clone())) };
    let mut client = node
        .inner
        .peers
        .client(address, Some(member))
        .map_err(|error| JoinError::NotNow(error.to_string()))?;
    match timeout(JOIN_TIMEOUT, client.change_membership(add)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) if status.code() == tonic::Code::FailedPrecondition => {
            Err(JoinError::Refused(status.message().to_owned()))
        }
        Ok(Err(status)) => Err(JoinError::NotNow(reason(&status))),
        Err(_) => Err(JoinError::NotNow("no answer in time".to_owned())),
    }
}

fn waiting_text(local: &LocalNode, expect: u64, seen: &Seen) -> String {
    let agreeing = seen.nodes.values().filter(|other| other.bootstrap_expect == expect).count() as u64;
    let mut text = format!("waiting for {} of {expect} nodes", expect.saturating_sub(agreeing + 1));
    let silent = silent_text(seen);
    if !silent.is_empty() {
        text = format!("{text}: {silent}");
    }
    for other in seen.nodes.values().filter(|other| other.bootstrap_expect != expect) {
        let (name, theirs) = (&other.name, other.bootstrap_expect);
        text = format!(
            "{text}; {name} ({}) expects {theirs} nodes, {} expects {expect}",
            other.peer_address, local.member.name
        );
    }
    text
}

fn silent_text(seen: &Seen) -> String {
    let lines: Vec<_> = seen.silent.iter().map(|(address, why)| format!("{address} ({why})")).collect();
    lines.join(", ")
}

/// Reports what changes, and what stays, now and then.
#[derive(Default)]
struct Progress {
    said: String,
    rounds: u32,
}

impl Progress {
    fn say(&mut self, text: String) {
        self.rounds += 1;
        if text != self.said || self.rounds >= REPORT_ROUNDS {
            tracing::info!("{text}");
            self.rounds = 0;
            self.said = text;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(node_id: NodeId, name: &str, expect: u64) -> DescribeResponse {
        let (peer_address, api_address) = (format!("{name}:7601"), format!("{name}:7600"));
        DescribeResponse {
            node_id,
            name: name.to_owned(),
            peer_address,
            api_address,
            bootstrap_expect: expect,
            ..DescribeResponse::default()
        }
    }

    fn local() -> LocalNode {
        let member = Member { name: "a".to_owned(), ..Member::default() };
        LocalNode::new(5, member, 3, None)
    }

    fn seen(others: &[DescribeResponse]) -> Seen {
        let nodes = others.iter().map(|other| (other.node_id, other.clone())).collect();
        let silent = vec![("127.0.0.1:7611".to_owned(), "connection refused".to_owned())];
        Seen { nodes, silent }
    }

    #[test]
    fn the_roll_is_complete_only_with_nodes_that_expect_the_same() {
        let some = seen(&[described(1, "b", 3), described(2, "c", 5)]);
        assert_eq!(roll_call(&local(), 3, &some), Ok(None));
        assert_eq!(
            waiting_text(&local(), 3, &some),
            "waiting for 1 of 3 nodes: 127.0.0.1:7611 (connection refused); c (c:7601) expects 5 nodes, a expects 3"
        );
        let all = seen(&[described(9, "b", 3), described(2, "c", 3)]);
        let members = roll_call(&local(), 3, &all).unwrap().unwrap();
        assert_eq!(
            members.keys().copied().collect::<Vec<_>>(),
            [2, 5, 9],
            "the first of them forms the cluster"
        );
        let many = seen(&[described(1, "b", 3), described(2, "c", 3), described(3, "d", 3)]);
        assert!(matches!(roll_call(&local(), 3, &many), Err(BootstrapError::TooMany { found: 4, .. })));
        let twins = seen(&[described(1, "a", 3)]);
        assert!(matches!(roll_call(&local(), 3, &twins), Err(BootstrapError::SameName { .. })));
    }
}
