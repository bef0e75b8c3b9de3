//! `SandboxService`: create, look at, change, end.

use std::sync::Arc;

use futures::stream::BoxStream;
use sandkeeper_proto::v1;
use sandkeeper_proto::v1::sandbox_service_server::SandboxService;
use sandkeeper_statemachine::{
    Actor, Command, Mode, Outcome, Rejection, Request as CoreRequest, RequestKey, Revision, Sandbox,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::call::{Call, DEFAULT_DEADLINE, DEFAULT_LONG_DEADLINE};
use super::convert::target::{find, only_sandbox_ref};
use super::convert::{Retention, create, sandbox as convert};
use super::status::{fault, rejected};
use super::{Api, Read};

type Answer<T> = Result<Response<T>, Status>;

/// A sandbox, as a command left it.
struct Written {
    sandbox: v1::Sandbox,
    /// Of the record.
    at: Revision,
    /// Of the command's first event.
    revision: Revision,
    duplicate: bool,
}

impl Api {
    /// Has a command about a sandbox decided.
    async fn change(&self, request: CoreRequest, deadline: Instant) -> Result<Written, Status> {
        let outcome = self.submit(request, deadline).await?;
        self.written(outcome, deadline).await
    }

    async fn written(&self, outcome: Outcome, deadline: Instant) -> Result<Written, Status> {
        match outcome {
            Outcome::Sandbox { sandbox, revision, duplicate } => {
                let at = sandbox.status.revision.max(revision);
                Ok(Written { sandbox: self.tell(&sandbox, deadline).await, at, revision, duplicate })
            }
            Outcome::Gone { id, name, created, revision, duplicate } => {
                let sandbox = convert::gone_named(&id, &name, created);
                Ok(Written { sandbox, at: revision, revision, duplicate })
            }
            _ => Err(fault("a command about a sandbox had the outcome of another")),
        }
    }

    /// A sandbox as the wire tells it. This replica may be behind its leader: a sandbox with ports whose agent is not
    /// known here yet waits for it, as its endpoints name the agent's host.
    async fn tell(&self, sandbox: &Sandbox, deadline: Instant) -> v1::Sandbox {
        let replica = self.parts().raft.replica();
        let mut state = replica.state();
        if convert::lacks_agent(sandbox, &state)
            && let Ok(view) = replica.wait_revision(sandbox.status.revision, deadline).await
        {
            state = view.state.clone();
        }
        convert::sandbox(sandbox, &state)
    }

    /// The call of a request that changes something, and the command that it asks for.
    fn command<T>(
        &self,
        request: Request<T>,
        convert: impl FnOnce(T, Actor, &Retention) -> Result<CoreRequest, Rejection>,
    ) -> Result<(CoreRequest, Instant), Status> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let request = convert(request.into_inner(), call.actor, &self.parts().retention);
        Ok((request.map_err(|rejection| rejected(&rejection))?, call.deadline))
    }

    async fn create(&self, request: Request<v1::CreateSandboxRequest>) -> Answer<v1::CreateSandboxResponse> {
        let strong = request.get_ref().mode == i32::from(v1::Mode::Strong);
        let call = Call::of(&request, if strong { DEFAULT_LONG_DEADLINE } else { DEFAULT_DEADLINE })?;
        let request = create::create(request.into_inner(), call.actor, &self.parts().retention)
            .map_err(|rejection| rejected(&rejection))?;
        self.make(&Arc::new(request), call.deadline).await.map(Response::new)
    }

    /// Has a create decided, and waits until it runs if it is STRONG.
    pub(super) async fn make(
        &self,
        request: &Arc<CoreRequest>,
        deadline: Instant,
    ) -> Result<v1::CreateSandboxResponse, Status> {
        let waits_for = strong_key(request);
        let written = match (waits_for, self.submit(Arc::clone(request), deadline).await?) {
            (Some(key), Outcome::Sandbox { sandbox, revision, duplicate }) => {
                let (sandbox, at) = self.until_it_runs(&sandbox, revision, &key, deadline).await?;
                Written { sandbox, at, revision, duplicate }
            }
            (_, outcome) => self.written(outcome, deadline).await?,
        };
        Ok(v1::CreateSandboxResponse {
            header: Some(self.header_written(written.at)),
            sandbox: Some(written.sandbox),
            revision: written.revision,
            duplicate: written.duplicate,
        })
    }
}

