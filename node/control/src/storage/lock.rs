//! One process for a data directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use super::StorageError;
use super::files::{create_folder, failed};

const FILE: &str = "LOCK";

/// The lock on a data directory, held until it is dropped. The kernel lets go of it when the process ends,
/// whichever way it ends, so nobody has to remove a stale file.
#[derive(Debug)]
pub struct DataDirLock {
    /// Closing it ends the lock.
    _file: File,
}

impl DataDirLock {
    /// Takes the lock of `data_dir`, creating the directory if it is not there, and writes this process's id
    /// into the file for the message that the next one gets.
    ///
    /// # Errors
    /// [`StorageError::InUse`] if another process (or another part of this one) has it.
    pub fn acquire(data_dir: &Path) -> Result<Self, StorageError> {
        create_folder(data_dir)?;
        let path = data_dir.join(FILE);
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StorageError::InUse { dir: data_dir.to_owned(), pid: holder(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
        }
        file.set_len(0).map_err(failed("write", &path))?;
        file.rewind().map_err(failed("write", &path))?;
        writeln!(file, "{}", std::process::id()).map_err(failed("write", &path))?;
        Ok(Self { _file: file })
    }
}

/// The process id that the holder wrote. It may be about to write it, so anything else is "unknown".
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(32).read_to_string(&mut text) {
        Ok(_) if text.trim().parse::<u32>().is_ok() => text.trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_with_the_first_ones_pid() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDirLock::acquire(dir.path()).unwrap();
        let refused = DataDirLock::acquire(dir.path()).unwrap_err().to_string();
        let pid = std::process::id();
        assert_eq!(
            refused,
            format!("data directory {} is in use by another process (pid {pid})", dir.path().display())
        );
        drop(first);
        DataDirLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_file_left_by_a_dead_process_does_not_hold() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "99999999999 and more\n").unwrap();
        let _lock = DataDirLock::acquire(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
    }
}
