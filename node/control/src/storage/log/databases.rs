//! The databases of the log, in the order of their first indexes. The newest one is written to; the others are
//! sealed, and opened when somebody reads them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::database::{Database, Want};
use super::end;
use super::options::Hooks;
use super::places::{self, Places};
use super::sled_folder::sled_file_bytes;
use super::stats::Counters;
use crate::raft::types::{LogEntry, LogId};
use crate::storage::StorageError;
use crate::storage::files::{create_folder, failed, sync_folder};

const PREFIX: &str = "log-";
const REMOVED_PREFIX: &str = "removed-";
/// Where fetched databases are collected.
pub(super) const FETCHING: &str = "fetching";
/// The folder of the records that are not entries.
pub(super) const META: &str = "meta";

/// How many databases are open at once: the one that is written to, and those that somebody reads, usually one after
/// the other. Each takes 10 to 20 MiB of memory; a retained history has hundreds of them.
const OPEN_LIMIT: usize = 4;

/// The name of the folder of the database that begins with `first`.
pub(super) fn name_of(first: u64) -> String {
    format!("{PREFIX}{first:020}")
}

/// The index that the database in a folder of this name begins with; `None`: it is none.
pub(super) fn first_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX).and_then(|number| number.parse().ok())
}

/// A database that is no longer part of the log, on its way off the disk.
pub(super) struct Removed {
    pub dir: PathBuf,
    /// Kept until now so that a reader that has it can finish.
    pub database: Option<Arc<Database>>,
}

struct Slot {
    dir: PathBuf,
    open: Option<Arc<Database>>,
    used: u64,
    /// It is known to have places.
    placed: bool,
    /// How long sled's file is, once it is sealed and somebody has asked.
    bytes: Option<u64>,
}

impl Slot {
    fn new(dir: PathBuf, open: Option<Arc<Database>>) -> Self {
        Self { dir, open, used: 0, placed: false, bytes: None }
    }
}

#[derive(Default)]
struct Slots {
    by_first: BTreeMap<u64, Slot>,
    clock: u64,
    closed: bool,
}

/// All databases of one log folder. Shared by the writer and the readers; the lock is held while a sealed database
/// is opened, so that it is opened once.
pub(super) struct Databases {
    root: PathBuf,
    hooks: Hooks,
    counters: Arc<Counters>,
    slots: Mutex<Slots>,
    removals: AtomicU64,
}

/// What was found in a log folder.
pub(super) struct Found {
    pub databases: Databases,
    /// Left over from a removal that a crash cut off.
    pub leftovers: Vec<Removed>,
}

impl Databases {
    /// Looks what there is in `root`. Opens none of it.
    pub(super) fn scan(root: &Path, hooks: Hooks, counters: Arc<Counters>) -> Result<Found, StorageError> {
        create_folder(root)?;
        let (mut slots, mut leftovers) = (Slots::default(), Vec::new());
        for entry in fs::read_dir(root).map_err(failed("list", root))? {
            let entry = entry.map_err(failed("list", root))?;
            let (name, dir) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            if name.starts_with(REMOVED_PREFIX) || name == FETCHING {
                leftovers.push(Removed { dir, database: None });
            } else if let Some(first) = first_of(&name) {
                slots.by_first.insert(first, Slot::new(dir, None));
            } else if name == end::TEMPORARY {
                fs::remove_file(&dir).map_err(failed("remove", &dir))?;
            } else if name != META && name != end::NAME {
                tracing::warn!(path = %dir.display(), "this does not belong in a log folder, and is left alone");
            }
        }
        let databases = Self {
            root: root.to_owned(),
            hooks,
            counters,
            slots: Mutex::new(slots),
            removals: AtomicU64::new(0),
        };
        Ok(Found { databases, leftovers })
    }

