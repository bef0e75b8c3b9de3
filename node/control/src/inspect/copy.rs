//! A folder for what can't be opened without being written to.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::InspectError;
use crate::storage::StorageError;
use crate::storage::log::check::{END, META};
use crate::storage::snapshot::SnapshotStore;

const LOG: &str = "log";
const SNAPSHOTS: &str = "snapshots";
/// How the folders of the log's databases are named; see `storage::log`.
const DATABASE_PREFIX: &str = "log-";
/// The end of the log is always read: the newest database, and the one before it, as the newest is empty if its node
/// was killed right after it had created it.
const ALWAYS: usize = 2;

/// The copy. Dropping it removes it.
pub(super) struct Copy {
    folder: TempDir,
    data_dir: PathBuf,
}

impl Copy {
    /// Begins an empty one.
    pub(super) fn begin(data_dir: &Path) -> Result<Self, InspectError> {
        let folder = tempfile::Builder::new().prefix("sandkeeper-inspect-").tempdir().map_err(|source| {
            InspectError::Io { action: "create a folder in", path: std::env::temp_dir(), source }
        })?;
        Ok(Self { folder, data_dir: data_dir.to_owned() })
    }

    /// The snapshots: the store removes unfinished files when it opens its folder, so it gets a folder of links to the
    /// finished ones, which it only reads.
    pub(super) fn snapshots(&self) -> Result<SnapshotStore, InspectError> {
        let (from, to) = (self.data_dir.join(SNAPSHOTS), self.folder.path().join(SNAPSHOTS));
        fs::create_dir(&to).map_err(|source| failed(&from, &to, source))?;
        for path in list(&from)? {
            if path.extension().is_some_and(|extension| extension == "sk") {
                let link = to.join(path.file_name().unwrap_or_default());
                symlink(&path, &link).map_err(|source| failed(&path, &link, source))?;
            }
        }
        Ok(SnapshotStore::open(&to)?)
    }

    /// Copies the log as far as it is needed to read the entries behind `behind` (`None`: all of them). In the place of
    /// the other databases are empty folders: the log store asks for their names alone, and opens what it reads.
    pub(super) fn log(
        &self,
        behind: Option<u64>,
        cancel: &CancellationToken,
    ) -> Result<PathBuf, InspectError> {
        let (from, to) = (self.data_dir.join(LOG), self.folder.path().join(LOG));
        fs::create_dir(&to).map_err(|source| failed(&from, &to, source))?;
        let mut databases = Vec::new();
        for path in list(&from)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let first = name.strip_prefix(DATABASE_PREFIX).and_then(|number| number.parse::<u64>().ok());
            if let Some(first) = first {
                databases.push((first, path));
            } else if name == META {
                copy_folder(&path, &to.join(name), cancel)?;
            } else if name == END {
                copy_if_there(&path, &to.join(name))?;
            }
        }
        databases.sort_unstable();
        for (place, (_, path)) in databases.iter().enumerate() {
            let target = to.join(path.file_name().unwrap_or_default());
            let next = databases.get(place + 1).map(|(first, _)| *first);
            let over = behind.zip(next).is_some_and(|(behind, next)| next <= behind.saturating_add(1));
            if over && place + ALWAYS < databases.len() {
                fs::create_dir(&target).map_err(|source| failed(path, &target, source))?;
            } else {
                copy_folder(path, &target, cancel)?;
            }
        }
        Ok(to)
    }

    /// Where the copy is.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Copies a folder of the data directory to a place in here; nothing, if it is not there.
    pub(super) fn folder_of(
        &self,
        from: &Path,
        to: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), InspectError> {
        let above = to.parent().unwrap_or(self.folder.path());
        fs::create_dir_all(above).map_err(|source| failed(from, to, source))?;
        copy_folder(from, to, cancel)
    }

    /// An error that names the place in the data directory instead of the one here. What the disk under the copy
    /// refuses is named as it is.
    pub(super) fn in_place(&self, error: InspectError) -> InspectError {
        match error {
            InspectError::Storage(source) => InspectError::Storage(self.storage_in_place(source)),
            InspectError::Log { reached, source } => {
                InspectError::Log { reached, source: self.storage_in_place(source) }
            }
            other => other,
        }
    }

    /// How messages name the copy, and the data directory.
    pub(super) fn paths(&self) -> (String, String) {
        (self.folder.path().display().to_string(), self.data_dir.display().to_string())
    }

    fn storage_in_place(&self, error: StorageError) -> StorageError {
        let place = |path: PathBuf| match path.strip_prefix(self.folder.path()) {
            Ok(inner) => self.data_dir.join(inner),
            Err(_) => path,
        };
        match error {
            StorageError::CorruptLog { dir, key, what } => {
                StorageError::CorruptLog { dir: place(dir), key, what }
            }
            StorageError::CorruptFile { path, offset, what } => {
                StorageError::CorruptFile { path: place(path), offset, what }
            }
            StorageError::Panicked { dir, said } => StorageError::Panicked { dir: place(dir), said },
            StorageError::NewerFormat { path, found, supported } => {
                StorageError::NewerFormat { path: place(path), found, supported }
            }
            StorageError::Database { action, dir, source } => {
                StorageError::Database { action, dir: place(dir), source }
            }
            other => other,
        }
    }
}

/// What is in a folder; nothing, if it is not there.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, InspectError> {
    let failed = |source| InspectError::Io { action: "list", path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
}

/// Copies files and folders. The copies belong to this user and can be written, whatever may be done with the originals.
fn copy_folder(from: &Path, to: &Path, cancel: &CancellationToken) -> Result<(), InspectError> {
    fs::create_dir(to).map_err(|source| failed(from, to, source))?;
    for path in list(from)? {
        if cancel.is_cancelled() {
            return Err(InspectError::Cancelled);
        }
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_folder(&path, &target, cancel)?;
        } else {
            copy_file(&path, &target).map_err(|source| failed(&path, &target, source))?;
        }
    }
    Ok(())
}

/// Copies a file; nothing, if it is not there.
pub(super) fn copy_if_there(from: &Path, to: &Path) -> Result<(), InspectError> {
    if from.exists() {
        copy_file(from, to).map(drop).map_err(|source| failed(from, to, source))
    } else {
        Ok(())
    }
}

fn copy_file(from: &Path, to: &Path) -> io::Result<u64> {
    io::copy(&mut File::open(from)?, &mut File::create_new(to)?)
}

fn failed(from: &Path, to: &Path, source: io::Error) -> InspectError {
    InspectError::Copy { from: from.to_owned(), to: to.to_owned(), source }
}
