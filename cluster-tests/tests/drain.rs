//! Agents that are drained, by the real command line.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use cluster_tests::{Cluster, Ended, alive, by_id, children_of, eventually, get, run_to_end, shell};
use sandkeeper_client::v1;

/// `sandkeeper` with the addresses of all nodes.
async fn sandkeeper(cluster: &Cluster, words: &str) -> Ended {
    let servers: Vec<_> = cluster.nodes.iter().map(|node| node.api.clone()).collect();
    let servers = ["--servers".to_owned(), servers.join(",")];
    run_to_end(words.split_whitespace().map(str::to_owned).chain(servers)).await
}

async fn create(cluster: &Cluster, name: &str, policy: v1::FailurePolicy, script: &str) -> v1::Sandbox {
    let request = v1::CreateSandboxRequest { failure_policy: policy.into(), ..shell(name, script) };
    let created = cluster.client().create(request).await.unwrap().sandbox.unwrap();
    cluster.wait_phase(&created.sandbox_id, v1::Phase::Running).await
}

async fn agent(cluster: &Cluster, id: &str) -> v1::Agent {
    let found = cluster.client().get_agent(id, v1::ReadOptions::default()).await.unwrap();
    found.agent.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_move_moves_and_the_rest_is_waited_for_and_ended_at_the_deadline() {
    let cluster = Cluster::start().await;
    // All on one agent.
    let cordon = |agent_id: &str| v1::CordonAgentRequest { agent_id: agent_id.into(), ..Default::default() };
    cluster.client().cordon_agent(cordon("a1")).await.unwrap();
    let moves = create(&cluster, "moves", v1::FailurePolicy::AutoRecreate, "sleep 600").await;
    let stays = create(&cluster, "stays", v1::FailurePolicy::Manual, "sleep 600").await;
    assert_eq!((moves.agent_id.as_str(), stays.agent_id.as_str()), ("a0", "a0"));
    let old: Vec<_> = children_of(&moves.sandbox_id).into_iter().map(|(pid, _)| pid).collect();
    assert!(!old.is_empty());

    // Nobody has room yet: it is said what is left, and it runs on.
    let waited = sandkeeper(&cluster, "agents drain a0 --deadline 2s --reason new-disk").await;
    waited.failed_saying(&[
        "a0: 2 sandboxes are left",
        "default/moves (RUNNING, waits for room elsewhere)",
        "default/stays (RUNNING)",
        "error: 2 sandboxes are left on a0 at the deadline",
    ]);
    assert!(waited.stdout.contains("READY,DRAINING"), "{waited:#?}");
    assert_eq!(get(&cluster.client(), &moves.sandbox_id).await.unwrap().unwrap().generation, 1);

    // A drain is in the replicated state: a new leader goes on with it as soon as there is room.
    let mut cluster = cluster;
    let leader = cluster.wait_leader().await;
    cluster.kill_node(leader);
    cluster.wait_leader().await;
    let uncordoned = sandkeeper(&cluster, "agents uncordon a1").await;
    assert_eq!(uncordoned.code, Some(0), "{uncordoned:#?}");
    let moved = eventually("it has moved", || async {
        let now = get(&cluster.client(), &moves.sandbox_id).await.unwrap().unwrap();
        let there = now.agent_id == "a1" && now.generation == 2 && now.phase() == v1::Phase::Running;
        // The old one is gone before the new one runs.
        let left: Vec<_> = old.iter().filter(|pid| alive(**pid)).collect();
        assert!(now.phase() != v1::Phase::Running || now.generation == 1 || left.is_empty(), "{left:?} live");
        if there { Ok(now) } else { Err(format!("{} {}", now.agent_id, now.phase().as_str_name())) }
    })
    .await;
    assert_eq!(get(&cluster.client(), &stays.sandbox_id).await.unwrap().unwrap().phase(), v1::Phase::Running);

    // Now the rest is ended, and it is waited for until it is gone.
    let ended = sandkeeper(&cluster, "agents drain a0 --deadline 1s --terminate").await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.stdout.contains("READY,DRAINED"), "{ended:#?}");
    assert!(ended.stderr.contains("default/stays (RUNNING)"), "{ended:#?}");
    assert_eq!(get(&cluster.client(), &stays.sandbox_id).await.unwrap(), None, "it is gone");
    let drained = agent(&cluster, "a0").await;
    assert!(drained.drain.is_some_and(|drain| drain.terminate) && drained.cordoned);
    assert_eq!(drained.allocated.unwrap().slots, 0);
    assert_eq!(get(&cluster.client(), &moved.sandbox_id).await.unwrap().unwrap().generation, 2, "it stays");

    // It gets nothing new until it is said so.
    let other = create(&cluster, "other", v1::FailurePolicy::Manual, "sleep 600").await;
    assert_eq!(other.agent_id, "a1");
    let back = sandkeeper(&cluster, "agents uncordon a0").await;
    assert!(back.stdout.contains("READY ") && !back.stdout.contains("DRAIN"), "{back:#?}");
    let next = create(&cluster, "next", v1::FailurePolicy::Manual, "sleep 600").await;
    assert_eq!(next.agent_id, "a0", "it is the least loaded");

    let told = sandkeeper(&cluster, "history --agent a0").await;
    for part in ["agent draining", "new-disk", "agent uncordoned", "agent a0 is drained"] {
        assert!(told.stdout.contains(part), "{part:?} is missing in {told:#?}");
    }
    cluster.terminate_all().await;
    cluster.wait_identical().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_by_itself_is_waited_for_and_a_drain_can_be_taken_back() {
    let cluster = Cluster::start().await;
    let job =
        create(&cluster, "job", v1::FailurePolicy::Manual, "while ! test -e go; do sleep 0.05; done").await;
    let index: usize = job.agent_id.trim_start_matches('a').parse().unwrap();
    let drain = format!("agents drain {} --deadline 60s", job.agent_id);
    let work = cluster.agents[index].data_dir.join("work").join(&job.sandbox_id);
    let (waited, ()) = tokio::join!(sandkeeper(&cluster, &drain), async {
        eventually("it is drained", || async {
            let now = agent(&cluster, &job.agent_id).await;
            now.drain.map(|_| ()).ok_or_else(|| "not yet".to_owned())
        })
        .await;
        std::fs::write(work.join("go"), "").unwrap();
    });
    assert_eq!(waited.code, Some(0), "{waited:#?}");
    let failed = get(&cluster.client(), &job.sandbox_id).await.unwrap().unwrap();
    assert_eq!((failed.phase(), failed.exit_code), (v1::Phase::Failed, Some(0)), "it has ended by itself");

    // Taken back, somebody who waits is told.
    let refused = sandkeeper(&cluster, "agents drain nobody").await;
    refused.failed_saying(&["there is no agent nobody", "agents list"]);
    let other = if index == 0 { "a1" } else { "a0" };
    sandkeeper(&cluster, &format!("agents uncordon {}", job.agent_id)).await;
    sandkeeper(&cluster, &format!("agents cordon {other}")).await;
    let stays = create(&cluster, "stays", v1::FailurePolicy::Manual, "sleep 600").await;
    let (waited, _) = tokio::join!(sandkeeper(&cluster, &drain), async {
        eventually("it is drained", || async {
            let now = agent(&cluster, &job.agent_id).await;
            now.drain.map(|_| ()).ok_or_else(|| "not yet".to_owned())
        })
        .await;
        sandkeeper(&cluster, &format!("agents uncordon {}", job.agent_id)).await
    });
    waited.failed_saying(&["somebody has ended the drain"]);
    let now = cluster.client().get(by_id(&stays.sandbox_id), v1::ReadOptions::default()).await.unwrap();
    assert_eq!(now.sandbox.unwrap().phase(), v1::Phase::Running);
    cluster.terminate_all().await;
}
