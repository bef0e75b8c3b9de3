//! What the user sees: results on standard output, messages on standard error. The one place that prints.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::time::{interval, sleep};

use crate::error::CliError;
use crate::json::{Named, Shown};

/// What takes longer than this is told to be under way.
const PROGRESS_AFTER: Duration = Duration::from_secs(2);
/// How often a spinner turns, and a bar moves.
const BAR_EVERY: Duration = Duration::from_millis(120);
/// Where no spinner can turn, a line says so this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

/// The form of results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: protobuf's canonical JSON, with the field names of the API.
    Json,
    /// The same fields as YAML.
    Yaml,
}

/// Prints results in the form that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    format: Format,
}

impl Output {
    /// Results in this form.
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether results are for people.
    pub fn is_table(self) -> bool {
        self.format == Format::Table
    }

    /// Prints an answer; `table` makes its form for people.
    pub fn answer<M: Named>(self, message: &M, table: impl FnOnce(&M) -> String) -> Result<(), CliError> {
        if self.is_table() { text(&table(message)) } else { self.value(&Shown::new(message)?) }
    }

    /// Prints a value that no single message holds.
    pub fn value(self, value: &impl Serialize) -> Result<(), CliError> {
        text(&self.render(value)?)
    }

    /// Prints one of a stream of messages: one line of JSON, or one YAML document.
    pub fn item<M: Named>(self, message: &M, line: impl FnOnce(&M) -> String) -> Result<(), CliError> {
        match self.format {
            Format::Table => text(&line(message)),
            Format::Json => text(&serde_json::to_string(&Shown::new(message)?).map_err(anyhow::Error::from)?),
            Format::Yaml => text(&format!("---\n{}", self.render(&Shown::new(message)?)?)),
        }
    }

    fn render(self, value: &impl Serialize) -> Result<String, CliError> {
        let rendered = match self.format {
            Format::Yaml => serde_yaml_ng::to_string(value).map_err(anyhow::Error::from)?,
            Format::Json | Format::Table => {
                serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?
            }
        };
        Ok(rendered)
    }
}

/// Writes a text that ends with one line break to standard output.
pub fn text(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end_matches('\n'))?;
    out.flush()?;
    Ok(())
}

/// Writes bytes to standard output as they are.
pub fn bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(())
}

/// Writes a message to standard error. If that is closed, nobody is there to be told.
pub fn note(message: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", message.as_ref());
}

/// A table like `kubectl`'s: no lines, aligned columns, capital headings.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = plain_table();
    table.set_header(header.to_vec());
    table.add_rows(rows);
    finish(table)
}

/// A list of names and values.
pub fn fields(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = plain_table();
    table.add_rows(rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]));
    finish(table)
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
    table
}

fn finish(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 3)).set_cell_alignment(CellAlignment::Left);
    }
    table.trim_fmt()
}

/// Runs `work`; if it takes long, says on standard error what is waited for.
pub async fn with_progress<T>(what: &str, work: impl Future<Output = T>) -> T {
    with_bar(what, || (0, 0), Box::pin(work)).await
}

/// Runs `work`; if it takes long, says on standard error what is waited for, and how many bytes of how many are done, as far
/// as there are any.
pub async fn with_bar<T>(what: &str, bytes: impl Fn() -> (u64, u64), work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = sleep(PROGRESS_AFTER) => {}
    }
    let bar = io::stderr().is_terminal().then(|| bar(what, bytes().1));
    let mut ticks = interval(if bar.is_some() { BAR_EVERY } else { PROGRESS_EVERY });
    loop {
        tokio::select! {
            done = &mut work => {
                bar.iter().for_each(ProgressBar::finish_and_clear);
                return done;
            }
            _ = ticks.tick() => match (&bar, bytes()) {
                (Some(bar), (done, _)) => bar.set_position(done),
                (None, (_, 0)) => note(format!("{what} …")),
                (None, (done, total)) => note(format!("{what} … {}%", done * 100 / total)),
            },
        }
    }
}

fn bar(what: &str, bytes: u64) -> ProgressBar {
    let bar = if bytes == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(bytes) };
    if bytes > 0
        && let Ok(style) =
            ProgressStyle::with_template("{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(BAR_EVERY);
    bar.with_message(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_have_no_trailing_blanks() {
        let rows = [vec!["web".to_owned(), "RUNNING".into()], vec!["a-longer-name".into(), String::new()]];
        insta::assert_snapshot!(table(&["NAME", "PHASE"], rows), @r"
        NAME            PHASE
        web             RUNNING
        a-longer-name
        ");
        insta::assert_snapshot!(fields([("name", "web".to_owned()), ("agent", "a b".into())]), @r"
        name    web
        agent   a b
        ");
    }
}
