//! `sandkeeper inspect --verify`.

use std::path::Path;

use anyhow::anyhow;
use sandkeeper_control::inspect::{InspectError, Verification, VerifiedFiles, VerifyProgress, verify};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::cli::Globals;
use crate::error::CliError;
use crate::output::{Output, with_bar};
use crate::{human, output};

/// Reads everything in the data directory, and shows what was read and what is wrong.
pub async fn run(data_dir: &Path, globals: &Globals) -> Result<(), CliError> {
    let found = read(data_dir).await?;
    let output = Output::new(globals.output);
    if output.is_table() {
        output::text(&told(&found, data_dir))?;
    } else {
        output.value(&ShownVerification::new(&found, data_dir))?;
    }
    if found.problems.is_empty() { Ok(()) } else { Err(CliError::Shown) }
}

async fn read(data_dir: &Path) -> Result<Verification, CliError> {
    let (progress, cancel) = (VerifyProgress::default(), CancellationToken::new());
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (dir, for_task, cancelled) = (data_dir.to_owned(), progress.clone(), cancel.clone());
    let reading = spawn_blocking(move || verify(&dir, &for_task, &cancelled));
    let what = format!("reading {}", data_dir.display());
    let reading = with_bar(&what, || progress.get(), reading);
    tokio::pin!(reading);
    let read = tokio::select! {
        read = &mut reading => read,
        _ = interrupt.recv() => { cancel.cancel(); reading.await }
        _ = terminate.recv() => { cancel.cancel(); reading.await }
    };
    match read.map_err(anyhow::Error::from)? {
        Err(InspectError::Cancelled) => Err(CliError::Failed(anyhow!("interrupted"))),
        read => Ok(read.map_err(anyhow::Error::from)?),
    }
}

/// What was found, for programs. Numbers of 64 bits are strings, as in the messages of the API.
#[derive(Serialize)]
struct ShownVerification {
    data_dir: String,
    /// Nothing is wrong.
    sound: bool,
    files: Vec<ShownFiles>,
    problems: Vec<ShownProblem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_index: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_index: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    committed_index: Option<String>,
    /// Of the end of the committed log; empty if the chain could not be followed to there.
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    history_digest: String,
    state_digest: String,
    not_read: Vec<String>,
}

#[derive(Serialize)]
struct ShownFiles {
    what: &'static str,
    files: String,
    bytes: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<String>,
}

#[derive(Serialize)]
struct ShownProblem {
    place: String,
    what: String,
}

impl ShownVerification {
    fn new(found: &Verification, data_dir: &Path) -> Self {
        let text = |number: Option<u64>| number.map(|number| number.to_string());
        let shown = |files: &VerifiedFiles| ShownFiles {
            what: files.what,
            files: files.files.to_string(),
            bytes: files.bytes.to_string(),
            entries: text(files.entries),
        };
        let problems = found.problems.iter().map(|problem| ShownProblem {
            place: problem.place.display().to_string(),
            what: problem.what.clone(),
        });
        Self {
            data_dir: data_dir.display().to_string(),
            sound: found.problems.is_empty(),
            files: found.files.iter().map(shown).collect(),
            problems: problems.collect(),
            first_index: text(found.entries.map(|(first, _)| first)),
            last_index: text(found.entries.map(|(_, last)| last)),
            committed_index: text(found.committed_index),
            revision: text(found.history.map(|(revision, _)| revision)),
            history_digest: found.history.map_or_else(String::new, |(_, digest)| digest.to_string()),
            state_digest: found.state_digest.map_or_else(String::new, |digest| digest.to_string()),
            not_read: found.not_read.iter().map(|path| path.display().to_string()).collect(),
        }
    }
}

/// What was found, for people.
fn told(found: &Verification, data_dir: &Path) -> String {
    let number = |number: Option<u64>| number.map_or_else(|| human::NONE.to_owned(), |it| it.to_string());
    let row = |files: &VerifiedFiles| {
        let (count, bytes) = (files.files.to_string(), human::bytes(files.bytes));
        vec![files.what.to_owned(), count, bytes, number(files.entries)]
    };
    let read = output::table(&["READ", "FILES", "SIZE", "ENTRIES"], found.files.iter().map(row));
    let entries = found.entries.map_or_else(
        || "empty".to_owned(),
        |(first, last)| {
            format!("entries {first} to {last}, committed up to {}", number(found.committed_index))
        },
    );
    let unknown = || "not known: it could not be followed to the end".to_owned();
    let (revision, history) = found.history.map_or_else(
        || (human::NONE.to_owned(), unknown()),
        |(revision, digest)| (revision.to_string(), digest.to_string()),
    );
    let state = found.state_digest.map_or_else(unknown, |digest| digest.to_string());
    let verdict = match found.problems.len() {
        0 => "nothing is wrong".to_owned(),
        1 => "1 PROBLEM".to_owned(),
        problems => format!("{problems} PROBLEMS"),
    };
    let fields = output::fields([
        ("data directory", data_dir.display().to_string()),
        ("log", entries),
        ("revision", revision),
        ("history digest", history),
        ("state digest", state),
        ("verdict", verdict),
    ]);
    let problems =
        found.problems.iter().map(|problem| vec![problem.place.display().to_string(), problem.what.clone()]);
    let problems = match found.problems.as_slice() {
        [] => String::new(),
        _ => format!("\n\n{}", output::table(&["PLACE", "WHAT IS WRONG"], problems)),
    };
    format!("{read}\n\n{fields}{problems}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use sandkeeper_control::storage::identity::NodeIdentity;

    use super::*;

    fn found(dir: &Path) -> Verification {
        verify(dir, &VerifyProgress::default(), &CancellationToken::new()).unwrap()
    }

    #[test]
    fn what_was_read_and_what_is_wrong_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        NodeIdentity { node_id: 7, cluster_id: None, name: "node-1".into() }.save(dir.path()).unwrap();
        let empty = "0".repeat(64);
        let text = |found: &Verification| told(found, Path::new("node-1")).replace(&empty, "NOTHING");
        let sound = found(dir.path());
        insta::assert_snapshot!(text(&sound), @r"
        READ        FILES   SIZE   ENTRIES
        node.toml   1       177B   -

        data directory   node-1
        log              empty
        revision         0
        history digest   NOTHING
        state digest     NOTHING
        verdict          nothing is wrong
        ");
        let value = serde_json::to_value(ShownVerification::new(&sound, dir.path())).unwrap();
        assert_eq!((&value["sound"], &value["problems"]), (&true.into(), &serde_json::json!([])));

        fs::write(dir.path().join("node.toml"), "format_version = 9\n").unwrap();
        fs::create_dir(dir.path().join("index")).unwrap();
        fs::write(dir.path().join("index/section-00000000000000000001"), "SKHX").unwrap();
        let wrong = found(dir.path());
        let places: Vec<_> =
            wrong.problems.iter().map(|problem| problem.place.display().to_string()).collect();
        assert_eq!(places, ["node.toml", "index/section-00000000000000000001"], "not only the first");
        assert!(text(&wrong).contains("2 PROBLEMS"), "{}", text(&wrong));
        let value = serde_json::to_value(ShownVerification::new(&wrong, dir.path())).unwrap();
        assert_eq!(value["sound"], false);
        assert!(value["problems"][0]["what"].as_str().unwrap().contains("has format version 9"));
    }
}
