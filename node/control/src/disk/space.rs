//! How much room there is for this node's data directory.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{LowDisks, LowNode, Size};
use crate::storage::StorageError;
use crate::storage::files::failed;

/// The mark, unless it is set. What must go on needs far less: a terminate and its reports some 500 bytes, a database of
/// the log 32 MiB, a snapshot some hundred bytes a sandbox. It is half a day's warning rather than the last moment.
pub const LOW_WATER: u64 = 512 << 20;
/// Of a small disk, no more than this part is kept free: one of a gigabyte is for use, too.
const SHARE: u64 = 10;
/// Between two looks. In this time a node writes some 50 MiB of log at the most that was measured.
const LOOK: Duration = Duration::from_secs(1);

/// What a look has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Free for this process, bytes.
    pub free: u64,
    /// Below this the disk is low.
    pub mark: u64,
    /// It is low. It was below the mark, and has not got a quarter more than the mark since.
    pub low: bool,
}

impl Room {
    /// After a look at a disk of `total` bytes. It takes more to be well again than not to become low: else a disk at the
    /// mark would refuse and admit by turns.
    fn next(self, free: u64, total: u64, setting: Option<u64>) -> Self {
        let mark = setting.unwrap_or(LOW_WATER.min(total / SHARE));
        let low = free < mark || (self.low && free < mark.saturating_add(mark / 4));
        Self { free, mark, low }
    }
}

/// The room for this node's data directory, as it was at the last look. All clones are one.
#[derive(Clone, Debug)]
pub struct DiskSpace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node: String,
    data_dir: PathBuf,
    setting: Option<u64>,
    room: Mutex<Room>,
    /// Of the other voters, as the leader has heard; empty elsewhere.
    others: Mutex<Others>,
}

#[derive(Debug, Default)]
struct Others {
    voters: usize,
    low: Vec<LowNode>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DiskSpace {
    /// Takes a first look. Blocks.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn open(node: &str, data_dir: &Path, setting: Option<u64>) -> Result<Self, StorageError> {
        let (node, data_dir) = (node.to_owned(), data_dir.to_owned());
        let (room, others) = (Mutex::default(), Mutex::default());
        let space = Self { inner: Arc::new(Inner { node, data_dir, setting, room, others }) };
        space.look().map_err(failed("look how much is free at", &space.inner.data_dir))?;
        Ok(space)
    }

    /// Whose disk it is.
    pub fn node(&self) -> &str {
        &self.inner.node
    }

    /// What the last look has found.
    pub fn room(&self) -> Room {
        *lock(&self.inner.room)
    }

    /// Looks again and again, until `stop`. One look at a time: if the disk hangs, the last one counts.
    pub async fn watch(self, stop: CancellationToken) {
        let looks = async {
            loop {
                sleep(LOOK).await;
                let space = self.clone();
                match spawn_blocking(move || space.look()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        warn!(path = %self.inner.data_dir.display(), %error, "cannot look how much is free");
                    }
                    Err(error) => warn!(%error, "a look at the disk died"),
                }
            }
        };
        stop.run_until_cancelled(looks).await;
    }

    /// Why no new work may be taken, if this node leads: its own disk is low, or so many voters' are that those with room
    /// are no majority. One follower alone that runs out of room stops nobody but itself.
    pub fn refusal(&self) -> Option<LowDisks> {
        let Room { free, mark, low } = self.room();
        let others = lock(&self.inner.others);
        let lows = others.low.len() + usize::from(low);
        let few = others.voters > 0 && others.voters - lows.min(others.voters) <= others.voters / 2;
        if !low && !few {
            return None;
        }
        let own = low.then(|| LowNode { node: self.inner.node.clone(), free, mark });
        Some(LowDisks(own.into_iter().chain(others.low.iter().cloned()).collect()))
    }

    /// Which of `voters` voters have said that their disk is low; this node is not among them.
    pub(super) fn note_others(&self, voters: usize, low: Vec<LowNode>) {
        *lock(&self.inner.others) = Others { voters, low };
    }

    fn look(&self) -> io::Result<()> {
        let found = statvfs(&self.inner.data_dir).map_err(io::Error::from)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
        self.note(bytes(found.blocks_available()), bytes(found.blocks()));
        Ok(())
    }

    fn note(&self, free: u64, total: u64) {
        let (before, now) = {
            let mut room = lock(&self.inner.room);
            let before = *room;
            *room = before.next(free, total, self.inner.setting);
            (before, *room)
        };
        let path = self.inner.data_dir.display();
        if now.low && !before.low {
            warn!(
                %path,
                "this node's disk is nearly full: {} are free, and the mark is {}. Make room. If it leads, it refuses \
                 creates, resets and adoptions; all else goes on",
                Size(free),
                Size(now.mark)
            );
        } else if before.low && !now.low {
            info!(%path, "this node's disk has room again: {} are free. New work is taken", Size(free));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn space(setting: Option<u64>) -> DiskSpace {
        let folder = tempfile::tempdir().unwrap();
        DiskSpace::open("n1", folder.path(), setting).unwrap()
    }

    #[test]
    fn a_look_finds_what_the_file_system_says() {
        let space = space(None);
        assert!(space.room().free > 0 && space.room().mark <= LOW_WATER, "{:?}", space.room());
        assert!(DiskSpace::open("n1", Path::new("/nowhere"), None).is_err());
    }

    #[test]
    fn the_mark_is_a_share_of_a_small_disk_and_what_was_set_of_any() {
        let mark = |total, setting| Room::default().next(total, total, setting).mark;
        assert_eq!(mark(1 << 40, None), 512 * MIB);
        assert_eq!(mark(100 * MIB, None), 10 * MIB);
        assert_eq!(mark(100 * MIB, Some(60 * MIB)), 60 * MIB);
        assert!(!Room::default().next(0, 100 * MIB, Some(0)).low, "0 turns it off");
    }

    #[test]
    fn a_disk_that_was_low_needs_more_room_to_be_well() {
        let space = space(Some(100 * MIB));
        for (free, low) in
            [(100, false), (99, true), (100, true), (124, true), (125, false), (100, false), (99, true)]
        {
            space.note(free * MIB, 1 << 40);
            assert_eq!((space.room().low, space.refusal().is_some()), (low, low), "{free} MiB");
        }
        let why = space.refusal().unwrap().to_string();
        assert!(why.contains("node n1 has 99 MiB free, and its mark is 100 MiB"), "{why}");
    }

    #[test]
    fn a_majority_must_have_room_and_the_leader() {
        let low = |name: &str| LowNode { node: name.into(), free: 1, mark: 2 };
        let space = space(Some(100 * MIB));
        space.note(200 * MIB, 1 << 40);
        space.note_others(3, vec![low("n2")]);
        assert_eq!(space.refusal(), None, "two of three have room");
        space.note_others(3, vec![low("n2"), low("n3")]);
        assert_eq!(space.refusal(), Some(LowDisks(vec![low("n2"), low("n3")])));
        space.note_others(5, vec![low("n2"), low("n3")]);
        assert_eq!(space.refusal(), None, "three of five have room");
        space.note_others(0, Vec::new());
        assert_eq!(space.refusal(), None, "it leads no more");
    }
}
