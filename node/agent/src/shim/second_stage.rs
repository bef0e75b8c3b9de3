//! The second stage: it makes the surroundings of the workload and starts it.
//!
//! It speaks with the shim over its standard input, which is the writing end of a pipe:
//! `started`, then `exited N` or `signalled N`, or `failed REASON`. A second stage that becomes the workload says
//! nothing more: the end of the pipe tells that it did.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Pid, sethostname, setsid};

use super::{Folder, ShimSpec, StageError};

/// Does all of it. The result is the exit code of this process, which matters only to who looks at it by hand.
pub(super) fn run(spec_path: &Path) -> Result<u8, StageError> {
    // A copy that no program started from here inherits.
    let status =
        io::stdin().as_fd().try_clone_to_owned().map_err(StageError::of("can't use the status pipe"))?;
    let mut status = File::from(status);
    let result = start(spec_path, &mut status);
    if let Err(error) = &result {
        let line = format!("failed {error}").replace('\n', " ");
        tell(&mut status, &line)?;
    }
    result
}

fn start(spec_path: &Path, status: &mut File) -> Result<u8, StageError> {
    let folder = Folder::new(spec_path.parent().unwrap_or(Path::new("/")).to_owned());
    let spec = folder
        .read_spec()
        .and_then(|spec| spec.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(StageError::of("can't read the sandbox's spec"))?;
    // The shim waits for signals with all of them blocked, which is inherited.
    SigSet::empty().thread_set_mask().map_err(StageError::of("can't unblock signals"))?;
    // If the shim is killed, nobody would keep the sandbox's deadline: it must not outlive the shim.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(StageError::of("can't bind the sandbox to its shim"))?;
    setsid().map_err(StageError::of("can't begin a session"))?;
    for group in &spec.groups {
        group.join().map_err(StageError::of(format!("can't join {}", group.path.display())))?;
    }
    limit(&spec)?;
    prctl::set_no_new_privs().map_err(StageError::of("can't forbid new privileges"))?;
    if spec.namespaces {
        enter_namespaces(&spec.sandbox.name)?;
    }
    let program = spec.argv.first().cloned().unwrap_or_default();
    if !spec.working_dir.is_dir() {
        let what = format!("working directory {}", spec.working_dir.display());
        return Err(StageError { what, cause: io::ErrorKind::NotFound.into() });
    }
    let mut workload = Command::new(&program);
    workload
        .args(&spec.argv[1..])
        .env_clear()
        .envs(&spec.envs)
        .current_dir(&spec.working_dir)
        .stdin(Stdio::null());
    if !spec.namespaces {
        return Err(StageError { what: program, cause: workload.exec() });
    }
    let child = workload.spawn().map_err(StageError::of(program))?;
    tell(status, "started")?;
    let line = reap_until(Pid::from_raw(child.id() as i32))?;
    tell(status, &line)?;
    Ok(0)
}

/// In one write, so that the shim never reads half of a line.
fn tell(status: &mut File, line: &str) -> Result<(), StageError> {
    status.write_all(format!("{line}\n").as_bytes()).map_err(StageError::of("can't speak with the shim"))
}

/// As the first process of its namespace, this one inherits every orphan. It ends with the workload, and all others
/// with it.
fn reap_until(workload: Pid) -> Result<String, StageError> {
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == workload => return Ok(format!("exited {code}")),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == workload => {
                return Ok(format!("signalled {}", signal as i32));
            }
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(StageError::of("can't wait for the workload")(error)),
        }
    }
}

fn limit(spec: &ShimSpec) -> Result<(), StageError> {
    let set = |resource, value: u64, name: &str| {
        setrlimit(resource, value, value).map_err(StageError::of(format!("can't limit {name} to {value}")))
    };
    set(Resource::RLIMIT_CORE, 0, "core files")?;
    let (_, most) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(StageError::of("can't read the limit of open files"))?;
    set(Resource::RLIMIT_NOFILE, spec.open_files.min(most), "open files")?;
    spec.address_space.map_or(Ok(()), |bytes| set(Resource::RLIMIT_AS, bytes, "the address space"))
}

/// The process namespace is there already: the shim made it for its children. The rest is made by its first process.
fn enter_namespaces(host_name: &str) -> Result<(), StageError> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .map_err(StageError::of("can't make namespaces"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(StageError::of("can't keep mounts to itself"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none).map_err(StageError::of("can't mount /proc"))?;
    if host_name.is_empty() {
        return Ok(());
    }
    sethostname(host_name).map_err(StageError::of("can't set the host name"))
}

/// Tries whether namespaces can be made here: started by the agent once, in a process of its own. It makes a process
/// namespace and has a child in it do the rest.
pub(super) fn probe() -> Result<(), StageError> {
    if Pid::this() == Pid::from_raw(1) {
        return enter_namespaces("probe");
    }
    unshare(CloneFlags::CLONE_NEWPID).map_err(StageError::of("can't make a process namespace"))?;
    let output = Command::new("/proc/self/exe")
        .arg(super::PROBE)
        .stdin(Stdio::null())
        .output()
        .map_err(StageError::of("can't start a process in a process namespace"))?;
    if output.status.success() {
        return Ok(());
    }
    let what = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(StageError { what, cause: io::ErrorKind::PermissionDenied.into() })
}
