//! The API of a whole node, over real sockets, with an agent that only speaks the protocol.

mod agent;
mod million;
mod rig;
mod streams;

use std::collections::BTreeMap;
use std::time::Duration;

use prost_types::FieldMask;
use sandkeeper_proto::v1;
use tokio::time::timeout;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use agent::NEVER_STARTS;
use rig::Rig;

const LONG: Duration = Duration::from_secs(30);

fn create(name: &str) -> v1::CreateSandboxRequest {
    v1::CreateSandboxRequest { request_id: format!("create-{name}"), name: name.into(), ..Default::default() }
}

fn by_name(name: &str) -> v1::SandboxRef {
    v1::SandboxRef { name: name.into(), ..Default::default() }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, why: &str) -> Status {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (code, why), "{status}");
    status
}

/// From the first refusal to the last terminate: one test, as a node takes a while to start.
#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_sandboxes_through_the_api() {
    let rig = Rig::start().await;
    nothing_fits_without_agents(&rig).await;
    let _agent = rig.agent(20).await;
    creates_are_exactly_once(&rig).await;
    strong_creates_answer_when_it_runs_or_has_failed(&rig).await;
    lists_are_of_one_revision(&rig).await;
    changes_heed_the_expected_revision(&rig).await;
    the_history_is_told(&rig).await;
    logs_come_through_the_agent(&rig).await;
    capacity_and_cluster_are_told(&rig).await;
    health_reflection_and_pages_answer(&rig).await;
    a_terminate_frees_the_name_at_once(&rig).await;
    streams_end_with_a_reason_at_shutdown(rig).await;
}

async fn nothing_fits_without_agents(rig: &Rig) {
    let answer = rig.sandboxes().create_sandbox(create("web")).await;
    refused(answer, Code::ResourceExhausted, "NO_CAPACITY");
    let bad = v1::CreateSandboxRequest { name: "No".into(), exposed_ports: vec![0], ..create("web") };
    let status = refused(rig.sandboxes().create_sandbox(bad).await, Code::InvalidArgument, "INVALID");
    let details = status.get_error_details();
    let fields = &details.bad_request().unwrap().field_violations;
    let fields: Vec<&str> = fields.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["name", "exposed_ports"]);
    let waits = v1::CreateSandboxRequest { wait_for_capacity: true, ..create("waits") };
    let answer = rig.sandboxes().create_sandbox(waits).await.unwrap().into_inner();
    assert_eq!(answer.sandbox.unwrap().phase(), v1::Phase::Pending);
}

async fn creates_are_exactly_once(rig: &Rig) {
    let wait = |name, phase: v1::Phase| v1::WaitSandboxRequest {
        r#ref: Some(by_name(name)),
        phases: vec![phase.into()],
    };
    let waited = rig.sandboxes().wait_sandbox(wait("waits", v1::Phase::Running)).await.unwrap().into_inner();
    assert_eq!(waited.sandbox.unwrap().phase(), v1::Phase::Running, "it got its agent when there was one");

    let first = rig.sandboxes().create_sandbox(create("web")).await.unwrap().into_inner();
    let header = first.header.clone().unwrap();
    let sandbox = first.sandbox.clone().unwrap();
    assert_eq!(header.node, "n1");
    assert!(header.revision > first.revision, "the allocation follows the creation");
    assert_eq!(sandbox.endpoints, [] as [String; 0]);
    let again = rig.sandboxes().create_sandbox(create("web")).await.unwrap().into_inner();
    assert!(again.duplicate && !first.duplicate);
    assert_eq!(again.sandbox.unwrap().sandbox_id, sandbox.sandbox_id);
    assert_eq!(again.revision, first.revision);

    let other = v1::CreateSandboxRequest { request_id: "other".into(), ..create("web") };
    let status = refused(rig.sandboxes().create_sandbox(other).await, Code::AlreadyExists, "NAME_TAKEN");
    let info = status.get_error_details().error_info().unwrap().metadata.clone();
    assert_eq!(info["sandbox_id"], sandbox.sandbox_id);
    let reused = v1::CreateSandboxRequest { name: "else".into(), ..create("web") };
    refused(rig.sandboxes().create_sandbox(reused).await, Code::AlreadyExists, "REQUEST_ID_REUSED");
    let past = v1::CreateSandboxRequest {
        expiry: Some(v1::create_sandbox_request::Expiry::ExpireTime(1)),
        ..create("past")
    };
    refused(rig.sandboxes().create_sandbox(past).await, Code::InvalidArgument, "INVALID");

    let get = |r#ref| v1::GetSandboxRequest { r#ref, read: None };
    let got = rig.sandboxes().get_sandbox(get(Some(by_name("web")))).await.unwrap().into_inner();
    assert!(got.header.unwrap().linearizable);
    assert_eq!(got.sandbox.unwrap().sandbox_id, sandbox.sandbox_id);
    refused(
        rig.sandboxes().get_sandbox(get(Some(by_name("none")))).await,
        Code::NotFound,
        "SANDBOX_NOT_FOUND",
    );
}

