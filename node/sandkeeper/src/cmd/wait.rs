//! `sandkeeper wait`.

use std::time::Duration;

use clap::Args;
use sandkeeper_client::v1;

use super::list::Phase;
use super::target::{self, Target};
use crate::cli::Context;
use crate::error::CliError;
use crate::human;
use crate::output::{note, with_progress};

/// How long is waited when `--deadline` is not given.
const DEADLINE: Duration = Duration::from_mins(5);

/// Wait until a sandbox is in one of some phases
///
/// It does not wait for what can't come any more without help: when the sandbox is FAILED, LOST or gone and that was
/// not asked for, it ends with exit code 1.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  sandkeeper wait web\n  sandkeeper wait web --for gone --deadline 1m\n  \
    sandkeeper wait job --for failed -o json | jq .sandbox.exit_code"
)]
pub struct WaitArgs {
    #[command(flatten)]
    target: Target,
    /// Phases to wait for
    #[arg(long = "for", value_enum, value_delimiter = ',', value_name = "PHASE", default_value = "running")]
    phases: Vec<Phase>,
}

/// Waits, and shows what the sandbox came to.
pub async fn run(args: &WaitArgs, context: &Context) -> Result<(), CliError> {
    let wanted: Vec<_> = args.phases.iter().map(|phase| phase.to_wire()).collect();
    let mut phases = wanted.clone();
    // Something that only ends is on its way to GONE through these; for all else they are dead ends.
    if wanted != [v1::Phase::Gone] {
        phases.extend([v1::Phase::Failed, v1::Phase::Lost, v1::Phase::Gone]);
    }
    let target = args.target.to_ref(context.namespace());
    let name = args.target.name.clone().or(args.target.sandbox_id.clone()).unwrap_or_default();
    let client = context.patient(DEADLINE);
    let answer = with_progress(&format!("waiting for {name}"), client.wait(target, phases)).await?;
    context.output.answer(&answer, |answer| target::answered(answer.sandbox.as_ref()))?;
    let sandbox = answer.sandbox.unwrap_or_default();
    if wanted.contains(&sandbox.phase()) {
        return Ok(());
    }
    let reason = if sandbox.reason.is_empty() { String::new() } else { format!(": {}", sandbox.reason) };
    note(format!("error: {name} is {}{reason}", human::phase(&sandbox)));
    Err(CliError::Shown)
}
