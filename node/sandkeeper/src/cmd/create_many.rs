//! `sandkeeper create --batch` and `--stream`: many sandboxes, described in a file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use sandkeeper_client::{ClientError, CreateAnswer, CreateSender, Refusal, v1};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use super::create::{DEFAULT_CAPACITY_TIMEOUT, STRONG_DEADLINE};
use super::target;
use crate::cli::Context;
use crate::error::CliError;
use crate::json::read;
use crate::output::{note, with_progress};

/// The largest file of a batch, bytes: some times what a request may hold in its binary form.
const MAX_BATCH_FILE: u64 = 8 * 1024 * 1024;
/// The longest line of a stream, bytes: the same for one create.
const MAX_LINE: u64 = 4 * 1024 * 1024;
/// Creates that are read before they can be sent.
const READ_AHEAD: usize = 64;
/// How often a stream that goes on says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// What stands for standard input.
const STDIN: &str = "-";

/// Where many sandboxes are described.
#[derive(Args, Debug)]
#[group(id = "many", multiple = false)]
pub struct ManyArgs {
    /// Make all sandboxes of FILE, or none: YAML (a list, or documents) or JSON (a list, or one after another); -: standard
    /// input
    #[arg(long, value_name = "FILE")]
    pub batch: Option<PathBuf>,
    /// Make the sandboxes of FILE one by one, as they come: each a line of JSON; -: standard input
    #[arg(long, value_name = "FILE", conflicts_with = "request_id")]
    pub stream: Option<PathBuf>,
}

/// Makes all sandboxes of a file, or none, and shows them.
pub async fn batch(file: &Path, request_id: String, context: &Context) -> Result<(), CliError> {
    let mut text = String::new();
    open(file)?.take(MAX_BATCH_FILE + 1).read_to_string(&mut text).with_context(|| name(file))?;
    if text.len() as u64 > MAX_BATCH_FILE {
        return Err(CliError::Usage(format!("{} has more than {MAX_BATCH_FILE} bytes", name(file))));
    }
    let creates = read::many(&text).map_err(|error| CliError::Usage(format!("{}: {error:#}", name(file))))?;
    let what = format!("creating {} sandboxes", creates.len());
    let request = v1::BatchCreateSandboxesRequest { request_id, namespace: context.namespace(), creates };
    let answer = with_progress(&what, context.client.batch_create(request)).await?;
    if answer.duplicate {
        note("This request id was answered before: here is the first answer again.");
    }
    context.output.answer(&answer, |answer| target::rows(&answer.sandboxes, false))
}

/// Makes the sandboxes of a file one by one, and shows each answer in a line.
pub async fn stream(file: &Path, context: &Context) -> Result<(), CliError> {
    let (lines, creates) = mpsc::channel(READ_AHEAD);
    let (input, from) = (BufReader::new(open(file)?), name(file));
    // A thread of its own, and nobody waits for it: standard input may never end.
    std::thread::spawn(move || read_lines(input, &from, &lines));
    // Whether one of them is STRONG, or waits for room, is not known yet.
    let client = context.patient(STRONG_DEADLINE + DEFAULT_CAPACITY_TIMEOUT);
    let (sender, mut answers) = client.create_stream(&context.namespace()).split();
    let mut sending = tokio::spawn(send(creates, sender));
    let mut progress = Progress::new();
    loop {
        tokio::select! {
            answer = answers.next() => match answer {
                None => break,
                Some(answer) => progress.count(show(&answer?, context)?),
            },
            _ = progress.ticks.tick() => progress.say("…"),
        }
    }
    let sent = (&mut sending).await.map_err(anyhow::Error::from)?;
    if progress.said || progress.refused > 0 {
        progress.say("in all");
    }
    sent?;
    if progress.refused > 0 { Err(CliError::Shown) } else { Ok(()) }
}

type Input = Box<dyn Read + Send>;

fn open(file: &Path) -> Result<Input, CliError> {
    if file == Path::new(STDIN) {
        return Ok(Box::new(io::stdin()));
    }
    let opened = File::open(file).map(|file| Box::new(file) as Input);
    opened.map_err(|error| CliError::Usage(format!("{}: {error}", name(file))))
}

fn name(file: &Path) -> String {
    if file == Path::new(STDIN) { "standard input".into() } else { file.display().to_string() }
}

/// What a line asks for, or why it asks for nothing.
type Line = Result<v1::CreateSandboxRequest, CliError>;

