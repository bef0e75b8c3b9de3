//! What was measured on.

use std::fs;

use serde::Serialize;

/// The machine, in words.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    processors: usize,
    model: String,
    memory_gib: u64,
    kernel: String,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let kilobytes = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
        Self {
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            model: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
            memory_gib: kilobytes.unwrap_or(0) >> 20,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }

    /// For the page.
    pub fn told(&self) -> String {
        let Self { processors, model, memory_gib, kernel } = self;
        format!("{processors} processors ({model}), {memory_gib} GiB, Linux {kernel}")
    }
}
