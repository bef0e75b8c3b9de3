//! A backup, the loss of all control nodes, a restore, and the agents that run on meanwhile.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::path::Path;
use std::time::Duration;

use cluster_tests::{
    Cluster, ClusterOptions, Ended, by_id, by_name, children_of, eventually, get, run_to_end, shell,
};
use sandkeeper_client::v1;

/// What is unknown is ended after this time: short, so that the test would see it.
const GRACE: Duration = Duration::from_secs(1);

async fn start() -> Cluster {
    let server_flags = ["--orphan-grace", "1s", "--lost-after", "3s"].map(str::to_owned).to_vec();
    Cluster::start_with(ClusterOptions { server_flags, ..ClusterOptions::default() }).await
}

async fn runs(cluster: &Cluster, request: v1::CreateSandboxRequest) -> v1::Sandbox {
    let created = cluster.client().create(request).await.unwrap().sandbox.unwrap();
    cluster.wait_phase(&created.sandbox_id, v1::Phase::Running).await
}

async fn sandkeeper(arguments: &[&str]) -> Ended {
    run_to_end(arguments).await
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Backs the cluster up through its command line; the file.
async fn back_up(cluster: &Cluster) -> std::path::PathBuf {
    let file = cluster.folder().join("backup.sk");
    let follower = cluster.nodes[cluster.follower().await].api.clone();
    let told = sandkeeper(&["cluster", "backup", text(&file), "--servers", &follower]).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    file
}

/// All control nodes are lost with their disks; one is restored, and two new ones join it.
async fn lose_everything_and_restore(cluster: &mut Cluster, file: &Path) {
    for index in 0..3 {
        cluster.kill_node(index);
        std::fs::remove_dir_all(&cluster.nodes[index].data_dir).unwrap();
    }
    let data_dir = cluster.nodes[0].data_dir.clone();
    let restore = ["cluster", "restore", text(file), "--data-dir", text(&data_dir), "--name", "n0"];
    let told = sandkeeper(&restore).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    let again = sandkeeper(&restore).await;
    again.failed_saying(&["is not empty", "name another one"]);
    for index in 0..3 {
        cluster.start_node(index);
    }
    cluster.wait_leader().await;
}

/// What all agents have that is unknown; and that some have not said it yet, if that is so.
async fn unknown(cluster: &Cluster) -> Vec<String> {
    let list = cluster.client().list_unknown("").await.unwrap();
    let unheard = (list.unheard_agents > 0).then(|| format!("{} agents not heard", list.unheard_agents));
    list.sandboxes.into_iter().map(|unknown| unknown.sandbox_id).chain(unheard).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_backup_has_never_heard_of_runs_on_until_the_restore_is_confirmed() {
    let mut cluster = start().await;
    let kept = runs(&cluster, shell("kept", "sleep 600")).await;
    let ended = runs(&cluster, shell("ended", "sleep 600")).await;
    let recreate = v1::FailurePolicy::AutoRecreate.into();
    let ends_too = v1::CreateSandboxRequest { failure_policy: recreate, ..shell("ended-auto", "sleep 600") };
    let ended_auto = runs(&cluster, ends_too).await;
    let file = back_up(&cluster).await;
    // What happens after the backup: one is made, and two are ended.
    let later = runs(&cluster, shell("later", "sleep 600")).await;
    for id in [&ended.sandbox_id, &ended_auto.sandbox_id] {
        let request = v1::TerminateSandboxRequest { r#ref: Some(by_id(id)), ..Default::default() };
        cluster.client().terminate(request).await.unwrap();
        cluster.wait_phase(id, v1::Phase::Gone).await;
    }
    let before = children_of(&kept.sandbox_id);
    let old_cluster = cluster.client().status().await.unwrap().cluster_id;

    lose_everything_and_restore(&mut cluster, &file).await;
    let status = cluster.client().status().await.unwrap();
    assert_ne!(status.cluster_id, old_cluster);
    assert_eq!(status.restored.as_ref().unwrap().from_cluster_id, old_cluster);

    // The agents do not come over by themselves, and run on.
    let waits = "say so with `sandkeeper agents rehome`";
    eventually("an agent is told to wait", || async {
        let log = std::fs::read_to_string(cluster.folder().join("a0.log")).unwrap();
        if log.contains(waits) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert_eq!(cluster.client().status().await.unwrap().agents_connected, 0);
    let list = cluster.client().list_unknown("").await.unwrap();
    assert_eq!((list.sandboxes.len(), list.restore_unconfirmed), (0, true));
    assert!(list.unheard_agents > 0, "nothing is known of them, and the answer says so");

    cluster.client().rehome_agents("").await.unwrap();
    cluster.wait_ready().await;
    eventually("what the backup does not know is seen", || async {
        let found = unknown(&cluster).await;
        if found == [later.sandbox_id.as_str()] { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    cluster.wait_phase(&kept.sandbox_id, v1::Phase::Running).await;
    assert_eq!(children_of(&kept.sandbox_id), before, "it was not started anew");
    // The agents say that these are gone. Nobody starts them elsewhere: they may run there.
    cluster.wait_phase(&ended.sandbox_id, v1::Phase::Failed).await;
    cluster.wait_phase(&ended_auto.sandbox_id, v1::Phase::Failed).await;
    // What is new is like in any cluster.
    let new = runs(&cluster, shell("new", "sleep 600")).await;
    // Longer than the grace period: only a longer wait could show more.
    tokio::time::sleep(GRACE * 3).await;
    assert_eq!(unknown(&cluster).await, [later.sandbox_id.as_str()]);
    assert!(
        !children_of(&later.sandbox_id).is_empty(),
        "it must not be ended before the restore is confirmed"
    );

    cluster.client().confirm_restore().await.unwrap();
    eventually("the orphan is ended", || async {
        let left = children_of(&later.sandbox_id);
        if left.is_empty() && unknown(&cluster).await.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    for id in [&kept.sandbox_id, &new.sandbox_id] {
        let sandbox = get(&cluster.client(), id).await.unwrap().unwrap();
        assert_eq!(sandbox.phase(), v1::Phase::Running);
    }
    cluster.wait_identical().await;
    cluster.assert_nobody_diverged();
    eventually("nobody waits for a history that is nowhere", || async {
        let mut missing = Vec::new();
        for index in 0..3 {
            let status = cluster.client_of(&[index]).status().await.map_err(|error| error.to_string())?;
            missing.push(status.history_missing_entries);
        }
        if missing == [0, 0, 0] { Ok(()) } else { Err(format!("{missing:?}")) }
    })
    .await;
    cluster.terminate_all().await;
}

/// A sandbox that was started without any cluster: a folder and its shim, as one finds them on a machine.
fn start_legacy(data_dir: &Path, name: &str) {
    let folder = data_dir.join("sandboxes").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for beside in ["work", "logs"] {
        std::fs::create_dir_all(data_dir.join(beside)).unwrap();
    }
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let data = text(data_dir);
    let spec = serde_json::json!({
        "version": 1,
        "sandbox": {
            "sandbox_id": name, "generation": 0, "namespace": "", "name": name, "create_timestamp": 0,
            "image": "", "command": ["sleep", "600"], "args": [], "envs": {}, "working_dir": "/", "ports": [],
            "cpu_millis": 0, "memory_bytes": 0, "labels": {"team": "red"},
        },
        "boot_id": boot_id.trim(),
        "argv": ["sleep", "600"],
        "envs": {"PATH": "/usr/bin:/bin", "SANDKEEPER_SANDBOX_ID": name},
        "working_dir": "/",
        "log": format!("{data}/logs/{name}.log"),
        "namespaces": false,
        "groups": [],
        "open_files": 1024,
        "address_space": null,
    });
    let grace = serde_json::json!({"secs": 1, "nanos": 0});
    let instructions = serde_json::json!({"version": 1, "expires_at": null, "lease": null, "grace": grace});
    std::fs::write(folder.join("spec.json"), spec.to_string()).unwrap();
    std::fs::write(folder.join("instructions.json"), instructions.to_string()).unwrap();
    let alive = folder.join("alive");
    nix::unistd::mkfifo(&alive, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let end = std::fs::OpenOptions::new().read(true).write(true).open(&alive).unwrap();
    let mut shim = std::process::Command::new(cluster_tests::binary());
    shim.args(["shim", "--spec"]).arg(folder.join("spec.json")).stdin(end);
    // Its parent is to be nobody who waits for it.
    std::thread::spawn(move || shim.status());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_before_any_cluster_is_adopted_under_its_name_and_not_restarted() {
    let mut cluster = start().await;
    cluster.kill_agent(0);
    start_legacy(&cluster.agents[0].data_dir, "legacy-web");
    eventually("the legacy sandbox runs", || async {
        // Its first process is the shim's until it has become the workload.
        let lines: Vec<_> = children_of("legacy-web").into_iter().map(|(_, line)| line).collect();
        if lines == ["sleep 600"] { Ok(()) } else { Err(format!("{lines:?}")) }
    })
    .await;
    let before = children_of("legacy-web");
    cluster.start_agent(0);
    cluster.wait_ready().await;
    let client = cluster.client();
    eventually("it is seen", || async {
        let found = unknown(&cluster).await;
        if found == ["legacy-web"] { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    // Longer than the grace period: only a longer wait could show more.
    tokio::time::sleep(GRACE * 3).await;
    assert_eq!(children_of("legacy-web"), before, "nobody's sandbox is left alone");

    let request = |agent: &str| v1::AdoptSandboxesRequest {
        agent_id: agent.to_owned(),
        sandbox_ids: vec!["legacy-web".to_owned()],
        ..v1::AdoptSandboxesRequest::default()
    };
    let elsewhere = client.adopt_sandboxes(request("a1")).await.unwrap();
    assert!(elsewhere.adoptions[0].refused.contains("has no sandbox legacy-web"), "{elsewhere:?}");
    let adopted = client.adopt_sandboxes(request("a0")).await.unwrap();
    assert_eq!(adopted.adoptions[0].refused, "", "{adopted:?}");
    let running = cluster.wait_phase("legacy-web", v1::Phase::Running).await;
    assert_eq!(
        (running.name.as_str(), running.agent_id.as_str(), running.generation),
        ("legacy-web", "a0", 1)
    );
    assert_eq!(running.labels.get("team").map(String::as_str), Some("red"));
    assert_eq!(children_of("legacy-web"), before, "it was not restarted");
    let again = client.adopt_sandboxes(request("a0")).await.unwrap();
    assert!(again.adoptions[0].refused.contains("is in the state already"), "{again:?}");
    assert_eq!(cluster.wait_identical().await.allocated.unwrap().slots, 1);

    // The label stays with it.
    cluster.kill_agent(0);
    cluster.start_agent(0);
    cluster.wait_ready().await;
    cluster.wait_phase("legacy-web", v1::Phase::Running).await;
    let request = v1::TerminateSandboxRequest { r#ref: Some(by_name("legacy-web")), ..Default::default() };
    client.terminate(request).await.unwrap();
    cluster.wait_phase("legacy-web", v1::Phase::Gone).await;
    assert_eq!(children_of("legacy-web"), []);
}
