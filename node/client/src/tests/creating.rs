//! Streams of creates: what is sent again, to whom, and what is acknowledged.

use std::time::Duration;

use sandkeeper_proto::v1;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::fake::{Fake, StreamedOut, nobody};
use crate::{Client, ClientError, CreateStream};

fn create(name: &str) -> v1::CreateSandboxRequest {
    v1::CreateSandboxRequest { name: name.into(), ..Default::default() }
}

fn client(servers: &[&str]) -> Client {
    Client::builder().servers(servers.iter().copied()).deadline(Duration::from_secs(20)).build().unwrap()
}

/// Sends so many more creates, and takes their answers; the names in the order of their sequences.
async fn exchange(stream: &mut CreateStream, count: u64) -> Vec<(u64, String)> {
    let mut names = Vec::new();
    for number in 0..count {
        let sequence = stream.send(create(&format!("s{number}"))).await.unwrap();
        let answer = stream.next().await.unwrap().unwrap();
        assert_eq!(answer.sequence, sequence);
        names.push((sequence, answer.result.unwrap().sandbox.unwrap().name));
    }
    names
}

/// The openings, and the creates, that a server got: (sequence, acknowledged below).
fn got(fake: &Fake) -> (Vec<v1::OpenCreateStream>, Vec<(u64, u64)>) {
    let (mut opened, mut creates) = (Vec::new(), Vec::new());
    for message in &fake.script().streamed {
        match message {
            StreamedOut::Open(open) => opened.push(open.clone()),
            StreamedOut::Create(create) => creates.push((create.sequence, create.acknowledged_below)),
        }
    }
    (opened, creates)
}

#[tokio::test]
async fn a_stream_that_breaks_goes_on_at_another_server_with_what_has_no_answer() {
    let (dead, first, second) = (nobody().await, Fake::start().await, Fake::start().await);
    first.script().streams.push_back((3, Status::unavailable("stopping")));
    let mut stream = client(&[&dead, &first.address, &second.address]).create_stream("ns");
    let names = exchange(&mut stream, 5).await;
    assert_eq!(names.len(), 5);
    let (opened, creates) = got(&first);
    assert_eq!((opened[0].resume, opened[0].namespace.as_str()), (false, "ns"));
    assert_eq!(creates, [(1, 1), (2, 2), (3, 3), (4, 4)]);
    let (again, creates) = got(&second);
    assert_eq!((again[0].resume, again[0].acknowledged_below), (true, 4));
    assert_eq!(again[0].client_id, opened[0].client_id, "it is the same client");
    assert_eq!(creates, [(4, 4), (5, 5)], "what has its answer is not sent again");
}

#[tokio::test]
async fn no_more_is_sent_than_the_window_allows() {
    let fake = Fake::start().await;
    let (mut sender, mut answers) = client(&[&fake.address]).create_stream("").split();
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        while sent < 100 && sender.send(create("s")).await.is_some() {
            sent += 1;
        }
        sent
    });
    let mut sequences = Vec::new();
    while let Some(answer) = answers.next().await {
        sequences.push(answer.unwrap().sequence);
    }
    assert_eq!(sending.await.unwrap(), 100);
    assert!(sequences.into_iter().eq(1..=100), "all are answered, and then the stream ends");
    let ahead = got(&fake).1.into_iter().map(|(sequence, below)| sequence - below).max();
    assert!(ahead < Some(8), "{ahead:?}");
}

fn forgotten() -> Status {
    let details = ErrorDetails::with_error_info("STREAM_FORGOTTEN", "sandkeeper", []);
    Status::with_error_details(Code::FailedPrecondition, "not known", details)
}

#[tokio::test]
async fn a_client_that_was_forgotten_with_a_create_on_its_way_says_so() {
    let fake = Fake::start().await;
    let mut stream = client(&[&fake.address]).create_stream("");
    fake.script().streams.push_back((2, Status::unavailable("stopping")));
    fake.script().streams.push_back((0, forgotten()));
    exchange(&mut stream, 2).await;
    // The third was sent in the first stream, and so may have been made.
    stream.send(create("third")).await.unwrap();
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error.refusal().unwrap().reason.as_deref(), Some("STREAM_FORGOTTEN"), "{error}");
    assert!(stream.next().await.is_none(), "that was the end");
}

#[tokio::test]
async fn a_refusal_of_the_opening_is_told() {
    let fake = Fake::start().await;
    fake.script().streams.push_back((0, Status::invalid_argument("namespace: no")));
    let mut stream = client(&[&fake.address]).create_stream("No");
    stream.send(create("s")).await.unwrap();
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(Code::InvalidArgument), "{error}");
}

#[tokio::test]
async fn nobody_who_answers_is_told_at_the_deadline() {
    let dead = nobody().await;
    let builder = Client::builder().servers([dead.as_str()]).deadline(Duration::from_millis(300));
    let mut stream = builder.build().unwrap().create_stream("");
    stream.send(create("s")).await.unwrap();
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Unreachable(_)), "{error}");
    assert!(stream.send(create("late")).await.is_none());
}
