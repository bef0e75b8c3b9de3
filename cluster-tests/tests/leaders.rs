//! Leaders that die, stop, and come back.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cluster_tests::{Cluster, ClusterOptions, by_id, by_name, children_of, eventually, get, scrape, shell};
use futures::future::join_all;
use sandkeeper_client::v1::create_sandbox_request::Expiry;
use sandkeeper_client::{Client, ClientError, v1};

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_with_creates_in_flight_loses_and_doubles_nothing() {
    let options = ClusterOptions { slots: 64, agent_flags: simulated(), ..ClusterOptions::default() };
    let mut cluster = Cluster::start_with(options).await;
    for round in 0..3 {
        let leader = cluster.wait_leader().await;
        let clients: Vec<_> =
            (0..32).map(|index| cluster.client_of(&[index % 3, (index + 1) % 3, (index + 2) % 3])).collect();
        let creates = clients.into_iter().enumerate().map(|(index, client)| async move {
            client.create(shell(&format!("r{round}-{index}"), "sleep 600")).await
        });
        let creates = tokio::spawn(join_all(creates));
        cluster.kill_node(leader);
        let answers = creates.await.unwrap();
        let mut ids: Vec<_> =
            answers.into_iter().map(|answer| answer.unwrap().sandbox.unwrap().sandbox_id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 32, "each create made one sandbox");
        let client = cluster.client_of(&cluster.running());
        for id in &ids {
            assert!(get(&client, id).await.unwrap().is_some(), "{id} was acknowledged");
        }
        cluster.start_node(leader);
        cluster.wait_ready().await;
        let view = cluster.wait_identical().await;
        assert_eq!(view.sandboxes, 32 * (round + 1), "nothing was made twice");
    }
    cluster.assert_nobody_diverged();
}

