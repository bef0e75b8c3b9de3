//! All RPCs of callers but the create.

use std::time::Duration;

use cluster_tests::{Raw, by_id, by_name, refused};
use sandkeeper_client::{Code, v1};
use tonic::Request;
use tonic::metadata::MetadataValue;

use crate::one;

const UNKNOWN: &str = "0123456789abcdef0123456789abcdef";

/// What is no reference to a sandbox, and the fields that have to be named.
fn bad_references() -> Vec<(Option<v1::SandboxRef>, &'static str)> {
    let both = v1::SandboxRef { name: "first".into(), ..by_id(UNKNOWN) };
    vec![
        (None, "ref"),
        (Some(v1::SandboxRef::default()), "ref"),
        (Some(both), "ref"),
        (Some(by_id("NOT AN ID")), "ref.sandbox_id"),
        (Some(by_name("NOT A NAME")), "ref.name"),
        (Some(v1::SandboxRef { namespace: "NO".into(), ..by_name("first") }), "ref.namespace"),
    ]
}

/// No consistency that any version knows.
const BAD_READ: Option<v1::ReadOptions> = Some(v1::ReadOptions { consistency: 99, min_revision: 0 });

/// `first`: a sandbox that exists.
pub async fn refused_by(node: &Raw, first: &v1::Sandbox) {
    references(node).await;
    unknown(node).await;
    updates(node).await;
    lists(node).await;
    waits(node).await;
    events(node).await;
    fleet(node, first).await;
    cluster(node).await;
    metadata(node).await;
}

