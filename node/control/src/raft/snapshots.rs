//! Snapshots of the state: what is in their header and body, how they are made while the state goes on, and when
//! one is due.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use openraft::RaftSnapshotBuilder;
use sandkeeper_statemachine::{Digest, MAX_CHUNK_BYTES, Revision, State};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::replica::View;
use super::types::{Snapshot, SnapshotMeta, TypeConfig};
use crate::disk::{DiskSpace, Size};
use crate::history::checkpoints::{Checkpoint, Checkpoints};
use crate::history::{Digests, digests_of};
use crate::storage::describe;
use crate::storage::snapshot::{MAX_HEADER_BYTES, SnapshotFile, SnapshotStore};

/// The version of the header's form.
const HEADER_VERSION: u16 = 1;
/// More checkpoints than these are thinned out: they must fit into the header, at up to 50 bytes each.
const MAX_CHECKPOINTS: usize = 200_000;
/// The largest piece of an encoded state that is read.
const MAX_PIECE_BYTES: u32 = MAX_CHUNK_BYTES as u32;

/// What a snapshot says of itself. Fields are append-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotHeader {
    version: u16,
    /// What openraft wants to know: the last log id, and the membership.
    pub(crate) meta: SnapshotMeta,
    /// The revision of the state.
    pub(crate) revision: Revision,
    history_digest: Digest,
    state_digest: Digest,
    /// Where the log holds which revision.
    pub(crate) checkpoints: Vec<Checkpoint>,
}

impl SnapshotHeader {
    fn of(view: &View, checkpoints: &Checkpoints) -> Self {
        let digests = digests_of(&view.state);
        let meta = SnapshotMeta { last_log_id: view.applied, last_membership: view.membership.clone() };
        Self {
            version: HEADER_VERSION,
            meta,
            revision: digests.revision,
            history_digest: digests.history,
            state_digest: digests.state,
            checkpoints: checkpoints.thinned(MAX_CHECKPOINTS),
        }
    }

    fn encode(&self) -> Vec<u8> {
        bincode::serde::encode_to_vec(self, bincode::config::standard())
            .expect("a header consists of types that bincode can write")
    }

    /// Reads the header of a file.
    ///
    /// # Errors
    /// If it is not a header of this version.
    pub(crate) fn read(file: &SnapshotFile) -> io::Result<Self> {
        let config = bincode::config::standard().with_limit::<MAX_HEADER_BYTES>();
        let bytes = file.header();
        match bincode::serde::decode_from_slice::<Self, _>(bytes, config) {
            Ok((header, read)) if header.version == HEADER_VERSION && read == bytes.len() => Ok(header),
            Ok((header, _)) if header.version > HEADER_VERSION => {
                let version = header.version;
                Err(bad(
                    file,
                    format!("its header has version {version}; this one reads up to {HEADER_VERSION}"),
                ))
            }
            Ok(_) => Err(bad(file, "its header is not one")),
            Err(error) => Err(bad(file, format!("its header does not decode: {error}"))),
        }
    }

    /// Revision and digests of its state.
    pub(crate) fn digests(&self) -> Digests {
        Digests { revision: self.revision, history: self.history_digest, state: self.state_digest }
    }

    fn check(&self, file: &SnapshotFile, state: &State) -> io::Result<()> {
        if digests_of(state) == self.digests() {
            Ok(())
        } else {
            Err(bad(file, "its state is not the one whose digests the header names"))
        }
    }
}

fn bad(file: &SnapshotFile, what: impl Into<String>) -> io::Error {
    let text = format!("the snapshot {} can't be used: {}", file.path().display(), what.into());
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Reads a whole snapshot and verifies it: the file's hash, and the digests of the state. Blocks.
///
/// # Errors
/// If anything is wrong, with the place.
pub(crate) fn load(file: &SnapshotFile) -> io::Result<(SnapshotHeader, State)> {
    let header = SnapshotHeader::read(file)?;
    let mut body = file.body();
    let pieces = std::iter::from_fn(|| read_piece(&mut body).transpose());
    let state = State::from_snapshot_chunks(pieces).map_err(|error| bad(file, describe(&error)))?;
    // The hash of the file is verified when its end is read.
    if body.read(&mut [0])? != 0 {
        return Err(bad(file, "something follows the state"));
    }
    header.check(file, &state)?;
    Ok((header, state))
}

fn write_piece(out: &mut impl Write, piece: &[u8]) -> io::Result<()> {
    let length = u32::try_from(piece.len())
        .ok()
        .filter(|length| *length <= MAX_PIECE_BYTES)
        .ok_or_else(|| io::Error::other("a piece of the state is too large for a snapshot"))?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(piece)
}

fn read_piece(input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    if input.read(&mut length[..1])? == 0 {
        return Ok(None);
    }
    input.read_exact(&mut length[1..])?;
    let length = u32::from_le_bytes(length);
    if length > MAX_PIECE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a piece of {length} bytes")));
    }
    let mut piece = Vec::new();
    input.take(length.into()).read_to_end(&mut piece)?;
    if piece.len() < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(piece))
}

