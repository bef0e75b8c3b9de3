//! Files that are there wholly or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// This node's disk did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("can't {action} {}", path.display())]
pub struct FileFault {
    /// What was tried.
    pub action: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl FileFault {
    /// For `map_err`: a fault of `action` on `path`.
    pub fn of<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self { action, path: path.to_owned(), source }
    }
}

/// Whether a file has to survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It is on disk before the call returns.
    Durable,
    /// It survives the death of every process, but not of the machine: for what means nothing after a reboot.
    UntilReboot,
}

/// Replaces `path` by `content`: a reader sees the old content or the new one.
pub fn replace(path: &Path, content: &[u8], durability: Durability) -> Result<(), FileFault> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(FileFault::of("create", &temporary))?;
    file.write_all(content).map_err(FileFault::of("write", &temporary))?;
    if durability == Durability::Durable {
        file.sync_all().map_err(FileFault::of("fsync", &temporary))?;
    }
    fs::rename(&temporary, path).map_err(FileFault::of("replace", path))?;
    if durability == Durability::Durable {
        let folder = path.parent().unwrap_or(Path::new("."));
        sync_folder(folder)?;
    }
    Ok(())
}

/// Makes the names in `folder` durable.
pub fn sync_folder(folder: &Path) -> Result<(), FileFault> {
    File::open(folder).and_then(|handle| handle.sync_all()).map_err(FileFault::of("fsync", folder))
}

/// The content of `path`; `None` if there is no such file.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, FileFault> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileFault { action: "read", path: path.to_owned(), source }),
    }
}

/// Removes a file or a whole folder; that there is none is as good.
pub fn remove(path: &Path) -> Result<(), FileFault> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileFault { action: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_wholly_and_leaves_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        replace(&path, b"one", Durability::Durable).unwrap();
        replace(&path, b"two", Durability::UntilReboot).unwrap();
        assert_eq!(read_if_there(&path).unwrap().unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read_if_there(&path).unwrap(), None);
    }

    #[test]
    fn a_fault_names_the_path_and_the_cause() {
        let fault = replace(Path::new("/proc/none/f"), b"x", Durability::Durable).unwrap_err();
        assert!(fault.to_string().contains("/proc/none/f"));
        assert_eq!(fault.source.kind(), io::ErrorKind::NotFound);
    }
}
