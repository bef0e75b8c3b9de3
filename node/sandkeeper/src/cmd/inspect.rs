//! `sandkeeper inspect`.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use sandkeeper_control::inspect::{InspectError, InspectedSnapshot, Inspection, inspect};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{capacity, target, verification};
use crate::cli::Globals;
use crate::error::CliError;
use crate::json::Shown;
use crate::output::{Output, note, with_progress};
use crate::{human, output};

/// Show the state in the data directory of a control node that does not run, also at an earlier revision
///
/// Made from the newest snapshot at or before the revision and the committed log behind it, as far as this disk knows
/// it. Nothing in the data directory is written. The log is read from a copy, which is made where TMPDIR says (/tmp)
/// and removed in the end. Stop the node first, or inspect a copy of its data directory. Shows the sandboxes of all
/// namespaces, unless one is named.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  sandkeeper inspect /var/lib/sandkeeper\n  \
    sandkeeper inspect /var/lib/sandkeeper --at 4711 -n prod\n  \
    sandkeeper inspect ./node-1 -o json | jq -r .sandboxes[].sandbox_id\n  \
    sandkeeper inspect /var/lib/sandkeeper --verify\n  \
    sandkeeper inspect ./node-1 --verify -o json | jq .problems")]
pub struct InspectArgs {
    /// The data directory of the control node
    data_dir: PathBuf,
    /// The revision, as `history` and `watch` show them [default: the newest that is known to be committed]
    #[arg(long, value_name = "REVISION")]
    at: Option<u64>,
    /// Read everything instead and check it: every block, snapshot, record and digest. Shows all that is wrong, and where;
    /// the exit code is 1 then. Needs room for one database of the log (32 MiB) where TMPDIR says
    #[arg(long, conflicts_with = "at")]
    verify: bool,
}

/// Reads the data directory and shows what is in it; sandboxes of one namespace only if one was named.
pub async fn run(args: &InspectArgs, globals: &Globals) -> Result<(), CliError> {
    if args.verify {
        return verification::run(&args.data_dir, globals).await;
    }
    let found = read(args).await?;
    for problem in &found.problems {
        note(format!("warning: {problem}"));
    }
    let namespace = globals.namespace.as_deref();
    let output = Output::new(globals.output);
    if output.is_table() {
        output::text(&told(&found, &args.data_dir, namespace))
    } else {
        output.value(&ShownInspection::new(&found, &args.data_dir, namespace)?)
    }
}

async fn read(args: &InspectArgs) -> Result<Inspection, CliError> {
    let cancel = CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let what = format!("reading {}", args.data_dir.display());
    let reading = with_progress(&what, inspect(&args.data_dir, args.at, cancel.clone()));
    tokio::pin!(reading);
    let read = tokio::select! {
        read = &mut reading => read,
        _ = interrupt.recv() => { cancel.cancel(); reading.await }
        _ = terminate.recv() => { cancel.cancel(); reading.await }
    };
    read.map_err(|error| match error {
        InspectError::Cancelled => CliError::Failed(anyhow!("interrupted")),
        error => CliError::Failed(error.into()),
    })
}

/// What was found, for programs. Numbers of 64 bits are strings, as in the messages of the API.
#[derive(Serialize)]
struct ShownInspection {
    data_dir: String,
    name: String,
    node_id: String,
    cluster_id: String,
    revision: String,
    /// Of the last event, unix nanoseconds.
    time: String,
    /// Empty at a revision within an entry: the chain has no value there.
    history_digest: String,
    state_digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    applied_index: Option<String>,
    log: ShownLog,
    snapshots: Vec<ShownSnapshot>,
    problems: Vec<String>,
    /// As `cluster members`.
    #[serde(flatten)]
    members: Shown,
    /// As `capacity`.
    capacity: Shown,
    /// As `list`.
    #[serde(flatten)]
    sandboxes: Shown,
}

#[derive(Serialize)]
struct ShownLog {
    #[serde(skip_serializing_if = "Option::is_none")]
    first_index: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_index: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purged_index: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    committed_index: Option<String>,
    not_known_committed: String,
    term: String,
}