async fn strong_creates_answer_when_it_runs_or_has_failed(rig: &Rig) {
    let strong = |name: &str, image: &str| v1::CreateSandboxRequest {
        mode: v1::Mode::Strong.into(),
        image: image.into(),
        ..create(name)
    };
    let ran = rig.sandboxes().create_sandbox(strong("strong", "")).await.unwrap().into_inner();
    let sandbox = ran.sandbox.unwrap();
    assert_eq!((sandbox.phase(), sandbox.sandbox_id.len()), (v1::Phase::Running, 36));

    let failed = rig.sandboxes().create_sandbox(strong("broken", agent::FAILS)).await;
    let status = refused(failed, Code::FailedPrecondition, "ROLLED_BACK");
    assert!(status.message().contains("no such image"), "{status}");
    let again = rig.sandboxes().create_sandbox(strong("broken", agent::FAILS)).await;
    refused(again, Code::FailedPrecondition, "ROLLED_BACK");

    let mut request = Request::new(strong("slow", NEVER_STARTS));
    request.set_timeout(Duration::from_millis(1500));
    let status =
        refused(rig.sandboxes().create_sandbox(request).await, Code::DeadlineExceeded, "NOT_RUNNING_YET");
    assert!(status.message().contains("ALLOCATED") && status.message().contains("create-slow"), "{status}");
}

async fn lists_are_of_one_revision(rig: &Rig) {
    let page = |token: &str| v1::ListSandboxesRequest {
        page_size: 1,
        page_token: token.into(),
        namespace: "default".into(),
        ..Default::default()
    };
    let first = rig.sandboxes().list_sandboxes(page("")).await.unwrap().into_inner();
    let labelled = v1::CreateSandboxRequest {
        labels: BTreeMap::from([("late".to_owned(), "yes".to_owned())]),
        ..create("late")
    };
    rig.sandboxes().create_sandbox(labelled).await.unwrap();
    let revision = first.header.as_ref().unwrap().revision;
    let mut names: Vec<String> = first.sandboxes.iter().map(|sandbox| sandbox.name.clone()).collect();
    let mut token = first.next_page_token.clone();
    while !token.is_empty() {
        let next = rig.sandboxes().list_sandboxes(page(&token)).await.unwrap().into_inner();
        assert_eq!(next.header.as_ref().unwrap().revision, revision);
        assert_eq!(next.sandboxes.len(), 1);
        names.push(next.sandboxes[0].name.clone());
        token = next.next_page_token;
    }
    names.sort();
    assert_eq!(names, ["slow", "strong", "waits", "web"], "as it was when the list began");
    let other = v1::ListSandboxesRequest { agent_id: "a1".into(), ..page(&first.next_page_token) };
    refused(rig.sandboxes().list_sandboxes(other).await, Code::InvalidArgument, "INVALID");
    let label_selector = BTreeMap::from([("late".to_owned(), "yes".to_owned())]);
    let only = v1::ListSandboxesRequest { label_selector, ..Default::default() };
    let found = rig.sandboxes().list_sandboxes(only).await.unwrap().into_inner().sandboxes;
    assert_eq!(found.iter().map(|sandbox| sandbox.name.as_str()).collect::<Vec<_>>(), ["late"]);
}

