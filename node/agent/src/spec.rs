//! What a sandbox is to be: the part of a create command that never changes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::Capacity;

/// The longest sandbox id: a UUID has 36 characters, an adopted sandbox's name up to 63.
const MAX_ID: usize = 128;

/// One assignment of a sandbox to this agent. Written to disk in JSON by the runtime `process`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// How machines name it.
    pub sandbox_id: String,
    /// Which assignment of it to an agent this is.
    pub generation: u64,
    /// With `name`: how people name it.
    pub namespace: String,
    /// With `namespace`: how people name it.
    pub name: String,
    /// The recorded create timestamp, unix nanoseconds.
    pub create_timestamp: i64,
    /// The image; the runtime `process` only records it.
    pub image: String,
    /// The program and its first arguments.
    pub command: Vec<String>,
    /// More arguments.
    pub args: Vec<String>,
    /// Environment variables, beside those that every sandbox has.
    pub envs: BTreeMap<String, String>,
    /// An absolute path, or empty for a directory of its own.
    pub working_dir: String,
    /// Ports of the agent's host that it listens on.
    pub ports: Vec<u16>,
    /// Thousandths of a CPU; 0: none in particular.
    pub cpu_millis: u64,
    /// Bytes; 0: none in particular.
    pub memory_bytes: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The label of the cluster that it belongs to; empty: none, it ran before any cluster knew it.
    #[serde(default)]
    pub cluster_id: String,
}

impl SandboxSpec {
    /// What it takes of the agent's capacity.
    pub fn needs(&self) -> Capacity {
        Capacity { slots: 1, cpu_millis: self.cpu_millis, memory_bytes: self.memory_bytes }
    }
}

/// Whether `id` may name a sandbox here. It becomes the name of folders and control groups, so it must not be able to
/// leave them.
pub fn is_usable_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= MAX_ID
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_can_not_leave_its_folder() {
        for good in ["e4b85f2f7d8fb1918a47168a87c62761", "web", "5b0c2c2e-3b0a-4e0e-8d5e-0b8f6c1d2e3f"] {
            assert!(is_usable_id(good), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", ".gone", "a\0b", "a b", &"x".repeat(129)] {
            assert!(!is_usable_id(bad), "{bad:?}");
        }
    }
}
