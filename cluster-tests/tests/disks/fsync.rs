//! An fsync that fails, and one that takes half a second.

use std::time::Instant;

use cluster_tests::{Cluster, Strace, eventually, scrape};

use super::{Load, all_is_well, options, term};

/// A cluster under load, and strace in one of its nodes.
async fn inject(cluster: &Cluster, index: usize, what: &str) -> Strace {
    let pid = cluster.nodes[index].process.as_ref().unwrap().pid();
    Strace::inject(pid, &format!("fsync,fdatasync:{what}"), &cluster.folder().join("strace.log")).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and strace"]
async fn a_leader_whose_fsync_fails_stops_and_nothing_is_lost() {
    let mut cluster = Cluster::start_with(options()).await;
    let load = Load::start(&cluster.client());
    load.goes_on(50).await;
    let leader = cluster.wait_leader().await;
    let began = Instant::now();
    let strace = inject(&cluster, leader, "error=EIO").await;
    let (code, said) = cluster.wait_ended(leader).await;
    let took = began.elapsed();
    drop(strace);
    let next = cluster.wait_leader().await;
    println!(
        "the leader ended {took:?} after strace was started; after {:?} there was another one",
        began.elapsed()
    );
    assert_eq!(code, Some(1), "{said}");
    let error = said.lines().find(|line| line.starts_with("error: ")).unwrap();
    println!("{error}");
    for part in ["stopped because of a fault", "fdatasync", "/db: Input/output error"] {
        assert!(error.contains(part), "{part:?} is missing in {error:?}");
    }
    assert_ne!(next, leader);
    load.goes_on(50).await;
    cluster.start_node(leader);
    load.goes_on(50).await;
    all_is_well(&cluster, load).await;
}

/// Waits until the log of a node has had five fsyncs that took half a second; how many it has had meanwhile.
async fn slow_fsyncs(cluster: &Cluster, index: usize) -> f64 {
    let fsyncs = async || {
        let metrics = scrape(&cluster.nodes[index].http).await?;
        let found =
            ["sandkeeper_log_fsyncs_total", "sandkeeper_log_fsync_seconds_total"].map(|name| metrics[name]);
        Ok::<_, String>(found)
    };
    let [before, seconds_before] = fsyncs().await.unwrap();
    eventually("five slow fsyncs", || async {
        let [now, seconds] = fsyncs().await?;
        let (fsyncs, seconds) = (now - before, seconds - seconds_before);
        if fsyncs >= 5.0 && seconds / fsyncs >= 0.5 {
            Ok(fsyncs)
        } else {
            Err(format!("{fsyncs} in {seconds} s"))
        }
    })
    .await
}

/// Nobody stops, and nobody is voted out again and again.
async fn goes_on_with_slow_fsyncs_of(leader: bool) {
    let cluster = Cluster::start_with(options()).await;
    let load = Load::start(&cluster.client());
    load.goes_on(20).await;
    let leads = cluster.wait_leader().await;
    let index = if leader { leads } else { cluster.follower().await };
    let before = term(&cluster, leads).await;
    let strace = inject(&cluster, index, "delay_enter=500000").await;
    let began = Instant::now();
    load.goes_on(60).await;
    let took = began.elapsed();
    let fsyncs = slow_fsyncs(&cluster, index).await;
    drop(strace);
    cluster.wait_leader().await;
    let elections = term(&cluster, leads).await - before;
    println!("{fsyncs} slow fsyncs (leader: {leader}): 60 creates took {took:?}; elections: {elections}");
    assert!(elections <= 3.0, "{elections} elections");
    all_is_well(&cluster, load).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and strace"]
async fn a_leader_with_slow_fsyncs_goes_on() {
    goes_on_with_slow_fsyncs_of(true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and strace"]
async fn a_follower_with_slow_fsyncs_holds_nobody_up() {
    goes_on_with_slow_fsyncs_of(false).await;
}
