//! The Rust client: any replica, failover, retries with one request id.
//!
//! ```no_run
//! # async fn example() -> Result<(), sandkeeper_client::ClientError> {
//! use sandkeeper_client::{Client, v1};
//!
//! let client = Client::builder().servers(["127.0.0.1:7600", "127.0.0.1:7610"]).build()?;
//! let request = v1::CreateSandboxRequest {
//!     name: "web".into(),
//!     command: vec!["sleep".into(), "600".into()],
//!     ..Default::default()
//! };
//! let created = client.create(request).await?;
//! # Ok(())
//! # }
//! ```
//!
//! A call goes to one server and, if that can't be reached or can't serve, to the next, until it is answered or its
//! deadline has come. A mutating call is sent again with the *same* request id, so that it takes effect once, however
//! often it was sent; a refusal is the cluster's answer and is never retried.
//!
//! Architecture invariant: the client knows the wire and nothing else: no state, no Raft, no placement.

mod backup;
mod builder;
mod calls;
mod client;
mod create_stream;
mod error;
mod logs;
mod watch;

#[cfg(test)]
mod tests;

pub use backup::BackupStream;
pub use builder::{ClientBuilder, DEFAULT_DEADLINE, Selection};
pub use client::Client;
pub use create_stream::{CreateAnswer, CreateAnswers, CreateSender, CreateStream};
pub use error::{ClientError, ConfigError, FieldViolation, Refusal, ServerFailure, ServerFailureKind};
pub use logs::LogStream;
pub use sandkeeper_proto::v1;
pub use tonic::Code;
pub use watch::Watch;
