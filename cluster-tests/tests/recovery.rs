//! AUTO_RECREATE: what is down runs elsewhere, and never twice at once. The sandboxes themselves write down when they
//! lived, by the kernel's clock since boot, and that is what counts.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use cluster_tests::{Cluster, ClusterOptions, eventually, shell};
use nix::sys::signal::Signal;
use sandkeeper_client::v1;

/// Writes the time since boot into `lived` in its working directory, fifty times a second, and ignores SIGTERM.
const DIARY: &str = "trap '' TERM; while read up idle < /proc/uptime; do echo $up >> lived; sleep 0.02; done";

async fn impatient() -> Cluster {
    let server_flags = vec!["--lost-after".into(), "2s".into()];
    Cluster::start_with(ClusterOptions { server_flags, ..ClusterOptions::default() }).await
}

/// A sandbox that keeps a diary, and runs.
async fn diarist(cluster: &Cluster) -> v1::Sandbox {
    let request = v1::CreateSandboxRequest {
        failure_policy: v1::FailurePolicy::AutoRecreate.into(),
        recovery_timeout_seconds: 5,
        ..shell("web", DIARY)
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

/// Waits until the second generation runs on another agent, and asserts that the first was dead by then.
async fn runs_elsewhere(cluster: &Cluster, first: &v1::Sandbox) -> v1::Sandbox {
    let client = cluster.client();
    let second = eventually("generation 2 runs", || async {
        let sandbox =
            cluster_tests::get(&client, &first.sandbox_id).await.map_err(|error| error.to_string())?;
        let sandbox = sandbox.ok_or("it is gone")?;
        let runs = sandbox.generation == 2 && sandbox.phase() == v1::Phase::Running;
        if runs { Ok(sandbox) } else { Err(format!("{} {}", sandbox.phase().as_str_name(), sandbox.reason)) }
    })
    .await;
    let (old, new) = (diary(cluster, first), diary(cluster, &second));
    eventually("the second one keeps its diary", || async {
        if new.exists() { Ok(()) } else { Err(new.display().to_string()) }
    })
    .await;
    let ((_, last), (begin, _)) = (lived(&old), lived(&new));
    assert!(last < begin, "generation 1 lived until {last}, and generation 2 from {begin}");
    second
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
