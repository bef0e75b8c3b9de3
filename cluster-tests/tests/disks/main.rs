//! Disks that fail, are slow, hang, are full, or may not be written: one file each. Most need root, for a file system of
//! their own or to trace the nodes; these are not run by default:
//!
//! ```text
//! cargo test --workspace --test disks -- --ignored --nocapture
//! ```
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a panic is how a test reports")]

mod fsync;
mod full;
mod hung;
mod load;
mod read_only;
mod rebuild;

use std::fs::create_dir;
use std::os::unix::fs::symlink;

use cluster_tests::{Cluster, ClusterOptions, scrape};
use load::Load;
use tempfile::TempDir;
use test_disks::LoopDisk;

/// Three nodes and two agents with room for all that a test makes.
fn options() -> ClusterOptions {
    ClusterOptions {
        slots: 4096,
        agent_flags: ["--runtime", "simulated"].map(str::to_owned).to_vec(),
        ..ClusterOptions::default()
    }
}

/// A cluster whose node n0 has its data on a file system of its own, and leads. The folder is that of the data
/// directories.
async fn on_own_disk(disk: &LoopDisk, flags: &[&str]) -> (Cluster, TempDir) {
    with_on_disk(disk, &["n0"], flags).await
}

/// The same with the named nodes on that file system; n0 leads.
async fn with_on_disk(disk: &LoopDisk, names: &[&str], flags: &[&str]) -> (Cluster, TempDir) {
    let folder = tempfile::Builder::new().prefix("sandkeeper-data-").tempdir().unwrap();
    for name in names {
        let data_dir = disk.path().join(name);
        create_dir(&data_dir).unwrap();
        symlink(&data_dir, folder.path().join(name)).unwrap();
    }
    let options = ClusterOptions {
        data_dirs: Some(folder.path().to_owned()),
        server_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..options()
    };
    let cluster = Cluster::start_with(options).await;
    cluster.client().transfer_leadership("n0").await.unwrap();
    assert_eq!(cluster.wait_leader().await, 0);
    (cluster, folder)
}

/// The Raft term, as a node that runs sees it: how many elections there have been.
async fn term(cluster: &Cluster, index: usize) -> f64 {
    scrape(&cluster.nodes[index].http).await.unwrap()["sandkeeper_raft_term"]
}

/// All nodes are there, alike, and have what was acknowledged.
async fn all_is_well(cluster: &Cluster, load: Load) {
    let acknowledged = load.end().await;
    cluster.wait_ready().await;
    cluster.wait_identical().await;
    for index in cluster.running() {
        acknowledged.assert_all_in(cluster, index).await;
    }
    cluster.assert_nobody_diverged();
}
