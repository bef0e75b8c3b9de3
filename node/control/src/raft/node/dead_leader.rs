//! A leader whose process has ended is replaced at once.
//!
//! Silence alone says little: a follower waits for it long enough that a busy machine elects nobody. A process that has
//! ended says more: the kernel of its machine closes its connections and refuses new ones. So when the leader's appends end,
//! its followers knock at its address, and once that refuses they take turns in standing for election, by pre-vote, so that
//! one is elected that a majority finds fit. A machine that has vanished refuses nothing: there, silence decides as before.
//!
//! Nothing rests on this being right. Whoever refuses in a leader's place (a firewall) causes an election at the worst, and
//! only if a majority of the voters sees it; no read and no lease trusts that nobody else was elected meanwhile.

use std::io::ErrorKind;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use openraft::raft::TransferLeaderRequest;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::info;

use super::RaftNode;
use crate::raft::types::{NodeId, TypeConfig, Vote};

/// One node's turn: longer than a pre-vote and a vote take with two fsyncs, so that two rarely stand at once.
const TURN: Duration = Duration::from_millis(30);
/// For about half a second: the ports of a process that dies are not closed all at once. Then its silence has been long enough.
const TURNS: usize = 16;
/// On loopback and in a data center a connection is accepted or refused within a millisecond.
const KNOCK_TIMEOUT: Duration = Duration::from_millis(100);

/// A leader that this node follows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Followed {
    vote: Vote,
    leader: NodeId,
    address: String,
    /// The place of this node among the other voters, and how many these are.
    turn: (usize, usize),
}

/// Looks whenever appends have ended, until it is cancelled.
pub(super) async fn watch(node: RaftNode) {
    loop {
        node.inner.appends_ended.notified().await;
        let Some(followed) = Followed::by(&node) else { continue };
        if replace(&node, &followed).await.is_err() {
            // Raft has stopped, which others report.
            return;
        }
    }
}

async fn replace(node: &RaftNode, followed: &Followed) -> Result<(), Fatal<TypeConfig>> {
    let mut dead = false;
    for turn in 0..TURNS {
        // Another one leads or stands, or this node has a word of the leader's successor.
        if Followed::by(node).as_ref() != Some(followed) {
            break;
        }
        if refuses(&followed.address).await {
            if !dead {
                info!(leader = followed.leader, address = followed.address, "the leader's process has ended");
                dead = true;
            }
            let raft = &node.inner.raft;
            // To nobody: it ends the time for which this node promised the leader to elect no other.
            let release = TransferLeaderRequest::new(followed.vote, followed.leader, None);
            // A vote that has changed meanwhile is what the next turn looks at.
            let _ = raft.handle_transfer_leader(release).await?;
            if is_my_turn(turn, followed.turn) {
                raft.trigger().elect(true).await?;
            }
        }
        sleep(TURN).await;
    }
    Ok(())
}

fn is_my_turn(turn: usize, (place, of): (usize, usize)) -> bool {
    turn % of == place
}

/// Whether nobody listens there, as the machine itself says.
async fn refuses(address: &str) -> bool {
    let knock = timeout(KNOCK_TIMEOUT, TcpStream::connect(address)).await;
    matches!(knock, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused)
}

impl Followed {
    /// The leader that this node follows as a voter; None: it follows none.
    fn by(node: &RaftNode) -> Option<Self> {
        let metrics = node.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let (vote, me) = (metrics.vote, metrics.id);
        let leader = vote.leader_id.voted_for;
        if !vote.committed || leader == me {
            return None;
        }
        let membership = &metrics.membership_config;
        let others: Vec<NodeId> =
            membership.membership().voter_ids().filter(|voter| *voter != leader).collect();
        let place = others.iter().position(|voter| *voter == me)?;
        let address = membership.get_node(&leader)?.peer_address.clone();
        Some(Self { vote, leader, address, turn: (place, others.len()) })
    }
}

#[cfg(test)]
mod tests {
    use test_ports::Ports;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn voters_take_turns() {
        let who = |turn| (0..4).find(|place| is_my_turn(turn, (*place, 4)));
        assert_eq!((0..6).map(who).collect::<Vec<_>>(), [0, 1, 2, 3, 0, 1].map(Some));
        assert!((0..3).all(|turn| is_my_turn(turn, (0, 1))), "one alone always has its turn");
    }

    #[tokio::test]
    async fn only_a_port_that_nobody_listens_at_refuses() {
        let ports = Ports::take(1);
        let address = ports.socket(0);
        assert!(refuses(&address.to_string()).await);
        let listener = TcpListener::bind(address).await.unwrap();
        // A process that is stopped accepts nothing, and its kernel does.
        assert!(!refuses(&address.to_string()).await);
        drop(listener);
        assert!(!refuses("no such name.invalid:1").await);
    }
}
