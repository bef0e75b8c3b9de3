//! Clients whose sandboxes are processes that write down when and where they live; and short ones, which exit by themselves.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use rand::RngExt;
use sandkeeper_client::{Client, v1};

use super::caller::{Caller, created, sandbox};
use super::{LIVES, REAL};
use crate::chaos::record::{Action, Outcome};
use crate::{by_id, diary, shell};

/// Sandboxes that live at a time.
const LIVE: usize = 4;
/// The least recovery timeout that there is.
const RECOVERY_SECONDS: u32 = 5;
/// Between two steps, at most.
const PAUSE_MILLIS: u64 = 3_000;

/// Works until it is told to end. What it has made lives on.
pub(super) async fn work(mut caller: Caller, diaries: PathBuf) {
    let mut mine = VecDeque::new();
    while !caller.is_over() {
        let step = caller.dice.random_range(0..10);
        match (mine.len() < LIVE, step) {
            (_, 0) => drop(create(&mut caller, None).await),
            // It is ended before its agent has said anything of it, perhaps before it has heard of it.
            (_, 1) => {
                if let Some(id) = create(&mut caller, Some(&diaries)).await {
                    change(&mut caller, "terminate", id).await;
                }
            }
            (true, _) => mine.extend(create(&mut caller, Some(&diaries)).await),
            (false, 2..6) => {
                if let Some(id) = mine.pop_front() {
                    change(&mut caller, "terminate", id).await;
                }
            }
            (false, 6) => change(&mut caller, "reset", mine[0].clone()).await,
            (false, _) => {}
        }
        let pause = caller.dice.random_range(0..PAUSE_MILLIS);
        caller.rest(Duration::from_millis(pause)).await;
    }
}

/// One that writes a diary; or one that soon exits, and is ended by its TTL if not before. Its id, if it was made.
async fn create(caller: &mut Caller, diaries: Option<&PathBuf>) -> Option<String> {
    let request_id = caller.request_id("c-");
    let script = if diaries.is_some() { diary::SCRIPT } else { "sleep 0.3; exit 3" };
    let recreates = diaries.is_some() && caller.dice.random_bool(0.7);
    let policy = if recreates { v1::FailurePolicy::AutoRecreate } else { v1::FailurePolicy::Manual };
    let seconds = caller.dice.random_range(5..20);
    let ttl = v1::create_sandbox_request::Expiry::Ttl(prost_types::Duration { seconds, nanos: 0 });
    let request = v1::CreateSandboxRequest {
        request_id: request_id.clone(),
        namespace: LIVES.to_owned(),
        pool_ref: REAL.to_owned(),
        envs: diaries
            .map(|folder| ("DIARY".to_owned(), folder.join(&request_id).to_string_lossy().into_owned()))
            .into_iter()
            .collect(),
        failure_policy: policy.into(),
        recovery_timeout_seconds: if recreates { RECOVERY_SECONDS } else { 0 },
        expiry: diaries.is_none().then_some(ttl),
        ..shell(&request_id, script)
    };
    let (namespace, name) = (request.namespace.clone(), request.name.clone());
    let action = Action::Create { namespace, name, request_id };
    let call = |client: Client| {
        let request = request.clone();
        async move { client.create(request).await.map(created) }
    };
    match caller.until_known(action, call).await {
        Outcome::Created { sandbox, .. } => Some(sandbox.sandbox_id),
        _ => None,
    }
}

async fn change(caller: &mut Caller, what: &'static str, id: String) {
    let request_id = caller.request_id("c-");
    let action = Action::Change { call: what, sandbox_id: id.clone() };
    let call = |client: Client| {
        let (request_id, r#ref) = (request_id.clone(), Some(by_id(&id)));
        async move {
            if what == "reset" {
                let request = v1::ResetSandboxRequest { request_id, r#ref, expected_revision: 0 };
                client.reset(request).await.map(|answer| sandbox(answer.header, answer.sandbox))
            } else {
                let request = v1::TerminateSandboxRequest { request_id, r#ref, expected_revision: 0 };
                client.terminate(request).await.map(|answer| sandbox(answer.header, answer.sandbox))
            }
        }
    };
    caller.until_known(action, call).await;
}