/// Six RPCs name a sandbox in the same way.
async fn references(node: &Raw) {
    for (r#ref, field) in bad_references() {
        let get = v1::GetSandboxRequest { r#ref: r#ref.clone(), ..v1::GetSandboxRequest::default() };
        refused("get", node.sandboxes().get_sandbox(get).await).names(&[field]);
        let mask = Some(prost_types::FieldMask { paths: vec!["labels".into()] });
        let update = v1::UpdateSandboxRequest {
            r#ref: r#ref.clone(),
            update_mask: mask,
            ..v1::UpdateSandboxRequest::default()
        };
        refused("update", node.sandboxes().update_sandbox(update).await).names(&[field]);
        let reset = v1::ResetSandboxRequest { r#ref: r#ref.clone(), ..v1::ResetSandboxRequest::default() };
        refused("reset", node.sandboxes().reset_sandbox(reset).await).names(&[field]);
        let terminate =
            v1::TerminateSandboxRequest { r#ref: r#ref.clone(), ..v1::TerminateSandboxRequest::default() };
        refused("terminate", node.sandboxes().terminate_sandbox(terminate).await).names(&[field]);
        let wait = v1::WaitSandboxRequest { r#ref: r#ref.clone(), phases: vec![v1::Phase::Running.into()] };
        refused("wait", node.sandboxes().wait_sandbox(wait).await).names(&[field]);
        let logs = v1::StreamLogsRequest { r#ref, ..v1::StreamLogsRequest::default() };
        refused("logs", node.sandboxes().stream_logs(logs).await).names(&[field]);
    }
    let get = v1::GetSandboxRequest { r#ref: Some(by_name("first")), read: BAD_READ };
    refused("get", node.sandboxes().get_sandbox(get).await).names(&["read.consistency"]);
    let long = "r".repeat(129);
    let reset =
        v1::ResetSandboxRequest { request_id: long.clone(), r#ref: Some(by_id("NO")), expected_revision: 0 };
    refused("reset", node.sandboxes().reset_sandbox(reset).await).names(&["request_id", "ref.sandbox_id"]);
    let terminate =
        v1::TerminateSandboxRequest { request_id: long, r#ref: Some(by_id("NO")), expected_revision: 0 };
    let answer = node.sandboxes().terminate_sandbox(terminate).await;
    refused("terminate", answer).names(&["request_id", "ref.sandbox_id"]);
}

async fn unknown(node: &Raw) {
    let by_unknown_name = v1::SandboxRef { namespace: "nowhere".into(), ..by_name("first") };
    for (reference, told) in [(by_id(UNKNOWN), UNKNOWN), (by_unknown_name, "nowhere/first")] {
        let r#ref = Some(reference);
        let get = v1::GetSandboxRequest { r#ref: r#ref.clone(), ..v1::GetSandboxRequest::default() };
        let answer = refused("get", node.sandboxes().get_sandbox(get).await);
        answer.is(Code::NotFound, "SANDBOX_NOT_FOUND").tells("sandbox", told).says(told);
        let mask = Some(prost_types::FieldMask { paths: vec!["labels".into()] });
        let update = v1::UpdateSandboxRequest {
            r#ref: r#ref.clone(),
            update_mask: mask,
            ..v1::UpdateSandboxRequest::default()
        };
        let answer = refused("update", node.sandboxes().update_sandbox(update).await);
        answer.is(Code::NotFound, "SANDBOX_NOT_FOUND").tells("sandbox", told);
        let reset = v1::ResetSandboxRequest { r#ref: r#ref.clone(), ..v1::ResetSandboxRequest::default() };
        let answer = refused("reset", node.sandboxes().reset_sandbox(reset).await);
        answer.is(Code::NotFound, "SANDBOX_NOT_FOUND").tells("sandbox", told);
        let terminate =
            v1::TerminateSandboxRequest { r#ref: r#ref.clone(), ..v1::TerminateSandboxRequest::default() };
        let answer = refused("terminate", node.sandboxes().terminate_sandbox(terminate).await);
        answer.is(Code::NotFound, "SANDBOX_NOT_FOUND").tells("sandbox", told);
        let wait = v1::WaitSandboxRequest { r#ref: r#ref.clone(), phases: vec![v1::Phase::Running.into()] };
        let answer = refused("wait", node.sandboxes().wait_sandbox(wait).await);
        answer.is(Code::NotFound, "SANDBOX_NOT_FOUND").tells("sandbox", told);
        let logs = v1::StreamLogsRequest { r#ref, ..v1::StreamLogsRequest::default() };
        let answer = refused("logs", node.sandboxes().stream_logs(logs).await);
        answer.is(Code::NotFound, "SANDBOX_NOT_FOUND").tells("sandbox", told);
    }
}

async fn updates(node: &Raw) {
    let update = |paths: &[&str], request: v1::UpdateSandboxRequest| {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = v1::UpdateSandboxRequest { r#ref: Some(by_name("first")), update_mask, ..request };
        let mut service = node.sandboxes();
        async move { refused("update", service.update_sandbox(request).await) }
    };
    let empty = v1::UpdateSandboxRequest::default;
    update(&[], empty()).await.names(&["update_mask"]);
    update(&["name"], empty()).await.names(&["update_mask"]);
    update(&["expire_time"], v1::UpdateSandboxRequest { expire_time: -1, ..empty() })
        .await
        .names(&["expire_time"]);
    update(&["expire_time"], v1::UpdateSandboxRequest { expire_time: 1, ..empty() })
        .await
        .names(&["expire_time"]);
    let all = v1::UpdateSandboxRequest {
        request_id: "r".repeat(129),
        expire_time: i64::MIN,
        labels: one("", "v"),
        failure_policy: 99,
        recovery_timeout_seconds: u32::MAX,
        ..empty()
    };
    let paths = ["expire_time", "labels", "failure_policy", "recovery_timeout_seconds", "phase"];
    update(&paths, all).await.names(&[
        "request_id",
        "expire_time",
        "labels",
        "failure_policy",
        "recovery_timeout_seconds",
        "update_mask",
    ]);
}

async fn lists(node: &Raw) {
    let list = |request: v1::ListSandboxesRequest| {
        let mut service = node.sandboxes();
        async move { service.list_sandboxes(request).await }
    };
    let empty = v1::ListSandboxesRequest::default;
    let bad = v1::ListSandboxesRequest {
        namespace: "NO".into(),
        agent_id: "NO".into(),
        phases: vec![99],
        page_size: 5_001,
        ..empty()
    };
    refused("list", list(bad).await).names(&["namespace", "agent_id", "phases", "page_size"]);
    let bad = v1::ListSandboxesRequest { phases: vec![0], ..empty() };
    refused("list", list(bad).await).names(&["phases"]);
    let bad = v1::ListSandboxesRequest { read: BAD_READ, ..empty() };
    refused("list", list(bad).await).names(&["read.consistency"]);

    let paged = v1::ListSandboxesRequest { page_size: 1, ..empty() };
    let token = list(paged.clone()).await.unwrap().into_inner().next_page_token;
    assert!(!token.is_empty(), "two sandboxes are two pages of one");
    for page_token in ["x".to_owned(), "0".repeat(200), token.to_uppercase() + "0", token[2..].to_owned()] {
        let bad = v1::ListSandboxesRequest { page_token, ..paged.clone() };
        refused("list", list(bad).await).names(&["page_token"]);
    }
    let other = v1::ListSandboxesRequest { page_token: token, namespace: "default".into(), ..paged };
    refused("a list with the token of another", list(other).await).names(&["page_token"]);
}

async fn waits(node: &Raw) {
    let wait = |request: v1::WaitSandboxRequest, timeout: Option<Duration>| {
        let mut service = node.sandboxes();
        let mut request = Request::new(request);
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        async move { refused("wait", service.wait_sandbox(request).await) }
    };
    let nothing = v1::WaitSandboxRequest { r#ref: None, phases: Vec::new() };
    wait(nothing, None).await.names(&["ref", "phases"]);
    let bad = v1::WaitSandboxRequest { r#ref: Some(by_name("first")), phases: vec![0, 99] };
    wait(bad, None).await.names(&["phases", "phases"]);
    let never =
        v1::WaitSandboxRequest { r#ref: Some(by_name("first")), phases: vec![v1::Phase::Failed.into()] };
    // Which of the two clocks runs out first is a matter of chance on a busy machine.
    let late = wait(never, Some(Duration::from_secs(1))).await;
    assert_eq!(late.code, Code::DeadlineExceeded, "{late:?}");
    assert!(late.reason == "STILL_WAITING" || late.message == "Timeout expired", "{late:?}");
}

async fn events(node: &Raw) {
    let bad = v1::EventFilter {
        namespace: "NO".into(),
        name: "NO".into(),
        sandbox_id: "NOT AN ID".into(),
        agent_id: "NO".into(),
        types: vec![0, 99],
    };
    let fields = [
        "filter.namespace",
        "filter.name",
        "filter.sandbox_id",
        "filter.agent_id",
        "filter.types",
        "filter.types",
    ];
    let watch = v1::WatchEventsRequest { from_revision: 1, filter: Some(bad.clone()) };
    refused("watch", node.events().watch_events(watch).await).names(&fields);
    let list = |filter, limit, read| {
        let mut service = node.events();
        let request = v1::ListEventsRequest { filter, limit, read };
        async move { refused("list events", service.list_events(request).await) }
    };
    list(Some(bad), 0, None).await.names(&fields);
    list(None, 0, None).await.names(&["filter"]);
    list(Some(v1::EventFilter::default()), 0, None).await.names(&["filter"]);
    let good = Some(v1::EventFilter { name: "first".into(), ..v1::EventFilter::default() });
    list(good.clone(), 5_001, None).await.names(&["limit"]);
    list(good, 0, BAD_READ).await.names(&["read.consistency"]);
}

async fn fleet(node: &Raw, first: &v1::Sandbox) {
    for (agent_id, fields) in [("", true), ("NO", true), ("no_such", true), ("nobody", false)] {
        let agent_id = agent_id.to_owned();
        let mut fleet = node.fleet();
        let get = v1::GetAgentRequest { agent_id: agent_id.clone(), read: None };
        let cordon = v1::CordonAgentRequest { agent_id: agent_id.clone(), ..Default::default() };
        let uncordon = v1::UncordonAgentRequest { agent_id: agent_id.clone(), ..Default::default() };
        let recover = v1::RecoverAgentRequest { agent_id: agent_id.clone(), ..Default::default() };
        let remove = v1::RemoveAgentRequest { agent_id: agent_id.clone(), ..Default::default() };
        let answers = [
            refused("get agent", fleet.get_agent(get).await),
            refused("cordon", fleet.cordon_agent(cordon).await),
            refused("uncordon", fleet.uncordon_agent(uncordon).await),
            refused("recover agent", fleet.recover_agent(recover).await),
            refused("remove agent", fleet.remove_agent(remove).await),
        ];
        for answer in answers {
            if fields {
                answer.names(&["agent_id"]);
            } else {
                answer.is(Code::NotFound, "AGENT_NOT_FOUND").tells("agent_id", &agent_id).says(&agent_id);
            }
        }
    }
    let bad = v1::CordonAgentRequest {
        request_id: "r".repeat(129),
        agent_id: "NO".into(),
        reason: "w".repeat(4097),
    };
    let answer = refused("cordon", node.fleet().cordon_agent(bad).await);
    answer.names(&["request_id", "agent_id", "reason"]);
    let agents = v1::ListAgentsRequest { read: BAD_READ };
    refused("list agents", node.fleet().list_agents(agents).await).names(&["read.consistency"]);
    let capacity = v1::GetCapacityRequest { read: BAD_READ };
    refused("capacity", node.fleet().get_capacity(capacity).await).names(&["read.consistency"]);
    let remove = v1::RemoveAgentRequest { agent_id: first.agent_id.clone(), ..Default::default() };
    let answer = refused("remove agent", node.fleet().remove_agent(remove).await);
    answer.is(Code::FailedPrecondition, "FAILED_PRECONDITION").says(&first.agent_id);
}

async fn cluster(node: &Raw) {
    let mut cluster = node.cluster();
    for address in ["", "nowhere", ":7601", "host:", "host:0", "host:65536", "host:port"] {
        let add = v1::AddMemberRequest { peer_address: address.into() };
        refused(address, cluster.add_member(add).await).names(&["peer_address"]);
    }
    // Nobody listens on port 1.
    let add = v1::AddMemberRequest { peer_address: "127.0.0.1:1".into() };
    let answer = refused("add a member that is not there", cluster.add_member(add).await);
    answer.is(Code::FailedPrecondition, "PEER_UNREACHABLE").says("127.0.0.1:1");
    let remove = |member: &str| v1::RemoveMemberRequest { member: member.into() };
    refused("remove member", cluster.remove_member(remove("")).await).names(&["member"]);
    let answer = refused("remove member", cluster.remove_member(remove("nobody")).await);
    answer.is(Code::NotFound, "MEMBER_NOT_FOUND").says("nobody");
    let transfer = v1::TransferLeadershipRequest { to: "nobody".into() };
    let answer = refused("transfer", cluster.transfer_leadership(transfer).await);
    answer.is(Code::NotFound, "MEMBER_NOT_FOUND").says("nobody");
    let members = v1::ListMembersRequest { read: BAD_READ };
    refused("list members", cluster.list_members(members).await).names(&["read.consistency"]);
}

/// What a request brings beside its message.
async fn metadata(node: &Raw) {
    let with = |key: &'static str, value: &str| {
        let mut request = Request::new(cluster_tests::shell("bad-metadata", "sleep 600"));
        let value = MetadataValue::try_from(value.to_owned()).unwrap();
        request.metadata_mut().insert(key, value);
        request
    };
    let long = with("sandkeeper-actor", &"a".repeat(129));
    let answer = refused("a long actor", node.sandboxes().create_sandbox(long).await);
    answer.names(&["sandkeeper-actor"]);
    let bad = with("grpc-timeout", "soon");
    let answer = refused("a timeout that is none", node.sandboxes().create_sandbox(bad).await);
    answer.names(&["grpc-timeout"]);
}
