//! An agent and control nodes that the test plays: who is obeyed, who is told what, what survives.

mod support;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use sandkeeper_agent::{AgentError, RuntimeConfig};
use sandkeeper_proto::v1::server_message::Body as Down;
use sandkeeper_proto::v1::{self, RefusalKind, SandboxState};
use support::{Agent, CLUSTER, Node, create, process, simulated, soon};

#[tokio::test]
async fn the_hello_says_who_the_agent_is_and_heartbeats_go_to_every_node() {
    let folder = tempfile::tempdir().unwrap();
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    let agent = Agent::start(simulated(folder.path(), &[a.address, b.address]));
    let (mut of_a, mut of_b) = (a.welcome().await, b.welcome().await);
    let hello = &of_a.hello;
    assert_eq!(
        (hello.agent_id.as_str(), hello.runtime.as_str(), hello.pool.as_str()),
        ("worker", "simulated", "default")
    );
    assert_eq!((hello.cluster_id.as_str(), hello.term), ("", 0));
    assert_eq!(hello.incarnation.as_ref().unwrap().start, 1);
    assert_eq!(hello.incarnation, of_b.hello.incarnation);
    assert_eq!(hello.capacity.unwrap().slots, 2);
    assert_eq!((of_a.heartbeat().await.number, of_a.heartbeat().await.number), (1, 2));
    of_b.heartbeat().await;

    of_a.lead(1);
    of_a.create("s1", &["x"]).await;
    of_a.report("s1", SandboxState::Running).await;
    // What is in use is told to every node, so to the one that is not the leader too.
    soon("the heartbeats say what is in use", async {
        while of_b.heartbeat().await.used.unwrap().slots != 1 {}
    })
    .await;
    agent.stop().await;
}

#[tokio::test]
async fn a_sandbox_lives_and_its_absence_is_told_with_the_sequence_that_it_rests_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start("a").await;
    let agent = Agent::start(simulated(folder.path(), &[node.address]));
    let mut leader = node.welcome().await;
    leader.lead(3);
    let mut command = create("s1", &["x"]);
    command.exposed_ports = vec![8080];
    let sequence = leader.command(Down::Create(command.clone())).await;
    let (reports, report) = leader.report("s1", SandboxState::Running).await;
    assert_eq!((reports.term, reports.processed_sequence), (3, sequence));
    assert_eq!(report.endpoints, ["127.0.0.1:8080"]);

    // Said again: the same answer, and nothing is doubled.
    leader.command(Down::Create(command)).await;
    leader.report("s1", SandboxState::Running).await;
    let inventory = leader.inventory().await;
    assert_eq!((inventory.term, inventory.sandboxes.len()), (3, 1));

    let sequence = leader.terminate("s1").await;
    let (reports, _) = leader.report("s1", SandboxState::Absent).await;
    assert!(reports.processed_sequence >= sequence);
    assert_eq!(leader.inventory().await.sandboxes, []);
    leader.terminate("unknown").await;
    leader.report("unknown", SandboxState::Absent).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_deposed_leader_is_refused_and_reports_go_to_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    let agent = Agent::start(simulated(folder.path(), &[a.address, b.address]));
    let (mut old, mut new) = (a.welcome().await, b.welcome().await);
    old.lead(5);
    old.create("s1", &["x"]).await;
    old.report("s1", SandboxState::Running).await;
    new.lead(6);
    assert_eq!(new.inventory().await.sandboxes.len(), 1);
    let sequence = old.create("s2", &["x"]).await;
    let refusal = old.refusal().await;
    assert_eq!(refusal.kind(), RefusalKind::StaleTerm);
    assert_eq!((refusal.sequence, refusal.processed_sequence, refusal.term), (sequence, sequence, 6));
    assert_eq!((refusal.sandbox_id.as_str(), refusal.generation), ("s2", 1));
    old.terminate("s1").await;
    assert_eq!(old.refusal().await.kind(), RefusalKind::StaleTerm);
    let inventory = new.inventory().await;
    assert_eq!((inventory.term, inventory.sandboxes.len()), (6, 1));
    new.terminate("s1").await;
    new.report("s1", SandboxState::Absent).await;
    agent.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_or_is_for_another_life_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start("a").await;
    let agent = Agent::start(simulated(folder.path(), &[node.address]));
    let mut leader = node.welcome().await;
    leader.lead(1);
    for id in ["s1", "s2"] {
        leader.create(id, &["x"]).await;
        leader.report(id, SandboxState::Running).await;
    }
    leader.create("s3", &["x"]).await;
    let refusal = leader.refusal().await;
    assert_eq!(refusal.kind(), RefusalKind::Admission);
    assert!(refusal.reason.contains("2 of 2"), "{}", refusal.reason);
    leader.create("../s4", &["x"]).await;
    assert_eq!(leader.refusal().await.kind(), RefusalKind::Admission);
    leader.hello.incarnation.as_mut().unwrap().start = 7;
    leader.terminate("s1").await;
    assert_eq!(leader.refusal().await.kind(), RefusalKind::WrongIncarnation);
    agent.stop().await;
}

