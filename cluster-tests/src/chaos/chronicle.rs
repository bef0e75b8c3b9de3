//! What happened, for people: the whole history and all operations in files, and the last of both, with the faults, for the
//! timeline around a violation.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandkeeper_client::v1;

use super::record::Operation;
use super::violation::Violation;

/// Lines that are kept for a timeline.
const KEPT: usize = 60_000;
/// Lines before and after a violation that are in its timeline, whatever they are about.
const AROUND: usize = 400;

/// A line, and what it is about.
#[derive(Debug)]
struct Line {
    at: Duration,
    /// Of events only.
    revision: u64,
    text: String,
}

/// Where everything is written down.
#[derive(Debug)]
pub struct Chronicle {
    folder: PathBuf,
    history: BufWriter<File>,
    operations: BufWriter<File>,
    last: VecDeque<Line>,
}

impl Chronicle {
    /// Files in this folder.
    ///
    /// # Errors
    /// If they can't be made.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let file = |name: &str| File::create(folder.join(name)).map(BufWriter::new);
        let (history, operations) = (file("history.log")?, file("operations.log")?);
        Ok(Self { folder: folder.to_owned(), history, operations, last: VecDeque::new() })
    }

    /// An event, when it was first heard.
    pub fn event(&mut self, at: Duration, event: &v1::Event) {
        let text = describe(event);
        // A full disk of the tester's is no reason to stop testing: the timeline below says what is known.
        let _ = writeln!(self.history, "{:9.3} {text}", at.as_secs_f64());
        self.push(at, event.revision, text);
    }

    /// A call that ended.
    pub fn operation(&mut self, operation: &Operation) {
        let text = operation.to_string();
        let _ = writeln!(self.operations, "{text}");
        self.push(operation.ended, 0, format!("    {text}"));
    }

    /// A fault, or anything else of note.
    pub fn note(&mut self, at: Duration, text: &str) {
        let _ = writeln!(self.operations, "{:9.3} == {text}", at.as_secs_f64());
        self.push(at, 0, format!("== {text}"));
    }

    fn push(&mut self, at: Duration, revision: u64, text: String) {
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(Line { at, revision, text });
    }

    /// Writes the timeline: around each violation what happened then, what is about its sandbox, and all faults.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write_timeline(&mut self, violations: &[Violation]) -> io::Result<PathBuf> {
        self.history.flush()?;
        self.operations.flush()?;
        let path = self.folder.join("timeline.txt");
        let mut text = String::new();
        for violation in violations {
            let Violation { invariant, what, revision, sandbox_id, seconds } = violation;
            let _ = writeln!(text, "VIOLATION at {seconds:.3} s of {invariant}\n{what}\n");
            let middle = self.last.iter().position(|line| *revision > 0 && line.revision == *revision);
            let middle =
                middle.unwrap_or_else(|| self.last.partition_point(|line| line.at.as_secs_f64() < *seconds));
            for (index, line) in self.last.iter().enumerate() {
                let near = index.abs_diff(middle) <= AROUND;
                let about = !sandbox_id.is_empty() && line.text.contains(sandbox_id.as_str());
                if near || about || line.text.starts_with("==") {
                    let mark = if about { '*' } else { ' ' };
                    let _ = writeln!(text, "{mark}{:9.3} {}", line.at.as_secs_f64(), line.text);
                }
            }
            text.push('\n');
        }
        std::fs::write(&path, text)?;
        Ok(path)
    }
}

/// An event in one line.
fn describe(event: &v1::Event) -> String {
    let kind = event.r#type().as_str_name().trim_start_matches("EVENT_TYPE_").to_lowercase();
    let v1::Event { revision, namespace, name, sandbox_id, agent_id, generation, request_id, .. } = event;
    let mut text = format!("{revision} {kind}");
    if !sandbox_id.is_empty() {
        let _ = write!(text, " {namespace}/{name} {sandbox_id}");
    }
    for (what, value) in [("agent", agent_id), ("request", request_id), ("by", &event.actor)] {
        if !value.is_empty() {
            let _ = write!(text, " {what} {value}");
        }
    }
    if *generation > 0 {
        let _ = write!(text, " generation {generation}");
    }
    if !event.reason.is_empty() {
        let _ = write!(text, " ({})", event.reason);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::invariants::testing::{allocated, created};
    use crate::chaos::violation::{Breach, Invariant};

    #[test]
    fn the_timeline_has_what_is_about_the_violation() {
        let folder = tempfile::tempdir().unwrap();
        let mut chronicle = Chronicle::new(folder.path()).unwrap();
        chronicle.event(Duration::from_secs(1), &created(1, "far-away"));
        for revision in 2..2_000 {
            chronicle.event(Duration::from_secs(2), &created(revision, &format!("s{revision}-")));
        }
        chronicle.note(Duration::from_secs(3), "a fault");
        chronicle.event(Duration::from_secs(3), &allocated(2_000, "far-away", 1));
        let breach = Breach::new(Invariant::Durable, &allocated(2_000, "far-away", 1), "broken");
        let path = chronicle.write_timeline(&[Violation::new(breach, Duration::from_secs(3))]).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        for part in [
            "VIOLATION",
            "broken",
            "*    1.000 1 sandbox_created ns/name-of-far-away",
            "== a fault",
            "s1999-",
        ] {
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
        assert!(!text.contains("s2-"), "what is far away and about something else is not in it");
        assert_eq!(
            std::fs::read_to_string(folder.path().join("history.log")).unwrap().lines().count(),
            2_000
        );
    }
}
