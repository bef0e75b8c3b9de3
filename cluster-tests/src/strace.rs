//! Faults of system calls, by `strace`, in a process that runs. Needs root, or the right to trace.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::wait::eventually;
use crate::{Process, alive};

/// System calls of a process fail, or take long, until this is dropped.
#[derive(Debug)]
pub struct Strace {
    process: Process,
}

impl Strace {
    /// Has the calls of all threads of a process do what `inject` says, in the words of strace:
    /// `fsync,fdatasync:error=EIO`. Returns when it is so, or when the process has ended of it already.
    ///
    /// # Panics
    /// If strace can't be started, or does not come to it.
    pub async fn inject(pid: u32, inject: &str, log: &Path) -> Self {
        let calls = inject.split(':').next().unwrap_or_default();
        let mut command = Command::new("strace");
        command.args(["-f", "-q", "-p", &pid.to_string(), "-e", &format!("trace={calls}")]);
        command.args(["-e", &format!("inject={inject}")]);
        let mut strace = Self { process: Process::start(command, log) };
        eventually("strace is attached", || {
            let (ended, untraced) = (strace.process.has_ended(), untraced(pid));
            let gone = !alive(pid.cast_signed());
            async move {
                match untraced {
                    _ if gone => Ok(()),
                    0 if !ended => Ok(()),
                    threads => Err(format!("{threads} threads are not traced; strace has ended: {ended}")),
                }
            }
        })
        .await;
        strace
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // It lets go of what it traces.
        self.process.terminate();
    }
}

/// How many threads of a process nobody traces.
fn untraced(pid: u32) -> usize {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let statuses = threads.flatten().map(|thread| fs::read_to_string(thread.path().join("status")));
    statuses.flatten().filter(|status| status.lines().any(|line| line == "TracerPid:\t0")).count()
}
