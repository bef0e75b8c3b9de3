//! What `server` and `agent` share: logging, and stopping at a signal.

use std::io;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use nix::unistd::{Pid, getppid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::error::CliError;

/// Exit code of a program that was interrupted twice: 128 + SIGINT.
const INTERRUPTED: i32 = 130;
/// openraft's own messages speak to those who work on openraft; what operators need, this program says itself.
pub const DEFAULT_LOG_FILTER: &str = "info,openraft=error";
/// How often a child of `dev` looks whether its parent is still there.
const PARENT_CHECK: Duration = Duration::from_millis(500);

/// Flags of programs that stay.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logging")]
pub struct ServiceArgs {
    /// Form of log lines on standard error
    #[arg(long, env = "SANDKEEPER_LOG_FORMAT", value_enum, default_value_t, hide_env_values = true)]
    log_format: LogFormat,
    /// What to log: error, warn, info, debug, trace, or by module as in sandkeeper_control=debug,info (env RUST_LOG)
    #[arg(long, env = "SANDKEEPER_LOG_LEVEL", value_name = "FILTER", hide_env_values = true)]
    log_level: Option<String>,
    /// Stop when this process is no longer the parent: `dev` does not leave its children behind.
    #[arg(long, hide = true, value_name = "PID")]
    exit_with_parent: Option<i32>,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging and the watch over signals; the token is cancelled when it is time to stop.
pub fn start(args: &ServiceArgs) -> Result<CancellationToken, CliError> {
    init_logging(args)?;
    #[cfg(feature = "planted-bugs")]
    crate::planted::from_environment()?;
    let token = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = token.clone();
    // Lives as long as the process: nothing waits for it.
    tokio::spawn(async move {
        let mut next =
            async || tokio::select! { _ = interrupt.recv() => "SIGINT", _ = terminate.recv() => "SIGTERM" };
        let name = next().await;
        tracing::info!("stopping at {name}; a second signal stops at once");
        stop.cancel();
        let name = next().await;
        tracing::warn!("stopped at once at a second signal, {name}");
        std::process::exit(INTERRUPTED);
    });
    if let Some(parent) = args.exit_with_parent {
        tokio::spawn(follow_parent(Pid::from_raw(parent), token.clone()));
    }
    Ok(token)
}

fn init_logging(args: &ServiceArgs) -> Result<(), CliError> {
    let directives = args.log_level.clone().or_else(|| std::env::var("RUST_LOG").ok());
    let directives = directives.unwrap_or_else(|| DEFAULT_LOG_FILTER.to_owned());
    let filter =
        EnvFilter::try_new(&directives).with_context(|| format!("`{directives}` is not a log filter"))?;
    // Who reads stderr may go away. Saying that it has, on stderr, would panic in whatever task wanted to log something.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

async fn follow_parent(parent: Pid, token: CancellationToken) {
    let mut ticks = interval(PARENT_CHECK);
    while getppid() == parent {
        tokio::select! {
            _ = ticks.tick() => {}
            () = token.cancelled() => return,
        }
    }
    tracing::warn!("stopping: the process that started this one is gone");
    token.cancel();
}
