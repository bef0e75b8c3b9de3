//! A backup of the cluster's state, as a stream.

use futures::StreamExt;
use sandkeeper_proto::v1::{BackupHeader, BackupResponse};
use tonic::Streaming;

use crate::error::ClientError;
use crate::logs::broken;

/// A backup, piece by piece. It can't be resumed: another node would send another file.
#[derive(Debug)]
pub struct BackupStream {
    server: String,
    header: BackupHeader,
    received: u64,
    stream: Streaming<BackupResponse>,
}

impl BackupStream {
    /// Reads the header.
    pub(crate) async fn open(
        server: String,
        mut stream: Streaming<BackupResponse>,
    ) -> Result<Self, ClientError> {
        let first = match stream.next().await {
            Some(Ok(message)) => message,
            Some(Err(status)) => return Err(broken(&server, &status)),
            None => BackupResponse::default(),
        };
        let header = first.header.unwrap_or_default();
        Ok(Self { server, header, received: 0, stream })
    }

    /// What is backed up.
    pub fn header(&self) -> &BackupHeader {
        &self.header
    }

    /// The address of the node that sends it.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// How many bytes have come.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The next piece of the file; `None` at its end.
    ///
    /// # Errors
    /// If the server ended it with an error, or the connection broke.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        match self.stream.next().await {
            None => Ok(None),
            Some(Ok(message)) => {
                self.received += message.data.len() as u64;
                Ok(Some(message.data))
            }
            Some(Err(status)) => Err(broken(&self.server, &status)),
        }
    }
}
