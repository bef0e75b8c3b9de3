//! Shows that the campaign finds bugs: each is planted in a binary, and campaigns run until one sees a violation. Ends with 1
//! if one is not found, or something is seen where nothing was planted.
//!
//! ```text
//! cargo run -p cluster-tests --bin planted-bugs -- --bugs no-fence,sync-taken-out --budget 4m
//! ```
#![allow(clippy::print_stdout, reason = "a program that reports")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use cluster_tests::planted::{self, Bug, Hunt, Options};

/// Plant one bug after the other, and show that the campaign finds each
///
/// The binary that can have them is built with the feature `planted-bugs` in the profile `planted` (target/planted): no release
/// build can have them.
#[derive(Debug, Parser)]
#[command(name = "planted-bugs")]
struct Args {
    /// Only these bugs, NAME,…; a name that is none is answered with all that are
    #[arg(long, value_delimiter = ',')]
    bugs: Vec<Bug>,
    /// How long each bug is looked for, by campaigns of 90 s with one seed each
    #[arg(long, default_value = "6m", value_parser = humantime::parse_duration)]
    budget: Duration,
    /// Of the first campaign
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Do all faults, and not only those that show a bug soon
    #[arg(long)]
    all_faults: bool,
    /// How long a campaign without any bug runs, which must see nothing; 0s: none does
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration)]
    without: Duration,
    /// Where everything is kept that the campaigns have seen
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Print one JSON object a bug in place of tables
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let bugs = if args.bugs.is_empty() { Bug::ALL.to_vec() } else { args.bugs };
    let options = Options {
        bugs,
        budget: args.budget,
        seed: args.seed,
        all_faults: args.all_faults,
        without: args.without,
        keep: args.keep,
    };
    let tell = |hunt: &Hunt| {
        let line = if args.json { serde_json::to_string(hunt).unwrap_or_default() } else { hunt.to_string() };
        println!("{line}");
    };
    let hunts = planted::hunt(&options, tell)?;
    if !args.json {
        println!("{}", planted::table(&hunts));
    }
    let good = hunts.iter().all(Hunt::is_good);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