#[derive(Serialize)]
struct ShownSnapshot {
    index: String,
    term: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    bytes: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl ShownInspection {
    fn new(found: &Inspection, data_dir: &Path, namespace: Option<&str>) -> Result<Self, CliError> {
        let text = |number: Option<u64>| number.map(|number| number.to_string());
        let (state, log) = (&found.state, &found.log);
        let snapshot = |snapshot: &InspectedSnapshot| ShownSnapshot {
            index: snapshot.id.index.to_string(),
            term: snapshot.id.term.to_string(),
            revision: text(snapshot.revision),
            bytes: snapshot.bytes.to_string(),
            problem: snapshot.problem.clone(),
        };
        // The header stands once, as the fields around.
        let (mut members, mut sandboxes) = (found.list_members(), found.list_sandboxes(namespace));
        (members.header, sandboxes.header) = (None, None);
        Ok(Self {
            data_dir: data_dir.display().to_string(),
            name: found.identity.name.clone(),
            node_id: found.identity.node_id.to_string(),
            cluster_id: found.identity.cluster_id.clone().unwrap_or_default(),
            revision: state.revision().to_string(),
            time: state.last_time().0.to_string(),
            history_digest: found.history_digest.map_or_else(String::new, |digest| digest.to_string()),
            state_digest: state.state_digest().to_string(),
            oldest_revision: text(found.oldest),
            applied_index: text(found.applied_index),
            log: ShownLog {
                first_index: text(log.first_index),
                last_index: text(log.last_index),
                purged_index: text(log.purged_index),
                committed_index: text(log.committed_index),
                not_known_committed: log.not_known_committed.to_string(),
                term: log.term.to_string(),
            },
            snapshots: found.snapshots.iter().map(snapshot).collect(),
            problems: found.problems.clone(),
            members: Shown::new(&members)?,
            capacity: Shown::new(&found.get_capacity())?,
            sandboxes: Shown::new(&sandboxes)?,
        })
    }
}

/// What was found, for people.
fn told(found: &Inspection, data_dir: &Path, namespace: Option<&str>) -> String {
    let sandboxes = found.list_sandboxes(namespace).sandboxes;
    let sandboxes = match (sandboxes.as_slice(), namespace) {
        ([], None) => "No sandboxes.".to_owned(),
        ([], Some(namespace)) => format!("No sandboxes in namespace {namespace}."),
        (sandboxes, _) => target::rows(sandboxes, true),
    };
    let mut capacity = found.get_capacity();
    if found.history_digest.is_none() {
        "none: this revision lies within a log entry".clone_into(&mut capacity.history_digest);
    }
    format!("{}\n\n{}\n\n{sandboxes}", whose(found, data_dir), capacity::summary(&capacity))
}

/// Whose data it is, and how far it reaches.
fn whose(found: &Inspection, data_dir: &Path) -> String {
    let (identity, log) = (&found.identity, &found.log);
    let number = |number: Option<u64>| number.map_or_else(|| human::NONE.to_owned(), |it| it.to_string());
    let mut entries = match (log.first_index, log.last_index) {
        (Some(first), Some(last)) => {
            format!("entries {first} to {last}, committed up to {}", number(log.committed_index))
        }
        _ => "empty".to_owned(),
    };
    if log.not_known_committed > 0 {
        entries = format!("{entries}; {} not known to be committed", log.not_known_committed);
    }
    let members: Vec<_> = found.members.iter().map(|member| member.name.as_str()).collect();
    let snapshots: Vec<_> = found.snapshots.iter().map(snapshot).collect();
    let oldest = found.oldest.map_or_else(|| human::NONE.to_owned(), |oldest| format!("revision {oldest}"));
    let time = match found.state.revision() {
        0 => human::NONE.to_owned(),
        _ => human::moment(found.state.last_time().0),
    };
    output::fields([
        ("data directory", data_dir.display().to_string()),
        ("node", format!("{} ({})", identity.name, identity.node_id)),
        ("cluster", human::or_none(identity.cluster_id.as_deref().unwrap_or_default())),
        ("control nodes", human::or_none(&members.join(", "))),
        ("log", entries),
        ("snapshots", if snapshots.is_empty() { "none".to_owned() } else { snapshots.join("; ") }),
        ("reaches back to", oldest),
        ("shown up to", format!("log entry {}", number(found.applied_index))),
        ("last event", time),
    ])
}

fn snapshot(snapshot: &InspectedSnapshot) -> String {
    let (index, bytes) = (snapshot.id.index, human::bytes(snapshot.bytes));
    match (snapshot.revision, &snapshot.problem) {
        (Some(revision), _) => format!("revision {revision} (entry {index}, {bytes})"),
        (None, Some(_)) => format!("entry {index}, CORRUPT"),
        (None, None) => format!("entry {index}, {bytes}"),
    }
}

#[cfg(test)]
mod tests {
    use sandkeeper_control::storage::identity::NodeIdentity;

