//! The processes of this machine that belong to a `dev` cluster, as `ps` would show them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sandkeeper_agent::shim::{ID_VARIABLE, SECOND_STAGE, SHIM};

/// A process, as /proc shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its arguments, its program first.
    pub command: Vec<String>,
    /// The sandbox that it is of, if it says so in its environment.
    pub sandbox_id: Option<String>,
}

impl Process {
    /// As one line.
    pub fn line(&self) -> String {
        format!("{} {}", self.pid, self.command.join(" "))
    }

    /// Whether it stands beside a workload rather than being one.
    pub fn is_shim(&self) -> bool {
        self.command.get(1).is_some_and(|argument| argument == SHIM || argument == SECOND_STAGE)
    }

    fn names(&self, folder: &Path) -> bool {
        self.command.iter().any(|argument| Path::new(argument).starts_with(folder))
    }
}

/// All processes that can be looked at. Those that end meanwhile are left out, and so are zombies: their command line
/// is empty.
fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(process).collect()
}

fn process(pid: i32) -> Option<Process> {
    let command = strings(&fs::read(format!("/proc/{pid}/cmdline")).ok()?);
    if command.is_empty() {
        return None;
    }
    // Another user's environment can't be read; such a process is not one of ours.
    let environment = strings(&fs::read(format!("/proc/{pid}/environ")).unwrap_or_default());
    let value = |variable: &String| variable.strip_prefix(ID_VARIABLE)?.strip_prefix('=').map(str::to_owned);
    Some(Process { pid, command, sandbox_id: environment.iter().find_map(value) })
}

fn strings(bytes: &[u8]) -> Vec<String> {
    let parts = bytes.split(|byte| *byte == 0).filter(|part| !part.is_empty());
    parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// The workload of a sandbox: its processes without its shim.
pub fn of_sandbox(sandbox_id: &str) -> Vec<Process> {
    let is_its = |process: &Process| process.sandbox_id.as_deref() == Some(sandbox_id) && !process.is_shim();
    all().into_iter().filter(is_its).collect()
}

/// What belongs to the cluster in this folder: its nodes, agents and shims, and what is left of these sandboxes.
pub fn of_cluster(root: &Path, sandbox_ids: &BTreeSet<String>) -> Vec<Process> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let is_its = |process: &Process| {
        let of_sandbox = process.sandbox_id.as_ref().is_some_and(|id| sandbox_ids.contains(id));
        process.pid != own && (process.names(root) || of_sandbox)
    };
    all().into_iter().filter(is_its).collect()
}

/// The ids of the sandboxes of which the agents' folders still have a record.
pub fn recorded_sandboxes(agent_folders: impl IntoIterator<Item = impl AsRef<Path>>) -> BTreeSet<String> {
    let folders = agent_folders.into_iter().map(|folder| folder.as_ref().join("sandboxes"));
    let entries = folders.filter_map(|folder| fs::read_dir(folder).ok()).flat_map(Iterator::flatten);
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Sends a signal to each; those that are gone already don't matter.
pub fn signal(processes: &[Process], signal: Signal) {
    for process in processes {
        let _ = kill(Pid::from_raw(process.pid), signal);
    }
}

/// Whether there still is a process with this id that is no zombie.
pub fn is_alive(pid: i32) -> bool {
    process(pid).is_some()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_sandboxs_processes_are_known_by_their_environment() {
        let id = format!("test-{}", std::process::id());
        let mut child =
            Command::new("sleep").arg("600").env(ID_VARIABLE, &id).stdin(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // Until it has become `sleep`, it is a copy of this process.
        while of_sandbox(&id).first().is_none_or(|process| process.command != ["sleep", "600"]) {
            std::thread::yield_now();
        }
        let found = of_sandbox(&id);
        assert_eq!((found.len(), found[0].pid), (1, pid));
        assert!(
            of_cluster(Path::new("/nowhere"), &BTreeSet::from([id.clone()])).iter().any(|one| one.pid == pid)
        );
        assert!(is_alive(pid));
        signal(&found, Signal::SIGKILL);
        child.wait().unwrap();
        assert!(of_sandbox(&id).is_empty() && !is_alive(pid));
    }

    #[test]
    fn a_clusters_processes_are_known_by_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(of_cluster(folder.path(), &BTreeSet::new()).is_empty());
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let mut child = Command::new("tail").arg("-f").arg(&file).stdout(Stdio::null()).spawn().unwrap();
        while of_cluster(folder.path(), &BTreeSet::new()).is_empty() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(of_cluster(folder.path(), &BTreeSet::new()).is_empty());
    }

    #[test]
    fn records_are_folders_of_the_agents() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("agent-1/sandboxes/abc")).unwrap();
        let found = recorded_sandboxes([folder.path().join("agent-1"), folder.path().join("agent-2")]);
        assert_eq!(found, BTreeSet::from(["abc".to_owned()]));
    }
}
