//! Reads everything in a data directory of a node that does not run, and says all that is wrong with it.
//!
//! # Architecture invariants
//!
//! - Nothing in the data directory is written. Opening a database writes to it, so each is copied first, one at a time.
//! - It goes on after each fault: behind what can't be read the next database, and the next snapshot, are the new start.
//! - What a start of the node, or a read by it, would find, is found here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sandkeeper_statemachine::{Digest, Revision};
use tokio_util::sync::CancellationToken;

#[cfg(test)]
mod damage;
mod files;
mod log;
mod walk;

use files::{Kind, Listing};

use super::copy::Copy;
use super::lock::ReadLock;
use super::{InspectError, absolute, error};
use crate::history::index::check_section;
use crate::raft::snapshots::{SnapshotHeader, load};
use crate::storage::identity::NodeIdentity;
use crate::storage::snapshot::SnapshotId;
use crate::storage::{StorageError, describe};

/// How far the reading is, bytes. A clone is another handle.
#[derive(Clone, Debug, Default)]
pub struct VerifyProgress {
    counters: Arc<[AtomicU64; 2]>,
}

impl VerifyProgress {
    /// How much has been read, and how much there is.
    pub fn get(&self) -> (u64, u64) {
        let [done, total] = [0, 1].map(|at: usize| self.counters[at].load(Ordering::Relaxed));
        (done.min(total), total)
    }

    fn add(&self, bytes: u64) {
        self.counters[0].fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file or folder, below the data directory.
    pub place: PathBuf,
    /// What is wrong with it, and where in it.
    pub what: String,
}

/// What was read of one kind of file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedFiles {
    /// What they are.
    pub what: &'static str,
    /// How many.
    pub files: u64,
    /// How long they are together.
    pub bytes: u64,
    /// Log entries, blocks, places or records in them; `None` if they have none.
    pub entries: Option<u64>,
}

/// What was read, and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    /// By kind.
    pub files: Vec<VerifiedFiles>,
    /// In the order in which it was found.
    pub problems: Vec<Problem>,
    /// The first and the last log entry that was read.
    pub entries: Option<(u64, u64)>,
    /// The last entry that is known, on this disk, to be committed.
    pub committed_index: Option<u64>,
    /// Where the chain of digests ended: revision and history digest, if it could be followed to the end.
    pub history: Option<(Revision, Digest)>,
    /// The digest of the state there, if it could be folded to the end.
    pub state_digest: Option<Digest>,
    /// Files that don't belong there, or are not read: left over, or set aside.
    pub not_read: Vec<PathBuf>,
}

/// Reads everything in `data_dir`. Blocks; `cancel` it rather than leave it.
///
/// # Errors
/// If it is no data directory, a process has it, a copy can't be made, or it was cancelled. What is wrong with the data is no
/// error of this call.
pub fn verify(
    data_dir: &Path,
    progress: &VerifyProgress,
    cancel: &CancellationToken,
) -> Result<Verification, InspectError> {
    let data_dir = absolute(data_dir)?;
    if !data_dir.join("node.toml").exists() && !data_dir.join("log").is_dir() {
        return Err(error::no_identity(&data_dir));
    }
    let lock = ReadLock::acquire(&data_dir)?;
    let listing = Listing::of(&data_dir)?;
    progress.counters[1].store(listing.bytes(), Ordering::Relaxed);
    let mut run = Run {
        copy: Copy::begin(&data_dir)?,
        data_dir,
        progress: progress.clone(),
        cancel: cancel.clone(),
        found: Verification::default(),
        entries: BTreeMap::new(),
    };
    run.identity();
    let snapshots = run.snapshots(&listing)?;
    run.log(&listing, snapshots)?;
    run.sections(&listing)?;
    lock.still_alone()?;
    Ok(run.finish(&listing))
}

/// A snapshot that is sound.
struct SoundSnapshot {
    id: SnapshotId,
    path: PathBuf,
    header: SnapshotHeader,
}

/// A verification under way.
struct Run {
    data_dir: PathBuf,
    copy: Copy,
    progress: VerifyProgress,
    cancel: CancellationToken,
    found: Verification,
    entries: BTreeMap<Kind, u64>,
}

impl Run {
    fn go_on(&self) -> Result<(), InspectError> {
        if self.cancel.is_cancelled() { Err(InspectError::Cancelled) } else { Ok(()) }
    }

    fn wrong(&mut self, path: &Path, what: impl Into<String>) {
        let (copy, data_dir) = self.copy.paths();
        let what: String = what.into();
        // A place in the copy is the same place in the data directory.
        let place = path.strip_prefix(&copy).or_else(|_| path.strip_prefix(&data_dir)).unwrap_or(path);
        self.found.problems.push(Problem { place: place.to_owned(), what: what.replace(&copy, &data_dir) });
    }

    /// A fault of a file, or of a database.
    fn fault(&mut self, error: &StorageError) {
        match error {
            StorageError::CorruptFile { path, offset, what } => {
                self.wrong(path, format!("at byte {offset}: {what}"));
            }
            StorageError::CorruptLog { dir, key, what } => self.wrong(dir, format!("key {key}: {what}")),
            StorageError::Panicked { dir, said } => self.wrong(dir, format!("sled panicked: {said}")),
            StorageError::Database { dir, .. } => self.wrong(dir, describe(error)),
            StorageError::Io { path, .. }
            | StorageError::NewerFormat { path, .. }
            | StorageError::Identity { path, .. } => self.wrong(path, describe(error)),
            other => self.wrong(Path::new("log"), describe(other)),
        }
    }

    fn identity(&mut self) {
        match NodeIdentity::load(&self.data_dir) {
            Ok(Some(_)) => {}
            Ok(None) => self.wrong(Path::new("node.toml"), "it is missing"),
            Err(error) => self.fault(&error),
        }
    }

    /// Every checksum of each, the digests of its state, and that its header names them. Oldest first.
    fn snapshots(&mut self, listing: &Listing) -> Result<Vec<SoundSnapshot>, InspectError> {
        let store = self.copy.snapshots()?;
        let mut sound = Vec::new();
        for id in store.list()?.into_iter().rev() {
            self.go_on()?;
            let path = self.data_dir.join("snapshots").join(format!("snapshot-{id}.sk"));
            match store.open_snapshot(id) {
                Err(error) => self.fault(&error),
                Ok(file) => match load(&file) {
                    Ok((header, _)) => sound.push(SoundSnapshot { id, path: path.clone(), header }),
                    Err(error) => self.wrong(&path, error.to_string()),
                },
            }
            self.progress.add(listing.length(&path));
        }
        Ok(sound)
    }

    /// Every checksum of each section of the index.
    fn sections(&mut self, listing: &Listing) -> Result<(), InspectError> {
        for path in listing.of_kind(Kind::Index) {
            self.go_on()?;
            match check_section(path) {
                Ok(places) => *self.entries.entry(Kind::Index).or_default() += places,
                Err(what) => self.wrong(path, format!("{what} (derived: the node makes it again)")),
            }
            self.progress.add(listing.length(path));
        }
        Ok(())
    }

    fn finish(mut self, listing: &Listing) -> Verification {
        self.found.files = listing.summary(&self.entries);
        self.found.not_read = listing
            .of_kind(Kind::Other)
            .map(|path| path.strip_prefix(&self.data_dir).unwrap_or(path).to_owned())
            .collect();
        self.found
    }
}

/// The size of a file; nothing if it is gone.
fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |data| data.len())
}
