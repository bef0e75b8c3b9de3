//! The output of a sandbox, as a stream.

use futures::StreamExt;
use sandkeeper_proto::v1::StreamLogsResponse;
use tonic::{Status, Streaming};

use crate::error::{ClientError, Failure};

/// What a sandbox wrote, piece by piece. It can't be resumed: the wire names no position in it.
#[derive(Debug)]
pub struct LogStream {
    server: String,
    stream: Streaming<StreamLogsResponse>,
}

impl LogStream {
    pub(crate) fn new(server: String, stream: Streaming<StreamLogsResponse>) -> Self {
        Self { server, stream }
    }

    /// The next piece; `None` at its end.
    ///
    /// # Errors
    /// If the server ended it with an error, or the connection broke.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        match self.stream.next().await {
            None => Ok(None),
            Some(Ok(message)) => Ok(Some(message.data)),
            Some(Err(status)) => Err(broken(&self.server, &status)),
        }
    }
}

/// How a stream ended that can't be resumed.
pub(crate) fn broken(server: &str, status: &Status) -> ClientError {
    match Failure::of(server, status) {
        Failure::Refused(error) | Failure::Elsewhere(error) => error,
        Failure::Passing { failure, .. } => ClientError::Unreachable(vec![failure]),
    }
}