    /// The first index of the oldest database.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.lock().by_first.first_key_value().map(|(first, _)| *first)
    }

    /// The first index of the newest database.
    pub(super) fn newest(&self) -> Option<u64> {
        self.lock().by_first.last_key_value().map(|(first, _)| *first)
    }

    /// The last entry of the newest database.
    pub(super) fn end(&self) -> Result<Option<LogId>, StorageError> {
        let Some(newest) = self.newest() else { return Ok(None) };
        Ok(self.get(newest)?.end()?.map(|end| end.last))
    }

    /// First indexes of the databases that hold nothing before `from`, newest first.
    pub(super) fn beginning_at_or_after(&self, from: u64) -> Vec<u64> {
        self.lock().by_first.range(from..).rev().map(|(first, _)| *first).collect()
    }

    /// First indexes of the databases that hold nothing behind `upto`, oldest first. The newest one's end is not
    /// known here, and is given.
    pub(super) fn ending_at_or_before(&self, upto: u64, newest_end: Option<u64>) -> Vec<u64> {
        let slots = self.lock();
        let firsts: Vec<u64> = slots.by_first.keys().copied().collect();
        let ends = firsts.iter().skip(1).map(|next| Some(next - 1)).chain([newest_end]);
        let ended = firsts.iter().zip(ends).take_while(|(_, end)| end.is_some_and(|end| end <= upto));
        ended.map(|(first, _)| *first).collect()
    }

    /// The first index of the databases that take no more than `bytes` on the disk: the one that holds `upto`, and as
    /// many before it as fit beside it. None if all do.
    pub(super) fn first_within(&self, bytes: u64, upto: u64) -> Result<Option<u64>, StorageError> {
        let mut slots = self.lock();
        let newest = slots.by_first.last_key_value().map(|(first, _)| *first);
        let (mut within, mut left) = (None, bytes);
        for (first, slot) in slots.by_first.range_mut(..=upto).rev() {
            let length = match slot.bytes {
                Some(length) => length,
                None => sled_file_bytes(&slot.dir)?,
            };
            if Some(*first) != newest {
                slot.bytes = Some(length);
            }
            if within.is_some() && length > left {
                return Ok(within);
            }
            (within, left) = (Some(*first), left.saturating_sub(length));
        }
        Ok(None)
    }

    /// Creates the database that begins with `first`, durably.
    pub(super) fn create(&self, first: u64) -> Result<Arc<Database>, StorageError> {
        let dir = self.root.join(name_of(first));
        let database = Arc::new(self.open(&dir, first)?);
        let open = Some(Arc::clone(&database));
        self.lock().by_first.insert(first, Slot::new(dir, open));
        self.counters.created();
        Ok(database)
    }

    /// The folder that all of them are in.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Moves databases from another folder in here, before all others. Each crash leaves some of them here, without a
    /// hole before those that were here.
    pub(super) fn take_over(&self, databases: &[(u64, PathBuf)]) -> Result<(), StorageError> {
        let mut slots = self.lock();
        for (first, from) in databases.iter().rev() {
            let dir = self.root.join(name_of(*first));
            fs::rename(from, &dir).map_err(failed("rename", from))?;
            slots.by_first.insert(*first, Slot::new(dir, None));
        }
        drop(slots);
        sync_folder(&self.root)
    }

    /// Closes a database that nothing more is written to, unless it is being read: what it was written through takes
    /// far more memory than reading it ever will.
    pub(super) fn close_sealed(&self, sealed: Arc<Database>) {
        let first = sealed.first();
        drop(sealed);
        let mut slots = self.lock();
        let unread = |database: &mut Arc<Database>| Arc::strong_count(database) == 1;
        let closed = slots.by_first.get_mut(&first).and_then(|slot| slot.open.take_if(unread));
        // sled takes a moment; who wants to read it meanwhile waits for its lock on the file.
        drop(slots);
        drop(closed);
    }

    /// The open database that begins with `first`.
    pub(super) fn get(&self, first: u64) -> Result<Arc<Database>, StorageError> {
        let mut slots = self.lock();
        self.get_locked(&mut slots, first)
    }

    /// Takes a database out of the log: after this it is not found again, not even after a power cut. What is left
    /// to do is to delete its files.
    pub(super) fn remove(&self, first: u64) -> Result<Option<Removed>, StorageError> {
        let mut slots = self.lock();
        let Some(slot) = slots.by_first.remove(&first) else { return Ok(None) };
        let dir = self.unused_name(first);
        fs::rename(&slot.dir, &dir).map_err(failed("rename", &slot.dir))?;
        sync_folder(&self.root)?;
        Ok(Some(Removed { dir, database: slot.open }))
    }

    /// Reads entries from `from` on, before `end`, until `max_bytes` are exceeded. Ends early where the log ends.
    pub(super) fn read(&self, from: u64, end: u64, max_bytes: usize) -> Result<Vec<LogEntry>, StorageError> {
        let mut want = Want::new(from..end, max_bytes);
        let mut entries = Vec::new();
        while !want.is_satisfied() {
            let before = want.next;
            if self.read_in_place(&mut want, &mut entries)? {
                continue;
            }
            let Some(database) = self.holding(want.next)? else { break };
            database.read(&mut want, &mut entries)?;
            if want.next == before {
                break;
            }
        }
        Ok(entries)
    }

    /// Reads from a sealed database whose places are known. False if that brought nothing: then it is to be opened.
    fn read_in_place(&self, want: &mut Want, entries: &mut Vec<LogEntry>) -> Result<bool, StorageError> {
        let Some((first, dir)) = self.sealed(want.next) else { return Ok(false) };
        let Some(places) = Places::open(&dir) else { return Ok(false) };
        let before = want.next;
        if let Err(error) = places.read(want, entries) {
            // Through sled it shows whether the block itself is corrupt, or only the places are.
            tracing::warn!(path = %dir.display(), %error, "a block is not where it was found; places are found again");
            self.forget_places(first)?;
        }
        Ok(want.next > before)
    }

    /// The sealed database that holds an entry, and its folder.
    fn sealed(&self, index: u64) -> Option<(u64, PathBuf)> {
        let slots = self.lock();
        let (first, slot) = slots.by_first.range(..=index).next_back()?;
        let is_newest = slots.by_first.range(first + 1..).next().is_none();
        (!is_newest && !slots.closed).then(|| (*first, slot.dir.clone()))
    }

    /// Finds the places of one sealed database that has none yet, and nothing but committed entries. False if there is none.
    pub(super) fn find_places(&self, committed: u64) -> Result<bool, StorageError> {
        let unplaced = {
            let mut slots = self.lock();
            let nexts: Vec<u64> = slots.by_first.keys().skip(1).copied().collect();
            let sealed = slots.by_first.iter_mut().zip(nexts).filter(|(_, next)| *next <= committed + 1);
            let mut unplaced =
                sealed.map(|((first, slot), _)| (*first, slot)).filter(|(_, slot)| !slot.placed);
            unplaced.next_back().map(|(first, slot)| {
                slot.placed = true;
                (first, slot.dir.clone())
            })
        };
        let Some((first, dir)) = unplaced else { return Ok(false) };
        if places::exist(&dir) {
            return Ok(true);
        }
        let found = self.get(first).and_then(|database| places::find(&database, &dir));
        // It may have been removed meanwhile.
        if self.lock().by_first.contains_key(&first) { found.map(|()| true) } else { Ok(true) }
    }

    /// Forgets where the blocks of a database stand: it is going to be written to, or they do not stand there.
    pub(super) fn forget_places(&self, first: u64) -> Result<(), StorageError> {
        let dir = self.lock().by_first.get_mut(&first).map(|slot| {
            (slot.placed, slot.bytes) = (false, None);
            slot.dir.clone()
        });
        dir.map_or(Ok(()), |dir| places::remove(&dir))
    }

    /// Lets go of all databases; nothing can be opened after it.
    pub(super) fn close(&self) {
        let mut slots = self.lock();
        slots.closed = true;
        slots.by_first.clear();
    }

    /// Like [`Databases::close`], for a log whose disk has failed: dropping a sled database flushes it, and that
    /// would be a retry. The memory is given up; the process is about to end.
    pub(super) fn abandon(&self) {
        let mut slots = self.lock();
        slots.closed = true;
        for slot in std::mem::take(&mut slots.by_first).into_values() {
            std::mem::forget(slot.open);
        }
    }

    fn holding(&self, index: u64) -> Result<Option<Arc<Database>>, StorageError> {
        let mut slots = self.lock();
        let first = slots.by_first.range(..=index).next_back().map(|(first, _)| *first);
        first.map(|first| self.get_locked(&mut slots, first)).transpose()
    }

    fn get_locked(&self, slots: &mut Slots, first: u64) -> Result<Arc<Database>, StorageError> {
        if slots.closed {
            return Err(StorageError::Stopped { cause: "it was shut down".to_owned() });
        }
        slots.clock += 1;
        let clock = slots.clock;
        let next = slots.by_first.range(first + 1..).next().map(|(next, _)| *next);
        let Some(slot) = slots.by_first.get_mut(&first) else {
            let what = format!("there is no database {}", name_of(first));
            return Err(StorageError::CorruptLog { dir: self.root.clone(), key: first.to_string(), what });
        };
        slot.used = clock;
        if let Some(database) = &slot.open {
            return Ok(Arc::clone(database));
        }
        let database = Arc::new(self.open(&slot.dir, first)?);
        if let Some(next) = next {
            check_end(&database, next)?;
        }
        slot.open = Some(Arc::clone(&database));
        close_oldest(slots);
        Ok(database)
    }

    fn open(&self, dir: &Path, first: u64) -> Result<Database, StorageError> {
        Database::open(dir, first, self.hooks.clone(), Arc::clone(&self.counters))
    }

    fn unused_name(&self, first: u64) -> PathBuf {
        loop {
            let number = self.removals.fetch_add(1, Ordering::Relaxed);
            let dir = self.root.join(format!("{REMOVED_PREFIX}{first:020}-{number}"));
            if !dir.exists() {
                return dir;
            }
        }
    }

    /// A panic while the lock is held leaves the slots as sound as they were: they change in single steps.
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sealed database must reach up to the next one. This is how a loss in its middle is found, which sled takes for
/// a torn end.
fn check_end(database: &Database, next: u64) -> Result<(), StorageError> {
    let end = database.end()?.map(|end| end.last.index);
    if end == next.checked_sub(1) {
        return Ok(());
    }
    let end = end.map_or("it is empty".to_owned(), |end| format!("it ends with {end}"));
    Err(database
        .corrupt(next.to_string(), format!("a hole: {end}, and the next database begins with {next}")))
}

/// Closes the least recently used databases above the limit: not the newest, and none that is being read (a second
/// open of the same files would be refused).
fn close_oldest(slots: &mut Slots) {
    let newest = slots.by_first.last_key_value().map(|(first, _)| *first);
    let mut open: Vec<_> = slots.by_first.iter_mut().filter(|(_, slot)| slot.open.is_some()).collect();
    let mut excess = open.len().saturating_sub(OPEN_LIMIT);
    open.sort_by_key(|(_, slot)| slot.used);
    for (first, slot) in open {
        if excess == 0 {
            break;
        }
        if Some(*first) != newest
            && slot.open.as_ref().is_some_and(|database| Arc::strong_count(database) == 1)
        {
            slot.open = None;
            excess -= 1;
        }
    }
}
