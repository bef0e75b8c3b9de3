//! A file system of a test's own, in a file: its power can be cut, so that it loses everything that was not made durable; it
//! can be filled, frozen, or made read-only.
//!
//! Needs root, loop devices, util-linux, xfsprogs and, for ext4, e2fsprogs.

// All of this crate is test code: a panic is how it reports.
#![allow(clippy::missing_panics_doc)]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

/// Far longer than it takes until nobody holds a file system that was unmounted.
const LONG: Duration = Duration::from_secs(120);
/// Written at once while a disk is filled.
static BLOCK: [u8; 64 << 10] = [0x5a; 64 << 10];

/// What is made in the file, with the defaults of its tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// XFS.
    Xfs,
    /// ext4.
    Ext4,
}

/// A mounted file system. It is unmounted, and its file removed, when it is dropped; let that be after what uses it.
#[derive(Debug)]
pub struct LoopDisk {
    /// Removed last.
    _folder: TempDir,
    kind: FileSystem,
    image: PathBuf,
    mount: PathBuf,
}

impl LoopDisk {
    /// Makes one of so many bytes, and mounts it.
    pub fn new(kind: FileSystem, bytes: u64) -> Self {
        let folder =
            tempfile::Builder::new().prefix("sandkeeper-disk-").tempdir().expect("a temporary folder");
        let (image, mount) = (folder.path().join("image"), folder.path().join("mount"));
        fs::create_dir(&mount).expect("a temporary folder is writable");
        let file = File::create(&image).expect("a temporary folder is writable");
        file.set_len(bytes).expect("files may have holes");
        match kind {
            FileSystem::Xfs => run(Command::new("mkfs.xfs").arg("-q").arg(&image)),
            FileSystem::Ext4 => run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image)),
        };
        let disk = Self { _folder: folder, kind, image, mount };
        disk.mount();
        disk
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Cuts the power: from now on nothing reaches it, and what was not durable is lost, also what stands in its journal
    /// in memory only. Who uses it gets errors. [`LoopDisk::remount`] starts it again.
    pub fn cut_power(&self) {
        // The call is the same one for ext4.
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.mount));
    }

    /// Makes an ext4 read-only as the kernel does it after an error of the disk, under whoever has files open in it (which
    /// `mount -o remount,ro` refuses). [`LoopDisk::remount`] mends it.
    pub fn make_read_only(&self) {
        run(Command::new("mount").args(["-o", "remount,abort"]).arg(&self.mount));
    }

    /// Unmounts it, and mounts it again. Nobody may use it any more.
    pub fn remount(&self) {
        let before = self.device();
        run(Command::new("umount").arg(&self.mount));
        // Whoever has a mount namespace of its own (a container, a sandbox) may have a copy of the old mount, and holds it. What
        // was on its way from there is written before anybody reads it.
        if let Some(before) = before {
            let start = Instant::now();
            while is_busy(&before) {
                assert!(start.elapsed() < LONG, "{} does not come to rest", before.display());
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.mount();
    }

    /// Mounts it by a device of its own: by the one of before, the kernel would give back a file system that somebody holds, as
    /// it was left.
    fn mount(&self) {
        let options = match self.kind {
            // The one that somebody holds has the same name.
            FileSystem::Xfs => "nouuid",
            // What an ext4 does by default in many places when its disk fails: see `make_read_only`.
            FileSystem::Ext4 => "errors=remount-ro",
        };
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&self.image));
        let device = device.trim();
        run(Command::new("mount").args(["-o", options, device]).arg(&self.mount));
        // From now on it goes when nobody uses it any more.
        run(Command::new("losetup").args(["--detach", device]));
        let usable = File::open(&self.mount).and_then(|folder| folder.sync_all());
        assert!(usable.is_ok(), "{} is mounted, and of no use: {usable:?}", self.mount.display());
    }

    /// What it is mounted from.
    fn device(&self) -> Option<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        mounts.lines().find_map(|line| {
            let mut fields = line.split_whitespace();
            let device = fields.next()?;
            (Path::new(fields.next()?) == self.mount).then(|| PathBuf::from(device))
        })
    }

    /// Lets every write wait until the guard is dropped. Not even a SIGKILL ends a process that waits so, so drop the guard
    /// before whatever ends the processes.
    pub fn freeze(&self) -> Frozen {
        run(Command::new("fsfreeze").arg("-f").arg(&self.mount));
        Frozen { mount: self.mount.clone() }
    }

    /// How much is free, bytes.
    pub fn free(&self) -> u64 {
        let found = statvfs(&self.mount).expect("it is mounted");
        found.blocks_available() * found.fragment_size()
    }

    /// Fills it with a file until no more than `leave` bytes are free. 0: until nothing more goes in.
    pub fn fill(&self, leave: u64) {
        let mut file = File::options().create(true).append(true).open(self.filler()).expect("it is writable");
        // Most of it without writing, in as large pieces as the file system gives; what is reserved for root too, if nothing is to
        // be left. The rest is written.
        let found = statvfs(&self.mount).expect("it is mounted");
        let blocks = if leave == 0 { found.blocks_free() } else { found.blocks_available() };
        let mut left = (blocks * found.fragment_size()).saturating_sub(leave);
        let (mut taken, mut piece) = (0, left);
        while piece > BLOCK.len() as u64 {
            let number = |bytes: u64| i64::try_from(bytes).expect("disks of tests are small");
            // The file grows by it: what is appended comes behind.
            if fallocate(&file, FallocateFlags::empty(), number(taken), number(piece)).is_ok() {
                (taken, left) = (taken + piece, left - piece);
            }
            piece = (piece / 2).min(left);
        }
        while self.free() > leave || leave == 0 {
            // The last block goes in in part.
            if file.write_all(&BLOCK).and_then(|()| file.sync_data()).is_err() {
                assert!(self.free() < BLOCK.len() as u64 * 2, "it is full: {} bytes are free", self.free());
                return;
            }
        }
    }

    /// Removes what [`LoopDisk::fill`] has put there.
    pub fn empty(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("filler")
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        thaw(&self.mount);
        // Lazily: after a failure something may still hold files in it. If it is not mounted, that is as well.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
    }
}

/// A file system that takes no writes, until this is dropped.
#[derive(Debug)]
pub struct Frozen {
    mount: PathBuf,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        thaw(&self.mount);
    }
}

/// Does nothing if it is not frozen.
fn thaw(mount: &Path) {
    let _ = Command::new("fsfreeze").arg("-u").arg(mount).output();
}

/// Whether a loop device has requests that are not done.
fn is_busy(device: &Path) -> bool {
    let Some(name) = device.file_name() else { return false };
    let inflight =
        fs::read_to_string(Path::new("/sys/block").join(name).join("inflight")).unwrap_or_default();
    inflight.split_whitespace().any(|count| count != "0")
}

/// What it says.
fn run(command: &mut Command) -> String {
    let output = command.output();
    let well = output.as_ref().is_ok_and(|output| output.status.success());
    assert!(well, "{command:?}: {output:?} (this needs root, loop devices, and the tool)");
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}
