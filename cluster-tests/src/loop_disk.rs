//! A file system of a test's own, on a loop device: it can be filled, frozen, or made read-only. Needs root.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

/// Written at once while a disk is filled.
static BLOCK: [u8; 1 << 20] = [0x5a; 1 << 20];

/// It is unmounted, and its file removed, when it goes out of scope; let that be after the cluster that uses it.
#[derive(Debug)]
pub struct LoopDisk {
    folder: TempDir,
    options: String,
}

impl LoopDisk {
    /// Makes and mounts a file system of so many bytes: `ext4` or `xfs`, or whatever `mkfs.…` there is.
    ///
    /// # Panics
    /// If that is not possible here.
    pub fn create(filesystem: &str, bytes: u64) -> Self {
        let folder =
            tempfile::Builder::new().prefix("sandkeeper-disk-").tempdir().expect("a temporary folder");
        // What an ext4 does by default in many places when its disk fails: see `make_read_only`.
        let options = if filesystem == "ext4" { "loop,errors=remount-ro" } else { "loop" };
        let disk = Self { folder, options: options.to_owned() };
        let image = File::create(disk.image()).expect("the temporary folder is writable");
        image.set_len(bytes).expect("a sparse file can be made");
        run(Command::new(format!("mkfs.{filesystem}")).arg("-q").arg(disk.image()));
        fs::create_dir(disk.mount_point()).expect("the temporary folder is writable");
        disk.mount();
        disk
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// Mounts it. Nobody may have files open in it, if it is mounted already: then it is unmounted before.
    pub fn remount(&self) {
        run(Command::new("umount").arg(self.mount_point()));
        self.mount();
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-o", &self.options]).arg(self.image()).arg(self.mount_point()));
    }

    /// Makes an ext4 read-only as the kernel does it after an error of the disk, under whoever has files open in it (which
    /// `mount -o remount,ro` refuses). [`LoopDisk::remount`] mends it.
    pub fn make_read_only(&self) {
        run(Command::new("mount").args(["-o", "remount,abort"]).arg(self.mount_point()));
    }

    /// Lets every write wait until the guard is dropped. Not even a SIGKILL ends a process that waits so, so drop the guard
    /// before the cluster.
    pub fn freeze(&self) -> Frozen {
        run(Command::new("fsfreeze").arg("-f").arg(self.mount_point()));
        Frozen { mount_point: self.mount_point() }
    }

    /// How much is free, bytes.
    ///
    /// # Panics
    /// If it is not mounted.
    pub fn free(&self) -> u64 {
        let found = statvfs(&self.mount_point()).expect("it is mounted");
        found.blocks_available() * found.fragment_size()
    }

    /// Fills it with a file until no more than `leave` bytes are free. 0: until nothing more goes in.
    ///
    /// # Panics
    /// If it can't be written to.
    pub fn fill(&self, leave: u64) {
        let mut file = File::options().create(true).append(true).open(self.filler()).expect("it is writable");
        while self.free() > leave || leave == 0 {
            // The last block goes in in part.
            if file.write_all(&BLOCK).and_then(|()| file.sync_data()).is_err() {
                assert!(self.free() < BLOCK.len() as u64 * 2, "it is full: {} bytes are free", self.free());
                return;
            }
        }
    }

    /// Removes what [`LoopDisk::fill`] has put there.
    ///
    /// # Panics
    /// If there is nothing.
    pub fn empty(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.mount_point().join("filler")
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        thaw(&self.mount_point());
        // Lazily: after a failure somebody may still hold files in it.
        let _ = Command::new("umount").arg("-l").arg(self.mount_point()).status();
    }
}

/// A file system that takes no writes, until this is dropped.
#[derive(Debug)]
pub struct Frozen {
    mount_point: PathBuf,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        thaw(&self.mount_point);
    }
}

/// Does nothing if it is not frozen.
fn thaw(mount_point: &Path) {
    let _ = Command::new("fsfreeze").arg("-u").arg(mount_point).output();
}

fn run(command: &mut Command) {
    let output = command.output();
    let well = output.as_ref().is_ok_and(|output| output.status.success());
    assert!(well, "{command:?}: {output:?} (this needs root, loop devices, and the tool)");
}
