//! AUTO_RECREATE: what is down runs elsewhere, and never twice at once. The sandboxes themselves write down when they
//! lived, by the kernel's clock since boot, and that is what counts.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use cluster_tests::{AgentProcess, Cluster, ClusterOptions, Cut, by_id, eventually, scrape, shell};
use nix::sys::signal::Signal;
use sandkeeper_client::v1;

/// Writes the time since boot into `lived` in its working directory, fifty times a second, and ignores SIGTERM.
const DIARY: &str = "trap '' TERM; while read up idle < /proc/uptime; do echo $up >> lived; sleep 0.02; done";

async fn impatient() -> Cluster {
    impatient_with(ClusterOptions::default()).await
}

/// Agents are lost after two seconds.
async fn impatient_with(options: ClusterOptions) -> Cluster {
    let server_flags = vec!["--lost-after".into(), "2s".into()];
    Cluster::start_with(ClusterOptions { server_flags, ..options }).await
}

/// A sandbox that keeps a diary, and runs.
async fn diarist(cluster: &Cluster) -> v1::Sandbox {
    diarist_called(cluster, "web", v1::FailurePolicy::AutoRecreate).await
}

async fn diarist_called(cluster: &Cluster, name: &str, policy: v1::FailurePolicy) -> v1::Sandbox {
    let request = v1::CreateSandboxRequest {
        failure_policy: policy.into(),
        recovery_timeout_seconds: 5,
        ..shell(name, DIARY)
    };
    let created = cluster.client().create(request).await.unwrap().sandbox.unwrap();
    let sandbox = cluster.wait_phase(&created.sandbox_id, v1::Phase::Running).await;
    let diary = diary(cluster, &sandbox);
    eventually("it keeps its diary", || async {
        if diary.exists() { Ok(()) } else { Err(diary.display().to_string()) }
    })
    .await;
    sandbox
}

fn agent_index(sandbox: &v1::Sandbox) -> usize {
    sandbox.agent_id.trim_start_matches('a').parse().unwrap()
}

fn diary(cluster: &Cluster, sandbox: &v1::Sandbox) -> std::path::PathBuf {
    cluster.agents[agent_index(sandbox)].data_dir.join("work").join(&sandbox.sandbox_id).join("lived")
}

/// The first and the last time in a diary, hundredths of a second since boot; the greatest number if it is empty.
fn lived(diary: &std::path::Path) -> (u64, u64) {
    let text = std::fs::read_to_string(diary).unwrap_or_default();
    let mut times = text.lines().filter_map(|line| line.replace('.', "").parse::<u64>().ok());
    let first = times.next().unwrap_or(u64::MAX);
    (first, times.next_back().unwrap_or(first))
}

/// Waits until a later generation runs on another agent, and asserts that the first was dead by then.
async fn runs_elsewhere(cluster: &Cluster, first: &v1::Sandbox) -> v1::Sandbox {
    let client = cluster.client();
    let second = eventually("it runs on another agent", || async {
        let sandbox =
            cluster_tests::get(&client, &first.sandbox_id).await.map_err(|error| error.to_string())?;
        let sandbox = sandbox.ok_or("it is gone")?;
        let runs = sandbox.generation > first.generation
            && sandbox.agent_id != first.agent_id
            && sandbox.phase() == v1::Phase::Running;
        if runs { Ok(sandbox) } else { Err(format!("{} {}", sandbox.phase().as_str_name(), sandbox.reason)) }
    })
    .await;
    let (old, new) = (diary(cluster, first), diary(cluster, &second));
    eventually("the second one keeps its diary", || async {
        if new.exists() { Ok(()) } else { Err(new.display().to_string()) }
    })
    .await;
    let ((_, last), (begin, _)) = (lived(&old), lived(&new));
    let generation = second.generation;
    assert!(last < begin, "generation 1 lived until {last}, and generation {generation} from {begin}");
    second
}

/// Has only this agent take new sandboxes, or all.
async fn only(cluster: &Cluster, agent: Option<&str>) {
    for AgentProcess { name, .. } in &cluster.agents {
        let agent_id = name.clone();
        if agent.is_none_or(|agent| agent == name) {
            let request = v1::UncordonAgentRequest { agent_id, ..v1::UncordonAgentRequest::default() };
            cluster.client().uncordon_agent(request).await.unwrap();
        } else {
            let request = v1::CordonAgentRequest { agent_id, ..v1::CordonAgentRequest::default() };
            cluster.client().cordon_agent(request).await.unwrap();
        }
    }
}

/// The record of a sandbox that is there.
async fn now(cluster: &Cluster, sandbox: &v1::Sandbox) -> v1::Sandbox {
    cluster_tests::get(&cluster.client(), &sandbox.sandbox_id).await.unwrap().unwrap()
}

