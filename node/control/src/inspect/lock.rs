//! The lock on a data directory, for somebody who only reads it.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::InspectError;

/// The file that [`DataDirLock`](crate::storage::lock::DataDirLock) locks.
const FILE: &str = "LOCK";

/// Keeps a node from starting in the data directory, and other readers not. Nothing is written, so a folder that is
/// mounted read-only will do; a node that is refused meanwhile reads the id of the process that last wrote.
pub(super) struct ReadLock {
    path: PathBuf,
    dir: PathBuf,
    /// Closing it ends the lock. `None`: there is no such file, as in a copy; what would create it is a node.
    held: Option<File>,
}

impl ReadLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// [`InspectError::InUse`] if a process has the directory.
    pub(super) fn acquire(dir: &Path) -> Result<Self, InspectError> {
        let path = dir.join(FILE);
        let failed = |action, source| InspectError::Io { action, path: dir.join(FILE), source };
        let held = match File::open(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed("open", error)),
        };
        let lock = Self { path, dir: dir.to_owned(), held };
        match lock.held.as_ref().map_or(Ok(()), File::try_lock_shared) {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => Err(lock.in_use()),
            Err(TryLockError::Error(source)) => Err(failed("lock", source)),
        }
    }

    /// Fails if a node came where there was no file to be locked.
    pub(super) fn still_alone(&self) -> Result<(), InspectError> {
        if self.held.is_none() && self.path.exists() { Err(self.in_use()) } else { Ok(()) }
    }

    fn in_use(&self) -> InspectError {
        // The process may be about to write its id.
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let pid = text.trim();
        let pid = if pid.parse::<u32>().is_ok() { pid } else { "unknown" };
        InspectError::InUse { dir: self.dir.clone(), pid: pid.to_owned() }
    }
}
