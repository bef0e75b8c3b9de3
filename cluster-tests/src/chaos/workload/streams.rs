//! A client that creates over streams, and ends what it has made.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sandkeeper_client::{Client, CreateStream, v1};
use tokio::sync::watch;
use tokio::time::sleep;

use super::ROOMY;
use super::caller::{Stage, created, outcome_of};
use crate::by_id;
use crate::chaos::oracle::Oracle;
use crate::chaos::record::{Action, Operation, Outcome};

/// Creates that are on their way at once.
const AT_ONCE: usize = 8;
/// Streams that one client opens one after the other have so many rounds of creates each.
const ROUNDS: usize = 20;
/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a create has, over all nodes.
const DEADLINE: Duration = Duration::from_secs(15);
/// What was made by a create of which nothing is known ends by itself.
const TTL_SECONDS: i64 = 20;

/// Works until it is told to end.
pub(super) async fn work(
    apis: Vec<String>,
    namespace: String,
    oracle: Arc<Oracle>,
    stage: watch::Receiver<Stage>,
) {
    let client = Client::builder().servers(apis).deadline(DEADLINE).build();
    let client = client.expect("nodes of a campaign have good addresses");
    let mut number = 0;
    while *stage.borrow() == Stage::Work {
        let mut stream = client.create_stream(&namespace);
        for _ in 0..ROUNDS {
            if *stage.borrow() != Stage::Work {
                return;
            }
            let Some(made) = round(&mut stream, &namespace, &mut number, &oracle).await else { break };
            for id in made {
                let request = v1::TerminateSandboxRequest {
                    r#ref: Some(by_id(&id)),
                    ..v1::TerminateSandboxRequest::default()
                };
                // If that fails its time will end it.
                let _ = client.terminate(request).await;
            }
            sleep(PAUSE).await;
        }
    }
}

/// Sends some creates, and hears of all of them; what they made. None: the stream is at its end.
async fn round(
    stream: &mut CreateStream,
    namespace: &str,
    number: &mut u64,
    oracle: &Oracle,
) -> Option<Vec<String>> {
    let mut open = HashMap::new();
    for _ in 0..AT_ONCE {
        *number += 1;
        let name = format!("s{number}");
        let ttl =
            v1::create_sandbox_request::Expiry::Ttl(prost_types::Duration { seconds: TTL_SECONDS, nanos: 0 });
        let create = v1::CreateSandboxRequest {
            name: name.clone(),
            pool_ref: ROOMY.to_owned(),
            command: vec!["true".to_owned()],
            expiry: Some(ttl),
            ..v1::CreateSandboxRequest::default()
        };
        let (began, floor) = (oracle.now(), oracle.floor());
        open.insert(stream.send(create).await?, (name, began, floor));
    }
    let mut made = Vec::new();
    while !open.is_empty() {
        let answer = stream.next().await?.ok()?;
        let Some((name, began, floor)) = open.remove(&answer.sequence) else { continue };
        let outcome = match answer.result {
            Ok(answer) => created(answer),
            Err(error) => outcome_of(&error),
        };
        if let Outcome::Created { sandbox, .. } = &outcome {
            made.push(sandbox.sandbox_id.clone());
        }
        let action = Action::Create { namespace: namespace.to_owned(), name, request_id: String::new() };
        let client = "stream".to_owned();
        oracle.note(Operation { client, node: 0, action, began, ended: oracle.now(), floor, outcome });
    }
    Some(made)
}
