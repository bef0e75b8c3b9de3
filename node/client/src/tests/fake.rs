//! A control node that does what the test's script says, and remembers what it was asked.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::{Stream, StreamExt, stream};
use sandkeeper_proto::v1;
use sandkeeper_proto::v1::cluster_service_server::{ClusterService, ClusterServiceServer};
pub(super) use sandkeeper_proto::v1::create_sandboxes_request::Message as StreamedOut;
use sandkeeper_proto::v1::create_sandboxes_response::Message as StreamedIn;
use sandkeeper_proto::v1::event_service_server::{EventService, EventServiceServer};
use sandkeeper_proto::v1::sandbox_service_server::{SandboxService, SandboxServiceServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

/// What the next create comes to.
pub(super) enum Answer {
    Ok,
    Status(Status),
    /// The request is received and never answered.
    Silence,
}

/// One opening of the watch: what is sent, and then the stream ends.
pub(super) type WatchScript = Vec<Result<v1::WatchEventsResponse, Status>>;

#[derive(Default)]
pub(super) struct Script {
    pub(super) answers: VecDeque<Answer>,
    pub(super) watches: VecDeque<WatchScript>,
    pub(super) revision: u64,
    pub(super) creates: Vec<v1::CreateSandboxRequest>,
    /// The `grpc-timeout` of each create.
    pub(super) timeouts: Vec<Option<String>>,
    pub(super) watched_from: Vec<u64>,
    /// Of each stream of creates: after how many answers it ends, and how. Those beyond go on for ever.
    pub(super) streams: VecDeque<(u32, Status)>,
    /// What came in streams of creates, over all of them.
    pub(super) streamed: Vec<StreamedOut>,
}

pub(super) struct Fake {
    pub(super) address: String,
    script: Arc<Mutex<Script>>,
    task: JoinHandle<()>,
}

impl Fake {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let script = Arc::new(Mutex::new(Script::default()));
        let service = Service { script: script.clone() };
        let task = tokio::spawn(async move {
            Server::builder()
                .add_service(SandboxServiceServer::new(service.clone()))
                .add_service(EventServiceServer::new(service.clone()))
                .add_service(ClusterServiceServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { address, script, task }
    }

    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An address at which nobody listens.
pub(super) async fn nobody() -> String {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    listener.local_addr().unwrap().to_string()
}

/// A batch of events with these revisions.
pub(super) fn events(revisions: &[u64]) -> v1::WatchEventsResponse {
    let event = |revision: &u64| v1::Event { revision: *revision, ..Default::default() };
    v1::WatchEventsResponse {
        node: "fake".into(),
        revision: revisions.last().copied().unwrap_or_default(),
        events: revisions.iter().map(event).collect(),
    }
}

#[derive(Clone)]
struct Service {
    script: Arc<Mutex<Script>>,
}

fn answer_of(message: StreamedOut) -> StreamedIn {
    match message {
        StreamedOut::Open(open) => {
            let acknowledged_below = open.acknowledged_below;
            StreamedIn::Opened(v1::CreateStreamOpened { window: 8, acknowledged_below, header: None })
        }
        StreamedOut::Create(v1::StreamedCreate { sequence, create, .. }) => {
            let sandbox = v1::Sandbox { name: create.unwrap_or_default().name, ..Default::default() };
            let created = v1::CreateSandboxResponse { sandbox: Some(sandbox), ..Default::default() };
            let result = Some(v1::streamed_answer::Result::Created(created));
            StreamedIn::Answer(v1::StreamedAnswer { sequence, result })
        }
    }
}

type Answered<T> = Result<Response<T>, Status>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn unused<T>() -> Answered<T> {
    Err(Status::unimplemented("no test asks for it"))
}

#[tonic::async_trait]
impl SandboxService for Service {
    type StreamLogsStream = BoxStream<v1::StreamLogsResponse>;
    type CreateSandboxesStream = BoxStream<v1::CreateSandboxesResponse>;

    async fn create_sandboxes(
        &self,
        request: Request<Streaming<v1::CreateSandboxesRequest>>,
    ) -> Answered<Self::CreateSandboxesStream> {
        let mut requests = request.into_inner();
        let script = self.script.clone();
        let (answers, receiver) = mpsc::channel(64);
        let limit = script.lock().unwrap().streams.pop_front();
        tokio::spawn(async move {
            let mut answered = 0;
            while let Some(Ok(request)) = requests.next().await {
                script.lock().unwrap().streamed.push(request.message.clone().unwrap());
                let over = limit.as_ref().filter(|(most, _)| answered >= *most);
                if let Some((_, status)) = over {
                    let _ = answers.send(Err(status.clone())).await;
                    return;
                }
                let answer = answer_of(request.message.unwrap());
                answered += u32::from(matches!(&answer, StreamedIn::Answer(_)));
                let answer = v1::CreateSandboxesResponse { message: Some(answer) };
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }

    async fn batch_create_sandboxes(
        &self,
        _: Request<v1::BatchCreateSandboxesRequest>,
    ) -> Answered<v1::BatchCreateSandboxesResponse> {
        unused()
    }

    async fn create_sandbox(
        &self,
        request: Request<v1::CreateSandboxRequest>,
    ) -> Answered<v1::CreateSandboxResponse> {
        let timeout = request.metadata().get("grpc-timeout").map(|value| value.to_str().unwrap().to_owned());
        let request = request.into_inner();
        let answer = {
            let mut script = self.script.lock().unwrap();
            script.creates.push(request.clone());
            script.timeouts.push(timeout);
            script.answers.pop_front().unwrap_or(Answer::Ok)
        };
        match answer {
            Answer::Ok => {}
            Answer::Status(status) => return Err(status),
            Answer::Silence => std::future::pending().await,
        }
        let sandbox =
            v1::Sandbox { name: request.name, request_id: request.request_id, ..Default::default() };
        Ok(Response::new(v1::CreateSandboxResponse { sandbox: Some(sandbox), ..Default::default() }))
    }

    async fn stream_logs(&self, _: Request<v1::StreamLogsRequest>) -> Answered<Self::StreamLogsStream> {
        let piece = |text: &str| Ok(v1::StreamLogsResponse { data: text.as_bytes().to_vec() });
        let pieces = vec![piece("hello\n"), piece("world\n"), Err(Status::unavailable("the agent is gone"))];
        Ok(Response::new(stream::iter(pieces).boxed()))
    }

    async fn list_sandboxes(
        &self,
        request: Request<v1::ListSandboxesRequest>,
    ) -> Answered<v1::ListSandboxesResponse> {
        let (name, next) = match request.into_inner().page_token.as_str() {
            "" => ("a", "second"),
            "second" => ("b", "third"),
            _ => ("c", ""),
        };
        let sandboxes = vec![v1::Sandbox { name: name.into(), ..Default::default() }];
        let next_page_token = next.into();
        Ok(Response::new(v1::ListSandboxesResponse { sandboxes, next_page_token, ..Default::default() }))
    }

    async fn get_sandbox(&self, _: Request<v1::GetSandboxRequest>) -> Answered<v1::GetSandboxResponse> {
        unused()
    }
    async fn update_sandbox(
        &self,
        _: Request<v1::UpdateSandboxRequest>,
    ) -> Answered<v1::UpdateSandboxResponse> {
        unused()
    }
    async fn reset_sandbox(&self, _: Request<v1::ResetSandboxRequest>) -> Answered<v1::ResetSandboxResponse> {
        unused()
    }
    async fn terminate_sandbox(
        &self,
        _: Request<v1::TerminateSandboxRequest>,
    ) -> Answered<v1::TerminateSandboxResponse> {
        unused()
    }
    async fn wait_sandbox(&self, _: Request<v1::WaitSandboxRequest>) -> Answered<v1::WaitSandboxResponse> {
        std::future::pending().await
    }
}

#[tonic::async_trait]
impl EventService for Service {
    type WatchEventsStream = BoxStream<v1::WatchEventsResponse>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Answered<Self::WatchEventsStream> {
        let mut script = self.script.lock().unwrap();
        script.watched_from.push(request.into_inner().from_revision);
        match script.watches.pop_front() {
            Some(messages) => Ok(Response::new(stream::iter(messages).boxed())),
            None => Err(Status::unavailable("the script has no more watches")),
        }
    }

    async fn list_events(&self, _: Request<v1::ListEventsRequest>) -> Answered<v1::ListEventsResponse> {
        unused()
    }
}

#[tonic::async_trait]
impl ClusterService for Service {
    async fn list_members(&self, _: Request<v1::ListMembersRequest>) -> Answered<v1::ListMembersResponse> {
        let revision = self.script.lock().unwrap().revision;
        let header = v1::ResponseHeader { node: "fake".into(), revision, linearizable: true };
        Ok(Response::new(v1::ListMembersResponse { header: Some(header), members: Vec::new() }))
    }

    async fn transfer_leadership(
        &self,
        _: Request<v1::TransferLeadershipRequest>,
    ) -> Answered<v1::TransferLeadershipResponse> {
        self.script.lock().unwrap().revision += 1;
        Err(Status::unavailable("lost it half way"))
    }

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Answered<v1::GetStatusResponse> {
        unused()
    }
    async fn add_member(&self, _: Request<v1::AddMemberRequest>) -> Answered<v1::AddMemberResponse> {
        unused()
    }
    async fn remove_member(&self, _: Request<v1::RemoveMemberRequest>) -> Answered<v1::RemoveMemberResponse> {
        unused()
    }
    async fn trigger_snapshot(
        &self,
        _: Request<v1::TriggerSnapshotRequest>,
    ) -> Answered<v1::TriggerSnapshotResponse> {
        unused()
    }
    async fn verify(&self, _: Request<v1::VerifyRequest>) -> Answered<v1::VerifyResponse> {
        unused()
    }

    type BackupStream = Streaming<v1::BackupResponse>;

    async fn backup(&self, _: Request<v1::BackupRequest>) -> Answered<Self::BackupStream> {
        unused()
    }
    async fn confirm_restore(
        &self,
        _: Request<v1::ConfirmRestoreRequest>,
    ) -> Answered<v1::ConfirmRestoreResponse> {
        unused()
    }
}
