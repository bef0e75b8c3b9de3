//! Child processes, and what the kernel says of others.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A child that dies with the test.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program; its output is appended to a file.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let file = || {
            fs::File::options().create(true).append(true).open(log).expect("the test's folder is writable")
        };
        let child = command.stdin(Stdio::null()).stdout(file()).stderr(file()).spawn();
        Self { child: child.expect("the binary under test can be started") }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        // It may be gone already.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    /// Kills it with -9 and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        // It is our child and was killed: the wait ends.
        let _ = self.child.wait();
    }

    /// Asks it to end, and waits until it has; its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.child.wait().ok().and_then(|status| status.code())
    }

    /// Waits until it ends by itself; its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().ok().and_then(|status| status.code())
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
        self.kill();
    }
}

/// Whether a process is there, and not a zombie.
pub fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// The command lines of all processes whose environment names this sandbox.
pub fn children_of(sandbox_id: &str) -> Vec<(i32, String)> {
    let marker = format!("SANDKEEPER_SANDBOX_ID={sandbox_id}");
    let Ok(folder) = fs::read_dir("/proc") else { return Vec::new() };
    folder
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| alive(*pid))
        .filter_map(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let named = environment.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes());
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            named.then(|| (pid, String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned()))
        })
        .collect()
}

/// The resident memory of a process, bytes; 0 if it is gone.
pub fn resident_bytes(pid: u32) -> u64 {
    memory(pid, "VmRSS:")
}

/// The most resident memory that a process ever had, bytes; 0 if it is gone.
pub fn peak_resident_bytes(pid: u32) -> u64 {
    memory(pid, "VmHWM:")
}

fn memory(pid: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// How many files, sockets and the like a process has open; 0 if it is gone.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
