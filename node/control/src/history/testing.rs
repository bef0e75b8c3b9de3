//! For tests: entries, and what a history takes on the disk.

use std::fs;
use std::path::Path;

use sandkeeper_statemachine::{Actor, Entry, Event, EventKind, Header, Revision, Subject, Timestamp};
use uuid::Uuid;

/// An entry of `count` events that change nothing but the revision (the first entry of a history begins with
/// `ClusterCreated`, as the state wants it).
pub(crate) fn filler(base_revision: Revision, term: u64, count: usize) -> Entry {
    filler_of(0x5a, base_revision, term, count)
}

/// The same, of the cluster with this id.
pub(crate) fn filler_of(cluster: u128, base_revision: Revision, term: u64, count: usize) -> Entry {
    let events = (0..count).map(|i| event((base_revision == 0 && i == 0).then_some(cluster))).collect();
    let time = Timestamp(1_700_000_000_000_000_000 + base_revision.cast_signed() * 1000);
    Entry::new(base_revision, term, time, events)
}

fn event(cluster: Option<u128>) -> Event {
    let kind = match cluster {
        Some(id) => EventKind::ClusterCreated { cluster_id: Uuid::from_u128(id), cluster_version: 1 },
        None => EventKind::RequestsPruned { until: Timestamp(0), limit: 1 },
    };
    let header = Header {
        actor: Actor::Leader,
        reason: "a test".to_owned(),
        request: None,
        subject: Subject::default(),
        previous: 0,
    };
    Event { header, kind }
}

/// How long all files below a folder are together, bytes.
pub(crate) fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let bytes = |entry: fs::DirEntry| match entry.metadata().unwrap() {
        metadata if metadata.is_dir() => bytes_in(&entry.path()),
        metadata => metadata.len(),
    };
    entries.map(bytes).sum()
}
