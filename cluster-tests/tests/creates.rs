//! Creates, through whichever node: one sandbox, one capacity, one answer.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use cluster_tests::{Cluster, ClusterOptions, alive, by_id, by_name, children_of, eventually, shell};
use md5::{Digest as _, Md5};
use sandkeeper_client::{Code, v1};

#[tokio::test(flavor = "multi_thread")]
async fn creates_through_followers_are_seen_by_all_and_capacity_counts_once() {
    let cluster = Cluster::start().await;
    for index in cluster.running() {
        let created =
            cluster.client_of(&[index]).create(shell(&format!("s{index}"), "sleep 600")).await.unwrap();
        let sandbox = created.sandbox.unwrap();
        cluster.wait_phase(&sandbox.sandbox_id, v1::Phase::Running).await;
        for other in cluster.running() {
            let client = cluster.client_of(&[other]);
            let seen = client.get(by_name(&sandbox.name), v1::ReadOptions::default()).await.unwrap();
            assert_eq!(
                seen.sandbox.unwrap().sandbox_id,
                sandbox.sandbox_id,
                "created by n{index}, seen by n{other}"
            );
        }
    }
    let view = cluster.wait_identical().await;
    assert_eq!(view.total.unwrap().slots, 8, "never 24");
    assert_eq!(view.allocated.unwrap().slots, 3);
    cluster.terminate_all().await;
    assert_eq!(cluster.wait_identical().await.allocated.unwrap().slots, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workload_is_really_there_and_then_really_gone() {
    let cluster = Cluster::start().await;
    let follower = cluster.client_of(&[cluster.follower().await]);
    let created = follower.create(shell("web", "echo hello; sleep 600")).await.unwrap();
    let sandbox = created.sandbox.unwrap();
    cluster.wait_phase(&sandbox.sandbox_id, v1::Phase::Running).await;
    let processes = children_of(&sandbox.sandbox_id);
    assert!(processes.iter().any(|(_, line)| line.contains("sleep 600")), "{processes:?}");

    let request = v1::StreamLogsRequest { r#ref: Some(by_name("web")), ..v1::StreamLogsRequest::default() };
    eventually("the log says hello", || async {
        let mut logs = follower.logs(request.clone()).await.map_err(|error| error.to_string())?;
        let mut text = Vec::new();
        while let Some(chunk) = logs.next().await.map_err(|error| error.to_string())? {
            text.extend(chunk);
        }
        if text == b"hello\n" { Ok(()) } else { Err(String::from_utf8_lossy(&text).into_owned()) }
    })
    .await;

    let events = history(&follower, &sandbox.sandbox_id).await;
    let story =
        [v1::EventType::SandboxCreated, v1::EventType::SandboxAllocated, v1::EventType::SandboxRunning];
    assert_eq!(events, story);

    cluster.terminate_all().await;
    let left: Vec<_> = processes.iter().filter(|(pid, _)| alive(*pid)).collect();
    assert!(left.is_empty(), "when it is gone from the state, it is gone from its agent: {left:?}");
}

async fn history(client: &sandkeeper_client::Client, sandbox_id: &str) -> Vec<v1::EventType> {
    let filter = v1::EventFilter { sandbox_id: sandbox_id.to_owned(), ..v1::EventFilter::default() };
    let request = v1::ListEventsRequest { filter: Some(filter), ..v1::ListEventsRequest::default() };
    client.events(request).await.unwrap().events.iter().map(v1::Event::r#type).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ninth_create_is_refused_and_one_that_waits_runs_when_there_is_room() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    for index in 0..8 {
        client.create(shell(&format!("s{index}"), "sleep 600")).await.unwrap();
    }
    let refused = client.create(shell("ninth", "sleep 600")).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::ResourceExhausted), "{refused}");
    assert!(refused.to_string().contains("no free slot"), "it says what was missing: {refused}");

    let waiting = v1::CreateSandboxRequest { wait_for_capacity: true, ..shell("ninth", "sleep 600") };
    let waiting = client.create(waiting).await.unwrap().sandbox.unwrap();
    assert_eq!(waiting.phase(), v1::Phase::Pending);
    let newcomer = client.create(shell("tenth", "sleep 600")).await.unwrap_err();
    assert_eq!(newcomer.code(), Some(Code::ResourceExhausted));

    let request =
        v1::TerminateSandboxRequest { r#ref: Some(by_name("s0")), ..v1::TerminateSandboxRequest::default() };
    client.terminate(request).await.unwrap();
    cluster.wait_phase(&waiting.sandbox_id, v1::Phase::Running).await;
    assert_eq!(cluster.wait_identical().await.allocated.unwrap().slots, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_what_the_design_says_and_a_retry_gets_the_first_answer() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let request = v1::CreateSandboxRequest { request_id: "order-17".into(), ..shell("fast", "sleep 600") };
    let first = client.create(request.clone()).await.unwrap();
    let fast = first.sandbox.unwrap();
    let text = format!("fast:default:{}", fast.create_timestamp);
    assert_eq!(fast.sandbox_id, hex_md5(&text));
    for index in cluster.running() {
        let again = cluster.client_of(&[index]).create(request.clone()).await.unwrap();
        assert_eq!(again.sandbox.unwrap().sandbox_id, fast.sandbox_id);
        assert!(again.duplicate);
        assert_eq!(again.revision, first.revision);
    }
    let other = v1::CreateSandboxRequest { request_id: "order-17".into(), ..shell("other", "sleep 600") };
    let refused = client.create(other).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::AlreadyExists), "{refused}");

    let taken = client.create(shell("fast", "sleep 1")).await.unwrap_err();
    assert_eq!(taken.code(), Some(Code::AlreadyExists));
    assert!(taken.to_string().contains(&fast.sandbox_id), "it names the holder: {taken}");

    let strong = v1::CreateSandboxRequest { mode: v1::Mode::Strong.into(), ..shell("strong", "sleep 600") };
    let strong = client.create(strong).await.unwrap().sandbox.unwrap();
    assert_eq!(strong.phase(), v1::Phase::Running, "STRONG answers when it runs");
    let parts: Vec<_> = strong.sandbox_id.split('-').map(str::len).collect();
    assert_eq!(parts, [8, 4, 4, 4, 12], "a UUID: {}", strong.sandbox_id);
}

fn hex_md5(text: &str) -> String {
    format!("{:032x}", u128::from_be_bytes(Md5::digest(text.as_bytes()).into()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strong_create_that_can_not_start_is_rolled_back() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let request = v1::CreateSandboxRequest {
        name: "broken".into(),
        command: vec!["/no/such/program".into()],
        mode: v1::Mode::Strong.into(),
        request_id: "broken-1".into(),
        ..v1::CreateSandboxRequest::default()
    };
    let failed = client.create(request.clone()).await.unwrap_err();
    assert!(failed.to_string().contains("/no/such/program"), "it says why: {failed}");
    let again = client.create(request).await.unwrap_err();
    assert_eq!(again.code(), failed.code(), "a retry gets the first answer: {again}");
    let list = client.list(v1::ListSandboxesRequest::default()).await.unwrap();
    assert!(list.sandboxes.is_empty(), "slot and name are free again");
    let ok = client.create(shell("broken", "sleep 600")).await.unwrap();
    cluster.wait_phase(&ok.sandbox.unwrap().sandbox_id, v1::Phase::Running).await;
    assert_eq!(cluster.wait_identical().await.allocated.unwrap().slots, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_free_again_as_soon_as_the_terminate_is_answered() {
    let cluster = Cluster::start_with(ClusterOptions { nodes: 1, ..ClusterOptions::default() }).await;
    let client = cluster.client();
    let mut ids = Vec::new();
    for _ in 0..10 {
        // It resists SIGTERM, so the old one is still going away while the new one is created.
        let created = client.create(shell("web", "trap '' TERM; sleep 600 & wait; sleep 600")).await.unwrap();
        let sandbox = created.sandbox.unwrap();
        assert!(!ids.contains(&sandbox.sandbox_id));
        let target = Some(by_id(&sandbox.sandbox_id));
        let request = v1::TerminateSandboxRequest { r#ref: target, ..v1::TerminateSandboxRequest::default() };
        ids.push(sandbox.sandbox_id);
        // Eight slots, and the old ones hold theirs until they are gone.
        eventually("there is room for the next", || async {
            client.terminate(request.clone()).await.map(|_| ()).or_else(|error| match error.code() {
                Some(Code::NotFound) => Ok(()),
                _ => Err(error.to_string()),
            })?;
            let view =
                client.capacity(v1::ReadOptions::default()).await.map_err(|error| error.to_string())?;
            if view.free.unwrap().slots > 0 { Ok(()) } else { Err("all slots are held".into()) }
        })
        .await;
        let found = client.get(by_name("web"), v1::ReadOptions::default()).await;
        assert_eq!(found.unwrap_err().code(), Some(Code::NotFound), "the name is free");
    }
    cluster.terminate_all().await;
}