/// What its history says, one line an event.
async fn told(cluster: &Cluster, sandbox: &v1::Sandbox) -> String {
    let filter = v1::EventFilter { sandbox_id: sandbox.sandbox_id.clone(), ..v1::EventFilter::default() };
    let request = v1::ListEventsRequest { filter: Some(filter), ..v1::ListEventsRequest::default() };
    let events = cluster.client().events(request).await.unwrap().events;
    let line =
        |event: &v1::Event| format!("{} {} {}\n", event.r#type().as_str_name(), event.agent_id, event.reason);
    events.iter().map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outlives_a_dead_agent_is_dead_before_it_runs_elsewhere() {
    let mut cluster = impatient().await;
    let first = diarist(&cluster).await;
    // The machine is there, and so are the sandbox and its shim.
    cluster.kill_agent(agent_index(&first));
    let second = runs_elsewhere(&cluster, &first).await;
    assert_ne!(second.agent_id, first.agent_id);
    let history = told(&cluster, &first).await;
    assert!(history.contains("is lost, and the lease of 5 s is over"), "{history}");
    assert_eq!(cluster.wait_identical().await.allocated.unwrap().slots, 1);

    // The agent comes back: it has nothing to say about what runs now.
    cluster.start_agent(agent_index(&first));
    cluster.wait_ready().await;
    let now = cluster.wait_phase(&first.sandbox_id, v1::Phase::Running).await;
    assert_eq!((now.generation, now.agent_id), (2, second.agent_id));
    let record = cluster.agents[agent_index(&first)].data_dir.join("sandboxes").join(&first.sandbox_id);
    eventually("what is left of the first is cleared away", || async {
        if record.exists() { Err(record.display().to_string()) } else { Ok(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_stopped_and_woken_has_nothing_left_that_runs() {
    let cluster = impatient().await;
    let first = diarist(&cluster).await;
    let agent = cluster.agents[agent_index(&first)].process.as_ref().unwrap();
    agent.signal(Signal::SIGSTOP);
    let second = runs_elsewhere(&cluster, &first).await;
    let end = lived(&diary(&cluster, &first)).1;
    agent.signal(Signal::SIGCONT);
    cluster.wait_ready().await;
    let now = cluster.wait_phase(&first.sandbox_id, v1::Phase::Running).await;
    assert_eq!((now.generation, &now.agent_id), (2, &second.agent_id));
    // Its record is cleared away; until then nothing is added to it.
    let later = lived(&diary(&cluster, &first));
    assert!(later.0 == u64::MAX || later.1 == end, "it did not wake with its agent: {end}, {later:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_quorum_keeps_nothing_alive() {
    let cluster = impatient().await;
    let first = diarist(&cluster).await;
    let leader = cluster.wait_leader().await;
    let others: Vec<_> = (0..3).filter(|index| *index != leader).collect();
    // It hears every heartbeat; another leader might by now hear none.
    for index in &others {
        cluster.pause_node(*index);
    }
    let old = diary(&cluster, &first);
    let end = eventually("it is ended by its shim", || async {
        let before = lived(&old).1;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let after = lived(&old).1;
        if before == after { Ok(after) } else { Err(format!("it lives, at {after}")) }
    })
    .await;
    for index in &others {
        cluster.resume_node(*index);
    }
    let client = cluster.client();
    let second = eventually("it runs again", || async {
        let sandbox =
            cluster_tests::get(&client, &first.sandbox_id).await.map_err(|error| error.to_string())?;
        let sandbox = sandbox.ok_or("it is gone")?;
        let runs = sandbox.generation > 1 && sandbox.phase() == v1::Phase::Running;
        if runs { Ok(sandbox) } else { Err(format!("{} {}", sandbox.phase().as_str_name(), sandbox.reason)) }
    })
    .await;
    if second.agent_id != first.agent_id {
        let (begin, _) = lived(&diary(&cluster, &second));
        assert!(
            end < begin,
            "generation 1 lived until {end}, and generation {} from {begin}",
            second.generation
        );
    }
    let history = told(&cluster, &first).await;
    assert!(history.contains("lease"), "{history}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_on_an_agent_that_is_cut_off_is_dead_before_it_runs_elsewhere() {
    for cut in [Cut::Both, Cut::FromAgent, Cut::ToAgent] {
        let options = ClusterOptions { agents: 3, proxies: true, ..ClusterOptions::default() };
        let cluster = impatient_with(options).await;
        let first = diarist(&cluster).await;
        cluster.cut(agent_index(&first), cut);
        let second = runs_elsewhere(&cluster, &first).await;
        assert_ne!(second.agent_id, first.agent_id, "{cut:?}");
        cluster.cut(agent_index(&first), Cut::Nothing);
        cluster.wait_ready().await;
        let now = cluster.wait_phase(&first.sandbox_id, v1::Phase::Running).await;
        assert_eq!((now.generation, now.agent_id), (second.generation, second.agent_id), "{cut:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_auto_recreate_while_its_agent_is_away_is_recovered_once_the_agent_has_confirmed_it() {
    let options = ClusterOptions { agents: 3, proxies: true, ..ClusterOptions::default() };
    let cluster = impatient_with(options).await;
    only(&cluster, Some("a0")).await;
    let witness = diarist_called(&cluster, "witness", v1::FailurePolicy::AutoRecreate).await;
    let manual = diarist_called(&cluster, "manual", v1::FailurePolicy::Manual).await;
    only(&cluster, None).await;
    cluster.cut(0, Cut::Both);
    cluster.wait_phase(&manual.sandbox_id, v1::Phase::Lost).await;
    let update = v1::UpdateSandboxRequest {
        r#ref: Some(by_id(&manual.sandbox_id)),
        update_mask: Some(prost_types::FieldMask { paths: vec!["failure_policy".into()] }),
        failure_policy: v1::FailurePolicy::AutoRecreate.into(),
        ..v1::UpdateSandboxRequest::default()
    };
    cluster.client().update(update).await.unwrap();
    // Of the same agent, and with the same timeout: by the time that one of them runs elsewhere the other would.
    runs_elsewhere(&cluster, &witness).await;
    let still = now(&cluster, &manual).await;
    assert_eq!((still.phase(), still.generation), (v1::Phase::Lost, 1), "nobody has told its shim");

    cluster.cut(0, Cut::Nothing);
    eventually("the agent confirms the lease", || async {
        let history = told(&cluster, &manual).await;
        if history.contains("LEASE_CONFIRMED") { Ok(()) } else { Err(history) }
    })
    .await;
    let back = now(&cluster, &manual).await;
    assert_eq!(
        (back.phase(), back.generation),
        (v1::Phase::Running, 1),
        "its agent's silence did not end it"
    );
    cluster.cut(0, Cut::Both);
    runs_elsewhere(&cluster, &manual).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_together_waits_until_an_operator_resumes_it() {
    let mut cluster = impatient_with(ClusterOptions { agents: 5, ..ClusterOptions::default() }).await;
    let mut sandboxes = Vec::new();
    for number in 0..5 {
        let policy = v1::FailurePolicy::AutoRecreate;
        sandboxes.push(diarist_called(&cluster, &format!("s{number}"), policy).await);
    }
    sandboxes.sort_by_key(agent_index);
    assert!((0..5).eq(sandboxes.iter().map(agent_index)), "one on each: {sandboxes:#?}");
    for agent in 0..3 {
        cluster.kill_agent(agent);
    }
    for sandbox in &sandboxes[..3] {
        cluster.wait_phase(&sandbox.sandbox_id, v1::Phase::Lost).await;
    }
    let leader = cluster.wait_leader().await;
    eventually("recovery is paused", || async {
        let metrics = scrape(&cluster.nodes[leader].http).await?;
        let paused = metrics["sandkeeper_recovery_paused"];
        if (paused - 3.0).abs() < 0.1 { Ok(()) } else { Err(paused.to_string()) }
    })
    .await;
    let listed = cluster.client().list_agents(v1::ReadOptions::default()).await.unwrap().agents;
    let paused: Vec<_> = listed.iter().map(|agent| (agent.recovery_paused, agent.lost_since > 0)).collect();
    assert_eq!(paused, [(true, true), (true, true), (true, true), (false, false), (false, false)]);
    assert!(cluster.log_of(leader).contains("sandkeeper agents recover --all"), "the log says what to do");

    let request = v1::RecoverAgentRequest { agent_id: "a1".into(), ..v1::RecoverAgentRequest::default() };
    let resumed = cluster.client().recover_agent(request).await.unwrap().agent.unwrap();
    assert!(!resumed.recovery_paused);
    // Whoever leads next knows it.
    cluster.kill_node(leader);
    runs_elsewhere(&cluster, &sandboxes[1]).await;
    for index in [0, 2] {
        let still = now(&cluster, &sandboxes[index]).await;
        assert_eq!((still.phase(), still.generation), (v1::Phase::Lost, 1), "of a{index} nobody has said so");
    }
    // Two of five are gone now, which is no reason to wait.
    cluster.start_agent(1);
    cluster.start_agent(2);
    runs_elsewhere(&cluster, &sandboxes[0]).await;
}
