//! Control groups: where they are (agent), how one is made, joined and removed (shim).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use serde::{Deserialize, Serialize};

use crate::spec::SandboxSpec;

/// The length of a CPU quota's period: the kernel's own default.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// The kernel refuses a smaller quota.
const CPU_QUOTA_MIN_MICROS: u64 = 1_000;

/// One control group of a sandbox: in version 1 there is one for each controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its folder.
    pub path: PathBuf,
    /// Files in it and what is written into them, in this order.
    pub settings: Vec<(String, String)>,
}

/// The control groups that this machine lets the agent make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// Version 1: the agent's own group under each controller, by the controller's name.
    V1(Vec<(Controller, PathBuf)>),
    /// Version 2: the agent's own group.
    V2(PathBuf),
    /// None, and why.
    Unavailable(String),
}

/// What the agent limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// CPU time.
    Cpu,
    /// Memory.
    Memory,
    /// The number of processes.
    Pids,
}

const CONTROLLERS: [(Controller, &str); 3] =
    [(Controller::Cpu, "cpu"), (Controller::Memory, "memory"), (Controller::Pids, "pids")];

impl Hierarchy {
    /// Finds the hierarchies that are mounted and makes the agent's own groups in them.
    pub fn find(agent_id: &str) -> Self {
        let mounts = match Process::myself().and_then(|process| process.mountinfo()) {
            Ok(mounts) => mounts,
            Err(error) => return Self::Unavailable(format!("the list of mounts can't be read: {error}")),
        };
        let own = Path::new("sandkeeper").join(agent_id);
        let mut v1 = Vec::new();
        let mut reasons = Vec::new();
        for mount in &mounts {
            if mount.fs_type == "cgroup2" && v1.is_empty() && has_controllers(&mount.mount_point) {
                match make_v2(&mount.mount_point, &own) {
                    Ok(path) => return Self::V2(path),
                    Err(error) => reasons.push(format!("{}: {error}", mount.mount_point.display())),
                }
            }
            if mount.fs_type != "cgroup" {
                continue;
            }
            for (controller, name) in CONTROLLERS {
                let missing = !v1.iter().any(|(known, _)| *known == controller);
                if missing && mount.super_options.contains_key(name) {
                    let path = mount.mount_point.join(&own);
                    match fs::create_dir_all(&path) {
                        Ok(()) => v1.push((controller, path)),
                        Err(error) => reasons.push(format!("{}: {error}", path.display())),
                    }
                }
            }
        }
        match (v1.is_empty(), reasons.is_empty()) {
            (false, _) => Self::V1(v1),
            (true, false) => Self::Unavailable(reasons.join("; ")),
            (true, true) => Self::Unavailable("no control group hierarchy is mounted".to_owned()),
        }
    }

    /// The groups of one sandbox.
    pub fn groups(&self, spec: &SandboxSpec, processes: u64) -> Vec<Group> {
        let set = |name: &str, value: String| (name.to_owned(), value);
        let quota = (spec.cpu_millis.saturating_mul(CPU_PERIOD_MICROS) / 1_000).max(CPU_QUOTA_MIN_MICROS);
        match self {
            Self::Unavailable(_) => Vec::new(),
            Self::V2(parent) => {
                let mut settings = vec![set("pids.max", processes.to_string())];
                if spec.cpu_millis > 0 {
                    settings.push(set("cpu.max", format!("{quota} {CPU_PERIOD_MICROS}")));
                }
                if spec.memory_bytes > 0 {
                    settings.push(set("memory.max", spec.memory_bytes.to_string()));
                }
                vec![Group { path: parent.join(&spec.sandbox_id), settings }]
            }
            Self::V1(parents) => parents
                .iter()
                .filter_map(|(controller, parent)| {
                    let settings = match controller {
                        Controller::Pids => vec![set("pids.max", processes.to_string())],
                        Controller::Cpu if spec.cpu_millis > 0 => vec![
                            set("cpu.cfs_period_us", CPU_PERIOD_MICROS.to_string()),
                            set("cpu.cfs_quota_us", quota.to_string()),
                        ],
                        Controller::Memory if spec.memory_bytes > 0 => {
                            vec![set("memory.limit_in_bytes", spec.memory_bytes.to_string())]
                        }
                        Controller::Cpu | Controller::Memory => return None,
                    };
                    Some(Group { path: parent.join(&spec.sandbox_id), settings })
                })
                .collect(),
        }
    }