/// Writes a snapshot of a view. Blocks.
///
/// # Errors
/// If nothing is applied yet, or the disk refuses.
pub(crate) fn write(
    store: &SnapshotStore,
    view: &View,
    checkpoints: &Checkpoints,
) -> io::Result<SnapshotFile> {
    let applied = view.applied.ok_or_else(|| io::Error::other("nothing is applied yet"))?;
    let header = SnapshotHeader::of(view, checkpoints);
    let mut writer = store.create(applied.into(), &header.encode())?;
    for piece in view.state.snapshot_chunks() {
        write_piece(&mut writer, &piece)?;
    }
    Ok(writer.finish()?)
}

/// The newest snapshot, and how much was applied since it was made.
#[derive(Clone, Default)]
pub(crate) struct SnapshotState {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    newest: Mutex<Option<(SnapshotMeta, SnapshotFile)>>,
    /// Encoded bytes of all entries applied since the start.
    applied_bytes: AtomicU64,
    /// The same when the newest snapshot was made.
    applied_bytes_then: AtomicU64,
    building: AtomicBool,
}

impl SnapshotState {
    /// The newest snapshot, if there is one.
    pub(crate) fn newest(&self) -> Option<Snapshot> {
        let newest = self.inner.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.clone().map(|(meta, snapshot)| Snapshot { meta, snapshot })
    }

    /// Takes note of a snapshot, unless a newer one is known.
    pub(crate) fn set_newest(&self, meta: SnapshotMeta, file: SnapshotFile) {
        let mut newest = self.inner.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.as_ref().is_none_or(|(known, _)| known.last_log_id <= meta.last_log_id) {
            *newest = Some((meta, file));
        }
    }

    /// Counts an applied entry.
    pub(crate) fn count(&self, bytes: usize) {
        self.inner.applied_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A snapshot took the state's place: nothing is applied on top of it yet.
    pub(crate) fn restart_count(&self) {
        self.settle(self.inner.applied_bytes.load(Ordering::Relaxed));
    }

    fn settle(&self, applied_bytes: u64) {
        self.inner.applied_bytes_then.store(applied_bytes, Ordering::Relaxed);
    }

    /// Bytes of entries that were applied since the newest snapshot.
    pub(crate) fn bytes_since(&self) -> u64 {
        let then = self.inner.applied_bytes_then.load(Ordering::Relaxed);
        self.inner.applied_bytes.load(Ordering::Relaxed).saturating_sub(then)
    }

    /// Whether a snapshot should be made: more than `log_bytes`, and more than the newest snapshot has, were applied
    /// since it. So writing snapshots costs at most as much again as writing the log.
    pub(crate) fn is_due(&self, log_bytes: u64) -> bool {
        let newest = self.newest().map_or(0, |snapshot| snapshot.snapshot.length());
        !self.is_building() && self.bytes_since() > log_bytes.max(newest)
    }

    /// Whether there is room for one more snapshot, and half of the low-water mark beside it. It can't be larger than
    /// the newest one and what was applied since.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn has_room(&self, space: &DiskSpace) -> Result<(), String> {
        let newest = self.newest().map_or(0, |snapshot| snapshot.snapshot.length());
        let room = space.room();
        let needed = newest.saturating_add(self.bytes_since()).saturating_add(room.mark / 2);
        if room.free >= needed {
            return Ok(());
        }
        Err(format!(
            "the disk of {} has {} free, and a snapshot may need {}",
            space.node(),
            Size(room.free),
            Size(needed)
        ))
    }

    /// Whether one is being made.
    pub(crate) fn is_building(&self) -> bool {
        self.inner.building.load(Ordering::Acquire)
    }
}

/// Makes one snapshot of one view. The state machine goes on applying meanwhile.
pub struct SnapshotBuilder {
    view: View,
    checkpoints: Checkpoints,
    applied_bytes: u64,
    store: SnapshotStore,
    state: SnapshotState,
}

impl SnapshotBuilder {
    pub(crate) fn new(
        view: View,
        checkpoints: Checkpoints,
        store: SnapshotStore,
        state: SnapshotState,
    ) -> Self {
        state.inner.building.store(true, Ordering::Release);
        let applied_bytes = state.inner.applied_bytes.load(Ordering::Relaxed);
        Self { view, checkpoints, applied_bytes, store, state }
    }
}

impl Drop for SnapshotBuilder {
    fn drop(&mut self) {
        self.state.inner.building.store(false, Ordering::Release);
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let (store, view) = (self.store.clone(), self.view.clone());
        let checkpoints = self.checkpoints.clone();
        let written = spawn_blocking(move || write(&store, &view, &checkpoints)).await;
        let file = written.map_err(io::Error::other)??;
        let (id, revision) = (file.id(), self.view.revision());
        tracing::info!(revision, log_index = id.index, bytes = file.length(), "a snapshot was made");
        let (last_log_id, last_membership) = (self.view.applied, self.view.membership.clone());
        let meta = SnapshotMeta { last_log_id, last_membership };
        self.state.settle(self.applied_bytes);
        self.state.set_newest(meta.clone(), file.clone());
        Ok(Snapshot { meta, snapshot: file })
    }
}
