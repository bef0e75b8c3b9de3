//! A file system in a file, which loses everything that was not made durable when a test cuts its power.
//!
//! Needs root, loop devices, xfsprogs and, for ext4, e2fsprogs.

// All of this crate is test code: a panic is how it reports.
#![allow(clippy::missing_panics_doc)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Far longer than it takes until nobody holds a file system that was unmounted.
const LONG: Duration = Duration::from_secs(120);

/// What is made in the file, with the defaults of its tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// XFS.
    Xfs,
    /// ext4.
    Ext4,
}

/// A mounted file system. It is unmounted, and its file removed, when it is dropped.
#[derive(Debug)]
pub struct LoopDisk {
    /// Removed last.
    _folder: TempDir,
    image: PathBuf,
    mount: PathBuf,
}

impl LoopDisk {
    /// Makes one of so many bytes, and mounts it.
    pub fn new(kind: FileSystem, bytes: u64) -> Self {
        let folder = tempfile::Builder::new().prefix("disk-").tempdir().expect("a temporary folder");
        let (image, mount) = (folder.path().join("image"), folder.path().join("mount"));
        fs::create_dir(&mount).expect("a temporary folder is writable");
        let file = File::create(&image).expect("a temporary folder is writable");
        file.set_len(bytes).expect("files may have holes");
        match kind {
            FileSystem::Xfs => run(Command::new("mkfs.xfs").arg("-q").arg(&image)),
            FileSystem::Ext4 => run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image)),
        }
        let disk = Self { _folder: folder, image, mount };
        disk.mount();
        disk
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Cuts the power: from now on nothing reaches it, and what was not durable is lost, also what stands in its journal
    /// in memory only. Who uses it gets errors.
    pub fn cut_power(&self) {
        // The call is the same one for ext4.
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.mount));
    }

    /// Starts it again after a cut. Nobody may use it any more.
    pub fn restart(&self) {
        run(Command::new("umount").arg(&self.mount));
        self.mount();
    }

    /// Another process that has just taken a copy of all mounts (a container does) can hold the file system that was shut
    /// down for a moment; what is mounted then is that one again, which answers every fsync with an error.
    fn mount(&self) {
        let start = Instant::now();
        loop {
            run(Command::new("mount").args(["-o", "loop"]).args([&self.image, &self.mount]));
            if File::open(&self.mount).and_then(|folder| folder.sync_all()).is_ok() {
                return;
            }
            assert!(start.elapsed() < LONG, "{} stays shut down", self.mount.display());
            run(Command::new("umount").arg(&self.mount));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // Lazily: after a failure something may still hold files in it. If it is not mounted, that is as well.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
    }
}

fn run(command: &mut Command) {
    let status = command.status();
    assert!(status.as_ref().is_ok_and(ExitStatus::success), "{command:?}: {status:?}");
}
