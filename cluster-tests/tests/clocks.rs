//! Wrong clocks: nobody's sandbox ends early, whoever leads.
#![cfg_attr(not(debug_assertions), allow(dead_code, unused_imports))]
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::time::{SystemTime, UNIX_EPOCH};

use cluster_tests::{Cluster, eventually, scrape, shell};
use sandkeeper_client::v1;
use sandkeeper_client::v1::create_sandbox_request::Expiry;

const SECOND: i64 = 1_000_000_000;

/// Debug builds of a node read this.
const WRONG_BY: &str = "SANDKEEPER_TEST_CLOCK_WRONG_BY_SECONDS";

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// Starts node 0 again with a wrong clock, and has it lead.
async fn leads_with_a_clock_wrong_by(cluster: &mut Cluster, seconds: i64) {
    cluster.kill_node(0);
    cluster.wait_leader().await;
    cluster.start_node_with(0, &[(WRONG_BY, &seconds.to_string())]);
    cluster.wait_ready().await;
    let client = cluster.client();
    eventually("node 0 leads", || async {
        if client.status().await.map_err(|error| error.to_string())?.leader == "n0" {
            return Ok(());
        }
        // It may still be catching up.
        let asked = client.transfer_leadership("n0").await;
        Err(format!("{asked:?}"))
    })
    .await;
    cluster.wait_ready().await;
}

/// A sandbox that lives for ten minutes has the right times, and is not ended.
async fn time_is_right(cluster: &Cluster, name: &str) {
    let request = v1::CreateSandboxRequest {
        expiry: Some(Expiry::Ttl(prost_types::Duration { seconds: 600, nanos: 0 })),
        ..shell(name, "sleep 600")
    };
    let before = now();
    let created = cluster.client().create(request).await.unwrap().sandbox.unwrap();
    let off = (created.create_timestamp - before).abs();
    assert!(off < 60 * SECOND, "{name}: created {} s away from now", off / SECOND);
    let sandbox = cluster.wait_phase(&created.sandbox_id, v1::Phase::Running).await;
    let ends_in = sandbox.expire_time - before;
    assert!((ends_in - 600 * SECOND).abs() < 60 * SECOND, "{name}: ends in {} s", ends_in / SECOND);
}

#[cfg_attr(not(debug_assertions), ignore = "only debug builds can have a wrong clock")]
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_clock_is_wrong_goes_by_the_others() {
    let mut cluster = Cluster::start().await;
    time_is_right(&cluster, "before").await;
    leads_with_a_clock_wrong_by(&mut cluster, -7_200).await;
    time_is_right(&cluster, "two-hours-behind").await;
    leads_with_a_clock_wrong_by(&mut cluster, 3_600).await;
    time_is_right(&cluster, "an-hour-ahead").await;
    let skew = scrape(&cluster.nodes[0].http).await.unwrap()["sandkeeper_clock_skew_seconds"];
    assert!((skew - 3_600.0).abs() < 60.0, "it is told by how much: {skew}");
    let members = cluster.client_of(&[0]).status().await.unwrap().members;
    let skew = |name: &str| {
        members.iter().find(|member| member.name == name).unwrap().clock_skew_seconds.expect("all were asked")
    };
    assert!((skew("n0") - 3_600.0).abs() < 60.0, "{members:?}");
    assert!(skew("n1").abs() < 60.0 && skew("n2").abs() < 60.0, "{members:?}");
    // It is a follower again, and moves nothing from there.
    cluster.kill_node(0);
    cluster.wait_leader().await;
    cluster.start_node_with(0, &[(WRONG_BY, "3600")]);
    cluster.wait_ready().await;
    time_is_right(&cluster, "led-by-another").await;
    let leader = cluster.wait_leader().await;
    eventually("the leader knows that a follower's clock is wrong", || async {
        let status = cluster.client_of(&[leader]).status().await.map_err(|error| error.to_string())?;
        let found = status.members.iter().find(|member| member.name == "n0");
        let skew = found.and_then(|member| member.clock_skew_seconds).unwrap_or_default();
        if (skew - 3_600.0).abs() < 60.0 { Ok(()) } else { Err(format!("{skew} s")) }
    })
    .await;
    for name in ["before", "two-hours-behind", "an-hour-ahead"] {
        let found =
            cluster.client().get(cluster_tests::by_name(name), v1::ReadOptions::default()).await.unwrap();
        assert_eq!(found.sandbox.unwrap().phase(), v1::Phase::Running, "{name}: an hour is not over");
    }
    cluster.wait_identical().await;
}
