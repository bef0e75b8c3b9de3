//! `sandkeeper list`.

use clap::{Args, ValueEnum};
use sandkeeper_client::v1;

use super::target;
use crate::cli::Context;
use crate::error::CliError;
use crate::parse;

/// List sandboxes
///
/// All of one revision, however many pages that takes; by namespace and name.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  sandkeeper list\n  sandkeeper list -A --phase running,lost\n  \
    sandkeeper list -l team=a --agent agent-1 -o json | jq -r .sandboxes[].name")]
pub struct ListArgs {
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only those with this label; may be repeated
    #[arg(long = "label", short = 'l', value_name = "KEY=VALUE", value_parser = parse::pair)]
    labels: Vec<(String, String)>,
    /// Only those in these phases
    #[arg(long = "phase", value_enum, value_delimiter = ',', value_name = "PHASE")]
    phases: Vec<Phase>,
    /// Only those of this agent
    #[arg(long, value_name = "AGENT_ID", default_value = "", hide_default_value = true)]
    agent: String,
}

/// The phases in the life of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Phase {
    /// Waits for capacity.
    Pending,
    /// Has an agent, and is not yet known to run.
    Allocated,
    /// Runs.
    Running,
    /// Is being ended.
    Terminating,
    /// Exited, could not start, or vanished.
    Failed,
    /// Its agent is gone.
    Lost,
    /// Not there any more.
    Gone,
}

impl Phase {
    /// As the wire names it.
    pub fn to_wire(self) -> v1::Phase {
        match self {
            Self::Pending => v1::Phase::Pending,
            Self::Allocated => v1::Phase::Allocated,
            Self::Running => v1::Phase::Running,
            Self::Terminating => v1::Phase::Terminating,
            Self::Failed => v1::Phase::Failed,
            Self::Lost => v1::Phase::Lost,
            Self::Gone => v1::Phase::Gone,
        }
    }
}

/// Reads all pages and shows them.
pub async fn run(args: ListArgs, context: &Context) -> Result<(), CliError> {
    let namespace = if args.all_namespaces { String::new() } else { context.namespace() };
    let request = v1::ListSandboxesRequest {
        namespace,
        label_selector: args.labels.into_iter().collect(),
        phases: args.phases.into_iter().map(|phase| phase.to_wire().into()).collect(),
        agent_id: args.agent,
        page_size: 0,
        page_token: String::new(),
        read: Some(context.read()),
    };
    let mut answer = context.client.list_all(request).await?;
    // They come by id, which says nothing to people.
    answer.sandboxes.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    context.output.answer(&answer, |answer| match answer.sandboxes.as_slice() {
        [] => "No sandboxes.".to_owned(),
        sandboxes => target::rows(sandboxes, args.all_namespaces),
    })
}
