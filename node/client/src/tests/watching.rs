//! The watch: goes on at another server, misses nothing, tells nothing twice.

use std::time::Duration;

use futures::StreamExt;
use sandkeeper_proto::v1;
use tonic::{Code, Status};

use super::fake::{Fake, events, nobody};
use crate::{Client, ClientError};

fn client(servers: &[&str]) -> Client {
    Client::builder().servers(servers.iter().copied()).deadline(Duration::from_secs(20)).build().unwrap()
}

/// The revisions of the first `count` events.
async fn revisions(client: &Client, from: u64, count: usize) -> Vec<u64> {
    let events = client.watch(from, v1::EventFilter::default()).into_events().take(count);
    events.map(|event| event.unwrap().revision).collect().await
}

#[tokio::test]
async fn it_goes_on_at_another_server_without_gaps_or_doubles() {
    let (one, two) = (Fake::start().await, Fake::start().await);
    let cut = Err(Status::unavailable("stopping"));
    one.script().watches.push_back(vec![Ok(events(&[5, 6])), Ok(events(&[7])), cut]);
    // The second one begins too early: what was seen is not told again.
    two.script().watches.push_back(vec![Ok(events(&[6, 7])), Ok(events(&[7, 8])), Ok(events(&[9]))]);
    let client = client(&[&one.address, &two.address]);
    assert_eq!(revisions(&client, 5, 5).await, [5, 6, 7, 8, 9]);
    assert_eq!(one.script().watched_from, [5]);
    assert_eq!(two.script().watched_from, [8]);
}

#[tokio::test]
async fn a_stream_that_just_ends_is_resumed_and_so_is_one_that_was_too_slow() {
    let fake = Fake::start().await;
    let slow = Err(Status::resource_exhausted("you read too slowly"));
    fake.script().watches.extend([
        vec![Ok(events(&[1]))],
        vec![Ok(events(&[2])), slow],
        vec![Ok(events(&[3]))],
    ]);
    assert_eq!(revisions(&client(&[&fake.address]), 1, 3).await, [1, 2, 3]);
    assert_eq!(fake.script().watched_from, [1, 2, 3]);
}

#[tokio::test]
async fn a_bookmark_moves_the_position() {
    let fake = Fake::start().await;
    let bookmark = v1::WatchEventsResponse { revision: 40, ..events(&[]) };
    fake.script().watches.extend([vec![Ok(bookmark)], vec![Ok(events(&[41]))]]);
    let client = client(&[&fake.address]);
    let mut watch = client.watch(30, v1::EventFilter { name: "web".into(), ..Default::default() });
    assert!(watch.next().await.unwrap().events.is_empty());
    assert_eq!(watch.position(), Some(41));
    assert_eq!(watch.next().await.unwrap().events[0].revision, 41);
    assert_eq!(fake.script().watched_from, [30, 41]);
}

#[tokio::test]
async fn from_now_on_is_fixed_before_the_first_failure() {
    let (dead, fake) = (nobody().await, Fake::start().await);
    fake.script().revision = 10;
    let cut = vec![Err(Status::unavailable("stopping"))];
    fake.script().watches.extend([cut, vec![Ok(events(&[11, 12]))]]);
    assert_eq!(revisions(&client(&[&dead, &fake.address]), 0, 2).await, [11, 12]);
    assert_eq!(fake.script().watched_from, [11, 11]);
}

#[tokio::test]
async fn a_revision_that_is_too_old_is_refused() {
    let (one, two) = (Fake::start().await, Fake::start().await);
    one.script().watches.push_back(vec![Err(Status::out_of_range("the oldest revision kept is 100"))]);
    let client = client(&[&one.address, &two.address]);
    let error = client.watch(1, v1::EventFilter::default()).next().await.unwrap_err();
    assert_eq!(error.code(), Some(Code::OutOfRange));
    assert!(two.script().watched_from.is_empty());
}

#[tokio::test]
async fn a_gap_is_an_error() {
    let fake = Fake::start().await;
    fake.script().watches.push_back(vec![Ok(events(&[1, 2, 4]))]);
    let error = client(&[&fake.address]).watch(1, v1::EventFilter::default()).next().await.unwrap_err();
    assert_eq!(error.code(), Some(Code::DataLoss));
    assert!(error.to_string().contains("revision 3 is missing"), "{error}");
}

#[tokio::test]
async fn it_gives_up_when_nobody_serves_it_until_the_deadline() {
    let fake = Fake::start().await;
    let client = client(&[&fake.address]).with_deadline(Duration::from_millis(200));
    let error = client.watch(1, v1::EventFilter::default()).next().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable(_)), "{error}");
    assert!(fake.script().watched_from.len() > 1, "it was tried again");
}
