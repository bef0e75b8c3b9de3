//! What this machine has: the default capacity of an agent.

use std::fs;
use std::thread::available_parallelism;

/// Sandboxes mostly wait, so there are more slots than CPUs.
const SLOTS_PER_CPU: u64 = 4;

/// Thousandths of a CPU that this process may use.
pub fn cpu_millis() -> u64 {
    available_parallelism().map_or(1000, |cpus| cpus.get() as u64 * 1000)
}

/// A number of slots that suits the CPUs.
pub fn slots() -> u64 {
    cpu_millis() / 1000 * SLOTS_PER_CPU
}

/// Bytes of memory; `None` where the kernel does not say.
pub fn memory_bytes() -> Option<u64> {
    memory_total(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_is_read_from_meminfo() {
        assert_eq!(super::memory_total("MemTotal:       16314 kB\nMemFree: 1 kB\n"), Some(16_314 * 1024));
        assert_eq!(super::memory_total("nonsense"), None);
    }
}
