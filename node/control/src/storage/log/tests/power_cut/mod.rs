//! The proof that what is told to be stored is stored, whenever the power goes.
//!
//! A second process, the `victim`, works on a log store, and says on its standard output what it is about to do and what
//! it was told to be durable. The power is cut, and the `oracle` compares what a store finds on the disk then.
//!
//! - `real`: on a real file system, which is shut down so that everything that was not fsynced is gone. Needs root.
//! - `simulated`: the victim's system calls are recorded (`trace`), and a model of a disk (`disk`) says what could be on
//!   it after a cut between any two of them. Needs `strace`.
//!
//! Both also run with the fsync taken out, and must find losses then: a test of power cuts that can't fail shows nothing.

mod cached;
mod disk;
mod machine;
mod oracle;
mod real;
mod simulated;
mod trace;
mod victim;

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::storage::describe;
use oracle::{Op, Spec, State};

/// A number from the environment, for long forms of the tests.
fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{variable} is to be a number, and is {text:?}"))
    })
}

/// Reads all that a store has; fails if an entry is not the one that was written there.
async fn read(store: &mut LogStore) -> Result<State, String> {
    let bounds = store.get_log_state().await.map_err(|error| error.to_string())?;
    let vote = store.reader().read_vote().await.map_err(|error| error.to_string())?;
    let committed = store.read_committed().await.map_err(|error| error.to_string())?;
    let (reader, mut entries) = (store.reader(), Vec::new());
    let history = reader.first_index();
    loop {
        let next = history + entries.len() as u64;
        let more = reader.entries_from(next, 1 << 20).await.map_err(|error| describe(&error))?;
        if more.is_empty() {
            break;
        }
        entries.extend(more);
    }
    let mut specs = Vec::new();
    for (index, found) in (history..).zip(&entries) {
        let EntryPayload::Normal(data) = &found.payload else {
            return Err(format!("{} was never written", found.log_id));
        };
        let spec = Spec { term: found.log_id.committed_leader_id().term, index, size: data.bytes().len() };
        if *found != spec.entry() {
            return Err(format!("entry {} has other content than was written at {index}", found.log_id));
        }
        specs.push(spec);
    }
    let purged = bounds.last_purged_log_id.map(|id| (id.committed_leader_id().term, id.index));
    let state = State {
        history,
        purged,
        entries: specs,
        vote: vote.map_or(0, |vote| vote.leader_id.term),
        committed: committed.map(|id| id.index),
    };
    if state.next() != bounds.last_log_id.map_or(0, |last| last.index + 1) {
        return Err(format!(
            "the entries end before {}, the log with {:?}",
            state.next(),
            bounds.last_log_id
        ));
    }
    if state.first() != reader.first_raft_index() || all(store).await.len() != state.of_raft().len() {
        return Err(format!("Raft can't read what follows {purged:?}"));
    }
    Ok(state)
}

/// Opens a store after a power cut, reads what it has, and appends to it; what it had, and what it has then.
fn recover(folder: &Path) -> Result<(State, State), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // A store that panics is a store that does not open.
    let recovered = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let mut store = LogStore::open(folder, LogOptions::default())
                .map_err(|error| format!("it does not open: {}", describe(&error)))?;
            let found = read(&mut store).await?;
            let mut after = found.clone();
            let term = found.last().map_or(0, |(term, _)| term) + 1;
            let spec = Spec { term, index: found.next(), size: 100 };
            append(&mut store, [spec.entry()]).await;
            after.apply(&Op::Append(vec![spec]));
            let read = read(&mut store).await?;
            if read != after {
                return Err(format!("after an append {after} is expected, and {read} is there"));
            }
            store.shutdown().await.map_err(|error| describe(&error))?;
            Ok((found, after))
        })
    }));
    recovered.unwrap_or_else(|_| Err("it panics when it is opened or read".to_owned()))
}
