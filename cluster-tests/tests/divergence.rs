//! A replica whose memory is corrupted stops by itself, and says why; the others go on.
//!
//! The hook that corrupts is in debug builds only.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::time::Duration;

use cluster_tests::{Cluster, by_name, eventually, eventually_for, scrape, shell};
use sandkeeper_client::{Client, v1};
use tokio::task::spawn_blocking;

/// What a control node reads in debug builds.
const CORRUPT_AT: &str = "SANDKEEPER_TEST_CORRUPT_STATE_AT_REVISION";
/// From when the digests differ until the node stops.
const SOON: Duration = Duration::from_secs(1);

/// Restarts a follower so that its only sandbox's record, `web`, is corrupted in its memory. Nothing tells the record
/// from a good one as long as it does not change.
async fn corrupt_a_follower(cluster: &mut Cluster) -> usize {
    let web = cluster.client().create(shell("web", "sleep 600")).await.unwrap().sandbox.unwrap();
    cluster.wait_phase(&web.sandbox_id, v1::Phase::Running).await;
    let revision = cluster.wait_identical().await.revision;
    let follower = cluster.follower().await;
    cluster.kill_node(follower);
    cluster.start_node_with(follower, &[(CORRUPT_AT, &revision.to_string())]);
    cluster.wait_ready().await;
    eventually("the record is corrupted", || async {
        let log = cluster.log_of(follower);
        if log.contains("a record was corrupted in memory") { Ok(()) } else { Err(log) }
    })
    .await;
    cluster.wait_identical().await;
    follower
}

/// Changes the record that is corrupt, so that the digests differ.
async fn touch(client: &Client) {
    let request =
        v1::TerminateSandboxRequest { r#ref: Some(by_name("web")), ..v1::TerminateSandboxRequest::default() };
    client.terminate(request).await.unwrap();
}

/// The node says that it must stop, and why, and ends with an error.
async fn stops_by_itself(cluster: &mut Cluster, index: usize) {
    eventually_for(SOON, "it finds out", || async {
        let log = cluster.log_of(index);
        if log.contains("this node must stop") { Ok(()) } else { Err(log) }
    })
    .await;
    let mut process = cluster.nodes[index].process.take().unwrap();
    assert_eq!(spawn_blocking(move || process.wait()).await.unwrap(), Some(1));
    let log = cluster.log_of(index);
    let error = log.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    let others: Vec<_> = cluster.running().iter().map(|other| format!("n{other}")).collect();
    let parts = ["this node has diverged", "at revision", "state digest", "docs/operations.md"];
    for part in parts.into_iter().chain(others.iter().map(String::as_str)) {
        assert!(error.contains(part), "{part:?} is missing in {error:?} of {log}");
    }
}

async fn goes_on(client: &Client, name: &str) {
    client.create(shell(name, "sleep 600")).await.unwrap();
}

/// Waits until every running node knows that a majority has the digests that it has, at the newest revision.
async fn wait_confirmed(cluster: &Cluster) {
    for index in cluster.running() {
        eventually("the digests are confirmed", || async {
            let metrics = scrape(&cluster.nodes[index].http).await?;
            let of = |name| metrics.get(name).copied();
            let confirmed = of("sandkeeper_digest_confirmed_revision");
            if confirmed.is_some() && confirmed == of("sandkeeper_revision") {
                Ok(())
            } else {
                Err(format!("n{index} has confirmed {confirmed:?}"))
            }
        })
        .await;
    }
}

async fn disagreements(cluster: &Cluster, index: usize) -> f64 {
    let metrics = scrape(&cluster.nodes[index].http).await.unwrap();
    metrics["sandkeeper_digest_disagreements_total"]
}

/// Its log is good: only its memory was corrupt.
async fn comes_back_identical(cluster: &mut Cluster, index: usize) {
    cluster.start_node(index);
    cluster.wait_ready().await;
    goes_on(&cluster.client(), "with-all-three").await;
    cluster.wait_identical().await;
    wait_confirmed(cluster).await;
    assert!(disagreements(cluster, index).await.abs() < 0.5, "it was started anew, and agrees with all");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(debug_assertions), ignore = "a release build can't be corrupted")]
async fn a_follower_that_diverges_stops_and_the_others_go_on() {
    let mut cluster = Cluster::start().await;
    let diverged = corrupt_a_follower(&mut cluster).await;
    let others: Vec<_> = cluster.running().into_iter().filter(|index| *index != diverged).collect();
    let client = cluster.client_of(&others);
    touch(&client).await;
    stops_by_itself(&mut cluster, diverged).await;
    goes_on(&client, "without-it").await;
    wait_confirmed(&cluster).await;
    comes_back_identical(&mut cluster, diverged).await;
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(debug_assertions), ignore = "a release build can't be corrupted")]
async fn a_leader_that_diverges_stops_and_the_others_go_on() {
    let mut cluster = Cluster::start().await;
    let diverged = corrupt_a_follower(&mut cluster).await;
    let name = cluster.nodes[diverged].name.clone();
    cluster.client().transfer_leadership(&name).await.unwrap();
    assert_eq!(cluster.wait_leader().await, diverged);
    touch(&cluster.client()).await;
    stops_by_itself(&mut cluster, diverged).await;
    let client = cluster.client_of(&cluster.running());
    goes_on(&client, "without-it").await;
    assert_ne!(cluster.wait_leader().await, diverged);
    wait_confirmed(&cluster).await;
    comes_back_identical(&mut cluster, diverged).await;
}

/// Two nodes that differ can't tell which of them is right: both go on, and say so, until the third is there.
#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(debug_assertions), ignore = "a release build can't be corrupted")]
async fn without_a_majority_against_it_a_node_goes_on_until_there_is_one() {
    let mut cluster = Cluster::start().await;
    let diverged = corrupt_a_follower(&mut cluster).await;
    let leader = cluster.wait_leader().await;
    let third = cluster.running().into_iter().find(|index| ![leader, diverged].contains(index)).unwrap();
    cluster.kill_node(third);
    touch(&cluster.client_of(&[leader])).await;
    for index in [leader, diverged] {
        eventually("it says that the other one differs", || async {
            let log = cluster.log_of(index);
            let counted = disagreements(&cluster, index).await > 0.5;
            if counted && log.contains("another node has other digests") { Ok(()) } else { Err(log) }
        })
        .await;
    }
    goes_on(&cluster.client_of(&[leader, diverged]), "with-two").await;
    cluster.start_node(third);
    eventually("the third decides it", || async {
        let log = cluster.log_of(diverged);
        if log.contains("this node must stop") { Ok(()) } else { Err(log) }
    })
    .await;
    stops_by_itself(&mut cluster, diverged).await;
    cluster.wait_ready().await;
    goes_on(&cluster.client_of(&[leader, third]), "without-it").await;
    wait_confirmed(&cluster).await;
    comes_back_identical(&mut cluster, diverged).await;
}
