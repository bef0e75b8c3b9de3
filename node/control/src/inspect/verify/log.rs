//! The log: its records, each database, and that together they are one log.

use std::fs;
use std::path::{Path, PathBuf};

use super::files::{Kind, Listing};
use super::walk::Walk;
use super::{Run, SoundSnapshot};
use crate::inspect::InspectError;
use crate::inspect::copy::{copy_if_there, list};
use crate::storage::log::check::{self, Recorded};

impl Run {
    pub(super) fn log(
        &mut self,
        listing: &Listing,
        snapshots: Vec<SoundSnapshot>,
    ) -> Result<(), InspectError> {
        let folder = self.data_dir.join("log");
        let databases = databases(&folder)?;
        let recorded = self.records(&folder, databases.is_empty())?;
        let mut walk = Walk::new(&recorded, snapshots);
        if let (Some(begins), Some((oldest, path))) = (walk.begins(), databases.first())
            && *oldest > begins
        {
            let what = format!(
                "a hole: the log is kept from {begins} on, and the oldest database begins with {oldest}"
            );
            self.wrong(path, what);
        }
        let newest = databases.last().map(|(first, _)| *first);
        for (first, path) in &databases {
            self.go_on()?;
            self.database(*first, path, &mut walk, Some(*first) == newest)?;
            self.places(path);
            self.progress.add(listing.below(path));
        }
        self.promised(&recorded, &walk, &folder, databases.last().map(|(_, path)| path.as_path()));
        for (place, what) in walk.leftovers() {
            self.wrong(&place, what);
        }
        self.entries.insert(Kind::Log, walk.count);
        self.found.entries = walk.entries();
        self.found.committed_index = walk.committed();
        (self.found.history, self.found.state_digest) = walk.ended();
        Ok(())
    }

    fn records(&mut self, folder: &Path, log_is_empty: bool) -> Result<Recorded, InspectError> {
        let to = self.copy.folder().join("log");
        self.copy.folder_of(&folder.join(check::META), &to.join(check::META), &self.cancel)?;
        copy_if_there(&folder.join(check::END), &to.join(check::END))?;
        let mut faults = Vec::new();
        let recorded = check::records(&to, log_is_empty, &mut |fault| faults.push(fault));
        for fault in &faults {
            self.fault(fault);
        }
        Ok(recorded)
    }

    fn database(
        &mut self,
        first: u64,
        path: &Path,
        walk: &mut Walk,
        is_newest: bool,
    ) -> Result<(), InspectError> {
        let to = self.copy.folder().join("log").join(path.file_name().unwrap_or_default());
        self.copy.folder_of(path, &to, &self.cancel)?;
        let (mut faults, mut wrong) = (Vec::new(), Vec::new());
        walk.begin_database(first, &mut wrong);
        let unfinished = check::read_database(&to, first, &mut |read| match read {
            Ok(entry) => walk.take(&entry, &mut wrong),
            Err(fault) => {
                walk.lose();
                faults.push(fault);
            }
        });
        let torn = unfinished.filter(|index| !is_newest || walk.was_durable(*index));
        wrong.extend(torn.map(|index| format!("key {index}: the last parts of the entry are missing")));
        for fault in &faults {
            self.fault(fault);
        }
        for what in wrong {
            self.wrong(path, what);
        }
        // The next one needs the room. What can't be removed now goes with the copy.
        let _ = fs::remove_dir_all(&to);
        Ok(())
    }

    fn places(&mut self, database: &Path) {
        match check::places(database) {
            None => {}
            Some(Ok(places)) => *self.entries.entry(Kind::Places).or_default() += places,
            Some(Err(what)) => {
                self.wrong(&database.join("places"), format!("{what} (derived: the node makes it again)"));
            }
        }
    }

    /// The log must reach to what was durable, with the very entry.
    fn promised(&mut self, recorded: &Recorded, walk: &Walk, folder: &Path, newest: Option<&Path>) {
        let begins = walk.begins().unwrap_or(0);
        let Some((index, term)) = recorded.durable.filter(|(index, _)| *index >= begins) else { return };
        let place = newest.unwrap_or(folder).to_owned();
        let lost = "acknowledged entries are lost";
        match walk.entries() {
            Some((_, last)) if last >= index => {
                if let (Some(term), Some(found)) = (term, walk.durable_term())
                    && (found != term || walk.last_term() < term)
                {
                    let what = format!("entry {index} is of term {found}, and was of term {term}: {lost}");
                    self.wrong(&place, what);
                }
            }
            found => {
                let ends =
                    found.map_or_else(|| "is empty".to_owned(), |(_, last)| format!("ends with {last}"));
                self.wrong(&place, format!("the log {ends}, and entries up to {index} were durable: {lost}"));
            }
        }
    }
}

/// The databases with their first indexes, oldest first.
fn databases(folder: &Path) -> Result<Vec<(u64, PathBuf)>, InspectError> {
    let mut databases: Vec<_> = list(folder)?
        .into_iter()
        .filter_map(|path| {
            let first = check::first_of(path.file_name()?.to_str()?)?;
            Some((first, path))
        })
        .collect();
    databases.sort_unstable();
    Ok(databases)
}
