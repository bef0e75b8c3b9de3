//! Unary calls: which server, how often, with which request id, until when.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sandkeeper_proto::v1;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::fake::{Answer, Fake, nobody};
use crate::{Client, ClientError, ConfigError, Selection, ServerFailureKind};

fn create(name: &str) -> v1::CreateSandboxRequest {
    v1::CreateSandboxRequest { name: name.into(), ..Default::default() }
}

fn client(servers: &[&str]) -> Client {
    Client::builder().servers(servers.iter().copied()).deadline(Duration::from_secs(20)).build().unwrap()
}

#[tokio::test]
async fn a_dead_server_is_passed_over_and_the_working_one_is_kept() {
    let (dead, alive) = (nobody().await, Fake::start().await);
    let client = client(&[&dead, &alive.address]);
    client.create(create("a")).await.unwrap();
    assert_eq!(client.first_server(), 1, "the one that answered is asked first");
    client.create(create("b")).await.unwrap();
    assert_eq!(alive.script().creates.len(), 2);
}

#[tokio::test]
async fn round_robin_takes_turns() {
    let (one, two) = (Fake::start().await, Fake::start().await);
    let builder = Client::builder().servers([&one.address, &two.address].map(String::as_str));
    let client = builder.selection(Selection::RoundRobin).build().unwrap();
    for name in ["a", "b", "c", "d"] {
        client.create(create(name)).await.unwrap();
    }
    assert_eq!((one.script().creates.len(), two.script().creates.len()), (2, 2));
}

#[tokio::test]
async fn every_try_bears_the_same_request_id() {
    let (one, two) = (Fake::start().await, Fake::start().await);
    one.script().answers.push_back(Answer::Status(Status::unavailable("no leader")));
    two.script().answers.push_back(Answer::Status(Status::unavailable("no leader")));
    let client = client(&[&one.address, &two.address]);
    let answer = client.create(create("a")).await.unwrap();
    let sent: Vec<_> = [&one, &two].iter().flat_map(|fake| fake.script().creates.clone()).collect();
    assert_eq!(sent.len(), 3);
    assert!(!sent[0].request_id.is_empty(), "the client makes an id");
    assert!(sent.iter().all(|request| request.request_id == sent[0].request_id));
    assert_eq!(answer.sandbox.unwrap().request_id, sent[0].request_id);
}

#[tokio::test]
async fn the_callers_request_id_is_kept() {
    let fake = Fake::start().await;
    let request = v1::CreateSandboxRequest { request_id: "mine".into(), ..create("a") };
    client(&[&fake.address]).create(request).await.unwrap();
    assert_eq!(fake.script().creates[0].request_id, "mine");
}

#[tokio::test]
async fn a_silent_server_is_given_up_before_the_deadline() {
    let (silent, alive) = (Fake::start().await, Fake::start().await);
    silent.script().answers.push_back(Answer::Silence);
    let builder = Client::builder().servers([&silent.address, &alive.address].map(String::as_str));
    let client = builder.deadline(Duration::from_secs(4)).build().unwrap();
    client.create(create("a")).await.unwrap();
    let (first, second) = (silent.script().creates[0].clone(), alive.script().creates[0].clone());
    assert_eq!(first.request_id, second.request_id);
    assert!(silent.script().timeouts[0].is_some(), "the deadline travels with the request");
}

#[tokio::test]
async fn a_connection_that_breaks_under_a_request_leads_to_the_next_server_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let breaks = listener.local_addr().unwrap().to_string();
    // As a server does that is killed: the request is on its way, and the connection is gone.
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let _ = connection.read(&mut [0; 1024]).await;
        }
    });
    let alive = Fake::start().await;
    let began = Instant::now();
    client(&[&breaks, &alive.address]).create(create("a")).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "no timeout was waited for: {:?}", began.elapsed());
    assert_eq!(alive.script().creates.len(), 1);
}

