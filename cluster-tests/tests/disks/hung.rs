//! A disk that takes no writes and says nothing.

use std::time::Instant;

use cluster_tests::{Cluster, eventually};
use test_disks::{FileSystem, LoopDisk};

use super::{Load, all_is_well, on_own_disk, term};

const BYTES: u64 = 300 << 20;

/// Waits until n0 has written something into its log file.
async fn says(cluster: &Cluster, what: &str) {
    eventually(what, || async {
        let said = cluster.log_of(0);
        if said.contains(what) { Ok(()) } else { Err(said) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, loop devices and fsfreeze"]
async fn a_leader_whose_disk_hangs_hands_over_and_comes_back() {
    let disk = LoopDisk::new(FileSystem::Ext4, BYTES);
    let (cluster, _data_dirs) = on_own_disk(&disk, &[]).await;
    let load = Load::start(&cluster.client());
    load.goes_on(50).await;
    let before = term(&cluster, 0).await;
    let (frozen, began, acknowledged) = (disk.freeze(), Instant::now(), load.count());
    let leader = cluster.wait_leader_among(&[1, 2]).await;
    let meanwhile = load.count() - acknowledged;
    println!("the leader's disk hangs; n{leader} leads after {:?}, {meanwhile} creates", began.elapsed());
    load.goes_on(50).await;
    says(&cluster, "the disk of this node's log hangs").await;
    drop(frozen);
    says(&cluster, "answers again").await;
    cluster.wait_leader().await;
    let elections = term(&cluster, leader).await - before;
    assert!(elections <= 4.0, "{elections} elections");
    all_is_well(&cluster, load).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, loop devices and fsfreeze"]
async fn a_follower_whose_disk_hangs_holds_nobody_up() {
    let disk = LoopDisk::new(FileSystem::Ext4, BYTES);
    let (cluster, _data_dirs) = on_own_disk(&disk, &[]).await;
    cluster.client().transfer_leadership("n1").await.unwrap();
    let leader = cluster.wait_leader().await;
    let load = Load::start(&cluster.client());
    load.goes_on(50).await;
    let before = term(&cluster, leader).await;
    let frozen = disk.freeze();
    load.goes_on(100).await;
    drop(frozen);
    cluster.wait_leader().await;
    assert!(term(&cluster, leader).await - before <= 2.0, "elections");
    all_is_well(&cluster, load).await;
}

/// It can't write what it has, and does not wait for that.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, loop devices and fsfreeze"]
async fn a_node_whose_disk_hangs_can_be_stopped_and_started() {
    let disk = LoopDisk::new(FileSystem::Ext4, BYTES);
    let (mut cluster, _data_dirs) = on_own_disk(&disk, &[]).await;
    let load = Load::start(&cluster.client());
    load.goes_on(50).await;
    let frozen = disk.freeze();
    cluster.wait_leader_among(&[1, 2]).await;
    cluster.nodes[0].process.as_ref().unwrap().signal(nix::sys::signal::Signal::SIGTERM);
    says(&cluster, "the log was not closed in time").await;
    // The kernel keeps the process until its write has ended.
    drop(frozen);
    let (code, said) = cluster.wait_ended(0).await;
    assert_eq!(code, Some(0), "{said}");
    load.goes_on(20).await;
    cluster.start_node(0);
    all_is_well(&cluster, load).await;
}
