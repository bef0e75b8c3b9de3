//! Looks at every replica's capacity and digests, again and again, and lets the cluster compare itself.

use std::sync::Arc;
use std::time::Duration;

use sandkeeper_client::{Client, v1};
use tokio::time::sleep;

use super::caller::outcome_of;
use crate::chaos::oracle::Oracle;
use crate::chaos::record::{Action, Operation, Outcome};

/// Between two looks at one replica.
const LOOK: Duration = Duration::from_millis(150);
/// Between two comparisons by the cluster itself.
const VERIFY: Duration = Duration::from_secs(2);
/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(3);

fn client(apis: &[String]) -> Client {
    let client = Client::builder().servers(apis.iter().cloned()).deadline(DEADLINE).build();
    client.expect("nodes of a campaign have good addresses")
}

/// Looks at one replica until it is dropped.
pub(super) async fn look(node: usize, api: String, oracle: Arc<Oracle>) {
    let client = client(&[api]);
    let read = v1::ReadOptions { consistency: v1::Consistency::Local.into(), min_revision: 0 };
    loop {
        let (began, floor) = (oracle.now(), oracle.floor());
        let answer = client.capacity(read).await;
        if let Ok(answer) = answer.map_err(|error| outcome_of(&error)) {
            oracle.note(Operation {
                client: "looks".to_owned(),
                node,
                action: Action::Capacity { read },
                began,
                ended: oracle.now(),
                floor,
                outcome: Outcome::Capacity(Box::new(answer)),
            });
        }
        sleep(LOOK).await;
    }
}

/// Lets the cluster compare its digests until it is dropped.
pub(super) async fn verify(apis: Vec<String>, oracle: Arc<Oracle>) {
    let client = client(&apis);
    loop {
        sleep(VERIFY).await;
        // While there is no leader nobody can.
        if let Ok(answer) = client.verify().await {
            oracle.verified(&answer);
        }
    }
}