#[tokio::test]
async fn what_speaks_for_one_server_is_final_when_no_other_knows_better() {
    let details = || {
        let mut details = ErrorDetails::new();
        details.set_error_info("AGENT_NOT_CONNECTED", "sandkeeper", HashMap::new());
        Answer::Status(Status::with_error_details(
            Code::FailedPrecondition,
            "agent a1 is not connected",
            details,
        ))
    };
    let (one, two) = (Fake::start().await, Fake::start().await);
    one.script().answers.push_back(details());
    client(&[&one.address, &two.address]).create(create("a")).await.unwrap();
    assert_eq!(two.script().creates.len(), 1, "the other one has the session");

    let dead = nobody().await;
    one.script().answers.push_back(details());
    let error = client(&[&one.address, &dead]).create(create("b")).await.unwrap_err();
    assert_eq!(error.to_string(), "agent a1 is not connected (FAILED_PRECONDITION, AGENT_NOT_CONNECTED)");
}

#[tokio::test]
async fn a_hint_of_one_server_without_a_leader_keeps_nobody_from_the_next() {
    let (one, two) = (Fake::start().await, Fake::start().await);
    let hint = ErrorDetails::with_retry_info(Some(Duration::from_secs(15)));
    let no_leader = Status::with_error_details(Code::Unavailable, "no leader is known", hint);
    one.script().answers.push_back(Answer::Status(no_leader));
    let began = Instant::now();
    client(&[&one.address, &two.address]).create(create("a")).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_code_is_not_said_twice() {
    let fake = Fake::start().await;
    let mut details = ErrorDetails::new();
    details.set_error_info("FAILED_PRECONDITION", "sandkeeper", HashMap::new());
    let status = Status::with_error_details(Code::FailedPrecondition, "not now", details);
    fake.script().answers.push_back(Answer::Status(status));
    let error = client(&[&fake.address]).create(create("a")).await.unwrap_err();
    assert_eq!(error.to_string(), "not now (FAILED_PRECONDITION)");
}

#[tokio::test]
async fn a_refusal_is_final_and_tells_all() {
    let (one, two) = (Fake::start().await, Fake::start().await);
    let mut details = ErrorDetails::new();
    details.set_error_info("NAME_TAKEN", "sandkeeper", HashMap::from([("sandbox_id".into(), "abc".into())]));
    details.add_bad_request_violation("name", "taken by abc");
    let status = Status::with_error_details(Code::AlreadyExists, "the name is taken", details);
    one.script().answers.push_back(Answer::Status(status));
    let error = client(&[&one.address, &two.address]).create(create("a")).await.unwrap_err();
    let refusal = error.refusal().unwrap();
    assert_eq!((refusal.code, refusal.reason.as_deref()), (Code::AlreadyExists, Some("NAME_TAKEN")));
    assert_eq!(refusal.details["sandbox_id"], "abc");
    assert_eq!(refusal.violations[0].field, "name");
    assert_eq!(error.to_string(), "the name is taken (ALREADY_EXISTS, NAME_TAKEN)\n  name: taken by abc");
    assert_eq!((one.script().creates.len(), two.script().creates.len()), (1, 0));
}

#[tokio::test]
async fn a_full_queue_invites_a_retry_and_a_full_fleet_does_not() {
    let fake = Fake::start().await;
    let delay = ErrorDetails::with_retry_info(Some(Duration::from_millis(5)));
    let busy = Status::with_error_details(Code::ResourceExhausted, "the queue is full", delay);
    fake.script().answers.extend([Answer::Status(busy), Answer::Ok]);
    let client = client(&[&fake.address]);
    client.create(create("a")).await.unwrap();
    assert_eq!(fake.script().creates.len(), 2);

    // Somebody has to make room on a disk first: that takes longer than anyone waits for an answer.
    let later = ErrorDetails::with_retry_info(Some(Duration::from_secs(30)));
    let low = Status::with_error_details(Code::ResourceExhausted, "a disk is low", later);
    for answer in [Status::resource_exhausted("no free slot"), low] {
        let asked = fake.script().creates.len();
        fake.script().answers.push_back(Answer::Status(answer));
        let error = client.create(create("b")).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::ResourceExhausted));
        assert_eq!(fake.script().creates.len(), asked + 1);
    }
}

