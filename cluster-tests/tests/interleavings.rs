//! Orders of events in which other systems lose or double something. Those that need an exact order of messages are
//! tested where that can be had: in `node/control/src/decider/tests.rs`, `node/control/src/raft/tests/group.rs` and
//! `node/agent/src/plan/tests.rs`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::collections::BTreeMap;

use cluster_tests::{Cluster, ClusterOptions, by_id, by_name, eventually, get, shell};
use futures::{StreamExt, stream};
use sandkeeper_client::{Client, Code, v1};

fn simulated(agents: usize, slots: u64) -> ClusterOptions {
    let agent_flags = vec!["--runtime".into(), "simulated".into()];
    ClusterOptions { agents, slots, agent_flags, ..ClusterOptions::default() }
}

async fn terminate(
    client: &Client,
    target: v1::SandboxRef,
    request_id: &str,
) -> v1::TerminateSandboxResponse {
    let request = v1::TerminateSandboxRequest {
        r#ref: Some(target),
        request_id: request_id.to_owned(),
        ..v1::TerminateSandboxRequest::default()
    };
    client.terminate(request).await.unwrap()
}

/// The sandboxes in the order in which they were first allocated.
async fn order_of_allocation(client: &Client) -> Vec<String> {
    let filter = v1::EventFilter {
        namespace: "default".into(),
        types: vec![v1::EventType::SandboxAllocated.into()],
        ..v1::EventFilter::default()
    };
    let request = v1::ListEventsRequest { filter: Some(filter), limit: 5_000, ..Default::default() };
    let events = client.events(request).await.unwrap().events;
    events.into_iter().map(|event| event.name).collect()
}

/// All three nodes restart while 100 creates wait in the queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_that_wait_keep_their_places_when_all_nodes_restart() {
    const COUNT: usize = 100;
    let mut cluster = Cluster::start_with(simulated(1, 1)).await;
    let client = cluster.client();
    let first = client.create(shell("first", "true")).await.unwrap().sandbox.unwrap();
    let creates = (0..COUNT).map(|index| {
        let waits =
            v1::CreateSandboxRequest { wait_for_capacity: true, ..shell(&format!("w{index}"), "true") };
        let client = client.clone();
        async move { client.create(waits).await.unwrap() }
    });
    let answers: Vec<_> = stream::iter(creates).buffer_unordered(32).collect().await;
    // Their places are the revisions at which they were acknowledged.
    let places: BTreeMap<u64, String> = answers
        .into_iter()
        .map(|answer| {
            let sandbox = answer.sandbox.unwrap();
            assert_eq!(sandbox.phase(), v1::Phase::Pending);
            (sandbox.revision, sandbox.name)
        })
        .collect();
    assert_eq!(places.len(), COUNT);
    for index in 0..3 {
        cluster.kill_node(index);
    }
    for index in 0..3 {
        cluster.start_node(index);
    }
    cluster.wait_ready().await;

    let client = cluster.client();
    // The entry that frees the slot gives it to the first of them: a newcomer that asks after it finds no room. (That it
    // may not overtake them in one entry either is a scenario of the state machine.)
    terminate(&client, by_id(&first.sandbox_id), "").await;
    let newcomer = client.create(shell("newcomer", "true")).await.unwrap_err();
    assert_eq!(newcomer.code(), Some(Code::ResourceExhausted));
    for name in places.values() {
        eventually(&format!("{name} has the slot"), || async {
            let found = client.get(by_name(name), v1::ReadOptions::default()).await;
            let sandbox = found.map_err(|error| error.to_string())?.sandbox.unwrap_or_default();
            let has_it = matches!(sandbox.phase(), v1::Phase::Allocated | v1::Phase::Running);
            if has_it { Ok(()) } else { Err(sandbox.phase().as_str_name().to_owned()) }
        })
        .await;
        terminate(&client, by_name(name), "").await;
    }
    let mut expected = vec!["first".to_owned()];
    expected.extend(places.into_values());
    assert_eq!(order_of_allocation(&client).await, expected, "first come, first served");
    cluster.wait_identical().await;
}

/// A terminate by name is retried late, after the name has a successor.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_retry_of_a_terminate_by_name_does_not_hit_the_successor() {
    let cluster = Cluster::start_with(simulated(2, 4)).await;
    let leader = cluster.wait_leader().await;
    let client = cluster.client();
    let old = client.create(shell("web", "true")).await.unwrap().sandbox.unwrap();
    cluster.wait_phase(&old.sandbox_id, v1::Phase::Running).await;
    let told = terminate(&client, by_name("web"), "end-web").await;
    let successor = client.create(shell("web", "true")).await.unwrap().sandbox.unwrap();
    assert_ne!(successor.sandbox_id, old.sandbox_id);
    cluster.wait_phase(&successor.sandbox_id, v1::Phase::Running).await;

    // Through another node, and once more after that the leader has changed.
    let follower = cluster.client_of(&[(leader + 1) % 3]);
    let again = terminate(&follower, by_name("web"), "end-web").await;
    assert_eq!(again.sandbox.unwrap().sandbox_id, told.sandbox.unwrap().sandbox_id, "the first answer again");
    client.transfer_leadership("").await.unwrap();
    cluster.wait_leader().await;
    let again = terminate(&follower, by_name("web"), "end-web").await;
    assert_eq!(again.sandbox.unwrap().sandbox_id, old.sandbox_id);
    // With another id, but for the record that its sender has seen.
    let moved = v1::TerminateSandboxRequest {
        r#ref: Some(by_name("web")),
        expected_revision: old.revision,
        ..v1::TerminateSandboxRequest::default()
    };
    let refused = client.terminate(moved).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::Aborted), "{refused}");
    let lives = get(&client, &successor.sandbox_id).await.unwrap().unwrap();
    assert_eq!(lives.phase(), v1::Phase::Running);
}
