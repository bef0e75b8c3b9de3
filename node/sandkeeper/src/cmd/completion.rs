//! `sandkeeper completion`.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use crate::cli::Cli;
use crate::error::CliError;
use crate::output;

/// Print a script that completes this command line in a shell
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  source <(sandkeeper completion bash)\n  \
    sandkeeper completion zsh > ~/.zfunc/_sandkeeper")]
pub struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &CompletionArgs) -> Result<(), CliError> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "sandkeeper", &mut script);
    output::bytes(&script)
}
