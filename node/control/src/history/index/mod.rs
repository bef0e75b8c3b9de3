//! Where in the log the events of one subject are: of a sandbox, of a name (with all its lives), of an agent, of a namespace.
//!
//! The index is cut into sections of [`SECTION_EVENTS`] events. The newest one grows in memory; the others are files in
//! `DATA/index/` ([`section`]), which are removed with the part of the history that they are of. So what it takes is
//! bounded by the retention, and its memory by one section.
//!
//! # Architecture invariants
//!
//! - It is derived: every file of it may be missing or damaged. What no section covers is looked through event by event, and
//!   the task that builds sections ([`builder`]) builds it again.
//! - It only says where to look. Whether an event is wanted is decided on the event itself, so two subjects may share a key.

mod builder;
#[cfg(test)]
mod fuzz;
mod key;
mod section;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use sandkeeper_statemachine::Revision;

pub(crate) use builder::run;
pub(crate) use key::Key;
pub(crate) use section::check as check_section;
use section::{Corrupt, Open, Section};

use crate::history::AppliedEntry;
use crate::storage::StorageError;
use crate::storage::files::{create_folder, failed};

/// Events of one section. The one in memory has up to four places of 16 bytes for each: 4 MiB.
pub(crate) const SECTION_EVENTS: u64 = 65_536;
/// Places that one lookup gives at most. Whoever wants more asks again.
const MAX_PLACES: usize = 8_192;

/// Where an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its revision.
    pub(crate) revision: Revision,
    /// The index of the log entry that holds it.
    pub(crate) index: u64,
}

/// What a lookup found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Places {
    /// Newest first.
    pub(crate) places: Vec<Place>,
    /// All of the subject's events from this revision on are among them, up to where the lookup began.
    pub(crate) from: Revision,
}

/// The sections. A clone is another handle.
#[derive(Clone)]
pub(crate) struct SubjectIndex {
    folder: PathBuf,
    sections: Arc<RwLock<Sections>>,
}

#[derive(Default)]
struct Sections {
    /// On the disk, by their first revision.
    closed: BTreeMap<Revision, Arc<Section>>,
    /// The newest one.
    open: Option<Open>,
}

impl Sections {
    /// The section on the disk that covers a revision.
    fn covering(&self, revision: Revision) -> Option<&Arc<Section>> {
        let (_, section) = self.closed.range(..=revision).next_back()?;
        (section.to >= revision).then_some(section)
    }
}

