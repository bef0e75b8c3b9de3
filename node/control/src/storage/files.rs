//! Files that survive a power cut: the few calls that all that is kept on disk is made of.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use super::StorageError;

/// Makes a [`StorageError`] of an `io::Error`: `.map_err(failed("open", path))`.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    move |source| StorageError::Io { action, path: path.to_owned(), source }
}

/// Makes a folder's entries durable: without it, a file that was created, renamed or removed in it may be as
/// before after a power cut.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StorageError> {
    sync_file(folder)
}

/// Makes a file (or folder) durable, contents and length.
pub(super) fn sync_file(path: &Path) -> Result<(), StorageError> {
    let file = File::open(path).map_err(failed("open", path))?;
    file.sync_all().map_err(failed("fsync", path))
}

/// Creates a folder, with those above it, durably.
pub(crate) fn create_folder(folder: &Path) -> Result<(), StorageError> {
    if !folder.exists() {
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
    }
    sync_folder(folder)?;
    folder.parent().filter(|above| !above.as_os_str().is_empty()).map_or(Ok(()), sync_folder)
}

/// Replaces a small file: afterwards it holds the old bytes or the new ones, never a mixture.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).map_err(failed("create", &temporary))?;
    file.write_all(bytes).map_err(failed("write", &temporary))?;
    file.sync_all().map_err(failed("fsync", &temporary))?;
    fs::rename(&temporary, path).map_err(failed("rename a new file to", path))?;
    path.parent().map_or(Ok(()), sync_folder)
}
