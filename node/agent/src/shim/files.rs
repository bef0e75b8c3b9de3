//! The files in a process sandbox's folder, which is all that agent and shim know of one another.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cgroup::Group;
use crate::boottime::BootTime;
use crate::files::{self, Durability, FileFault};
use crate::lease::LeaseTerms;
use crate::spec::SandboxSpec;

/// The format of all records here. An agent reads those that an older one wrote: sandboxes outlive upgrades.
pub const VERSION: u32 = 1;

/// The folder of one process sandbox.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

/// `spec.json`: everything that the shim has to know. Written once, by the agent, before the shim is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimSpec {
    /// The format.
    pub version: u32,
    /// What the agent was told.
    pub sandbox: SandboxSpec,
    /// The boot in which it was started: after another one, nothing of it can be left.
    pub boot_id: String,
    /// The program and its arguments; never empty.
    pub argv: Vec<String>,
    /// The whole environment.
    pub envs: BTreeMap<String, String>,
    /// Where the workload starts.
    pub working_dir: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
    /// Whether it gets namespaces of its own for processes, mounts, IPC and host name.
    pub namespaces: bool,
    /// The control groups that it is put into.
    pub groups: Vec<Group>,
    /// RLIMIT_NOFILE.
    pub open_files: u64,
    /// Where the agent writes down what leases rest on.
    #[serde(default)]
    pub lease_file: PathBuf,
    /// RLIMIT_AS in bytes, where no control group limits the memory.
    pub address_space: Option<u64>,
}

/// `instructions.json`: what may change while it runs. Replaced whole by the agent, which then sends SIGHUP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instructions {
    /// The format.
    pub version: u32,
    /// When the shim ends the sandbox by itself.
    pub expires_at: Option<BootTime>,
    /// When the sandbox has to be dead if no leader is heard of.
    pub lease: Option<LeaseTerms>,
    /// Since when it is kept under these terms: gaps between acknowledgements that were over by then break no lease.
    #[serde(default)]
    pub leased_since: BootTime,
    /// The time between SIGTERM and SIGKILL.
    pub grace: Duration,
}

/// `shim.json`: which process the shim is. Written by itself, before it starts anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimProcess {
    /// The format.
    pub version: u32,
    /// Its process id.
    pub pid: i32,
    /// When it was started, in the kernel's ticks since boot: with the id, this names one process.
    pub start_ticks: u64,
}

/// `exit.json`: how it ended. Written by the shim as its last deed, when no process of the sandbox is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The format.
    pub version: u32,
    /// How.
    pub outcome: Outcome,
    /// The shim ended it because its time was over.
    pub expired: bool,
    /// The shim ended it because its lease was over.
    #[serde(default)]
    pub lease_over: bool,
    /// The kernel killed a process of it because its memory was used up.
    pub out_of_memory: bool,
    /// When, in unix nanoseconds, by this machine's clock.
    pub unix_nanos: u64,
}

/// How a workload ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// By itself.
    Exited(i32),
    /// By a signal.
    Signalled(i32),
    /// It never began.
    Failed(String),
}

impl ExitRecord {
    /// A record of now, of what ended by itself.
    pub fn now(outcome: Outcome) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let unix_nanos = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Self {
            version: VERSION,
            outcome,
            expired: false,
            lease_over: false,
            out_of_memory: false,
            unix_nanos,
        }
    }
}

impl Folder {
    /// The folder at this path.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of `spec.json`.
    pub fn spec(&self) -> PathBuf {
        self.0.join("spec.json")
    }

    /// The path of the FIFO whose only writer is the shim.
    pub fn alive(&self) -> PathBuf {
        self.0.join("alive")
    }

    /// The path of the file that has the shim's standard error.
    pub fn complaints(&self) -> PathBuf {
        self.0.join("shim.err")
    }

    /// Writes `spec.json`.
    pub fn write_spec(&self, spec: &ShimSpec) -> Result<(), FileFault> {
        write(&self.spec(), spec, Durability::UntilReboot)
    }

    /// Replaces `instructions.json`.
    pub fn write_instructions(&self, instructions: &Instructions) -> Result<(), FileFault> {
        write(&self.0.join("instructions.json"), instructions, Durability::UntilReboot)
    }

