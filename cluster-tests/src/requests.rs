//! The requests that most tests make.

use sandkeeper_client::{Client, ClientError, v1};

/// A sandbox by its id; None if it is not in the state.
///
/// # Errors
/// If no node answers.
pub async fn get(client: &Client, sandbox_id: &str) -> Result<Option<v1::Sandbox>, ClientError> {
    match client.get(by_id(sandbox_id), v1::ReadOptions::default()).await {
        Ok(response) => Ok(response.sandbox),
        Err(error) if error.code() == Some(sandkeeper_client::Code::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Names a sandbox by its id.
pub fn by_id(sandbox_id: &str) -> v1::SandboxRef {
    v1::SandboxRef { sandbox_id: sandbox_id.to_owned(), ..v1::SandboxRef::default() }
}

/// Names a sandbox of the default namespace.
pub fn by_name(name: &str) -> v1::SandboxRef {
    v1::SandboxRef { name: name.to_owned(), ..v1::SandboxRef::default() }
}

/// A request for a sandbox that runs a shell script.
pub fn shell(name: &str, script: &str) -> v1::CreateSandboxRequest {
    v1::CreateSandboxRequest {
        name: name.to_owned(),
        command: vec!["sh".into(), "-c".into(), script.into()],
        ..v1::CreateSandboxRequest::default()
    }
}
