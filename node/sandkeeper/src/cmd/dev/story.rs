//! How the demo speaks: numbered steps, short sentences, and for each claim whether it holds.

use std::io::{self, IsTerminal};
use std::time::Instant;

use super::cluster::Cluster;
use super::processes::Process;
use crate::error::CliError;
use crate::human;
use crate::output;

/// The text of a step stands below its title, after its number.
const INDENT: &str = "    ";

/// What has been told so far.
#[derive(Debug)]
pub struct Story {
    colour: bool,
    began: Instant,
    steps: usize,
    checks: usize,
}

impl Story {
    /// Nothing told yet. Colours are for terminals, unless `NO_COLOR` is set.
    pub fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour: wanted && io::stdout().is_terminal(), began: Instant::now(), steps: 0, checks: 0 }
    }

    /// Begins the story.
    pub fn title(&self, title: &str) -> Result<(), CliError> {
        output::text(&self.paint("1", title))
    }

    /// Begins a step.
    pub fn step(&mut self, title: &str) -> Result<(), CliError> {
        self.steps += 1;
        output::text("")?;
        output::text(&self.paint("1", &format!("{:>2}. {title}", self.steps)))
    }

    /// Says whether a claim holds; the story ends where one does not.
    pub fn check(&mut self, holds: bool, claim: impl AsRef<str>) -> Result<(), CliError> {
        self.checks += 1;
        let (colour, verdict) = if holds { ("32", "ok") } else { ("31", "DOES NOT HOLD") };
        say(format!("{} {}", self.paint(colour, verdict), claim.as_ref()))?;
        if holds { Ok(()) } else { Err(CliError::Shown) }
    }

    /// The last step, after all is stopped: nothing is left over. Then the summary.
    pub fn end(&mut self, cluster: &Cluster) -> Result<(), CliError> {
        let left = cluster.processes();
        list(&left)?;
        self.check(left.is_empty(), "the cluster is stopped, and no process of it is left over")?;
        let took = human::stopwatch(self.began.elapsed());
        let summary = format!("All {} steps held: {} checks in {took}.", self.steps, self.checks);
        output::text("")?;
        output::text(&self.paint("1", &summary))
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Says something; of several lines each is indented.
pub fn say(text: impl AsRef<str>) -> Result<(), CliError> {
    text.as_ref().lines().try_for_each(|line| output::text(&format!("{INDENT}{line}")))
}

/// Says which processes there are.
pub fn list(processes: &[Process]) -> Result<(), CliError> {
    processes.iter().try_for_each(|process| say(process.line()))
}
