//! Requests that are good in themselves, at the wrong time.

use cluster_tests::{Raw, by_id, by_name, refused, shell};
use sandkeeper_client::v1::create_sandbox_request::Expiry;
use sandkeeper_client::{Code, v1};

use crate::one;

/// `first`: a sandbox that exists, with port 8080, as there is one on each of the two agents.
pub async fn refused_by(node: &Raw, first: &v1::Sandbox) {
    taken(node, first).await;
    no_room(node).await;
    moved(node, first).await;
}

async fn taken(node: &Raw, first: &v1::Sandbox) {
    let answer = node.sandboxes().create_sandbox(shell("first", "sleep 1")).await;
    let refusal = refused("a name that is taken", answer);
    refusal.is(Code::AlreadyExists, "NAME_TAKEN").tells("sandbox_id", &first.sandbox_id);
    refusal.tells("namespace", "default").tells("name", "first").says(&first.sandbox_id);

    let other = v1::CreateSandboxRequest { request_id: "request-first".into(), ..shell("other", "sleep 1") };
    let refusal = refused("a request id with another create", node.sandboxes().create_sandbox(other).await);
    refusal.is(Code::AlreadyExists, "REQUEST_ID_REUSED").tells("request_id", "request-first");
    let other = v1::TerminateSandboxRequest {
        request_id: "request-first".into(),
        r#ref: Some(by_name("first")),
        ..v1::TerminateSandboxRequest::default()
    };
    let refusal = refused("a create's id for a terminate", node.sandboxes().terminate_sandbox(other).await);
    refusal.is(Code::AlreadyExists, "REQUEST_ID_REUSED").tells("request_id", "request-first");

    // The same again is no mistake, and changes nothing either.
    let same = v1::CreateSandboxRequest {
        request_id: "request-first".into(),
        exposed_ports: vec![8080],
        ..shell("first", "sleep 600")
    };
    let again = node.sandboxes().create_sandbox(same).await.unwrap().into_inner();
    assert!(again.duplicate);
    assert_eq!(again.sandbox.unwrap().sandbox_id, first.sandbox_id);

    let past = v1::CreateSandboxRequest { expiry: Some(Expiry::ExpireTime(1)), ..shell("past", "sleep 1") };
    refused("a time of the past", node.sandboxes().create_sandbox(past).await).names(&["expire_time"]);
}

/// Each shortage names what is missing: how many agents lack what.
async fn no_room(node: &Raw) {
    let good = || shell("large", "sleep 600");
    let cpu = v1::Resources { cpu_millis: Some(8_001), memory_bytes: None };
    let memory = v1::Resources { cpu_millis: None, memory_bytes: Some((8 << 30) + 1) };
    let most = v1::Resources { cpu_millis: Some(65_536_000), memory_bytes: Some(1 << 46) };
    let cases = [
        ("without_cpu", "2", v1::CreateSandboxRequest { resources: Some(cpu), ..good() }),
        ("without_memory", "2", v1::CreateSandboxRequest { resources: Some(memory), ..good() }),
        ("without_cpu", "2", v1::CreateSandboxRequest { resources: Some(most), ..good() }),
        ("without_ports", "2", v1::CreateSandboxRequest { exposed_ports: vec![80, 8080], ..good() }),
        ("without_labels", "2", v1::CreateSandboxRequest { agent_selector: one("gpu", "yes"), ..good() }),
        ("agents", "0", v1::CreateSandboxRequest { pool_ref: "gpu".into(), ..good() }),
    ];
    for (what, agents, request) in cases {
        let refusal = refused(what, node.sandboxes().create_sandbox(request).await);
        refusal.is(Code::ResourceExhausted, "NO_CAPACITY").tells(what, agents);
        assert!(!refusal.retry, "asking again at once is no help: {refusal:?}");
        let missing = match what {
            "without_cpu" => "too little CPU",
            "without_memory" => "too little memory",
            "without_ports" => "a port taken",
            "without_labels" => "the labels asked for",
            _ => "pool \"gpu\" has no agents",
        };
        refusal.says(missing);
    }
}

/// All four slots are taken.
pub async fn no_slot_is_left(node: &Raw) {
    let answer = node.sandboxes().create_sandbox(shell("fifth", "sleep 600")).await;
    let refusal = refused("a fifth of four", answer);
    refusal.is(Code::ResourceExhausted, "NO_CAPACITY").tells("without_slots", "2").tells("agents", "2");
    refusal.says("2 with no free slot");
}

/// Whoever expects a revision that has passed must read again.
async fn moved(node: &Raw, first: &v1::Sandbox) {
    let r#ref = Some(by_id(&first.sandbox_id));
    let expected_revision = first.revision - 1;
    let mask = Some(prost_types::FieldMask { paths: vec!["labels".into()] });
    let update = v1::UpdateSandboxRequest {
        r#ref: r#ref.clone(),
        expected_revision,
        update_mask: mask,
        labels: one("k", "v"),
        ..v1::UpdateSandboxRequest::default()
    };
    let reset = v1::ResetSandboxRequest {
        r#ref: r#ref.clone(),
        expected_revision,
        ..v1::ResetSandboxRequest::default()
    };
    let terminate =
        v1::TerminateSandboxRequest { r#ref, expected_revision, ..v1::TerminateSandboxRequest::default() };
    let answers = [
        refused("update", node.sandboxes().update_sandbox(update).await),
        refused("reset", node.sandboxes().reset_sandbox(reset).await),
        refused("terminate", node.sandboxes().terminate_sandbox(terminate).await),
    ];
    for refusal in answers {
        refusal.is(Code::Aborted, "REVISION_MOVED").tells("sandbox_id", &first.sandbox_id);
        refusal.tells("revision", &first.revision.to_string());
        refusal.tells("expected_revision", &expected_revision.to_string());
    }
}
