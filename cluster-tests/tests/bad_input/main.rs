//! Bad input to every RPC: refused with the right code, the right fields and what a caller needs to know, by whichever
//! node is asked. None of it changes log or state.
//!
//! | file | what |
//! | --- | --- |
//! | `creates` | what a create may ask for: every limit |
//! | `calls` | all other RPCs of callers |
//! | `conditions` | good requests at the wrong time: taken names, no room, moved revisions |
//! | `strangers` | messages that no agent and no peer of ours would send |
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod calls;
mod conditions;
mod creates;
mod strangers;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cluster_tests::{Cluster, ClusterOptions, Raw, by_id, by_name, eventually, http_get, refused, shell};
use futures::future::join_all;
use sandkeeper_client::{Client, Code, v1};
use tokio_stream::StreamExt;

fn flags(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A cluster that nothing moves by itself: no election, however busy the machine is (each appends to the log), no lost
/// agent, no forgotten request. Two simulated agents of two slots, 8 CPUs and 8 GiB each.
fn quiet() -> ClusterOptions {
    ClusterOptions {
        slots: 2,
        server_flags: flags("--heartbeat-ms 200 --election-ms 4000-6000 --lost-after 5m"),
        agent_flags: flags("--runtime simulated"),
        ..ClusterOptions::default()
    }
}

/// A label map of one pair.
fn one(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

/// A sandbox with a host port: one fits on each agent.
async fn with_port(cluster: &Cluster, name: &str) -> v1::Sandbox {
    let request = v1::CreateSandboxRequest {
        request_id: format!("request-{name}"),
        exposed_ports: vec![8080],
        ..shell(name, "sleep 600")
    };
    let created = cluster.client().create(request).await.unwrap().sandbox.unwrap();
    cluster.wait_phase(&created.sandbox_id, v1::Phase::Running).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_to_any_rpc_of_any_node_is_refused_and_changes_nothing() {
    let cluster = Cluster::start_with(quiet()).await;
    let (first, second) = (with_port(&cluster, "first").await, with_port(&cluster, "second").await);
    assert_ne!(first.agent_id, second.agent_id, "the port is taken on both agents");
    let before = cluster.standing().await;
    for index in cluster.running() {
        let node = cluster.raw(index);
        creates::refused_by(&node).await;
        calls::refused_by(&node, &first).await;
        conditions::refused_by(&node, &first).await;
    }
    assert_eq!(cluster.standing().await, before);

    for index in cluster.running() {
        strangers::refused_by(&cluster, index).await;
    }
    strangers::imposters_are_sent_away(&cluster).await;
    cluster.wait_ready().await;
    assert_eq!(cluster.standing().await, before);

    let client = cluster.client();
    for name in ["third", "fourth"] {
        let created = client.create(shell(name, "sleep 600")).await.unwrap().sandbox.unwrap();
        cluster.wait_phase(&created.sandbox_id, v1::Phase::Running).await;
    }
    let before = cluster.standing().await;
    for index in cluster.running() {
        conditions::no_slot_is_left(&cluster.raw(index)).await;
    }
    assert_eq!(cluster.standing().await, before);
    assert_eq!(cluster.wait_identical().await.sandboxes, 4);
}

/// Two of three nodes are dead. The third refuses what is bad as ever, answers what it may answer alone, and says what
/// it knows to all others.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_a_node_says_what_it_knows_and_still_reads() {
    let mut cluster = Cluster::start_with(quiet()).await;
    let first = with_port(&cluster, "first").await;
    let before = cluster.standing().await;
    // A follower stays: it appends nothing. (A leader would append what it is sent, and that may commit later.)
    let last = cluster.follower().await;
    for index in cluster.running().into_iter().filter(|index| *index != last) {
        cluster.kill_node(index);
    }
    let node = cluster.raw(last);
    let alone = before[last].clone();
    let began = Instant::now();
    let create = async {
        // Without a deadline of the caller's, it is the server's: 10 s.
        let answer = node.sandboxes().create_sandbox(shell("late", "sleep 600")).await;
        let refused = refused("a create without a majority", answer);
        refused.is(Code::Unavailable, "UNAVAILABLE").says("request_id").says("leader");
        refused.says(&format!("node {}", alone.node)).says("term").says("3 members");
        assert!(refused.retry, "{refused:?}");
    };
    let read = async {
        let request =
            v1::GetSandboxRequest { r#ref: Some(by_name("first")), ..v1::GetSandboxRequest::default() };
        let refused = refused("a linearizable read", node.sandboxes().get_sandbox(request).await);
        refused.is(Code::Unavailable, "UNAVAILABLE").says(&format!("node {}", alone.node));
        assert!(refused.retry, "{refused:?}");
    };
    let future = async {
        let read =
            v1::ReadOptions { consistency: v1::Consistency::Local.into(), min_revision: alone.revision + 1 };
        let request = v1::ListSandboxesRequest { read: Some(read), ..v1::ListSandboxesRequest::default() };
        let refused = refused("a read of the future", node.sandboxes().list_sandboxes(request).await);
        refused.is(Code::Unavailable, "BEHIND").tells("revision", &alone.revision.to_string());
    };
    tokio::join!(create, read, future, reads_that_need_no_leader(&node, &first, alone.revision));
    assert!(began.elapsed() > Duration::from_secs(5), "it waited for a leader: {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(40), "but not for ever: {:?}", began.elapsed());
    creates::refused_by(&node).await;

    let http = cluster.nodes[last].http.clone();
    eventually("it is not ready, and healthy", || async {
        let (ready, why) = http_get(&http, "/readyz").await?;
        let (healthy, _) = http_get(&http, "/healthz").await?;
        if (ready, healthy) == (503, 200) { Ok(()) } else { Err(format!("{ready} {why}, {healthy}")) }
    })
    .await;
    assert_eq!(cluster.standing_of(&[last]).await, [alone]);

    for index in 0..3 {
        if index != last {
            cluster.start_node(index);
        }
    }
    cluster.wait_ready().await;
    let view = cluster.wait_identical().await;
    let digests = (&view.history_digest, &view.state_digest);
    assert_eq!(
        digests,
        (&before[last].history_digest, &before[last].state_digest),
        "nothing of it came to be"
    );
    cluster.client().create(shell("late", "sleep 600")).await.unwrap();
}

/// All of these are answered at once, by a node that knows of no leader.
async fn reads_that_need_no_leader(node: &Raw, first: &v1::Sandbox, revision: u64) {
    let read = Some(v1::ReadOptions { consistency: v1::Consistency::Local.into(), min_revision: revision });
    let request = v1::GetSandboxRequest { r#ref: Some(by_name("first")), read };
    let found = node.sandboxes().get_sandbox(request).await.unwrap().into_inner();
    assert_eq!(found.sandbox.unwrap().sandbox_id, first.sandbox_id);
    let header = found.header.unwrap();
    assert_eq!((header.revision, header.linearizable), (revision, false));
    let request = v1::ListSandboxesRequest { read, ..v1::ListSandboxesRequest::default() };
    assert_eq!(node.sandboxes().list_sandboxes(request).await.unwrap().into_inner().sandboxes.len(), 1);
    let request = v1::ListAgentsRequest { read };
    assert_eq!(node.fleet().list_agents(request).await.unwrap().into_inner().agents.len(), 2);
    let request = v1::GetCapacityRequest { read };
    let view = node.fleet().get_capacity(request).await.unwrap().into_inner();
    assert_eq!((view.total.unwrap().slots, view.allocated.unwrap().slots), (4, 1));
    let request = v1::ListMembersRequest { read };
    assert_eq!(node.cluster().list_members(request).await.unwrap().into_inner().members.len(), 3);
    let filter = Some(v1::EventFilter { name: "first".into(), ..v1::EventFilter::default() });
    let request = v1::ListEventsRequest { filter, limit: 0, read };
    assert_eq!(node.events().list_events(request).await.unwrap().into_inner().events.len(), 3);
    let status = node.cluster().get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.header.unwrap().revision, revision);
    let request = v1::WatchEventsRequest { from_revision: 1, filter: None };
    let mut watch = node.events().watch_events(request).await.unwrap().into_inner();
    let mut seen = 0;
    while seen < revision {
        seen = watch.next().await.unwrap().unwrap().revision;
    }
}

async fn live_and_die(client: &Client, name: String) {
    // Whether there is room just now does not matter here: there is something for the log.
    if let Ok(created) = client.create(shell(&name, "sleep 600")).await {
        let target = Some(by_id(&created.sandbox.unwrap().sandbox_id));
        let request = v1::TerminateSandboxRequest { r#ref: target, ..v1::TerminateSandboxRequest::default() };
        client.terminate(request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_before_what_is_kept_is_refused_with_the_oldest_revision() {
    let options = ClusterOptions {
        slots: 512,
        server_flags: flags("--history-retain-entries 16 --snapshot-log-bytes 16KiB"),
        agent_flags: flags("--runtime simulated"),
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::start_with(options).await;
    let client = cluster.client();
    let mut round = 0;
    eventually("every node has purged its oldest log", || {
        round += 1;
        let (client, cluster) = (client.clone(), &cluster);
        async move {
            join_all((0..16).map(|index| live_and_die(&client, format!("s{round}-{index}")))).await;
            for index in cluster.running() {
                let status = cluster.client_of(&[index]).status().await.map_err(|error| error.to_string())?;
                // Positions from which history can be read are kept every 256 entries: it begins at one of them.
                if status.purged_index < 256 {
                    return Err(format!("n{index} has purged up to {}", status.purged_index));
                }
            }
            Ok(())
        }
    })
    .await;
    // What is still in memory can be watched too: a node that starts again has only its log.
    for index in 0..3 {
        cluster.kill_node(index);
    }
    for index in 0..3 {
        cluster.start_node(index);
    }
    cluster.wait_ready().await;
    // As long as one of them has it, the others read it there.
    eventually("every node has let go of its oldest history", || async {
        for index in cluster.running() {
            let status = cluster.client_of(&[index]).status().await.map_err(|error| error.to_string())?;
            if status.oldest_revision <= 1 {
                return Err(format!("n{index} has all of it"));
            }
        }
        Ok(())
    })
    .await;
    for index in cluster.running() {
        let node = cluster.raw(index);
        eventually("what it says is the oldest can be watched, and nothing older", || async {
            let request = v1::WatchEventsRequest { from_revision: 1, filter: None };
            let refused = refused("a watch from the beginning", node.events().watch_events(request).await);
            refused.is(Code::OutOfRange, "HISTORY_COMPACTED");
            let oldest: u64 = refused.metadata["oldest_revision"].parse().unwrap();
            assert!(oldest > 1 && refused.message.contains(&oldest.to_string()), "{refused:?}");
            let request = v1::WatchEventsRequest { from_revision: oldest, filter: None };
            // The log may be purged further between the two.
            let watch = node.events().watch_events(request).await.map_err(|status| status.to_string())?;
            let first = watch.into_inner().next().await.unwrap().map_err(|status| status.to_string())?;
            assert_eq!(first.events.first().map(|event| event.revision), Some(oldest));
            Ok(())
        })
        .await;
    }
    let from_start = client.watch(1, v1::EventFilter::default()).next().await.unwrap_err();
    assert_eq!(from_start.code(), Some(Code::OutOfRange), "the client does not try for ever: {from_start}");
}
