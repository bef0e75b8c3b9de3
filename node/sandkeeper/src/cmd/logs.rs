//! `sandkeeper logs`.

use clap::Args;
use sandkeeper_client::v1;

use super::target::Target;
use crate::cli::Context;
use crate::error::CliError;
use crate::output;

/// Show what a sandbox wrote to its standard output and error
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  sandkeeper logs web\n  sandkeeper logs web -f --tail 20")]
pub struct LogsArgs {
    #[command(flatten)]
    target: Target,
    /// Go on as it writes, until it ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines [default: all]
    #[arg(long, value_name = "LINES", default_value_t = 0, hide_default_value = true)]
    tail: u32,
}

/// Copies the output to standard output, byte by byte as it is.
pub async fn run(args: &LogsArgs, context: &Context) -> Result<(), CliError> {
    let request = v1::StreamLogsRequest {
        r#ref: Some(args.target.to_ref(context.namespace())),
        follow: args.follow,
        tail_lines: args.tail,
    };
    let mut logs = context.client.logs(request).await?;
    while let Some(piece) = logs.next().await? {
        output::bytes(&piece)?;
    }
    Ok(())
}
