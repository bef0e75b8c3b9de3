//! What a cluster leaves running when its processes are gone.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{LONG, alive};

/// Kills what the agents left running, which is their duty: whatever names a path in the test's folder.
pub(crate) fn kill_shims(folder: &Path) {
    let folder = folder.to_string_lossy().into_owned();
    let patience = Instant::now();
    while patience.elapsed() < LONG {
        let Ok(processes) = std::fs::read_dir("/proc") else { return };
        let left = processes
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let read = |what| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
                let text = [read("cmdline"), read("environ")].concat();
                alive(*pid) && String::from_utf8_lossy(&text).contains(&folder) && *pid != own_pid()
            });
        let left: Vec<_> = left.collect();
        if left.is_empty() {
            return;
        }
        for pid in left {
            // It may be gone by now.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}