#[tokio::test]
async fn a_lost_session_is_opened_again_with_a_higher_number() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start("a").await;
    let agent = Agent::start(simulated(folder.path(), &[node.address]));
    let mut leader = node.welcome().await;
    leader.lead(2);
    leader.create("s1", &["x"]).await;
    leader.report("s1", SandboxState::Running).await;
    let first = leader.hello.session;
    drop(leader);
    let mut again = node.welcome().await;
    assert!(again.hello.session > first);
    assert_eq!((again.hello.term, again.hello.cluster_id.as_str()), (2, CLUSTER));
    again.lead(2);
    let inventory = again.inventory().await;
    assert_eq!((inventory.processed_sequence, inventory.sandboxes.len()), (1, 1));

    // The node itself goes and comes back under the same address.
    let ports = node.kill().await;
    let mut node = Node::come_back("a", ports).await;
    let mut third = node.welcome().await;
    third.lead(3);
    assert_eq!(third.inventory().await.sandboxes.len(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn a_restarted_agent_is_a_new_incarnation_and_knows_the_highest_term() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start("a").await;
    let agent = Agent::start(simulated(folder.path(), &[node.address]));
    let mut leader = node.welcome().await;
    leader.lead(7);
    leader.inventory().await;
    let first = leader.hello.incarnation.clone().unwrap();
    agent.stop().await;
    let agent = Agent::start(simulated(folder.path(), &[node.address]));
    let mut leader = node.welcome().await;
    let second = leader.hello.incarnation.clone().unwrap();
    assert_eq!((second.ledger_id, second.start), (first.ledger_id, 2));
    assert_eq!(leader.hello.term, 7);
    leader.lead(6);
    leader.create("s1", &["x"]).await;
    assert_eq!(leader.refusal().await.kind(), RefusalKind::StaleTerm);
    agent.stop().await;
}

#[tokio::test]
async fn a_node_of_another_cluster_stops_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ours, mut theirs) = (Node::start("a").await, Node::start("x").await);
    let agent = Agent::start(simulated(folder.path(), &[ours.address]));
    let mut leader = ours.welcome().await;
    leader.lead(1);
    leader.inventory().await;
    agent.stop().await;
    let agent = Agent::start(simulated(folder.path(), &[theirs.address]));
    let mut session = theirs.session().await;
    session.welcome("green", "x").await;
    let error = agent.result().await.unwrap_err();
    assert!(matches!(&error, AgentError::WrongCluster { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("cluster green") && text.contains("cluster blue") && text.contains("--servers"),
        "{text}"
    );
}

#[tokio::test]
async fn goodbyes_are_honoured() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start("a").await;
    let agent = Agent::start(simulated(folder.path(), &[node.address]));
    let mut session = node.welcome().await;
    let said = Instant::now();
    let later = v1::Goodbye { reason: "going down".to_owned(), retry_after_millis: 400, fatal: false };
    session.say(0, 0, Down::Goodbye(later)).await;
    let mut session = node.welcome().await;
    assert!(said.elapsed() >= Duration::from_millis(400), "it came back early");
    let fatal =
        v1::Goodbye { reason: "removed by an operator".to_owned(), retry_after_millis: 0, fatal: true };
    session.say(0, 0, Down::Goodbye(fatal)).await;
    let error = agent.result().await.unwrap_err();
    assert!(
        matches!(&error, AgentError::SentAway { reason, .. } if reason == "removed by an operator"),
        "{error}"
    );
}

#[tokio::test]
async fn two_addresses_of_one_node_are_one_session() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::listen("a", (Ipv4Addr::UNSPECIFIED, 0).into()).await;
    let port = node.address.port();
    let addresses = [([127, 0, 0, 1], port).into(), ([127, 0, 0, 2], port).into()];
    let agent = Agent::start(simulated(folder.path(), &addresses));
    let (mut one, mut two) = (node.welcome().await, node.welcome().await);
    // One of them is given up; the other goes on.
    tokio::select! {
        () = one.ended() => two.heartbeats(30).await,
        () = two.ended() => one.heartbeats(30).await,
    }
    assert!(!node.has_waiting_session(), "the other address is dialled although the node has a session");
    agent.stop().await;
}

#[tokio::test]
async fn time_ends_a_sandbox_while_no_control_node_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start("a").await;
    let agent = Agent::start(simulated(folder.path(), &[node.address]));
    let mut leader = node.welcome().await;
    leader.lead(1);
    let expires_in_nanos = Some(300_000_000);
    leader.command(Down::Create(v1::CreateCommand { expires_in_nanos, ..create("s1", &["x"]) })).await;
    leader.report("s1", SandboxState::Running).await;
    let began = Instant::now();
    let ports = node.kill().await;
    drop(leader);
    let mut node = Node::come_back("a", ports).await;
    let mut leader = node.welcome().await;
    leader.lead(1);
    let expired = soon("it is ended", async {
        loop {
            let inventory = leader.inventory().await;
            if inventory.sandboxes[0].state() == SandboxState::Exited {
                return inventory.sandboxes[0].clone();
            }
        }
    })
    .await;
    assert!(expired.expired && began.elapsed() >= Duration::from_millis(250), "{expired:?}");
    agent.stop().await;
}

