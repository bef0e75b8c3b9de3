//! Elections, writes, reads, changes of the group.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::Instant;
use tonic::Code;

use super::rig::{Running, Site, all_equal, cluster, eventually, leader, soon, write};
use crate::config::Config;
use crate::history::testing::filler;
use crate::raft::MembershipError;
use crate::raft::ReadError;
use crate::raft::bootstrap::{Entered, announce_addresses, enter};
use crate::raft::node::{ProposeError, Role};
use crate::raft::types::{Applied, EntryData};
use sandkeeper_proto::internal::{DescribeRequest, DigestRequest};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_write_and_read_and_are_equal() {
    let (_sites, nodes) = cluster(3, |_| {}).await;
    let written = write(&nodes, 200).await;
    // Nobody waits for the follower here: the read itself must.
    for node in &nodes {
        assert!(node.node.read_index(soon()).await.unwrap().revision() >= written);
    }
    all_equal(&nodes, written).await;

    let many = futures::future::join_all((0..500).map(|i| nodes[i % 3].node.read_index(soon())));
    assert!(many.await.into_iter().all(|view| view.unwrap().revision() >= written));

    let status = nodes[leader(&nodes).await].node.status();
    assert_eq!(status.role, Role::Leader);
    assert_eq!(status.members.len(), 3);
    assert!(status.members.iter().all(|member| member.voter));
    assert_eq!(status.digests.revision, written);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_decided_on_an_old_state_is_skipped_everywhere() {
    let (_sites, nodes) = cluster(3, |_| {}).await;
    let written = write(&nodes, 3).await;
    let at = leader(&nodes).await;
    let term = nodes[at].term().unwrap();
    let stale = nodes[at].node.propose(term, EntryData::new(filler(1, term, 4))).await.unwrap();
    assert_eq!(stale.outcome(soon()).await.unwrap(), Applied::Skipped { revision: written });
    let refused =
        nodes[at].node.propose(term + 1, EntryData::new(filler(written, term + 1, 1))).await.unwrap();
    let refused = refused.outcome(soon()).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    let follower = &nodes[(at + 1) % 3];
    let refused = follower.node.propose(term, EntryData::new(filler(written, term, 1))).await.unwrap();
    match refused.outcome(soon()).await {
        Err(ProposeError::NotLeader { leader: Some((id, _)) }) => {
            assert_eq!(id, nodes[at].node.local().node_id);
        }
        other => panic!("{other:?}"),
    }
    let last = write(&nodes, 1).await;
    assert_eq!(last, written + 1);
    all_equal(&nodes, last).await;
    let history = nodes[(at + 1) % 3].node.history().read(1, usize::MAX).await.unwrap();
    assert_eq!(history.iter().map(|entry| entry.entry.events.len() as u64).sum::<u64>(), last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_hands_over_and_one_that_crashes_is_replaced() {
    let (sites, mut nodes) = cluster(3, |_| {}).await;
    write(&nodes, 10).await;
    let first = leader(&nodes).await;
    let old = nodes.remove(first);
    let (term, mut leadership) = (old.term().unwrap(), old.node.leadership());
    old.stop().await;
    assert!(leadership.borrow_and_update().is_none());
    let second = leader(&nodes).await;
    let next_term = nodes[second].term().unwrap();
    assert!(next_term > term);
    let written = write(&nodes, 10).await;

    nodes.insert(first, sites[first].start().await);
    assert_eq!(enter(&nodes[first].node, &[]).await.unwrap(), Entered::Restarted);
    all_equal(&nodes, written).await;
    let second = leader(&nodes).await;
    let crashed_term = nodes[second].term().unwrap();
    nodes.remove(second).crash().await;
    let third = leader(&nodes).await;
    assert!(nodes[third].term().unwrap() > crashed_term);
    let written = write(&nodes, 5).await;
    all_equal(&nodes, written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_restart_from_their_disks() {
    let (sites, nodes) = cluster(3, |_| {}).await;
    let written = write(&nodes, 300).await;
    all_equal(&nodes, written).await;
    let before = nodes[0].digests();
    for node in nodes {
        node.crash().await;
    }
    let mut nodes = Vec::new();
    for site in &sites {
        nodes.push(site.start().await);
    }
    leader(&nodes).await;
    all_equal(&nodes, written).await;
    assert_eq!(nodes[0].digests(), before);
    let mut next = 1;
    while next <= written {
        let entries = nodes[1].node.history().read(next, 2000).await.unwrap();
        assert_eq!(entries[0].first_revision, next);
        next = entries.last().unwrap().last_revision() + 1;
    }
    assert_eq!(next, written + 1);
    write(&nodes, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fourth_node_joins_through_any_member_and_leaves_again() {
    let (sites, mut nodes) = cluster(3, |_| {}).await;
    let written = write(&nodes, 50).await;
    let follower = (leader(&nodes).await + 1) % 3;
    let mut site = Site::new("cn-3", None);
    site.config.join = vec![sites[follower].address().to_string()];
    let new = site.start().await;
    assert_eq!(enter(&new.node, &site.config.join).await.unwrap(), Entered::Joined);
    nodes.push(new);
    all_equal(&nodes, written).await;
    let id = nodes[3].node.local().node_id;
    assert!(nodes[follower].node.voters().contains(&id));
    // Again changes nothing.
    nodes[follower].node.add_member(&site.address().to_string(), soon()).await.unwrap();
    assert_eq!(nodes[follower].node.members().len(), 4);

    let same_name = Site::new("cn-1", None);
    let twin = same_name.start().await;
    let refused = nodes[follower].node.add_member(&same_name.address().to_string(), soon()).await;
    assert!(matches!(refused, Err(MembershipError::Refused(_))), "{refused:?}");
    twin.stop().await;

    let removed = nodes[follower].node.remove_member("nobody", soon()).await;
    let text = "no member has the name or id \"nobody\"".to_owned();
    assert_eq!(removed, Err(MembershipError::NotFound(text)));
    // Whoever leads goes, by its own request.
    let at = leader(&nodes).await;
    let leaving = nodes.remove(at);
    let (id, name) = (leaving.node.local().node_id, leaving.node.local().member.name.clone());
    leaving.node.remove_member(&name, soon()).await.unwrap();
    // It runs on, and nobody tells it: it finds out.
    eventually("it notices", || async { leaving.node.is_removed().then_some(()) }).await;
    let status = leaving.node.status();
    assert!(status.removed && status.members.iter().all(|member| member.node_id != id), "{status:?}");
    assert!(
        matches!(leaving.node.read_index(soon()).await, Err(ReadError::NoLeader(_))),
        "it says so at once"
    );
    assert!(nodes.iter().all(|running| !running.node.is_removed()));
    leaving.stop().await;
    let at = leader(&nodes).await;
    eventually("it is gone", || async { (!nodes[at].node.members().contains_key(&id)).then_some(()) }).await;
    assert_eq!(nodes[at].node.voters().len(), 3);
    write(&nodes, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_comes_back_under_another_address() {
    let (mut sites, mut nodes) = cluster(3, |_| {}).await;
    write(&nodes, 5).await;
    let moving = (leader(&nodes).await + 1) % 3;
    nodes.remove(moving).stop().await;
    let written = write(&nodes, 5).await;
    sites[moving].move_elsewhere();
    nodes.insert(moving, sites[moving].start().await);
    announce_addresses(&nodes[moving].node).await.unwrap();
    all_equal(&nodes, written).await;
    let (id, address) = (nodes[moving].node.local().node_id, sites[moving].address().to_string());
    let at = leader(&nodes).await;
    assert_eq!(nodes[at].node.members()[&id].peer_address, address);
    assert_eq!(nodes[at].node.voters().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_goes_where_it_is_sent() {
    let (_sites, nodes) = cluster(3, |_| {}).await;
    write(&nodes, 5).await;
    let at = leader(&nodes).await;
    let (follower, target) = (&nodes[(at + 1) % 3], &nodes[(at + 2) % 3]);
    let name = target.node.local().member.name.clone();
    follower.node.transfer_leader(Some(&name), soon()).await.unwrap();
    eventually("the target leads", || async { target.term() }).await;
    eventually("the old leader does not", || async { nodes[at].term().is_none().then_some(()) }).await;
    write(&nodes, 5).await;
}

/// A decider that was busy meanwhile thinks that nothing has happened: its node leads, and the revision is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_decided_in_an_earlier_term_of_the_same_leader_changes_nothing() {
    let (_sites, nodes) = cluster(3, |_| {}).await;
    let written = write(&nodes, 3).await;
    let at = leader(&nodes).await;
    let (node, name) = (&nodes[at], nodes[at].node.local().member.name.clone());
    let old = node.term().unwrap();
    let other = &nodes[(at + 1) % 3];
    node.node.transfer_leader(Some(&other.node.local().member.name), soon()).await.unwrap();
    eventually("the other one leads", || async { other.term() }).await;
    other.node.transfer_leader(Some(&name), soon()).await.unwrap();
    let new = eventually("the first one leads again", || async { node.term() }).await;
    assert!(new > old);
    assert_eq!(node.revision(), written, "by chance it is where it was");

    let decided_then = || EntryData::new(filler(written, old, 1));
    let late = node.node.propose(old, decided_then()).await.unwrap().outcome(soon()).await;
    assert!(matches!(late, Err(ProposeError::NotLeader { .. })), "{late:?}");
    // However it came into the log of the new term: nobody applies it.
    let smuggled = node.node.propose(new, decided_then()).await.unwrap();
    assert_eq!(smuggled.outcome(soon()).await.unwrap(), Applied::Skipped { revision: written });
    let last = write(&nodes, 1).await;
    assert_eq!(last, written + 1);
    all_equal(&nodes, last).await;
}

async fn single(id: u128) -> (Site, Running) {
    let (mut sites, mut nodes) = cluster(1, |_| {}).await;
    nodes[0].create_cluster(id).await;
    (sites.remove(0), nodes.remove(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_is_refused() {
    let ((site, ours), (other_site, theirs)) = (single(0xa).await, single(0xb).await);
    let address = other_site.address().to_string();
    let refused = ours.node.add_member(&address, soon()).await.unwrap_err().to_string();
    assert!(refused.contains("belongs to cluster"), "{refused}");
    let mut client = theirs.node.peers().client(&site.address().to_string(), None).unwrap();
    let refused = client.describe(DescribeRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let wrong_node = ours.node.peers().client(&site.address().to_string(), Some(1));
    let refused = wrong_node.unwrap().describe(DescribeRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("the message is for node 1"), "{refused}");
    // The id outlives a restart.
    let id = ours.node.local().cluster_id().unwrap().to_owned();
    ours.stop().await;
    let again = site.start().await;
    assert_eq!(again.node.local().cluster_id(), Some(id.as_str()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_compare_digests_at_one_revision() {
    let (sites, nodes) = cluster(3, |_| {}).await;
    write(&nodes, 5).await;
    let last = write(&nodes, 5).await;
    all_equal(&nodes, last).await;
    let (node, other) = (&nodes[0], &nodes[1].node.local().node_id);
    let mut client = node.node.peers().client(&sites[1].address().to_string(), Some(*other)).unwrap();
    for revision in [0, last, last - 3] {
        let theirs = client.digest(DigestRequest { revision }).await.unwrap().into_inner();
        let ours = node.node.history().digests_at(theirs.revision).unwrap();
        assert_eq!(theirs.revision, if revision == 0 { last } else { revision });
        assert_eq!(theirs.history_digest[..], ours.history.0);
        assert_eq!(theirs.state_digest[..], ours.state.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_process_has_ended_is_replaced_without_waiting_for_its_silence() {
    // By its silence alone it would take two minutes at least: longer than this test waits.
    let timers = |config: &mut Config| config.election = (Duration::from_secs(40), Duration::from_secs(80));
    let (_sites, mut nodes) = cluster(5, timers).await;
    let mut written = write(&nodes, 3).await;
    for _ in 0..2 {
        let at = leader(&nodes).await;
        nodes.remove(at).crash().await;
        written += 1;
        assert_eq!(write(&nodes, 1).await, written);
    }
    all_equal(&nodes, written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_follower_is_dialled_at_intervals() {
    let (sites, mut nodes) = cluster(3, |_| {}).await;
    write(&nodes, 1).await;
    let dead = (leader(&nodes).await + 1) % 3;
    nodes.remove(dead).crash().await;
    // In its place, so that who dials can be counted. It answers nobody.
    let listener =
        eventually("the port is free", || async { TcpListener::bind(sites[dead].address()).await.ok() })
            .await;
    let dialled = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&dialled);
    let counts = tokio::spawn(async move {
        while let Ok((caller, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            drop(caller);
        }
    });
    let began = Instant::now();
    for _ in 0..100 {
        write(&nodes, 1).await;
    }
    // The heartbeats of the leader, which begin anew each time, and the replication, with pauses of 50 ms and longer.
    let (beats, pauses) = (began.elapsed().as_millis() / 100, began.elapsed().as_millis() / 50);
    let dialled = u128::from(dialled.load(Ordering::Relaxed));
    assert!(dialled <= beats + pauses + 10, "{dialled} times in {:?}", began.elapsed());
    counts.abort();
}
