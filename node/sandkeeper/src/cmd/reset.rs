//! `sandkeeper reset`.

use clap::Args;
use sandkeeper_client::v1;

use super::target::{self, Guard, Target};
use crate::cli::Context;
use crate::error::CliError;

/// Start a sandbox anew, as its next generation, perhaps on another agent
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  sandkeeper reset web\n  sandkeeper reset web --expected-revision 17")]
pub struct ResetArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    guard: Guard,
}

/// Asks for the next generation and shows the sandbox.
pub async fn run(args: ResetArgs, context: &Context) -> Result<(), CliError> {
    let request = v1::ResetSandboxRequest {
        request_id: args.guard.request_id,
        r#ref: Some(args.target.to_ref(context.namespace())),
        expected_revision: args.guard.expected_revision,
    };
    let answer = context.client.reset(request).await?;
    context.output.answer(&answer, |answer| target::answered(answer.sandbox.as_ref()))
}
