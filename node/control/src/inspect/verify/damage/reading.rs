//! Reading everything as a node does it, in a process of its own.

use std::io::{self, Write as _};
use std::path::Path;

use openraft::storage::RaftLogStorage as _;
use openraft::{EntryPayload, RaftLogReader as _};
use sandkeeper_statemachine::State;
use tokio_util::sync::CancellationToken;

use super::directory::{digest_of_log, whose};
use crate::history::feed::AppliedEntry;
use crate::history::index::{Key, Place, SubjectIndex};
use crate::inspect::fold::{Folded, fold};
use crate::inspect::verify::{VerifyProgress, verify};
use crate::raft::snapshots::load;
use crate::raft::types::{LogEntry, StoredMembership};
use crate::storage::describe;
use crate::storage::identity::NodeIdentity;
use crate::storage::log::{LogOptions, LogStore};
use crate::storage::snapshot::{SnapshotId, SnapshotStore};

pub(super) const FOLDER: &str = "SANDKEEPER_DAMAGED_FOLDER";

fn say(what: &str, value: impl std::fmt::Display) {
    let value = value.to_string().replace('\n', " ");
    writeln!(io::stdout(), "\n{what} {value}").unwrap();
}

#[test]
#[ignore = "it is started by the test beside it"]
fn reader() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    // First, as a start changes what it reads.
    match verify(folder, &VerifyProgress::default(), &CancellationToken::new()) {
        Ok(found) => found.problems.iter().for_each(|problem| {
            say("problem", format!("{}: {}", problem.place.display(), problem.what));
        }),
        Err(error) => say("problem", describe(&error)),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Err(error) = runtime.block_on(read(folder)) {
        say("error", error);
    }
}

/// In the order in which a node opens it.
async fn read(folder: &Path) -> Result<(), String> {
    let told = |error: &dyn std::error::Error| describe(error);
    let identity = NodeIdentity::load(folder).map_err(|e| told(&e))?.ok_or("node.toml is missing")?;
    let mut store = LogStore::open(&folder.join("log"), LogOptions::default()).map_err(|e| told(&e))?;
    let mut reader = store.reader();
    let snapshots = SnapshotStore::open(&folder.join("snapshots")).map_err(|e| told(&e))?;
    let reaches_back = |id: SnapshotId| reader.first_raft_index() <= id.index + 1;
    let newest = snapshots.open_newest(reaches_back).map_err(|e| told(&e))?;
    let index = SubjectIndex::open(&folder.join("index")).map_err(|e| told(&e))?;
    let begin = match newest.map(|file| load(&file)).transpose().map_err(|e| told(&e))? {
        Some((header, state)) => {
            let (applied, membership) = (header.meta.last_log_id, header.meta.last_membership);
            Folded { state, applied, membership, whole: true }
        }
        None => Folded {
            state: State::new(),
            applied: None,
            membership: StoredMembership::default(),
            whole: true,
        },
    };
    let committed = store.read_committed().await.map_err(|e| told(&e))?.map(|id| id.index());
    let committed = committed.max(begin.applied.map(|id| id.index()));
    let cancel = CancellationToken::new();
    let folded = fold(&reader, begin, committed, None, &cancel).await.map_err(|e| told(&e))?;
    let mut log = Vec::new();
    while reader.last_index().is_some_and(|last| log.len() as u64 <= last) {
        let read = reader.entries_from(log.len() as u64, 1 << 20).await.map_err(|e| told(&e))?;
        if read.is_empty() {
            return Err("the log ends early".to_owned());
        }
        log.extend(read);
    }
    let vote =
        reader.read_vote().await.map_err(|e| told(&e))?.map_or_else(String::new, |vote| vote.to_string());
    look_up(&index, &log)?;
    say("committed", folded.next_index() - 1);
    say("state", folded.state.state_digest());
    say("log", format!("{} {}", digest_of_log(&log), whose(&identity, &vote)));
    Ok(())
}

/// What the index says must be what the history holds, as far back as it claims to know.
fn look_up(index: &SubjectIndex, log: &[LogEntry]) -> Result<(), String> {
    let (mut revision, mut applied) = (0, Vec::new());
    for entry in log {
        let EntryPayload::Normal(data) = &entry.payload else { continue };
        let decoded = data.entry().map_err(|error| error.to_string())?;
        if decoded.base_revision == revision && decoded.decided_term == 1 {
            revision = decoded.last_revision();
            let (first_revision, index) = (decoded.base_revision + 1, entry.log_id.index());
            applied.push(AppliedEntry { first_revision, term: 1, index, entry: decoded });
        }
    }
    let keys: std::collections::BTreeSet<Key> =
        applied.iter().flat_map(|entry| entry.entry.events.iter().flat_map(Key::of_event)).collect();
    let upto = index.covered_before(revision + 1);
    for key in keys {
        let found = index.lookup(key, upto).map_err(|error| describe(&error))?;
        let Some(found) = found else { continue };
        let of_entry = |entry: &AppliedEntry| {
            let at = entry.index;
            let events = (entry.first_revision..).zip(entry.entry.events.clone());
            let of_key = events.filter(move |(_, event)| Key::of_event(event).any(|other| other == key));
            of_key.map(move |(revision, _)| Place { revision, index: at }).collect::<Vec<_>>()
        };
        let mut expected: Vec<_> = applied.iter().flat_map(of_entry).collect();
        expected.retain(|place| (found.from..=upto).contains(&place.revision));
        expected.reverse();
        if found.places != expected {
            say("wrong", format!("the index says {:?} for {expected:?}", found.places));
        }
    }
    Ok(())
}
