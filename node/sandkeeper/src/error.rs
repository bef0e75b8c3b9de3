//! What ends a command, and the exit code that says so: 0 done, 1 refused or failed, 2 wrong usage, 3 cluster not
//! reachable.

use std::io;
use std::process::ExitCode;

use sandkeeper_client::{ClientError, Code, ConfigError};

use crate::output::note;

/// Why a command did not end well.
#[derive(Debug)]
pub enum CliError {
    /// What was asked makes no sense.
    Usage(String),
    /// A call to the cluster failed.
    Client(ClientError),
    /// Anything else, with its causes.
    Failed(anyhow::Error),
    /// The output said it all already: a check that did not hold.
    Shown,
    /// Nobody reads the output any more, as when it is piped into `head`.
    PipeClosed,
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::Client(error.into())
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::PipeClosed } else { Self::Failed(error.into()) }
    }
}

impl CliError {
    /// Tells the user, on standard error, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::PipeClosed => return ExitCode::SUCCESS,
            Self::Shown => {}
            Self::Usage(message) => note(format!("error: {message}")),
            Self::Failed(error) => note(format!("error: {error:#}")),
            Self::Client(error) => {
                note(format!("error: {error}"));
                if let Some(advice) = advice(error) {
                    note(advice);
                }
            }
        }
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        match self {
            Self::PipeClosed => 0,
            Self::Usage(_) | Self::Client(ClientError::Config(_)) => 2,
            Self::Client(ClientError::Unreachable(_)) => 3,
            Self::Shown | Self::Failed(_) | Self::Client(_) => 1,
        }
    }
}

/// What the user can do about it.
fn advice(error: &ClientError) -> Option<&'static str> {
    match error {
        ClientError::Unreachable(_) => Some(
            "Name control nodes that run with --servers HOST:PORT,… or SANDKEEPER_SERVERS; `sandkeeper dev` starts a \
             whole cluster on this machine.",
        ),
        ClientError::Deadline { .. } => Some(
            "A change may still take effect: look before you repeat it, or repeat it with the same --request-id. \
             --deadline gives it more time.",
        ),
        ClientError::Config(_) => {
            Some("Name control nodes with --servers HOST:PORT,… or SANDKEEPER_SERVERS.")
        }
        ClientError::Refused(refusal) => match refusal.code {
            Code::NotFound => Some(match refusal.reason.as_deref() {
                Some("MEMBER_NOT_FOUND") => {
                    "`sandkeeper cluster members` shows which control nodes there are."
                }
                Some("AGENT_NOT_FOUND") => "`sandkeeper agents list` shows which agents there are.",
                Some("SANDBOX_NOT_FOUND") => "`sandkeeper list -A` shows which sandboxes there are.",
                _ => "`sandkeeper list -A` and `sandkeeper agents list` show what there is.",
            }),
            Code::ResourceExhausted if refusal.reason.as_deref() == Some("DISK_LOW") => {
                Some("`sandkeeper cluster status` shows whose disk is low.")
            }
            Code::ResourceExhausted => {
                Some("`sandkeeper capacity` shows what is free; `create --wait-for-capacity` waits for room.")
            }
            Code::Aborted => Some("It has changed since: look at it again and repeat with its new revision."),
            Code::OutOfRange => Some("Begin at a revision that is still kept, or leave --from out."),
            Code::Unimplemented => Some("The server does not know this call: is it of an older version?"),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        assert_eq!(CliError::Usage(String::new()).code(), 2);
        assert_eq!(CliError::from(ConfigError::NoServers).code(), 2);
        assert_eq!(CliError::Client(ClientError::Unreachable(Vec::new())).code(), 3);
        assert_eq!(CliError::Failed(anyhow::anyhow!("no")).code(), 1);
        assert_eq!(CliError::from(io::Error::from(io::ErrorKind::BrokenPipe)).code(), 0);
        assert_eq!(CliError::from(io::Error::from(io::ErrorKind::NotFound)).code(), 1);
    }
}
