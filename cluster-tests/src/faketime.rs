//! Wall clocks that can be set while a process runs, by libfaketime. It leaves the monotonic clocks alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where distributions have it.
const PLACES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// The library, if it is installed.
pub fn library() -> Option<PathBuf> {
    PLACES.iter().map(PathBuf::from).find(|path| path.exists())
}

/// Has a program take its wall clock from a file, which is read again every second.
///
/// # Panics
/// If libfaketime is not installed.
pub fn prepare(command: &mut Command, file: &Path) {
    if !file.exists() {
        set(file, 0);
    }
    let library = library().expect("who asks for clocks has looked for libfaketime");
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", file);
    command.env("FAKETIME_CACHE_DURATION", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    // The times of files are the disk's own.
    command.env("NO_FAKE_STAT", "1").env("FAKETIME_NO_CACHE", "0");
}

/// Says how far the clock is off the true time.
///
/// # Panics
/// If the file can't be written.
pub fn set(file: &Path, seconds: i64) {
    let fresh = file.with_extension("fresh");
    fs::write(&fresh, format!("{seconds:+}\n")).expect("the test's folder is writable");
    // At once: a reader never sees half of it.
    fs::rename(&fresh, file).expect("the test's folder is writable");
}

/// What a program sees that takes its clock from the file: seconds since 1970.
///
/// # Errors
/// A text, if it can't be asked.
pub fn shown(file: &Path) -> Result<i64, String> {
    let mut command = Command::new("date");
    prepare(command.arg("+%s"), file);
    let output = command.output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().map_err(|_| format!("date says {text:?}"))
}