fn simulated() -> Vec<String> {
    vec!["--runtime".into(), "simulated".into()]
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_killed_at_once_come_back_with_everything() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    let mut ids = Vec::new();
    for index in 0..5 {
        ids.push(
            client
                .create(shell(&format!("s{index}"), "sleep 600"))
                .await
                .unwrap()
                .sandbox
                .unwrap()
                .sandbox_id,
        );
    }
    for id in &ids {
        cluster.wait_phase(id, v1::Phase::Running).await;
    }
    let before = cluster.wait_identical().await;
    for index in 0..3 {
        cluster.kill_node(index);
    }
    for id in &ids {
        assert!(!children_of(id).is_empty(), "sandboxes run on without any control node");
    }
    for index in 0..3 {
        cluster.start_node(index);
    }
    cluster.wait_ready().await;
    let after = cluster.wait_identical().await;
    assert!(after.revision >= before.revision);
    for id in &ids {
        assert_eq!(cluster.wait_phase(id, v1::Phase::Running).await.generation, 1);
    }
    assert_eq!(after.allocated.unwrap().slots, 5);
    cluster.assert_nobody_diverged();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_away_for_longer_than_the_log_comes_back_by_snapshot() {
    let flags = ["--history-retain-entries", "64", "--snapshot-log-bytes", "32KiB"];
    let options = ClusterOptions {
        slots: 512,
        agent_flags: simulated(),
        server_flags: flags.map(str::to_owned).to_vec(),
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::start_with(options).await;
    let follower = cluster.follower().await;
    cluster.kill_node(follower);
    let applied = cluster.client_of(&cluster.running()).status().await.unwrap().applied_index;
    let client = cluster.client_of(&cluster.running());
    client.create(shell("stays", "sleep 600")).await.unwrap();
    let mut count = 0;
    // Until the log that the follower would need is gone from everyone who runs.
    eventually("the log is purged beyond the follower's end", || {
        count += 1;
        let (client, cluster) = (client.clone(), &cluster);
        async move {
            let lives = (0..16).map(|index| live_and_die(&client, format!("s{count}-{index}")));
            join_all(lives)
                .await
                .into_iter()
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| error.to_string())?;
            for index in cluster.running() {
                let status = cluster.client_of(&[index]).status().await.map_err(|error| error.to_string())?;
                if status.purged_index <= applied + 100 {
                    return Err(format!(
                        "n{index} has purged up to {}, wanted {}",
                        status.purged_index,
                        applied + 100
                    ));
                }
            }
            Ok(())
        }
    })
    .await;
    cluster.start_node(follower);
    cluster.wait_ready().await;
    eventually("only one sandbox is left", || async {
        let view = client.capacity(v1::ReadOptions::default()).await.map_err(|error| error.to_string())?;
        if view.sandboxes == 1 { Ok(()) } else { Err(format!("{} are there", view.sandboxes)) }
    })
    .await;
    assert_eq!(cluster.wait_identical().await.sandboxes, 1);
    let status = cluster.client_of(&[follower]).status().await.unwrap();
    assert!(status.snapshot_index > applied, "it came by snapshot: {status:?}");
    cluster.assert_nobody_diverged();
}

async fn live_and_die(client: &Client, name: String) -> Result<(), ClientError> {
    let created = client.create(shell(&name, "sleep 600")).await?;
    let target = created.sandbox.map(|sandbox| by_id(&sandbox.sandbox_id));
    client
        .terminate(v1::TerminateSandboxRequest { r#ref: target, ..v1::TerminateSandboxRequest::default() })
        .await?;
    Ok(())
}

/// A leader that is paused is replaced; when it wakes up, it believes for a moment that it still leads. It starts
/// nothing: agents refuse its term, and its entries find no quorum.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_paused_and_replaced_starts_nothing() {
    let cluster = Cluster::start().await;
    for round in 0..3 {
        let old = cluster.wait_leader().await;
        let others: Vec<_> = cluster.running().into_iter().filter(|index| *index != old).collect();
        let paused = cluster.client_of(&[old]).with_deadline(Duration::from_secs(60));
        let survivors = cluster.client_of(&others);
        let kept =
            survivors.create(shell(&format!("kept-{round}"), "sleep 600")).await.unwrap().sandbox.unwrap();
        cluster.wait_phase(&kept.sandbox_id, v1::Phase::Running).await;
        cluster.pause_node(old);
        // These wait in the old leader's sockets until it wakes up.
        let late: Vec<_> = (0..4)
            .map(|index| {
                let client = paused.clone();
                tokio::spawn(async move {
                    client.create(shell(&format!("late-{round}-{index}"), "sleep 600")).await
                })
            })
            .collect();
        cluster.wait_leader_among(&others).await;
        let terminate = v1::TerminateSandboxRequest {
            r#ref: Some(by_id(&kept.sandbox_id)),
            ..v1::TerminateSandboxRequest::default()
        };
        survivors.terminate(terminate).await.unwrap();
        eventually("it is gone", || async {
            match get(&survivors, &kept.sandbox_id).await {
                Ok(None) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        cluster.resume_node(old);
        for create in late {
            // Decided by the new leader, to whom the woken node forwards it; once each.
            let sandbox = create.await.unwrap().unwrap().sandbox.unwrap();
            cluster.wait_phase(&sandbox.sandbox_id, v1::Phase::Running).await;
        }
        assert!(children_of(&kept.sandbox_id).is_empty(), "what was terminated was not started again");
        cluster.wait_leader().await;
        let view = cluster.wait_identical().await;
        assert_eq!(view.allocated.unwrap().slots, 4);
        cluster.terminate_all().await;
    }
    cluster.assert_nobody_diverged();
}

/// A leader that was paused for longer than the lost-after time wakes up and believes for a moment that it leads, and that
/// all agents are silent. That is its own affair: no agent is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_slept_for_long_makes_no_agent_lost() {
    let flags = ["--lost-after", "2s"].map(str::to_owned).to_vec();
    let cluster =
        Cluster::start_with(ClusterOptions { server_flags: flags, ..ClusterOptions::default() }).await;
    for _ in 0..3 {
        let old = cluster.wait_leader().await;
        let others: Vec<_> = cluster.running().into_iter().filter(|index| *index != old).collect();
        cluster.pause_node(old);
        let asleep = Instant::now();
        cluster.wait_leader_among(&others).await;
        eventually("it has slept for twice the lost-after time", || async {
            if asleep.elapsed() > Duration::from_secs(4) { Ok(()) } else { Err("not yet".into()) }
        })
        .await;
        cluster.resume_node(old);
        cluster.wait_ready().await;
    }
    let filter =
        v1::EventFilter { types: vec![v1::EventType::AgentLost.into()], ..v1::EventFilter::default() };
    for index in 0..2 {
        let filter = v1::EventFilter { agent_id: format!("a{index}"), ..filter.clone() };
        let request = v1::ListEventsRequest { filter: Some(filter), ..v1::ListEventsRequest::default() };
        let lost = cluster.client().events(request).await.unwrap().events;
        assert!(lost.is_empty(), "{lost:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_asked_to_stop_hands_over_and_ends_well() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.wait_leader().await;
    let mut process = cluster.nodes[leader].process.take().unwrap();
    let stopped = tokio::task::spawn_blocking(move || process.terminate());
    let client = cluster.client_of(&cluster.running());
    client.create(shell("next", "sleep 600")).await.unwrap();
    assert_eq!(stopped.await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fourth_node_joins_as_learner_then_voter_and_leaves_again() {
    let mut cluster = Cluster::start().await;
    cluster.client().create(shell("web", "sleep 600")).await.unwrap();
    cluster.add_node().await;
    let client = cluster.client_of(&[0]);
    eventually("the new node is a voter", || async {
        let members =
            client.list_members(v1::ReadOptions::default()).await.map_err(|error| error.to_string())?.members;
        let voter = |member: &v1::Member| member.name == "n3" && member.role() == v1::MemberRole::Voter;
        if members.iter().any(voter) { Ok(()) } else { Err(format!("{members:?}")) }
    })
    .await;
    let view = cluster.wait_identical().await;
    assert_eq!(view.sandboxes, 1);
    // The agents were not told of it at their start.
    cluster.wait_ready().await;
    client.transfer_leadership("n3").await.unwrap();
    let newest = cluster.client_of(&[3]);
    newest.create(shell("by-the-new-one", "sleep 600")).await.unwrap();
    cluster
        .wait_phase(
            &newest
                .get(by_name("by-the-new-one"), v1::ReadOptions::default())
                .await
                .unwrap()
                .sandbox
                .unwrap()
                .sandbox_id,
            v1::Phase::Running,
        )
        .await;
    client.remove_member("n3").await.unwrap();
    cluster.kill_node(3);
    assert_eq!(client.list_members(v1::ReadOptions::default()).await.unwrap().members.len(), 3);
    cluster.assert_nobody_diverged();
}

/// A new leader learns from the agents' inventories what they were told; a burst of commands for each sandbox that runs
/// would starve it just when it has to hold its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_tells_agents_only_what_they_do_not_know() {
    const COUNT: usize = 300;
    let options = ClusterOptions { slots: 256, agent_flags: simulated(), ..ClusterOptions::default() };
    let mut cluster = Cluster::start_with(options).await;
    let client = cluster.client();
    let creates = (0..COUNT).map(|index| client.create(shell(&format!("s{index}"), "true")));
    join_all(creates).await.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    let ttl = Expiry::Ttl(prost_types::Duration { seconds: 3600, nanos: 0 });
    client.create(v1::CreateSandboxRequest { expiry: Some(ttl), ..shell("ends", "true") }).await.unwrap();
    let running = |client: Client| async move {
        let phases = vec![v1::Phase::Running.into()];
        let request = v1::ListSandboxesRequest { phases, ..v1::ListSandboxesRequest::default() };
        let running = client.list_all(request).await.map_err(|error| error.to_string())?.sandboxes.len();
        if running == COUNT + 1 { Ok(()) } else { Err(format!("{running} run")) }
    };
    eventually("all run", || running(client.clone())).await;
    let leader = cluster.wait_leader().await;
    cluster.kill_node(leader);
    let leader = cluster.wait_leader().await;
    // An agent is given something new only after its inventory has been looked at.
    let mut agents = BTreeSet::new();
    for index in 0..8 {
        let late = client.create(shell(&format!("late-{index}"), "true")).await.unwrap().sandbox.unwrap();
        agents.insert(cluster.wait_phase(&late.sandbox_id, v1::Phase::Running).await.agent_id);
    }
    assert_eq!(agents.len(), 2, "both agents have got some: {agents:?}");
    // Not before the new leader's clock is agreed with another node's, which may come after all of this.
    let told = eventually("the one that has an end is told how much of its time is left", || async {
        let metrics = scrape(&cluster.nodes[leader].http).await?;
        let told = metrics.get("sandkeeper_applier_calls_total{call=\"update\"}");
        told.copied().ok_or_else(|| "nobody was told anything".to_owned())
    })
    .await;
    assert_eq!(told as u64, 1, "nothing else is told once more");
}