#[tokio::test]
async fn without_any_server_the_error_names_them_all() {
    let (one, two) = (nobody().await, nobody().await);
    let builder = Client::builder().servers([&one, &two].map(String::as_str));
    let client = builder.unreachable_after(Duration::ZERO).build().unwrap();
    let error = client.create(create("a")).await.unwrap_err();
    let ClientError::Unreachable(failures) = &error else { panic!("{error}") };
    assert!(failures.iter().all(|failure| failure.kind == ServerFailureKind::NotConnected));
    let text = error.to_string();
    assert!(text.contains(&one) && text.contains(&two) && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn the_deadline_ends_a_call_that_is_never_answered() {
    let fake = Fake::start().await;
    let client = client(&[&fake.address]).with_deadline(Duration::from_millis(300));
    let began = Instant::now();
    let error = client.wait(v1::SandboxRef::default(), [v1::Phase::Running]).await.unwrap_err();
    assert!(matches!(error, ClientError::Deadline { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn no_leader_until_the_deadline_is_unreachable_with_what_the_nodes_said() {
    let fake = Fake::start().await;
    let no_leader = || Answer::Status(Status::unavailable("no leader since 3 s"));
    fake.script().answers.extend(std::iter::repeat_with(no_leader).take(100));
    let client = client(&[&fake.address]).with_deadline(Duration::from_millis(200));
    let error = client.create(create("a")).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable(_)), "{error}");
    assert!(error.to_string().contains("no leader since 3 s"), "{error}");
    assert!(fake.script().creates.len() > 1, "it was tried again");
}

#[tokio::test]
async fn what_has_no_request_id_is_not_sent_twice() {
    let (dead, one, two) = (nobody().await, Fake::start().await, Fake::start().await);
    let client = client(&[&dead, &one.address, &two.address]);
    client.transfer_leadership("").await.unwrap_err();
    assert_eq!((one.script().revision, two.script().revision), (1, 0));
}

#[tokio::test]
async fn a_list_is_read_page_by_page() {
    let fake = Fake::start().await;
    let all = client(&[&fake.address]).list_all(v1::ListSandboxesRequest::default()).await.unwrap();
    let names: Vec<_> = all.sandboxes.iter().map(|sandbox| sandbox.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(all.next_page_token, "");
}

#[tokio::test]
async fn logs_end_with_the_error_of_the_server() {
    let fake = Fake::start().await;
    let mut logs = client(&[&fake.address]).logs(v1::StreamLogsRequest::default()).await.unwrap();
    assert_eq!(logs.next().await.unwrap().unwrap(), b"hello\n");
    assert_eq!(logs.next().await.unwrap().unwrap(), b"world\n");
    let error = logs.next().await.unwrap_err().to_string();
    assert!(error.contains("the agent is gone") && error.contains(&fake.address), "{error}");
}

#[tokio::test]
async fn each_server_can_be_asked_by_itself() {
    let (one, two) = (Fake::start().await, Fake::start().await);
    for (address, client) in client(&[&one.address, &two.address]).on_each_server() {
        assert_eq!(client.servers().collect::<Vec<_>>(), [address.as_str()]);
        client.create(create("a")).await.unwrap();
    }
    assert_eq!((one.script().creates.len(), two.script().creates.len()), (1, 1));
}

#[tokio::test]
async fn addresses_are_checked_when_the_client_is_made() {
    assert_eq!(Client::builder().build().unwrap_err(), ConfigError::NoServers);
    for bad in ["node-1", ":7600", "http://node-1:7600", "node-1:http", "a b:1"] {
        let error = Client::builder().servers([bad]).build().unwrap_err();
        assert!(
            matches!(&error, ConfigError::BadAddress { address, .. } if address == bad),
            "{bad}: {error}"
        );
    }
    Client::builder().servers(["[::1]:7600", "node-1.example:7600"]).build().unwrap();
}
