//! `SandboxService`.

use sandkeeper_proto::v1;

use super::{unary, with_request_id};
use crate::client::{Client, Kind};
use crate::error::ClientError;
use crate::logs::LogStream;

impl Client {
    /// Makes a sandbox. FAST answers when its allocation has committed, STRONG when it runs.
    pub async fn create(
        &self,
        mut request: v1::CreateSandboxRequest,
    ) -> Result<v1::CreateSandboxResponse, ClientError> {
        with_request_id(&mut request.request_id);
        let kind = if request.mode() == v1::Mode::Strong { Kind::LONG } else { Kind::SHORT };
        unary!(self, sandbox, create_sandbox, kind, request)
    }

    /// Makes all of these sandboxes, or none. For many, one by one: [`Client::create_stream`].
    pub async fn batch_create(
        &self,
        mut request: v1::BatchCreateSandboxesRequest,
    ) -> Result<v1::BatchCreateSandboxesResponse, ClientError> {
        with_request_id(&mut request.request_id);
        unary!(self, sandbox, batch_create_sandboxes, Kind::SHORT, request)
    }

    /// One sandbox, by its id or by its name.
    pub async fn get(
        &self,
        target: v1::SandboxRef,
        read: v1::ReadOptions,
    ) -> Result<v1::GetSandboxResponse, ClientError> {
        let request = v1::GetSandboxRequest { r#ref: Some(target), read: Some(read) };
        unary!(self, sandbox, get_sandbox, Kind::SHORT, request)
    }

    /// One page of a list.
    pub async fn list(
        &self,
        request: v1::ListSandboxesRequest,
    ) -> Result<v1::ListSandboxesResponse, ClientError> {
        unary!(self, sandbox, list_sandboxes, Kind::SHORT, request)
    }

    /// All pages of a list, which are of one revision, as one answer. The deadline is for each page.
    pub async fn list_all(
        &self,
        mut request: v1::ListSandboxesRequest,
    ) -> Result<v1::ListSandboxesResponse, ClientError> {
        let mut all = self.list(request.clone()).await?;
        while !all.next_page_token.is_empty() {
            request.page_token = std::mem::take(&mut all.next_page_token);
            let page = self.list(request.clone()).await?;
            all.sandboxes.extend(page.sandboxes);
            all.next_page_token = page.next_page_token;
        }
        Ok(all)
    }

    /// Changes what the request's mask names.
    pub async fn update(
        &self,
        mut request: v1::UpdateSandboxRequest,
    ) -> Result<v1::UpdateSandboxResponse, ClientError> {
        with_request_id(&mut request.request_id);
        unary!(self, sandbox, update_sandbox, Kind::SHORT, request)
    }

    /// Asks for the next generation of a sandbox.
    pub async fn reset(
        &self,
        mut request: v1::ResetSandboxRequest,
    ) -> Result<v1::ResetSandboxResponse, ClientError> {
        with_request_id(&mut request.request_id);
        unary!(self, sandbox, reset_sandbox, Kind::SHORT, request)
    }

    /// Ends a sandbox. Its name is free as soon as this has returned.
    pub async fn terminate(
        &self,
        mut request: v1::TerminateSandboxRequest,
    ) -> Result<v1::TerminateSandboxResponse, ClientError> {
        with_request_id(&mut request.request_id);
        unary!(self, sandbox, terminate_sandbox, Kind::SHORT, request)
    }

    /// Returns when the sandbox is in one of `phases` (or gone); [`ClientError::Deadline`] if it is not by then.
    pub async fn wait(
        &self,
        target: v1::SandboxRef,
        phases: impl IntoIterator<Item = v1::Phase>,
    ) -> Result<v1::WaitSandboxResponse, ClientError> {
        let phases = phases.into_iter().map(Into::into).collect();
        let request = v1::WaitSandboxRequest { r#ref: Some(target), phases };
        unary!(self, sandbox, wait_sandbox, Kind::LONG, request)
    }

    /// What a sandbox wrote. The deadline is for the opening of the stream.
    pub async fn logs(&self, request: v1::StreamLogsRequest) -> Result<LogStream, ClientError> {
        let (server, stream) = self
            .call_at(Kind::STREAM, request, |channel, request| async move {
                super::sandbox(channel).stream_logs(request).await
            })
            .await?;
        let server = self.server(server).address.clone();
        Ok(LogStream::new(server, stream))
    }
}