#[tokio::test]
async fn many_simulated_agents_share_a_connection() {
    const COUNT: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start("a").await;
    let mut config = simulated(folder.path(), &[node.address]);
    if let RuntimeConfig::Simulated(simulated) = &mut config.runtime {
        (simulated.count, simulated.failure_rate) = (COUNT, 1.0);
    }
    let agent = Agent::start(config);
    let mut sessions = Vec::new();
    for _ in 0..COUNT {
        sessions.push(node.welcome().await);
    }
    let ids: BTreeSet<_> = sessions.iter().map(|session| session.hello.agent_id.clone()).collect();
    assert_eq!(ids.len(), COUNT);
    assert!(ids.contains("worker-0"));
    let connections: BTreeSet<_> = sessions.iter().map(|session| session.from).collect();
    assert_eq!(connections.len(), 1);
    let session = &mut sessions[0];
    session.lead(1);
    session.create("s1", &["x"]).await;
    let (_, failed) = session.report("s1", SandboxState::Failed).await;
    assert_eq!(failed.reason, "the simulated start failed");
    assert_eq!(session.inventory().await.sandboxes.len(), 1, "a failure is repeated until it is terminated");
    session.terminate("s1").await;
    assert_eq!(session.inventory().await.sandboxes.len(), 0);
    agent.stop().await;
}

#[tokio::test]
async fn bad_settings_and_a_data_directory_in_use_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start("a").await;
    let nowhere = Agent::start(simulated(folder.path(), &[])).result().await.unwrap_err();
    assert!(nowhere.to_string().contains("--servers"), "{nowhere}");
    let agent = Agent::start(simulated(folder.path(), &[node.address]));
    node.welcome().await;
    let second = Agent::start(simulated(folder.path(), &[node.address])).result().await.unwrap_err();
    let AgentError::Ledger(cause) = second else { panic!("{second}") };
    assert!(cause.to_string().contains("in use"), "{cause}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_sandbox_runs_is_read_survives_the_agent_and_goes() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start("a").await;
    let agent = Agent::start(process(folder.path(), &[node.address]));
    let mut leader = node.welcome().await;
    leader.lead(1);
    let id = "0123456789abcdef";
    leader
        .create(
            id,
            &["sh", "-c", "echo one; echo two; while ! test -e go; do sleep 0.01; done; echo three; exit 4"],
        )
        .await;
    leader.report(id, SandboxState::Running).await;
    leader.create("broken", &["no-such-program"]).await;
    let (_, failed) = leader.report("broken", SandboxState::Failed).await;
    assert!(failed.reason.starts_with("no-such-program: No such file"), "{}", failed.reason);
    leader.command(Down::Create(create("empty", &[]))).await;
    let refusal = leader.refusal().await;
    assert!(refusal.reason.contains("needs a command"), "{}", refusal.reason);
    agent.stop().await;

    let agent = Agent::start(process(folder.path(), &[node.address]));
    let mut leader = node.welcome().await;
    leader.lead(1);
    let inventory = leader.inventory().await;
    let states: Vec<_> = inventory.sandboxes.iter().map(|s| (s.sandbox_id.as_str(), s.state())).collect();
    assert_eq!(states, [(id, SandboxState::Running)]);
    let kind = v1::open_tunnel::Kind::Logs(v1::LogsRequest { follow: true, tail_lines: 1 });
    let open = v1::OpenTunnel { tunnel_id: "t1".to_owned(), sandbox_id: id.to_owned(), kind: Some(kind) };
    leader.say(0, 0, Down::OpenTunnel(open)).await;
    let mut tunnel = node.tunnel().await;
    let mut next = async || soon("the tunnel says more", tunnel.message()).await.unwrap();
    assert_eq!(next().await.unwrap().tunnel_id, "t1");
    assert_eq!(next().await.unwrap().data, b"two\n");
    std::fs::write(folder.path().join("work").join(id).join("go"), "").unwrap();
    assert_eq!(next().await.unwrap().data, b"three\n");
    assert_eq!(next().await, None, "the tunnel ends with the sandbox");
    let exited = soon("its exit is told", async {
        loop {
            let inventory = leader.inventory().await;
            if inventory.sandboxes[0].state() == SandboxState::Exited {
                return inventory.sandboxes[0].clone();
            }
        }
    })
    .await;
    assert_eq!((exited.exit_code, exited.reason.as_str()), (Some(4), "exited with code 4"));
    leader.terminate(id).await;
    leader.report(id, SandboxState::Absent).await;
    for left in ["sandboxes", "work", "logs"] {
        assert_eq!(std::fs::read_dir(folder.path().join(left)).unwrap().count(), 0, "{left}");
    }
    agent.stop().await;
}
