//! Streams of creates, and batches: exactly once, whatever happens to the nodes.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::collections::{BTreeMap, BTreeSet};

use cluster_tests::{Cluster, ClusterOptions, get, run_to_end, shell};
use sandkeeper_client::{Client, ClientError, Code, CreateAnswer, v1};

/// More than fit into the window of a stream together with what the test lets pass.
const CREATES: u64 = 3_000;

async fn simulated(agents: usize, slots: u64) -> Cluster {
    let agent_flags = vec!["--runtime".into(), "simulated".into()];
    Cluster::start_with(ClusterOptions { agents, slots, agent_flags, ..ClusterOptions::default() }).await
}

fn id(answer: &CreateAnswer) -> String {
    let created = answer.result.as_ref().unwrap_or_else(|error| panic!("{}: {error}", answer.sequence));
    created.sandbox.as_ref().unwrap().sandbox_id.clone()
}

/// How often each name was ever created, by the history.
async fn created(client: &Client) -> BTreeMap<String, u32> {
    let mut watch = client.watch(1, v1::EventFilter::default());
    let last = client.capacity(v1::ReadOptions::default()).await.unwrap().revision;
    let mut names = BTreeMap::new();
    loop {
        let message = watch.next().await.unwrap();
        for event in &message.events {
            if event.r#type() == v1::EventType::SandboxCreated {
                *names.entry(event.name.clone()).or_default() += 1;
            }
        }
        if message.revision >= last {
            return names;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_create_of_a_stream_makes_one_sandbox_whoever_leads() {
    let mut cluster = simulated(2, CREATES).await;
    let (mut sender, mut answers) = cluster.client().create_stream("").split();
    let sending = tokio::spawn(async move {
        for number in 1..=CREATES {
            assert_eq!(sender.send(shell(&format!("s{number}"), "sleep 600")).await, Some(number));
        }
    });
    let mut ids = BTreeMap::new();
    let mut killed = Vec::new();
    while let Some(answer) = answers.next().await {
        let answer = answer.unwrap();
        assert_eq!(ids.insert(answer.sequence, id(&answer)), None, "{} is answered twice", answer.sequence);
        // Twice in its midst, the leader dies, and once it is the node that serves the stream.
        if killed.len() < 2 && ids.len() as u64 > CREATES / 4 * (killed.len() as u64 + 1) {
            let leader = cluster.wait_leader().await;
            cluster.kill_node(leader);
            killed.push(leader);
            if killed.len() == 1 {
                cluster.start_node(leader);
                cluster.wait_leader().await;
            }
        }
    }
    sending.await.unwrap();
    assert_eq!(killed.len(), 2);
    assert!(ids.keys().copied().eq(1..=CREATES), "each is answered");
    let distinct: BTreeSet<_> = ids.values().collect();
    assert_eq!(distinct.len() as u64, CREATES, "each has a sandbox of its own");
    for last in killed {
        if cluster.nodes[last].process.is_none() {
            cluster.start_node(last);
        }
    }
    cluster.wait_ready().await;
    let names = created(&cluster.client()).await;
    assert_eq!(names.len() as u64, CREATES);
    assert!(names.values().all(|times| *times == 1), "made twice, by the history: {names:?}");
    assert_eq!(cluster.wait_identical().await.allocated.unwrap().slots, CREATES);
    cluster.assert_nobody_diverged();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_hands_its_streams_on() {
    let mut cluster = simulated(1, 64).await;
    let follower = cluster.follower().await;
    let others: Vec<_> = cluster.running().into_iter().filter(|index| *index != follower).collect();
    let client = cluster.client_of(&[follower, others[0]]);
    let mut stream = client.create_stream("");
    stream.send(shell("first", "sleep 600")).await.unwrap();
    id(&stream.next().await.unwrap().unwrap());
    cluster.nodes[follower].process.as_ref().unwrap().signal(nix::sys::signal::Signal::SIGTERM);
    for name in ["second", "third"] {
        stream.send(shell(name, "sleep 600")).await.unwrap();
        id(&stream.next().await.unwrap().unwrap());
    }
    cluster.kill_node(follower);
    let names = created(&cluster.client_of(&others)).await;
    assert!(
        names.keys().eq(["first", "second", "third"]) && names.values().all(|times| *times == 1),
        "{names:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_of_every_kind_share_a_stream_and_a_refused_one_does_not_end_it() {
    let cluster = simulated(1, 3).await;
    let client = cluster.client_of(&[cluster.follower().await]);
    let mut stream = client.create_stream("team-a");
    let named = |name: &str| shell(name, "sleep 600");
    let strong = v1::CreateSandboxRequest { mode: v1::Mode::Strong.into(), ..named("strong") };
    let waits = v1::CreateSandboxRequest { wait_for_capacity: true, ..named("waits") };
    let creates = [
        named("fast"),
        strong,
        v1::CreateSandboxRequest { working_dir: "relative".into(), ..named("bad") },
        v1::CreateSandboxRequest { namespace: "team-b".into(), ..named("elsewhere") },
        named("fast"),
        named("third"),
        named("fourth"),
        waits,
    ];
    let mut answers = BTreeMap::new();
    for create in creates {
        let sequence = stream.send(create).await.unwrap();
        // One after another: the test knows who gets the last slot.
        let answer = stream.next().await.unwrap().unwrap();
        assert_eq!(answer.sequence, sequence);
        answers.insert(sequence, answer);
    }
    let phase = |sequence: u64| {
        let created = answers[&sequence].result.as_ref().unwrap().sandbox.as_ref().unwrap();
        assert_eq!(created.namespace, "team-a");
        created.phase()
    };
    assert_eq!(phase(1), v1::Phase::Allocated);
    assert_eq!(phase(2), v1::Phase::Running, "STRONG is answered when it runs");
    assert_eq!(phase(6), v1::Phase::Allocated);
    assert_eq!(phase(8), v1::Phase::Pending);
    let refused = |sequence: u64| {
        let error = answers[&sequence].result.as_ref().unwrap_err();
        let refusal = error.refusal().unwrap_or_else(|| panic!("{error}"));
        (refusal.code, refusal.reason.clone().unwrap(), refusal.violations.clone())
    };
    let (code, reason, violations) = refused(3);
    assert_eq!(
        (code, reason.as_str(), violations[0].field.as_str()),
        (Code::InvalidArgument, "INVALID", "working_dir")
    );
    assert_eq!(refused(4).2[0].field, "namespace");
    assert_eq!((refused(5).0, refused(5).1.as_str()), (Code::AlreadyExists, "NAME_TAKEN"));
    assert_eq!((refused(7).0, refused(7).1.as_str()), (Code::ResourceExhausted, "NO_CAPACITY"));
}

fn batch(request_id: &str, names: &[&str]) -> v1::BatchCreateSandboxesRequest {
    let creates = names.iter().map(|name| shell(name, "sleep 600")).collect();
    v1::BatchCreateSandboxesRequest { request_id: request_id.into(), creates, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_made_whole_or_not_at_all_and_once() {
    let mut cluster = simulated(2, 2).await;
    let follower = cluster.follower().await;
    let client = cluster.client_of(&[follower]);
    let refused = client.batch_create(batch("b0", &["a", "b", "c", "d", "e"])).await.unwrap_err();
    let ClientError::Refused(refusal) = &refused else { panic!("{refused}") };
    assert_eq!(
        (refusal.code, refusal.details["index"].as_str()),
        (Code::ResourceExhausted, "4"),
        "{refused}"
    );
    assert!(refused.to_string().contains("default/e"), "{refused}");
    assert_eq!(client.capacity(v1::ReadOptions::default()).await.unwrap().sandboxes, 0, "nothing was made");

    let first = client.batch_create(batch("b1", &["a", "b", "c"])).await.unwrap();
    assert!(!first.duplicate);
    let ids = |answer: &v1::BatchCreateSandboxesResponse| -> Vec<String> {
        answer.sandboxes.iter().map(|sandbox| sandbox.sandbox_id.clone()).collect()
    };
    let times: Vec<_> = first.sandboxes.iter().map(|sandbox| sandbox.create_timestamp).collect();
    assert!(times.is_sorted_by(|a, b| a < b), "each has a time of its own: {times:?}");
    let target = Some(cluster_tests::by_id(&ids(&first)[1]));
    client.terminate(v1::TerminateSandboxRequest { r#ref: target, ..Default::default() }).await.unwrap();
    cluster.wait_phase(&ids(&first)[1], v1::Phase::Gone).await;

    let leader = cluster.wait_leader().await;
    cluster.kill_node(leader);
    let again =
        cluster.client_of(&cluster.running()).batch_create(batch("b1", &["a", "b", "c"])).await.unwrap();
    assert_eq!((ids(&again), again.revision, again.duplicate), (ids(&first), first.revision, true));
    assert_eq!(again.sandboxes[1].phase(), v1::Phase::Gone, "also what is gone meanwhile");
    assert_eq!(again.sandboxes[1].name, "b");
    for at in [0, 2] {
        assert!(get(&client, &ids(&first)[at]).await.unwrap().is_some());
    }
    let other = client.batch_create(batch("b1", &["a", "b"])).await.unwrap_err();
    assert_eq!(other.code(), Some(Code::AlreadyExists), "{other}");
    cluster.assert_nobody_diverged();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_makes_batches_and_streams_from_files() {
    let cluster = simulated(1, 4).await;
    let servers = cluster.nodes[cluster.follower().await].api.clone();
    let run = async |arguments: &[&str], file: &str| {
        let path = cluster.folder().join("creates");
        std::fs::write(&path, file).unwrap();
        let globals = ["--servers", &servers, "-o", "json", "create"];
        run_to_end(globals.iter().copied().chain(arguments.iter().copied()).chain([path.to_str().unwrap()]))
            .await
    };
    let fleet = "- name: web\n  command: [sleep, '600']\n  labels: {app: web}\n- name: db\n";
    let made = run(&["--request-id", "fleet-1", "--batch"], fleet).await;
    assert_eq!(made.code, Some(0), "{made:#?}");
    let answer: serde_json::Value = serde_json::from_str(&made.stdout).unwrap();
    assert_eq!(
        (&answer["sandboxes"][0]["name"], &answer["sandboxes"][0]["labels"]["app"]),
        (&"web".into(), &"web".into())
    );
    let again = run(&["--request-id", "fleet-1", "--batch"], fleet).await;
    assert!(again.stderr.contains("answered before"), "{again:#?}");
    run(&["--batch"], "[{name: new}, {name: web}]")
        .await
        .failed_saying(&["create 1 of the batch", "default/web"]);
    let unknown = run(&["--batch"], "name: new\nimag: x\n").await;
    assert!(unknown.code == Some(2) && unknown.stderr.contains("imag"), "{unknown:#?}");

    let jobs =
        "{\"name\": \"job-1\"}\n{\"name\": \"web\"}\n{\"name\": \"job-2\", \"mode\": \"MODE_STRONG\"}\n";
    let streamed = run(&["--stream"], jobs).await;
    assert_eq!(streamed.code, Some(1), "one was refused: {streamed:#?}");
    let lines = streamed.stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let by_sequence: BTreeMap<_, _> =
        lines.map(|line| (line["sequence"].as_str().unwrap().to_owned(), line)).collect();
    assert_eq!(by_sequence.len(), 3, "one line each");
    assert_eq!(by_sequence["1"]["created"]["sandbox"]["name"], "job-1");
    assert_eq!(by_sequence["2"]["refusal"]["reason"], "NAME_TAKEN");
    assert_eq!(by_sequence["3"]["created"]["sandbox"]["phase"], "PHASE_RUNNING");
    let bad = run(&["--stream"], "{\"name\": \"job-3\"}\nnot json\n").await;
    assert!(bad.code == Some(2) && bad.stderr.contains("line 2"), "{bad:#?}");
    assert!(bad.stdout.contains("RESOURCE_EXHAUSTED") || bad.stdout.contains("NO_CAPACITY"), "{bad:#?}");
}