    use super::*;

    async fn new_node() -> (tempfile::TempDir, Inspection) {
        let dir = tempfile::tempdir().unwrap();
        let identity = NodeIdentity { node_id: 7, cluster_id: None, name: "node-1".into() };
        identity.save(dir.path()).unwrap();
        let found = inspect(dir.path(), None, CancellationToken::new()).await.unwrap();
        (dir, found)
    }

    #[tokio::test]
    async fn a_node_that_never_ran_has_nothing() {
        let (_dir, found) = new_node().await;
        let empty = "0".repeat(64);
        let text = told(&found, Path::new("node-1"), Some("prod")).replace(&empty, "NOTHING");
        insta::assert_snapshot!(text, @r"
        data directory    node-1
        node              node-1 (7)
        cluster           -
        control nodes     -
        log               empty
        snapshots         none
        reaches back to   revision 0
        shown up to       log entry -
        last event        -

                    SLOTS   CPU   MEMORY
        total       0       0     0B
        allocated   0       0     0B
        free        0       0     0B

        No agents.

        sandboxes        0 (0 waiting for capacity)
        revision         0
        history digest   NOTHING
        state digest     NOTHING

        No sandboxes in namespace prod.
        ");
    }

    #[tokio::test]
    async fn what_is_not_known_to_be_committed_and_what_is_corrupt_are_told() {
        let (_dir, mut found) = new_node().await;
        found.log.first_index = Some(30);
        found.log.last_index = Some(42);
        found.log.committed_index = Some(40);
        found.log.not_known_committed = 2;
        let one = |index: u64, revision: Option<u64>, problem: Option<&str>| InspectedSnapshot {
            id: serde_json::from_value(serde_json::json!({ "index": index, "term": 3 })).unwrap(),
            revision,
            bytes: 2048,
            problem: problem.map(str::to_owned),
        };
        found.snapshots = vec![one(35, None, Some("it is cut off")), one(29, Some(50), None)];
        found.history_digest = None;
        let text = told(&found, Path::new("d"), None);
        for line in [
            "entries 30 to 42, committed up to 40; 2 not known to be committed",
            "entry 35, CORRUPT; revision 50 (entry 29, 2KiB)",
            "none: this revision lies within a log entry",
        ] {
            assert!(text.contains(line), "{line} is missing in: {text}");
        }
    }

    #[tokio::test]
    async fn programs_find_the_fields_of_the_api() {
        let (dir, found) = new_node().await;
        let value = serde_json::to_value(ShownInspection::new(&found, dir.path(), None).unwrap()).unwrap();
        assert_eq!(
            (&value["name"], &value["node_id"], &value["revision"]),
            (&"node-1".into(), &"7".into(), &"0".into())
        );
        assert_eq!(value["sandboxes"], serde_json::json!([]));
        assert_eq!(value["members"], serde_json::json!([]));
        assert_eq!(value["capacity"]["total"]["slots"], "0");
        assert_eq!(value["log"]["not_known_committed"], "0");
        assert!(value["log"].get("last_index").is_none(), "there is no entry");
    }
}