/// Under which key a STRONG create is remembered; `None` for all others.
pub(super) fn strong_key(request: &CoreRequest) -> Option<RequestKey> {
    match &request.command {
        Command::CreateSandbox(create) | Command::CreateInStream { create, .. }
            if create.spec.mode == Mode::Strong =>
        {
            let namespace = Some(create.spec.name.namespace.clone());
            Some(RequestKey { namespace, id: create.spec.request_id.clone() })
        }
        _ => None,
    }
}

#[tonic::async_trait]
impl SandboxService for Api {
    async fn create_sandbox(
        &self,
        request: Request<v1::CreateSandboxRequest>,
    ) -> Answer<v1::CreateSandboxResponse> {
        self.create(request).await
    }

    type CreateSandboxesStream = BoxStream<'static, Result<v1::CreateSandboxesResponse, Status>>;

    async fn create_sandboxes(
        &self,
        request: Request<Streaming<v1::CreateSandboxesRequest>>,
    ) -> Answer<Self::CreateSandboxesStream> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        self.create_stream(request.into_inner(), call.actor).map(Response::new)
    }

    async fn batch_create_sandboxes(
        &self,
        request: Request<v1::BatchCreateSandboxesRequest>,
    ) -> Answer<v1::BatchCreateSandboxesResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        self.batch(request.into_inner(), call).await.map(Response::new)
    }

    async fn get_sandbox(&self, request: Request<v1::GetSandboxRequest>) -> Answer<v1::GetSandboxResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let request = request.into_inner();
        let wanted = only_sandbox_ref(request.r#ref.as_ref()).map_err(|rejection| rejected(&rejection))?;
        let read: Read = self.read(request.read, call.deadline).await?;
        let found = find(&read.state, &wanted).map_err(|rejection| rejected(&rejection))?;
        let sandbox = Some(convert::sandbox(found, &read.state));
        Ok(Response::new(v1::GetSandboxResponse { header: Some(self.header(&read)), sandbox }))
    }

    async fn list_sandboxes(
        &self,
        request: Request<v1::ListSandboxesRequest>,
    ) -> Answer<v1::ListSandboxesResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        self.list(request.into_inner(), call.deadline).await.map(Response::new)
    }

    async fn update_sandbox(
        &self,
        request: Request<v1::UpdateSandboxRequest>,
    ) -> Answer<v1::UpdateSandboxResponse> {
        let (command, deadline) = self.command(request, convert::update)?;
        let Written { sandbox, at, .. } = self.change(command, deadline).await?;
        let header = Some(self.header_written(at));
        Ok(Response::new(v1::UpdateSandboxResponse { header, sandbox: Some(sandbox) }))
    }

    async fn reset_sandbox(
        &self,
        request: Request<v1::ResetSandboxRequest>,
    ) -> Answer<v1::ResetSandboxResponse> {
        let reset = |wire, actor, retention: &Retention| convert::reset(&wire, actor, retention);
        let (command, deadline) = self.command(request, reset)?;
        let Written { sandbox, at, .. } = self.change(command, deadline).await?;
        let header = Some(self.header_written(at));
        Ok(Response::new(v1::ResetSandboxResponse { header, sandbox: Some(sandbox) }))
    }

    async fn terminate_sandbox(
        &self,
        request: Request<v1::TerminateSandboxRequest>,
    ) -> Answer<v1::TerminateSandboxResponse> {
        let terminate = |wire, actor, retention: &Retention| convert::terminate(&wire, actor, retention);
        let (command, deadline) = self.command(request, terminate)?;
        let Written { sandbox, at, .. } = self.change(command, deadline).await?;
        let header = Some(self.header_written(at));
        Ok(Response::new(v1::TerminateSandboxResponse { header, sandbox: Some(sandbox) }))
    }

    async fn wait_sandbox(
        &self,
        request: Request<v1::WaitSandboxRequest>,
    ) -> Answer<v1::WaitSandboxResponse> {
        let call = Call::of(&request, DEFAULT_LONG_DEADLINE)?;
        self.wait(&request.into_inner(), call.deadline).await.map(Response::new)
    }

    type StreamLogsStream = BoxStream<'static, Result<v1::StreamLogsResponse, Status>>;

    async fn stream_logs(&self, request: Request<v1::StreamLogsRequest>) -> Answer<Self::StreamLogsStream> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        self.logs(request.into_inner(), call.deadline).await.map(Response::new)
    }
}
