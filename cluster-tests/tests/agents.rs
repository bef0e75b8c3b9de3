//! Agents that die, come back, and stay away.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use cluster_tests::{Cluster, ClusterOptions, alive, by_id, children_of, eventually, get, shell};
use futures::stream::{self, StreamExt};
use sandkeeper_client::v1::agent_message::Body as Up;
use sandkeeper_client::v1::create_sandbox_request::Expiry;
use sandkeeper_client::{Code, v1};

/// Lost after two seconds, so that the tests need not wait for ten.
fn impatient() -> ClusterOptions {
    let server_flags = vec!["--lost-after".into(), "2s".into()];
    ClusterOptions { server_flags, ..ClusterOptions::default() }
}

/// A sandbox that runs, and the index of its agent.
async fn running_web(cluster: &Cluster) -> (v1::Sandbox, usize) {
    let created = cluster.client().create(shell("web", "sleep 600")).await.unwrap();
    let sandbox = cluster.wait_phase(&created.sandbox.unwrap().sandbox_id, v1::Phase::Running).await;
    let index = agent_index(&sandbox);
    (sandbox, index)
}

fn agent_index(sandbox: &v1::Sandbox) -> usize {
    sandbox.agent_id.trim_start_matches('a').parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_outlive_their_agent_and_are_taken_up_again_with_their_exit_status() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    let stays = client.create(shell("stays", "sleep 600")).await.unwrap().sandbox.unwrap();
    let script = "while ! test -e go; do sleep 0.05; done; exit 7";
    let ends = client.create(shell("ends", script)).await.unwrap().sandbox.unwrap();
    let stays = cluster.wait_phase(&stays.sandbox_id, v1::Phase::Running).await;
    let ends = cluster.wait_phase(&ends.sandbox_id, v1::Phase::Running).await;
    let pids: Vec<_> = children_of(&stays.sandbox_id).into_iter().map(|(pid, _)| pid).collect();
    assert!(!pids.is_empty());
    cluster.kill_agent(0);
    cluster.kill_agent(1);
    // The workload of `ends` ends while nobody looks.
    let work = cluster.agents[agent_index(&ends)].data_dir.join("work").join(&ends.sandbox_id);
    std::fs::write(work.join("go"), "").unwrap();
    eventually("it has ended", || async {
        let left = children_of(&ends.sandbox_id);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    cluster.start_agent(0);
    cluster.start_agent(1);
    let failed = cluster.wait_phase(&ends.sandbox_id, v1::Phase::Failed).await;
    assert_eq!(failed.exit_code, Some(7), "{}", failed.reason);
    let stays = cluster.wait_phase(&stays.sandbox_id, v1::Phase::Running).await;
    assert_eq!(stays.generation, 1);
    assert!(pids.iter().all(|pid| alive(*pid)), "the same processes");
    assert_eq!(cluster.wait_identical().await.allocated.unwrap().slots, 1, "what has ended holds no slot");
    cluster.terminate_all().await;
    eventually("its processes are gone", || async {
        let left: Vec<_> = pids.iter().filter(|pid| alive(**pid)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_gone_for_good_keeps_its_allocation_until_it_is_removed() {
    let mut cluster = Cluster::start_with(impatient()).await;
    let client = cluster.client();
    let (sandbox, index) = running_web(&cluster).await;
    cluster.kill_agent(index);
    let lost = cluster.wait_phase(&sandbox.sandbox_id, v1::Phase::Lost).await;
    assert_eq!(lost.generation, 1);
    assert_eq!(cluster.wait_identical().await.allocated.unwrap().slots, 1, "the allocation is kept");

    let remove = |fenced| v1::RemoveAgentRequest {
        agent_id: sandbox.agent_id.clone(),
        fenced,
        ..v1::RemoveAgentRequest::default()
    };
    let refused = client.remove_agent(remove(false)).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::FailedPrecondition), "{refused}");
    let reset = v1::ResetSandboxRequest {
        r#ref: Some(by_id(&sandbox.sandbox_id)),
        ..v1::ResetSandboxRequest::default()
    };
    let refused = client.reset(reset.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::FailedPrecondition), "it may still run: {refused}");

    let removed = client.remove_agent(remove(true)).await.unwrap();
    assert_eq!(removed.released, 1);
    cluster.wait_phase(&sandbox.sandbox_id, v1::Phase::Failed).await;
    let view = cluster.wait_identical().await;
    assert_eq!((view.total.unwrap().slots, view.allocated.unwrap().slots), (4, 0));
    // Now it may have its next generation, elsewhere.
    client.reset(reset).await.unwrap();
    let again = cluster.wait_phase(&sandbox.sandbox_id, v1::Phase::Running).await;
    assert_eq!(again.generation, 2);
    assert_ne!(again.agent_id, sandbox.agent_id);

    // The operator was wrong: it comes back, and what it still runs of generation 1 is ended, not counted.
    let old: Vec<_> = children_of(&sandbox.sandbox_id);
    assert!(old.len() > 1, "both generations' processes, as the operator vouched wrongly: {old:?}");
    cluster.start_agent(index);
    eventually("generation 1 is ended", || async {
        let now = children_of(&sandbox.sandbox_id).len();
        if now < old.len() && now > 0 { Ok(()) } else { Err(format!("{now} processes")) }
    })
    .await;
    let view = cluster.wait_identical().await;
    assert_eq!((view.total.unwrap().slots, view.allocated.unwrap().slots), (8, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_lost_and_returns_has_its_sandboxes_running_again() {
    let mut cluster = Cluster::start_with(impatient()).await;
    let (sandbox, index) = running_web(&cluster).await;
    cluster.kill_agent(index);
    cluster.wait_phase(&sandbox.sandbox_id, v1::Phase::Lost).await;
    cluster.start_agent(index);
    let back = cluster.wait_phase(&sandbox.sandbox_id, v1::Phase::Running).await;
    assert_eq!(back.generation, 1, "it starts counting where it was, not at 0");
    assert_eq!(cluster.wait_identical().await.allocated.unwrap().slots, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_ledger_was_wiped_is_taken_back_when_the_operator_vouches() {
    let mut cluster = Cluster::start_with(impatient()).await;
    let client = cluster.client();
    let (sandbox, index) = running_web(&cluster).await;
    cluster.kill_agent(index);
    cluster.wait_phase(&sandbox.sandbox_id, v1::Phase::Lost).await;
    std::fs::rename(&cluster.agents[index].data_dir, cluster.folder().join("old")).unwrap();
    // What runs may still run, and this ledger knows nothing of it: it can vouch for no absence.
    cluster.start_agent(index);
    let mut process = cluster.agents[index].process.take().unwrap();
    let ended = tokio::task::spawn_blocking(move || process.wait()).await.unwrap();
    assert_eq!(ended, Some(1), "it was sent away, and says so");
    let log = std::fs::read_to_string(cluster.folder().join(format!("a{index}.log"))).unwrap();
    assert!(log.contains("--fenced"), "it says what to do: {log}");
    assert_eq!(cluster.wait_phase(&sandbox.sandbox_id, v1::Phase::Lost).await.generation, 1);

    let agent_id = sandbox.agent_id.clone();
    let remove = v1::RemoveAgentRequest { agent_id, fenced: true, ..v1::RemoveAgentRequest::default() };
    client.remove_agent(remove).await.unwrap();
    cluster.start_agent(index);
    cluster.wait_ready().await;
    cluster.wait_phase(&sandbox.sandbox_id, v1::Phase::Failed).await;
    assert_eq!(cluster.wait_identical().await.allocated.unwrap().slots, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_expires_even_when_no_control_node_is_there() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    let ttl = Expiry::Ttl(prost_types::Duration { seconds: 3, nanos: 0 });
    let request = v1::CreateSandboxRequest { expiry: Some(ttl), ..shell("short", "sleep 600") };
    let sandbox = client.create(request).await.unwrap().sandbox.unwrap();
    cluster.wait_phase(&sandbox.sandbox_id, v1::Phase::Running).await;
    assert!(sandbox.expire_time > sandbox.create_timestamp);
    for index in 0..3 {
        cluster.kill_node(index);
    }
    eventually("its agent has ended it", || async {
        let left = children_of(&sandbox.sandbox_id);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    for index in 0..3 {
        cluster.start_node(index);
    }
    cluster.wait_ready().await;
    let client = cluster.client();
    eventually("it is gone from the state", || async {
        match get(&client, &sandbox.sandbox_id).await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// More commands for one agent at once than its session holds: they flow on as there is room, and the node serves others
/// meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_that_wait_start_on_one_agent_when_it_can_have_them() {
    const COUNT: usize = 2_500;
    let agent_flags = vec!["--runtime".into(), "simulated".into()];
    let options = ClusterOptions { agents: 1, slots: 4_000, agent_flags, ..ClusterOptions::default() };
    let cluster = Cluster::start_with(options).await;
    let client = cluster.client();
    let cordon = v1::CordonAgentRequest { agent_id: "a0".into(), ..v1::CordonAgentRequest::default() };
    client.cordon_agent(cordon).await.unwrap();
    let creates = (0..COUNT).map(|index| {
        let request =
            v1::CreateSandboxRequest { wait_for_capacity: true, ..shell(&format!("s{index}"), "true") };
        let client = client.clone();
        async move { client.create(request).await }
    });
    let created: Vec<_> = stream::iter(creates).buffer_unordered(64).collect().await;
    assert!(created.iter().all(Result::is_ok));
    let uncordon = v1::UncordonAgentRequest { agent_id: "a0".into(), ..v1::UncordonAgentRequest::default() };
    client.uncordon_agent(uncordon).await.unwrap();
    eventually("all of them run", || async {
        let phases = vec![v1::Phase::Running.into()];
        let request = v1::ListSandboxesRequest { phases, ..v1::ListSandboxesRequest::default() };
        let running = client.list_all(request).await.map_err(|error| error.to_string())?.sandboxes.len();
        if running == COUNT { Ok(()) } else { Err(format!("{running} of {COUNT}")) }
    })
    .await;
    assert_eq!(cluster.wait_identical().await.allocated.unwrap().slots, COUNT as u64);
}

/// Says hello for an agent of this name, and so many heartbeats, and hears nothing of what it is told.
async fn says_hello(cluster: &Cluster, node: usize, agent_id: &str, heartbeats: u64) -> impl Sized + use<> {
    let hello = v1::Hello {
        agent_id: agent_id.into(),
        incarnation: Some(v1::Incarnation { ledger_id: uuid::Uuid::new_v4().to_string(), start: 1 }),
        capacity: Some(v1::Capacity { slots: 1, cpu_millis: 1_000, memory_bytes: 1 << 30 }),
        runtime: "simulated".into(),
        host: "127.0.0.1".into(),
        session: 1,
        ..v1::Hello::default()
    };
    let heartbeat = |number| Up::Heartbeat(v1::Heartbeat { number, ..v1::Heartbeat::default() });
    let messages: Vec<_> = std::iter::once(Up::Hello(hello)).chain((1..=heartbeats).map(heartbeat)).collect();
    let messages = messages.into_iter().map(|body| v1::AgentMessage { body: Some(body) });
    let messages = stream::iter(messages).chain(stream::pending());
    cluster.raw(node).agents().connect(messages).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_hello_and_hears_no_answer_is_not_registered() {
    let cluster = Cluster::start().await;
    let leader = cluster.wait_leader().await;
    let _deaf = says_hello(&cluster, leader, "deaf", 0).await;
    let _hears = says_hello(&cluster, leader, "hears", 1).await;
    let agents = eventually("the one whose heart beats is registered", || async {
        let agents = cluster.client().list_agents(v1::ReadOptions::default()).await;
        let agents = agents.map_err(|error| error.to_string())?.agents;
        let agents: Vec<_> = agents.into_iter().map(|agent| agent.agent_id).collect();
        if agents.iter().any(|agent| agent == "hears") { Ok(agents) } else { Err(format!("{agents:?}")) }
    })
    .await;
    assert!(!agents.iter().any(|agent| agent == "deaf"), "it came first: {agents:?}");
}
