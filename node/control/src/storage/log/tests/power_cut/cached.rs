//! What is written and not yet durable, and what a cut of the power leaves of it.

use std::collections::{BTreeMap, HashMap};

use rand::RngExt as _;
use rand::rngs::StdRng;

pub(super) type Id = usize;

const SECTOR: u64 = 512;

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { at: u64, data: Vec<u8> },
    Resize(u64),
}

impl Change {
    pub(super) fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { at, data } => put(content, *at, data),
            Self::Resize(len) => content.resize(*len as usize, 0),
        }
    }
}

fn put(content: &mut Vec<u8>, at: u64, data: &[u8]) {
    let (at, end) = (at as usize, at as usize + data.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    content[at..end].copy_from_slice(data);
}

#[derive(Clone, Debug)]
pub(super) enum Entry {
    Add(String, Id),
    Remove(String),
    Rename(String, String),
}

pub(super) type Entries = BTreeMap<String, Id>;

impl Entry {
    pub(super) fn apply(&self, entries: &mut Entries) {
        match self {
            Self::Add(name, id) => drop(entries.insert(name.clone(), *id)),
            Self::Remove(name) => drop(entries.remove(name)),
            Self::Rename(from, to) => {
                let moved = entries.remove(from).expect("renames of one folder are in their order");
                entries.insert(to.clone(), moved);
            }
        }
    }
}

/// Content of which the newest changes are not durable.
#[derive(Debug)]
pub(super) struct Cached<T, C> {
    durable: T,
    pub(super) now: T,
    pending: Vec<C>,
    /// How many changes were ever made durable.
    synced: usize,
}

pub(super) type CachedFile = Cached<Vec<u8>, Change>;
pub(super) type CachedFolder = Cached<Entries, Entry>;

impl<T: Clone, C> Cached<T, C> {
    pub(super) fn new(content: T) -> Self {
        Self { durable: content.clone(), now: content, pending: Vec::new(), synced: 0 }
    }

    pub(super) fn change(&mut self, change: C, apply: impl Fn(&C, &mut T)) {
        apply(&change, &mut self.now);
        self.pending.push(change);
    }

    pub(super) fn changes(&self) -> usize {
        self.synced + self.pending.len()
    }

    /// Makes the changes up to this one durable.
    pub(super) fn sync(&mut self, upto: usize, apply: impl Fn(&C, &mut T)) {
        for change in self.pending.drain(..upto.saturating_sub(self.synced)) {
            apply(&change, &mut self.durable);
            self.synced += 1;
        }
    }
}

/// What a cut of the power does with what is not durable.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// All of it is lost.
    Lost,
    /// All of it has reached the disk, as if only the process had been killed.
    Kept,
    /// Each write is there with this probability.
    Writes(f64),
    /// Each sector of each write is.
    Sectors(f64),
}

impl Fate {
    pub(super) fn random(rng: &mut StdRng) -> Self {
        let kept = rng.random_range(0.05..0.95);
        match rng.random_range(0..6) {
            0 => Self::Lost,
            1 => Self::Kept,
            2 | 3 => Self::Writes(kept),
            _ => Self::Sectors(kept),
        }
    }

    fn keeps(self, rng: &mut StdRng) -> bool {
        match self {
            Self::Lost => false,
            Self::Kept => true,
            Self::Writes(kept) | Self::Sectors(kept) => rng.random_bool(kept),
        }
    }

    pub(super) fn entries(self, folder: &CachedFolder, rng: &mut StdRng) -> Entries {
        let kept = match self {
            Self::Lost => 0,
            Self::Kept => folder.pending.len(),
            _ => rng.random_range(0..=folder.pending.len()),
        };
        let mut entries = folder.durable.clone();
        folder.pending[..kept].iter().for_each(|entry| entry.apply(&mut entries));
        entries
    }

    pub(super) fn content(self, file: &CachedFile, rng: &mut StdRng) -> Vec<u8> {
        // By sector: the last write that is there. With it are those before it.
        let mut last: HashMap<u64, usize> = HashMap::new();
        let mut changes = 0;
        for (number, change) in file.pending.iter().enumerate() {
            let whole = self.keeps(rng);
            match change {
                Change::Resize(_) if !whole => break,
                Change::Resize(_) => {}
                Change::Write { at, data } => {
                    for sector in at / SECTOR..(at + data.len() as u64).div_ceil(SECTOR) {
                        if if matches!(self, Self::Sectors(_)) { self.keeps(rng) } else { whole } {
                            last.insert(sector, number);
                        }
                    }
                }
            }
            changes = number + 1;
        }
        let mut content = file.durable.clone();
        for (number, change) in file.pending[..changes].iter().enumerate() {
            let Change::Write { at, data } = change else {
                change.apply(&mut content);
                continue;
            };
            let end = at + data.len() as u64;
            for sector in at / SECTOR..end.div_ceil(SECTOR) {
                if last.get(&sector).is_some_and(|last| *last >= number) {
                    let (from, upto) = ((sector * SECTOR).max(*at), ((sector + 1) * SECTOR).min(end));
                    put(&mut content, from, &data[(from - at) as usize..(upto - at) as usize]);
                }
            }
        }
        content
    }
}
