//! `sandkeeper terminate`.

use std::time::Duration;

use clap::Args;
use sandkeeper_client::v1;

use super::target::{self, Guard, Target};
use crate::cli::Context;
use crate::error::CliError;
use crate::output::with_progress;

/// A workload that does not heed SIGTERM is killed after its grace period, well within this.
const GONE_DEADLINE: Duration = Duration::from_mins(2);

/// End a sandbox
///
/// Its name is free as soon as this is answered, while the old sandbox is still going away.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  sandkeeper terminate web\n  sandkeeper terminate web --wait\n  \
    sandkeeper terminate --id e4b85f2f7d8fb1918a47168a87c62761")]
pub struct TerminateArgs {
    #[command(flatten)]
    target: Target,
    /// Wait until nothing of it is left
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    guard: Guard,
}

/// Ends the sandbox and shows what is left of it.
pub async fn run(args: TerminateArgs, context: &Context) -> Result<(), CliError> {
    let request = v1::TerminateSandboxRequest {
        request_id: args.guard.request_id,
        r#ref: Some(args.target.to_ref(context.namespace())),
        expected_revision: args.guard.expected_revision,
    };
    let mut answer = context.client.terminate(request).await?;
    let sandbox = answer.sandbox.clone().unwrap_or_default();
    if args.wait && sandbox.phase() != v1::Phase::Gone {
        // By its id: the name may be another's already.
        let target = v1::SandboxRef { sandbox_id: sandbox.sandbox_id, ..Default::default() };
        let client = context.patient(GONE_DEADLINE);
        let what = format!("waiting until {} is gone", sandbox.name);
        let gone = with_progress(&what, client.wait(target, [v1::Phase::Gone])).await?;
        answer.header = gone.header;
        answer.sandbox = gone.sandbox;
    }
    context.output.answer(&answer, |answer| target::answered(answer.sandbox.as_ref()))
}