/// Reads a create from each line. A line that is none is the last.
fn read_lines(mut input: impl BufRead, file: &str, lines: &mpsc::Sender<Line>) {
    let mut line = String::new();
    for number in 1_u64.. {
        line.clear();
        let wrong = |why: String| {
            CliError::Usage(format!("line {number} of {file}: {why}; nothing from here on was sent"))
        };
        let create = match (&mut input).take(MAX_LINE + 1).read_line(&mut line) {
            Ok(0) => return,
            Ok(_) if line.len() as u64 > MAX_LINE => Err(wrong(format!("has more than {MAX_LINE} bytes"))),
            Ok(_) if line.trim().is_empty() => continue,
            Ok(_) => read::one(&line).map_err(|error| wrong(format!("{error:#}"))),
            Err(error) => Err(wrong(error.to_string())),
        };
        let last = create.is_err();
        if lines.blocking_send(create).is_err() || last {
            return;
        }
    }
}

/// Sends what is read, until the stream or the input ends.
async fn send(mut lines: mpsc::Receiver<Line>, mut sender: CreateSender) -> Result<(), CliError> {
    while let Some(create) = lines.recv().await {
        if sender.send(create?).await.is_none() {
            break;
        }
    }
    Ok(())
}

/// Shows an answer; whether there is a sandbox.
fn show(answer: &CreateAnswer, context: &Context) -> Result<bool, CliError> {
    let sequence = answer.sequence;
    let wire = match &answer.result {
        Ok(created) => v1::streamed_answer::Result::Created(created.clone()),
        Err(ClientError::Refused(refusal)) => v1::streamed_answer::Result::Refusal(told(refusal)),
        Err(error) => v1::streamed_answer::Result::Refusal(v1::CallRefusal {
            code: sandkeeper_client::Code::DeadlineExceeded.into(),
            message: error.to_string(),
            ..Default::default()
        }),
    };
    let message = v1::StreamedAnswer { sequence, result: Some(wire) };
    context.output.item(&message, |_| match &answer.result {
        Ok(created) => {
            let sandbox = created.sandbox.clone().unwrap_or_default();
            format!("{sequence:<8} {:<24} {} {}", sandbox.name, sandbox.sandbox_id, sandbox.agent_id)
        }
        Err(error) => format!("{sequence:<8} refused: {error}"),
    })?;
    Ok(answer.result.is_ok())
}

fn told(refusal: &Refusal) -> v1::CallRefusal {
    let violation = |found: &sandkeeper_client::FieldViolation| v1::FieldViolation {
        field: found.field.clone(),
        description: found.description.clone(),
    };
    v1::CallRefusal {
        code: refusal.code.into(),
        message: refusal.message.clone(),
        reason: refusal.reason.clone().unwrap_or_default(),
        metadata: refusal.details.clone(),
        violations: refusal.violations.iter().map(violation).collect(),
        retry_delay: refusal.retry_after.and_then(|delay| delay.try_into().ok()),
    }
}

/// How far a stream is, for who waits.
struct Progress {
    began: Instant,
    ticks: Interval,
    made: u64,
    refused: u64,
    said: bool,
}

impl Progress {
    fn new() -> Self {
        let mut ticks = interval_at(tokio::time::Instant::now() + PROGRESS_EVERY, PROGRESS_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self { began: Instant::now(), ticks, made: 0, refused: 0, said: false }
    }

    fn count(&mut self, made: bool) {
        if made { self.made += 1 } else { self.refused += 1 }
    }

    fn say(&mut self, when: &str) {
        self.said = true;
        let seconds = self.began.elapsed().as_secs_f64();
        let rate = (self.made + self.refused) as f64 / seconds.max(0.001);
        note(format!(
            "{} created, {} refused in {seconds:.1} s ({rate:.0}/s) {when}",
            self.made, self.refused
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> (Vec<String>, Option<String>) {
        let (sender, mut receiver) = mpsc::channel(16);
        read_lines(text.as_bytes(), "jobs", &sender);
        drop(sender);
        let (mut names, mut error) = (Vec::new(), None);
        while let Some(line) = receiver.blocking_recv() {
            match line {
                Ok(create) => names.push(create.name),
                Err(CliError::Usage(text)) => error = Some(text),
                Err(other) => panic!("{other:?}"),
            }
        }
        (names, error)
    }

    #[test]
    fn each_line_is_a_create_and_a_bad_one_is_the_last() {
        let (names, error) = lines("{\"name\": \"a\"}\n\n{\"name\": \"b\"}");
        assert_eq!((names, error), (vec!["a".to_owned(), "b".to_owned()], None));
        let (names, error) = lines("{\"name\": \"a\"}\n{\"nam\": \"b\"}\n{\"name\": \"c\"}\n");
        assert_eq!(names, ["a"]);
        let error = error.unwrap();
        assert!(error.starts_with("line 2 of jobs: ") && error.contains("nam"), "{error}");
        let long = format!("{{\"name\": \"{}\"}}", "x".repeat(MAX_LINE as usize));
        assert!(lines(&long).1.unwrap().contains("bytes"));
    }
}