impl SubjectIndex {
    /// Opens the folder (`DATA/index`), creating it if it is not there. What is damaged is removed. Blocks.
    ///
    /// # Errors
    /// If the disk refuses.
    pub(crate) fn open(folder: &Path) -> Result<Self, StorageError> {
        create_folder(folder)?;
        let mut closed = BTreeMap::<Revision, Arc<Section>>::new();
        for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
            let path = entry.map_err(failed("list", folder))?.path();
            match Section::open(&path) {
                Ok(section) => {
                    closed.insert(section.from, Arc::new(section));
                }
                Err(Corrupt::Fault(fault)) => return Err(fault),
                Err(Corrupt::Damaged(what)) => remove(&path, &what)?,
            }
        }
        let sections = Sections { closed, open: None };
        Ok(Self { folder: folder.to_owned(), sections: Arc::new(RwLock::new(sections)) })
    }

    /// The places of a subject's events up to revision `upto`, as far back as sections follow each other. `None`: the index
    /// does not cover `upto`. Blocks.
    ///
    /// # Errors
    /// If the disk refuses.
    pub(crate) fn lookup(&self, key: Key, upto: Revision) -> Result<Option<Places>, StorageError> {
        let mut found = Places { places: Vec::new(), from: upto + 1 };
        self.read(|sections| {
            if let Some(open) = sections.open.as_ref().filter(|open| open.covers(upto)) {
                open.places(key, upto, &mut found.places);
                found.from = open.from();
            }
        });
        while found.from > 1 && found.places.len() < MAX_PLACES {
            let Some(section) = self.read(|sections| sections.covering(found.from - 1).cloned()) else {
                break;
            };
            match section.places(key, found.from - 1) {
                Ok(places) => {
                    found.places.extend(places);
                    found.from = section.from;
                }
                Err(Corrupt::Fault(fault)) => return Err(fault),
                Err(Corrupt::Damaged(what)) => {
                    self.write(|sections| sections.closed.remove(&section.from));
                    remove(section.path(), &what)?;
                    break;
                }
            }
        }
        Ok((found.from <= upto).then_some(found))
    }

    /// The newest revision before `revision` that a section covers; 0 if there is none.
    pub(crate) fn covered_before(&self, revision: Revision) -> Revision {
        self.read(|sections| {
            let open = sections.open.as_ref().map(|open| open.next() - 1).filter(|last| *last < revision);
            let closed = sections.closed.range(..revision).next_back();
            let closed = closed.map(|(_, section)| section.to.min(revision - 1));
            open.max(closed).unwrap_or(0)
        })
    }

    /// The newest run of revisions between `oldest` and `newest` that no section covers.
    fn gap(&self, oldest: Revision, newest: Revision) -> Option<(Revision, Revision)> {
        self.read(|sections| {
            let mut end = newest;
            while end >= oldest.max(1) {
                let open = sections.open.as_ref().filter(|open| open.covers(end)).map(Open::from);
                let Some(from) = open.or_else(|| sections.covering(end).map(|section| section.from)) else {
                    let before =
                        sections.closed.range(..=end).next_back().map_or(0, |(_, section)| section.to);
                    let open = sections.open.as_ref().map(|open| open.next() - 1);
                    let before = before.max(open.filter(|last| *last < end).unwrap_or(0));
                    return Some((oldest.max(1).max(before + 1), end));
                };
                end = from - 1;
            }
            None
        })
    }

    /// Adds entries to the newest section; begins it if there is none.
    pub(crate) fn append(&self, entries: &[AppliedEntry]) {
        self.write(|sections| {
            for applied in entries {
                sections.open.get_or_insert_with(|| Open::new(applied)).add(applied);
            }
        });
    }

    /// Writes a section to the disk, and puts it in its place. Blocks.
    fn close(&self, open: &Open) -> Result<(), StorageError> {
        let section = Arc::new(open.write(&self.folder)?);
        self.write(|sections| {
            sections.closed.insert(section.from, Arc::clone(&section));
            sections.open.take_if(|newest| newest.from() == section.from);
        });
        Ok(())
    }

    /// Makes sections of so many events at least, and writes all of them.
    #[cfg(test)]
    pub(crate) fn fill_for_test(&self, applied: &[AppliedEntry], events: u64) {
        let mut open: Option<Open> = None;
        for entry in applied {
            let section = open.get_or_insert_with(|| Open::new(entry));
            section.add(entry);
            if section.next() - section.from() >= events {
                self.close(section).unwrap();
                open = None;
            }
        }
        if let Some(open) = open {
            self.close(&open).unwrap();
        }
    }

    /// Forgets what is before `oldest`. Blocks.
    fn prune(&self, oldest: Revision) -> Result<(), StorageError> {
        let gone = self.write(|sections| {
            sections.open.take_if(|open| open.next() < oldest);
            let gone: Vec<Revision> = sections
                .closed
                .values()
                .filter(|section| section.to < oldest)
                .map(|section| section.from)
                .collect();
            gone.iter().filter_map(|from| sections.closed.remove(from)).collect::<Vec<_>>()
        });
        for section in gone {
            fs::remove_file(section.path()).map_err(failed("remove", section.path()))?;
        }
        Ok(())
    }

    // A panic while the lock is held can't leave a half-done change that matters more than the panic itself.
    fn write<T>(&self, change: impl FnOnce(&mut Sections) -> T) -> T {
        change(&mut self.sections.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn read<T>(&self, look: impl FnOnce(&Sections) -> T) -> T {
        look(&self.sections.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn remove(path: &Path, what: &str) -> Result<(), StorageError> {
    tracing::warn!(path = %path.display(), what, "a section of the index is damaged; it is built again");
    fs::remove_file(path).map_err(failed("remove", path))
}

#[cfg(test)]
mod tests;