    /// Removes the agent's own groups as far as nothing is in them: the last to leave takes them along.
    pub fn leave(&self) {
        let own: Vec<&Path> = match self {
            Self::V1(parents) => parents.iter().map(|(_, path)| path.as_path()).collect(),
            Self::V2(path) => vec![path],
            Self::Unavailable(_) => Vec::new(),
        };
        for path in own {
            // A group stays busy for a moment after the last one in it is gone. Sandboxes that run on keep it for good.
            let mut tries = 0;
            while tries < 100 && fs::remove_dir(path).is_err() && tree(path).is_ok_and(|tree| tree.len() == 1)
            {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    }

    /// Whether it can limit memory.
    pub fn limits_memory(&self) -> bool {
        match self {
            Self::V2(_) => true,
            Self::V1(parents) => parents.iter().any(|(controller, _)| *controller == Controller::Memory),
            Self::Unavailable(_) => false,
        }
    }
}

fn has_controllers(mount: &Path) -> bool {
    fs::read_to_string(mount.join("cgroup.controllers")).is_ok_and(|text| {
        let offered: Vec<_> = text.split_whitespace().collect();
        CONTROLLERS.iter().all(|(_, name)| offered.contains(name))
    })
}

/// Version 2 hands controllers down only where each group above says so.
fn make_v2(mount: &Path, own: &Path) -> io::Result<PathBuf> {
    let mut path = mount.to_owned();
    hand_down(&path)?;
    for part in own {
        path.push(part);
        fs::create_dir_all(&path)?;
        hand_down(&path)?;
    }
    Ok(path)
}

fn hand_down(path: &Path) -> io::Result<()> {
    fs::write(path.join("cgroup.subtree_control"), "+cpu +memory +pids")
}

impl Group {
    /// Makes it and its limits.
    pub fn make(&self) -> io::Result<()> {
        match fs::create_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.settings.iter().try_for_each(|(name, value)| fs::write(self.path.join(name), value))
    }

    /// Puts the calling process, which must have one thread, into it.
    pub fn join(&self) -> io::Result<()> {
        // Version 1 moves the one thread without the lock over all processes of the machine that moving a process
        // takes, and which is waited for.
        let thread = self.path.join("tasks");
        let list = if thread.exists() { thread } else { self.path.join("cgroup.procs") };
        fs::write(list, "0")
    }

    /// Whether the kernel killed something in it for lack of memory.
    pub fn ran_out_of_memory(&self) -> bool {
        ["memory.oom_control", "memory.events"].iter().any(|name| {
            fs::read_to_string(self.path.join(name)).is_ok_and(|text| {
                text.lines()
                    .any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
            })
        })
    }

    /// Sends SIGKILL to every process in it and in the groups that its processes made in it, and says how many there
    /// were.
    pub fn kill(&self) -> io::Result<usize> {
        let mut found = 0;
        for path in tree(&self.path)? {
            for pid in processes(&path)? {
                found += 1;
                // One that has ended in between is as good.
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        Ok(found)
    }

    /// Removes it and the groups in it; that it is not there is as good. Fails while a process is in one of them.
    pub fn remove(&self) -> io::Result<()> {
        tree(&self.path)?.iter().try_for_each(|path| absent_is_good(fs::remove_dir(path)))
    }
}

/// A group and all in it, the innermost first.
fn tree(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return absent_is_good(Err(error)).map(|()| found),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(tree(&entry.path())?);
        }
    }
    found.push(path.to_owned());
    Ok(found)
}

fn processes(path: &Path) -> io::Result<Vec<Pid>> {
    match fs::read_to_string(path.join("cgroup.procs")) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw).collect()),
        Err(error) => absent_is_good(Err(error)).map(|()| Vec::new()),
    }
}

/// A group that is gone is as good as one that was removed. ENODEV: it was removed while it was open.
fn absent_is_good(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if error.kind() != io::ErrorKind::NotFound
                && error.raw_os_error() != Some(Errno::ENODEV as i32) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(cpu_millis: u64, memory_bytes: u64) -> SandboxSpec {
        SandboxSpec { sandbox_id: "a".to_owned(), cpu_millis, memory_bytes, ..SandboxSpec::default() }
    }

    #[test]
    fn version_2_has_one_group_and_only_the_limits_that_were_asked_for() {
        let groups = Hierarchy::V2(PathBuf::from("/c")).groups(&spec(1_500, 0), 7);
        assert_eq!(groups.len(), 1);
        let settings: Vec<_> = groups[0].settings.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(settings, ["pids.max=7", "cpu.max=150000 100000"]);
        assert_eq!(groups[0].path, Path::new("/c/a"));
    }

    #[test]
    fn version_1_has_a_group_for_each_controller_that_limits_something() {
        let parents = CONTROLLERS.map(|(controller, name)| (controller, Path::new("/c").join(name)));
        let hierarchy = Hierarchy::V1(parents.to_vec());
        let paths = |spec| hierarchy.groups(&spec, 7).into_iter().map(|group| group.path).collect::<Vec<_>>();
        assert_eq!(paths(spec(0, 0)), [Path::new("/c/pids/a")]);
        assert_eq!(
            paths(spec(1, 1)),
            [Path::new("/c/cpu/a"), Path::new("/c/memory/a"), Path::new("/c/pids/a")]
        );
        let settings = &hierarchy.groups(&spec(1, 0), 7)[0].settings;
        assert_eq!(
            settings[1],
            ("cpu.cfs_quota_us".to_owned(), "1000".to_owned()),
            "the kernel's least quota"
        );
    }

    #[test]
    fn a_kill_for_lack_of_memory_is_read_from_either_version() {
        let folder = tempfile::tempdir().unwrap();
        let group = Group { path: folder.path().to_owned(), settings: Vec::new() };
        assert!(!group.ran_out_of_memory());
        fs::write(folder.path().join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
            .unwrap();
        assert!(!group.ran_out_of_memory());
        fs::write(folder.path().join("memory.events"), "oom 1\noom_kill 2\n").unwrap();
        assert!(group.ran_out_of_memory());
    }
}
