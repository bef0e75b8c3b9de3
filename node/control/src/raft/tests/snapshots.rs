//! Snapshots: made, loaded at a restart, sent to a node that is too far behind.

use sandkeeper_proto::internal::{SnapshotChunk, SnapshotOffsetRequest};
use tonic::Code;

use super::rig::{Running, Site, all_equal, cluster, eventually, leader, write};
use crate::config::Config;
use crate::history::HistoryError;
use crate::raft::codec;
use crate::raft::transfer::{Announcement, TransferHead};
use crate::raft::types::{LogId, Vote};

/// Few enough that a node that was away finds them gone.
const RETAINED: u64 = 20;

pub(super) async fn snapshot_and_purge(node: &Running) {
    node.node.trigger_snapshot().await.unwrap();
    eventually("the log is purged", || async {
        let status = node.node.status();
        let purged = status.purged?.index() + RETAINED + 1 >= status.snapshot?.index();
        purged.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_too_long_comes_back_by_snapshot() {
    let (sites, mut nodes) = cluster(3, |config| config.history_retain_entries = RETAINED).await;
    write(&nodes, 10).await;
    let away = (leader(&nodes).await + 1) % 3;
    nodes.remove(away).stop().await;
    let written = write(&nodes, 600).await;
    for node in &nodes {
        node.reaches(written).await;
        snapshot_and_purge(node).await;
    }
    nodes.insert(away, sites[away].start().await);
    all_equal(&nodes, written).await;
    let back = &nodes[away].node;
    eventually("openraft notes the snapshot", || async { back.status().snapshot }).await;
    let oldest = back.history().oldest_revision();
    assert!(oldest > 10, "{oldest}");
    let refused = back.history().read_here(1, usize::MAX).await.unwrap_err();
    assert_eq!(refused, HistoryError::Compacted { oldest });
    let last = write(&nodes, 5).await;
    all_equal(&nodes, last).await;
    assert!(!nodes[away].node.history().read(last, 1).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_broke_off_goes_on_where_it_ended() {
    let (sites, nodes) = cluster(1, |_| {}).await;
    write(&nodes, 50).await;
    nodes[0].node.trigger_snapshot().await.unwrap();
    let newest = || async { nodes[0].node.inner.snapshots.newest() };
    let snapshot = eventually("a snapshot", newest).await;
    let file = snapshot.snapshot;
    let announcement = Announcement { meta: snapshot.meta, length: file.length(), digest: file.digest() };
    let offset_request = SnapshotOffsetRequest { meta: codec::encode(&announcement) };
    let term = nodes[0].term().unwrap();
    let vote = Vote::new_committed(term, nodes[0].node.local().node_id);
    let head = codec::encode(&TransferHead { vote, announcement: announcement.clone() });

    let receiver = Site::new("receiver", None);
    let running = receiver.start().await;
    let mut client = nodes[0].node.peers().client(&receiver.address().to_string(), None).unwrap();
    assert_eq!(client.snapshot_offset(offset_request.clone()).await.unwrap().into_inner().offset, 0);
    let part = SnapshotChunk {
        head: head.clone(),
        offset: 0,
        data: file.read_chunk(0, 100).await.unwrap(),
        last: false,
    };
    let broken = client.install_snapshot(futures::stream::iter([part])).await.unwrap_err();
    assert_eq!(broken.code(), Code::Aborted, "{broken}");
    assert_eq!(client.snapshot_offset(offset_request.clone()).await.unwrap().into_inner().offset, 100);

    // A damaged rest is thrown away, and none of it becomes the state.
    let rest = file.read_chunk(100, usize::MAX).await.unwrap();
    let mut damaged = rest.to_vec();
    damaged[40] ^= 1;
    let chunk =
        |data: Vec<u8>| SnapshotChunk { head: head.clone(), offset: 100, data: data.into(), last: true };
    let refused = client.install_snapshot(futures::stream::iter([chunk(damaged)])).await.unwrap_err();
    assert_eq!(refused.code(), Code::DataLoss, "{refused}");
    assert_eq!(running.revision(), 0);
    assert_eq!(client.snapshot_offset(offset_request).await.unwrap().into_inner().offset, 0);

    let whole = SnapshotChunk { offset: 0, ..chunk(file.read_chunk(0, usize::MAX).await.unwrap().to_vec()) };
    client.install_snapshot(futures::stream::iter([whole])).await.unwrap();
    running.reaches(50).await;
    assert_eq!(running.digests(), nodes[0].digests());

    let mut forged = announcement;
    forged.meta.last_log_id = forged.meta.last_log_id.map(|id| LogId::new((term + 1).into(), id.index()));
    let head = codec::encode(&TransferHead { vote, announcement: forged });
    let forged = SnapshotChunk { head, ..Default::default() };
    let refused = client.install_snapshot(futures::stream::iter([forged])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    drop(sites);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_reads_the_snapshot_and_the_log_behind_it() {
    let (sites, nodes) = cluster(1, |_| {}).await;
    write(&nodes, 700).await;
    let snapshot_at = nodes[0].node.status().applied;
    nodes[0].node.trigger_snapshot().await.unwrap();
    eventually("a snapshot", || async { (nodes[0].node.status().snapshot == snapshot_at).then_some(()) })
        .await;
    let written = write(&nodes, 30).await;
    let before = nodes[0].digests();
    for node in nodes {
        node.stop().await;
    }
    let nodes = [sites[0].start().await];
    leader(&nodes).await;
    assert_eq!(nodes[0].digests(), before);
    // The log is all there, and the snapshot's checkpoints say where.
    let history = nodes[0].node.history();
    assert_eq!(history.oldest_revision(), 1);
    for revision in [1, 257, 699, written] {
        let entries = history.read(revision, 1).await.unwrap();
        assert_eq!(entries[0].first_revision, revision);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_made_after_so_many_bytes_of_log() {
    let (_sites, nodes) = cluster(1, |config| config.snapshot_log_bytes = 10_000).await;
    let mut seen = None;
    for _ in 0..2 {
        seen = eventually("the next snapshot", || async {
            write(&nodes, 20).await;
            let snapshot = nodes[0].node.status().snapshot;
            (snapshot > seen).then_some(snapshot)
        })
        .await;
    }
}

/// A snapshot that fails stops the node; one for which there is no room waits, and the node goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_without_room_is_put_off() {
    let settings = |config: &mut Config| {
        (config.snapshot_log_bytes, config.disk_low_water) = (1_000, Some(u64::MAX));
    };
    let (_sites, nodes) = cluster(1, settings).await;
    write(&nodes, 50).await;
    assert!(nodes[0].node.inner.snapshots.is_due(1_000));
    let refused = nodes[0].node.trigger_snapshot().await.unwrap_err().to_string();
    assert!(refused.contains("free, and a snapshot may need"), "{refused}");
    write(&nodes, 50).await;
    assert_eq!(nodes[0].node.status().snapshot, None);
}