async fn changes_heed_the_expected_revision(rig: &Rig) {
    let get = v1::GetSandboxRequest { r#ref: Some(by_name("strong")), read: None };
    let before = rig.sandboxes().get_sandbox(get).await.unwrap().into_inner().sandbox.unwrap();
    let update = |expected_revision| v1::UpdateSandboxRequest {
        r#ref: Some(by_name("strong")),
        expected_revision,
        update_mask: Some(FieldMask { paths: vec!["failure_policy".into()] }),
        failure_policy: v1::FailurePolicy::AutoRecreate.into(),
        ..Default::default()
    };
    let stale = rig.sandboxes().update_sandbox(update(before.revision - 1)).await;
    refused(stale, Code::Aborted, "REVISION_MOVED");
    let done = rig.sandboxes().update_sandbox(update(before.revision)).await.unwrap().into_inner();
    let after = done.sandbox.unwrap();
    assert_eq!(after.failure_policy(), v1::FailurePolicy::AutoRecreate);
    assert_eq!(done.header.unwrap().revision, after.revision);
    let read = v1::ReadOptions { consistency: v1::Consistency::Local.into(), min_revision: after.revision };
    let get = v1::GetSandboxRequest { r#ref: Some(by_name("strong")), read: Some(read) };
    let got = rig.sandboxes().get_sandbox(get).await.unwrap().into_inner();
    assert!(!got.header.unwrap().linearizable);
    assert_eq!(got.sandbox.unwrap().revision, after.revision);
}

async fn the_history_is_told(rig: &Rig) {
    let filter = v1::EventFilter { name: "broken".into(), ..Default::default() };
    let list = v1::ListEventsRequest { filter: Some(filter), ..Default::default() };
    let found = rig.events().list_events(list).await.unwrap().into_inner();
    let types: Vec<_> = found.events.iter().map(v1::Event::r#type).collect();
    let expected = [
        v1::EventType::SandboxCreated,
        v1::EventType::SandboxAllocated,
        v1::EventType::SandboxFailed,
        v1::EventType::SandboxRemoved,
    ];
    assert_eq!((types.as_slice(), found.truncated), (expected.as_slice(), false));
    assert_eq!(found.events[0].actor, "client 127.0.0.1");

    let filter = v1::EventFilter { name: "web".into(), ..Default::default() };
    let watch = v1::WatchEventsRequest { from_revision: 1, filter: Some(filter) };
    let mut watch = rig.events().watch_events(watch).await.unwrap().into_inner();
    let mut types = Vec::new();
    while types.len() < 3 {
        let message = timeout(LONG, watch.message()).await.unwrap().unwrap().unwrap();
        types.extend(message.events.iter().map(v1::Event::r#type));
    }
    let expected =
        [v1::EventType::SandboxCreated, v1::EventType::SandboxAllocated, v1::EventType::SandboxRunning];
    assert_eq!(types, expected);
}

async fn logs_come_through_the_agent(rig: &Rig) {
    let logs = |name| v1::StreamLogsRequest { r#ref: Some(by_name(name)), follow: false, tail_lines: 0 };
    let mut stream = rig.sandboxes().stream_logs(logs("web")).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = timeout(LONG, stream.message()).await.unwrap().unwrap() {
        bytes.extend(chunk.data);
    }
    assert_eq!(bytes, agent::LOG);
    refused(rig.sandboxes().stream_logs(logs("none")).await, Code::NotFound, "SANDBOX_NOT_FOUND");
}

async fn capacity_and_cluster_are_told(rig: &Rig) {
    let capacity = rig.fleet().get_capacity(v1::GetCapacityRequest::default()).await.unwrap().into_inner();
    assert_eq!((capacity.total.unwrap().slots, capacity.allocated.unwrap().slots), (20, 5));
    let told = &capacity.agents[0];
    assert!(told.connected && told.connection_id.starts_with("a1-127-0-0-1-"), "{told:?}");
    let get = |id: &str| v1::GetAgentRequest { agent_id: id.into(), read: None };
    refused(rig.fleet().get_agent(get("a2")).await, Code::NotFound, "AGENT_NOT_FOUND");
    let cordon = v1::CordonAgentRequest { agent_id: "a1".into(), ..Default::default() };
    assert!(rig.fleet().cordon_agent(cordon).await.unwrap().into_inner().agent.unwrap().cordoned);
    let uncordon = v1::UncordonAgentRequest { agent_id: "a1".into(), ..Default::default() };
    assert!(!rig.fleet().uncordon_agent(uncordon).await.unwrap().into_inner().agent.unwrap().cordoned);
    let remove = v1::RemoveAgentRequest { agent_id: "a1".into(), ..Default::default() };
    refused(rig.fleet().remove_agent(remove).await, Code::FailedPrecondition, "FAILED_PRECONDITION");
    // Nobody listens on port 1.
    let add = v1::AddMemberRequest { peer_address: "127.0.0.1:1".into() };
    let unreachable = rig.cluster().add_member(add).await;
    assert!(
        unreachable
            .as_ref()
            .is_err_and(|status| status.message().contains("at 127.0.0.1:1 can't be reached"))
    );
    refused(unreachable, Code::FailedPrecondition, "PEER_UNREACHABLE");

    let verified = rig.cluster().verify(v1::VerifyRequest {}).await.unwrap().into_inner();
    assert!(verified.identical, "{verified:?}");
    let status = rig.cluster().get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.state.as_str(), status.leader.as_str(), status.members.len()), ("leader", "n1", 1));
    assert_eq!(status.agents_connected, 1);
    let snapshot = rig.cluster().trigger_snapshot(v1::TriggerSnapshotRequest {}).await.unwrap().into_inner();
    assert!(snapshot.snapshot_index >= status.applied_index);
    let bad = v1::AddMemberRequest { peer_address: "nowhere".into() };
    refused(rig.cluster().add_member(bad).await, Code::InvalidArgument, "INVALID");
    let unknown = v1::RemoveMemberRequest { member: "n9".into() };
    refused(rig.cluster().remove_member(unknown).await, Code::NotFound, "MEMBER_NOT_FOUND");
}

async fn health_reflection_and_pages_answer(rig: &Rig) {
    for service in std::iter::once("").chain(super::PUBLIC_SERVICES) {
        rig.until_serving(service).await;
    }
    let services = rig.reflected_services().await;
    for service in super::PUBLIC_SERVICES {
        assert!(services.iter().any(|found| found == service), "{service} is missing in {services:?}");
    }
    assert!(services.iter().any(|found| found == "grpc.health.v1.Health"), "{services:?}");
    assert!(!services.iter().any(|found| found.contains("internal")), "{services:?}");
    let (status, text) = rig.http("/metrics").await;
    assert_eq!(status, 200);
    assert!(
        text.contains("sandkeeper_commands_total{kind=\"create_sandbox\",result=\"NAME_TAKEN\"} 1"),
        "{text}"
    );
    assert!(text.contains("sandkeeper_agent_sessions 1"), "{text}");
    assert_eq!(rig.http("/healthz").await.0, 200);
    assert_eq!(rig.http("/readyz").await.0, 200);
    assert_eq!(rig.http("/else").await.0, 404);
}

async fn a_terminate_frees_the_name_at_once(rig: &Rig) {
    let terminate = v1::TerminateSandboxRequest { r#ref: Some(by_name("web")), ..Default::default() };
    let ended = rig.sandboxes().terminate_sandbox(terminate).await.unwrap().into_inner().sandbox.unwrap();
    assert_eq!(ended.phase(), v1::Phase::Terminating);
    let next = v1::CreateSandboxRequest { request_id: "next".into(), ..create("web") };
    let next = rig.sandboxes().create_sandbox(next).await.unwrap().into_inner().sandbox.unwrap();
    assert_ne!(next.sandbox_id, ended.sandbox_id);
    let gone = v1::WaitSandboxRequest {
        r#ref: Some(v1::SandboxRef { sandbox_id: ended.sandbox_id.clone(), ..Default::default() }),
        phases: vec![v1::Phase::Gone.into()],
    };
    let gone = timeout(LONG, rig.sandboxes().wait_sandbox(gone)).await.unwrap().unwrap().into_inner();
    assert_eq!(gone.sandbox.unwrap().phase(), v1::Phase::Gone);
    let late = rig.sandboxes().create_sandbox(create("web")).await.unwrap().into_inner();
    assert!(late.duplicate, "the first answer again");
    let late = late.sandbox.unwrap();
    assert_eq!((late.sandbox_id.as_str(), late.phase()), (ended.sandbox_id.as_str(), v1::Phase::Gone));
}

async fn streams_end_with_a_reason_at_shutdown(rig: Rig) {
    let watch = v1::WatchEventsRequest { from_revision: 1_000_000, filter: None };
    let mut watch = rig.events().watch_events(watch).await.unwrap().into_inner();
    let wait =
        v1::WaitSandboxRequest { r#ref: Some(by_name("slow")), phases: vec![v1::Phase::Running.into()] };
    let mut sandboxes = rig.sandboxes();
    let waiting = tokio::spawn(async move { sandboxes.wait_sandbox(wait).await });
    // Once a bookmark has come, both are under way.
    assert_eq!(timeout(LONG, watch.message()).await.unwrap().unwrap().unwrap().revision, 999_999);
    let stopped = tokio::spawn(rig.stop());
    let ended = loop {
        match timeout(LONG, watch.message()).await.unwrap() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the end has a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!((ended.code(), reason(&ended).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    refused(waiting.await.unwrap(), Code::Unavailable, "SHUTTING_DOWN");
    timeout(LONG, stopped).await.unwrap().unwrap();
}
