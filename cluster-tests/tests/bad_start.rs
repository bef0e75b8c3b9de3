//! Processes that can't start as they are told: each ends with exit code 1 and says what is wrong, and nothing of what
//! is there is harmed.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::fs;
use std::path::Path;

use cluster_tests::{Cluster, ClusterOptions, Ended, run_to_end, shell};
use sandkeeper_client::v1;
use test_ports::Ports;

fn flags(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// One control node and one simulated agent, which nothing moves by itself.
async fn small() -> Cluster {
    let options = ClusterOptions {
        nodes: 1,
        agents: 1,
        server_flags: flags("--lost-after 5m"),
        agent_flags: flags("--runtime simulated"),
        ..ClusterOptions::default()
    };
    Cluster::start_with(options).await
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A control node on ports that the kernel chooses, alone.
async fn server(name: &str, data_dir: &Path, more: &[&str]) -> Ended {
    let mut line =
        flags("server --listen-api 127.0.0.1:0 --listen-peer 127.0.0.1:0 --listen-http 127.0.0.1:0");
    line.extend(flags("--bootstrap-expect 1"));
    line.extend(["--name".into(), name.into(), "--data-dir".into(), text(data_dir)]);
    line.extend(more.iter().map(|flag| (*flag).to_owned()));
    run_to_end(line).await
}

/// A simulated agent of a cluster.
async fn agent(id: &str, data_dir: &Path, cluster: &Cluster, more: &[&str]) -> Ended {
    let mut line = flags("agent --runtime simulated --slots 4");
    line.extend(["--agent-id".into(), id.into(), "--data-dir".into(), text(data_dir)]);
    line.extend(["--servers".into(), cluster.nodes[0].api.clone()]);
    line.extend(more.iter().map(|flag| (*flag).to_owned()));
    run_to_end(line).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_process_holds_is_left_alone() {
    let cluster = small().await;
    let created = cluster.client().create(shell("web", "sleep 600")).await.unwrap().sandbox.unwrap();
    cluster.wait_phase(&created.sandbox_id, v1::Phase::Running).await;
    let before = cluster.standing().await;
    let (node, own_agent) = (&cluster.nodes[0], &cluster.agents[0]);
    let pid = |process: &Option<cluster_tests::Process>| process.as_ref().unwrap().pid().to_string();

    let ended = server(&node.name, &node.data_dir, &[]).await;
    ended.failed_saying(&["is in use by another process", &pid(&node.process), &text(&node.data_dir)]);
    let ended = agent(&own_agent.name, &own_agent.data_dir, &cluster, &[]).await;
    ended.failed_saying(&["is in use by another agent", &pid(&own_agent.process)]);

    let empty = cluster.folder().join("empty");
    for (flag, address) in
        [("--listen-api", &node.api), ("--listen-peer", &node.peer), ("--listen-http", &node.http)]
    {
        let mut line = flags("server --name other --bootstrap-expect 1");
        line.extend(["--data-dir".into(), text(&empty)]);
        for each in ["--listen-api", "--listen-peer", "--listen-http"] {
            let listen = if each == flag { address.as_str() } else { "127.0.0.1:0" };
            line.extend([each.to_owned(), listen.to_owned()]);
        }
        run_to_end(line).await.failed_saying(&["can't listen on", address, "in use"]);
        assert!(!empty.exists(), "a port that is taken is found out before a disk is touched");
    }

    // A second machine with the name of the first.
    let ended = agent(&own_agent.name, &empty, &cluster, &[]).await;
    ended.failed_saying(&["sent this agent away", "another ledger"]);
    cluster.wait_ready().await;
    assert_eq!(cluster.standing().await, before);
    let found = cluster.wait_phase(&created.sandbox_id, v1::Phase::Running).await;
    assert_eq!(found.revision, before[0].revision, "nothing has happened since it runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_serves_only_whom_it_belongs_to() {
    let mut cluster = small().await;
    cluster.client().create(shell("web", "sleep 600")).await.unwrap();
    cluster.kill_agent(0);
    cluster.kill_node(0);
    let (data_dir, ledger) = (cluster.nodes[0].data_dir.clone(), cluster.agents[0].data_dir.clone());

    let ended = server("other", &data_dir, &[]).await;
    ended.failed_saying(&["belongs to node \"n0\"", "\"other\"", "--name"]);
    let ended = agent("other", &ledger, &cluster, &[]).await;
    ended.failed_saying(&["belongs to agent a0", "other"]);

    let identity = data_dir.join("node.toml");
    let good = fs::read_to_string(&identity).unwrap();
    assert!(good.contains("format_version = 2"), "{good}");
    fs::write(&identity, good.replace("format_version = 2", "format_version = 99\nnew_key = 1")).unwrap();
    let ended = server("n0", &data_dir, &[]).await;
    ended.failed_saying(&["node.toml", "format version 99", "a later one"]);
    for (bad, why) in [("{", "cannot be read"), ("name = 'n0'\n", "format_version is missing")] {
        fs::write(&identity, bad).unwrap();
        server("n0", &data_dir, &[]).await.failed_saying(&["node.toml", why]);
    }
    fs::write(&identity, &good).unwrap();

    let path = ledger.join("ledger");
    let good = fs::read(&path).unwrap();
    // Magic (8 bytes), version (2), length, checksum, record.
    let newer = [&good[..8], &[0, 99], &good[10..]].concat();
    fs::write(&path, newer).unwrap();
    agent("a0", &ledger, &cluster, &[]).await.failed_saying(&["has format 99", "use a newer one"]);
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&path, damaged).unwrap();
    agent("a0", &ledger, &cluster, &[]).await.failed_saying(&["is damaged", "checksum"]);
    fs::write(&path, &good).unwrap();

    let file = cluster.folder().join("file");
    fs::write(&file, "not a folder").unwrap();
    server("n0", &file, &[]).await.failed_saying(&[&text(&file)]);
    agent("a0", &file, &cluster, &[]).await.failed_saying(&[&text(&file)]);

    // After all of that both are what they were.
    cluster.start_node(0);
    cluster.start_agent(0);
    cluster.wait_ready().await;
    let view = cluster.wait_identical().await;
    assert_eq!((view.sandboxes, view.total.unwrap().slots), (1, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_can_not_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    let config = text(&file);
    for command in ["server", "agent"] {
        run_to_end([command, "--config", &config]).await.failed_saying(&[&config, "can't be read"]);
        let here = text(folder.path());
        run_to_end([command, "--config", &here]).await.failed_saying(&[&here, "can't be read"]);
        let cases = [
            ("shoe_size = 44\n", vec!["unknown key `shoe_size`", "expected one of", "data_dir"]),
            ("data_dir = 7\n", vec!["key `data_dir`"]),
            ("data_dir = \"x\n", vec!["settings.toml"]),
        ];
        for (content, parts) in cases {
            fs::write(&file, content).unwrap();
            run_to_end([command, "--config", &config]).await.failed_saying(&parts);
        }
        fs::write(&file, [0xff, 0xfe]).unwrap();
        run_to_end([command, "--config", &config]).await.failed_saying(&[&config, "can't be read"]);
        fs::remove_file(&file).unwrap();
    }
    let wrong = [
        flags("server"),
        flags("server --data-dir d --bootstrap-expect 0"),
        flags("server --data-dir d --heartbeat-ms 500 --election-ms 150-300"),
        flags("server --data-dir d --listen-api nowhere"),
        flags("agent --data-dir d --slots many"),
        flags("agent --data-dir d --runtime magic"),
    ];
    for line in wrong {
        let ended = run_to_end(&line).await;
        assert_eq!(ended.code, Some(2), "wrong usage: {line:?}: {ended:#?}");
        assert!(ended.stderr.starts_with("error: "), "{ended:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_cluster_is_sent_away() {
    let (mut ours, theirs) = (small().await, small().await);
    let created = ours.client().create(shell("web", "sleep 600")).await.unwrap().sandbox.unwrap();
    ours.wait_phase(&created.sandbox_id, v1::Phase::Running).await;
    let id = |cluster: &Cluster| {
        let client = cluster.client();
        async move { client.status().await.unwrap().cluster_id }
    };
    let (our_id, their_id) = (id(&ours).await, id(&theirs).await);
    let before = theirs.standing().await;
    ours.kill_agent(0);
    let ended = agent("a0", &ours.agents[0].data_dir, &theirs, &[]).await;
    ended.failed_saying(&[&our_id, &their_id]);
    assert_eq!(theirs.standing().await, before, "they never heard of it");
    theirs.wait_ready().await;
    // It is still one of ours.
    ours.start_agent(0);
    ours.wait_ready().await;
    assert_eq!(ours.wait_identical().await.total.unwrap().slots, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_can_not_form_one_cluster_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = |name: &str| text(&folder.path().join(name));
    let ports = flags("server --listen-api 127.0.0.1:0 --listen-peer 127.0.0.1:0 --listen-http 127.0.0.1:0");
    for (more, why) in
        [(&[][..], "neither --bootstrap-expect nor --join"), (&["--bootstrap-expect", "3"], "--join")]
    {
        let mut line = ports.clone();
        line.extend(["--name".into(), "n0".into(), "--data-dir".into(), data_dir("lonely")]);
        line.extend(more.iter().map(|flag| (*flag).to_owned()));
        run_to_end(line).await.failed_saying(&["can't enter its cluster", why]);
    }

    let ports = Ports::take(2);
    let peers = ports.addresses();
    let twin = |index: usize| {
        let mut line =
            flags("server --listen-api 127.0.0.1:0 --listen-http 127.0.0.1:0 --bootstrap-expect 2");
        line.extend(flags("--name twin"));
        line.extend(["--listen-peer".into(), peers[index].clone(), "--join".into(), peers.join(",")]);
        line.extend(["--data-dir".into(), data_dir(&format!("twin-{index}"))]);
        run_to_end(line)
    };
    // The first that finds out ends; whether the other one sees it before it is gone is a matter of chance.
    let ended = tokio::select! {
        ended = twin(0) => ended,
        ended = twin(1) => ended,
    };
    ended.failed_saying(&[
        "can't enter its cluster",
        "two nodes have the name \"twin\"",
        &peers[0],
        &peers[1],
    ]);
}