    /// Reads `instructions.json`.
    pub fn read_instructions(&self) -> io::Result<Option<Instructions>> {
        read(&self.0.join("instructions.json"))
    }

    /// Writes `shim.json`.
    pub fn write_process(&self, process: &ShimProcess) -> Result<(), FileFault> {
        write(&self.0.join("shim.json"), process, Durability::UntilReboot)
    }

    /// Reads `shim.json`.
    pub fn read_process(&self) -> io::Result<Option<ShimProcess>> {
        read(&self.0.join("shim.json"))
    }

    /// Writes `exit.json`, durably: an exit status is never lost.
    pub fn write_exit(&self, exit: &ExitRecord) -> Result<(), FileFault> {
        write(&self.0.join("exit.json"), exit, Durability::Durable)
    }

    /// Reads `exit.json`.
    pub fn read_exit(&self) -> io::Result<Option<ExitRecord>> {
        read(&self.0.join("exit.json"))
    }

    /// Reads `spec.json`. `None` if there is none, or an empty one: that is what a power cut leaves of a file that was
    /// not fsynced, and then there is nothing that it could have started.
    pub fn read_spec(&self) -> io::Result<Option<ShimSpec>> {
        read(&self.spec())
    }
}

fn write<T: Serialize>(path: &Path, record: &T, durability: Durability) -> Result<(), FileFault> {
    let content =
        serde_json::to_vec_pretty(record).expect("records have no maps with keys that JSON can't have");
    files::replace(path, &content, durability)
}

/// What every record has.
#[derive(Deserialize)]
struct Format {
    version: u32,
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let content = files::read_if_there(path).map_err(|fault| fault.source)?;
    let Some(content) = content.filter(|content| !content.is_empty()) else { return Ok(None) };
    let bad =
        |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
    // First, for what a newer version has added may be what can't be read.
    let Format { version } = serde_json::from_slice(&content).map_err(|error| bad(error.to_string()))?;
    if version > VERSION {
        return Err(bad(format!(
            "it has format {version}, and this version reads up to {VERSION}: use a newer one"
        )));
    }
    serde_json::from_slice(&content).map(Some).map_err(|error| bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records as version 1 wrote them: a newer agent has to read them, for sandboxes outlive its upgrade.
    const SPEC_1: &str = include_str!("golden-spec-1.json");
    const EXIT_1: &str = include_str!("golden-exit-1.json");

    #[test]
    fn records_of_format_1_are_still_read() {
        let folder = tempfile::tempdir().unwrap();
        let records = Folder::new(folder.path().to_owned());
        std::fs::write(records.spec(), SPEC_1).unwrap();
        std::fs::write(folder.path().join("exit.json"), EXIT_1).unwrap();
        let spec = records.read_spec().unwrap().unwrap();
        assert_eq!((spec.sandbox.generation, spec.argv[0].as_str(), spec.groups.len()), (2, "sleep", 1));
        let exit = records.read_exit().unwrap().unwrap();
        assert_eq!((exit.outcome, exit.expired), (Outcome::Signalled(9), true));
    }

    #[test]
    fn a_newer_format_is_refused_whatever_else_is_new() {
        let folder = tempfile::tempdir().unwrap();
        let records = Folder::new(folder.path().to_owned());
        for record in [EXIT_1.replace("\"version\": 1", "\"version\": 2"), r#"{"version":2}"#.to_owned()] {
            std::fs::write(folder.path().join("exit.json"), record).unwrap();
            let error = records.read_exit().unwrap_err().to_string();
            assert!(error.contains("exit.json: it has format 2, and this version reads up to 1"), "{error}");
        }
    }

    #[test]
    fn what_a_power_cut_left_is_nothing_and_garbage_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let records = Folder::new(folder.path().to_owned());
        assert_eq!(records.read_spec().unwrap(), None);
        std::fs::write(records.spec(), "").unwrap();
        assert_eq!(records.read_spec().unwrap(), None);
        std::fs::write(records.spec(), "{").unwrap();
        assert!(records.read_spec().unwrap_err().to_string().contains("spec.json"));
    }
}
