//! The runtime `process`: real processes of this machine, each under a shim ([`crate::shim`]).
//!
//! ```text
//! DATA/sandboxes/<sandbox_id>/   spec.json instructions.json shim.json exit.json alive shim.err
//! DATA/work/<sandbox_id>/        the working directory
//! DATA/logs/<sandbox_id>.log     the output
//! DATA/lease.json                when the newest acknowledged heartbeat was sent, and gaps before it
//! ```
//! The folder is the record: it is there before anything is started and the last thing to go. After a restart the agent
//! knows of its sandboxes what these folders and the live shims say, and nothing else.

mod create;
mod leftovers;
mod life;
mod recover;
mod remove;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::life::Life;
use super::{CreateError, Exited, Recovered, Runtime, RuntimeFault};
use crate::boottime::BootTime;
use crate::config::ProcessConfig;
use crate::files::FileFault;
use crate::lease::{LeaseKeeper, LeaseTerms};
use crate::shim::cgroup::Hierarchy;
use crate::shim::{self, Folder};
use crate::spec::SandboxSpec;
use crate::table::Order;

/// The longest that a start may take before it counts as failed.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long a start, and new terms of a lease, wait until what was acknowledged is written down: milliseconds.
const LEASE_DEADLINE: Duration = Duration::from_secs(5);
/// The longest that the trial of namespaces at the agent's start may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// The runtime of one agent.
#[derive(Debug)]
pub struct ProcessRuntime {
    shared: Arc<Shared>,
}

/// What its tasks share.
#[derive(Debug)]
struct Shared {
    data_dir: PathBuf,
    config: ProcessConfig,
    /// The time between SIGTERM and SIGKILL when the shim ends a sandbox by itself.
    grace: Duration,
    hierarchy: Hierarchy,
    /// Whether sandboxes get namespaces of their own.
    namespaces: bool,
    boot_id: String,
    lease: Arc<LeaseKeeper>,
    exits: mpsc::Sender<Exited>,
    /// The shims that live, by sandbox id.
    lives: Mutex<HashMap<String, Arc<Life>>>,
    /// Those who watch the shims.
    watchers: TaskTracker,
    released: CancellationToken,
}

impl ProcessRuntime {
    /// Makes the folders and finds out what this machine allows.
    pub async fn open(
        data_dir: &Path,
        agent_id: &str,
        config: ProcessConfig,
        grace: Duration,
        exits: mpsc::Sender<Exited>,
    ) -> Result<Self, RuntimeFault> {
        let agent_group = agent_id.to_owned();
        let folders = data_dir.to_owned();
        let (data_dir, hierarchy, boot_id, lease) = blocking(move || -> Result<_, RuntimeFault> {
            // Absolute: the shim and the workload start elsewhere.
            for name in ["sandboxes", "work", "logs"] {
                let path = folders.join(name);
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&path)
                    .map_err(FileFault::of("create", &path))?;
            }
            let data_dir = fs::canonicalize(&folders).map_err(FileFault::of("find", &folders))?;
            let path = Path::new("/proc/sys/kernel/random/boot_id");
            let boot_id = fs::read_to_string(path).map_err(FileFault::of("read", path))?;
            let lease = Arc::new(LeaseKeeper::open(&data_dir, boot_id.trim())?);
            Ok((data_dir, Hierarchy::find(&agent_group), boot_id.trim().to_owned(), lease))
        })
        .await?;
        if let Hierarchy::Unavailable(reason) = &hierarchy {
            tracing::warn!(reason, "no control groups: sandboxes' CPU and processes are not limited");
        }
        let namespaces = match probe(&config).await {
            Ok(()) => true,
            Err(reason) => {
                tracing::warn!(
                    reason,
                    "no namespaces: sandboxes see the processes and mounts of this machine"
                );
                false
            }
        };
        Ok(Self {
            shared: Arc::new(Shared {
                data_dir,
                config,
                grace,
                hierarchy,
                namespaces,
                boot_id,
                lease,
                exits,
                lives: Mutex::default(),
                watchers: TaskTracker::new(),
                released: CancellationToken::new(),
            }),
        })
    }
}

/// Tries in a process of its own whether namespaces can be made.
async fn probe(config: &ProcessConfig) -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("the agent does not run as root".to_owned());
    }
    let mut command = Command::new(shim_program(config));
    command.arg(shim::PROBE).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(PROBE_DEADLINE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(format!("{}: {error}", shim_program(config).display())),
        Err(_) => return Err(format!("the trial took longer than {PROBE_DEADLINE:?}")),
    };
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// The program that is started as the shim. The link of this process still leads to the program that it was started
/// from when that file has been replaced.
fn shim_program(config: &ProcessConfig) -> &Path {
    config.shim_program.as_deref().unwrap_or(Path::new("/proc/self/exe"))
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The async runtime is being taken down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

impl Shared {
    fn folder(&self, sandbox_id: &str) -> Folder {
        Folder::new(self.data_dir.join("sandboxes").join(sandbox_id))
    }

    fn work(&self, sandbox_id: &str) -> PathBuf {
        self.data_dir.join("work").join(sandbox_id)
    }

    fn log(&self, sandbox_id: &str) -> PathBuf {
        self.data_dir.join("logs").join(format!("{sandbox_id}.log"))
    }

    fn lives(&self) -> MutexGuard<'_, HashMap<String, Arc<Life>>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn life(&self, sandbox_id: &str) -> Option<Arc<Life>> {
        self.lives().get(sandbox_id).cloned()
    }
}

impl Runtime for ProcessRuntime {
    fn admit(&self, spec: &SandboxSpec) -> Result<(), String> {
        if spec.command.is_empty() && spec.args.is_empty() {
            return Err("the runtime \"process\" needs a command: it does not look into images".to_owned());
        }
        if !spec.working_dir.is_empty() && !Path::new(&spec.working_dir).is_absolute() {
            return Err(format!("working directory {:?} is not an absolute path", spec.working_dir));
        }
        let words = spec.command.iter().chain(&spec.args);
        let variables = spec.envs.iter().flat_map(|(name, value)| [name, value]);
        if words.chain(variables).any(|text| text.contains('\0')) {
            return Err("a command or environment variable has a zero byte in it".to_owned());
        }
        match spec.envs.keys().find(|name| name.is_empty() || name.contains('=')) {
            Some(name) => Err(format!("{name:?} can't be the name of an environment variable")),
            None => Ok(()),
        }
    }

    async fn recover(&self) -> Result<Vec<Recovered>, RuntimeFault> {
        recover::recover(&self.shared).await
    }

    async fn create(&self, order: Order) -> Result<(), CreateError> {
        create::create(&self.shared, order).await
    }

    async fn end(&self, sandbox_id: &str, grace: Duration) -> Result<(), RuntimeFault> {
        let Some(life) = self.shared.life(sandbox_id) else { return Ok(()) };
        life.want(|wanted| wanted.grace = grace);
        life.deliver(&self.shared, Signal::SIGTERM).await
    }

    async fn remove(&self, sandbox_id: &str, grace: Duration) -> Result<(), RuntimeFault> {
        remove::remove(&self.shared, sandbox_id, grace).await
    }

    fn instruct(&self, sandbox_id: &str, expires_at: Option<BootTime>, lease: Option<LeaseTerms>) {
        if let Some(life) = self.shared.life(sandbox_id) {
            life.want(|wanted| {
                wanted.expires_at = expires_at;
                if wanted.lease != lease {
                    // A leader that has this generation as the current one gives new terms: by the old ones nobody else
                    // was given it, and from now on only these count.
                    (wanted.lease, wanted.leased_since) = (lease, BootTime::now());
                }
            });
        }
    }

    async fn deliver(&self, sandbox_id: &str) -> Result<(), RuntimeFault> {
        let Some(life) = self.shared.life(sandbox_id) else { return Ok(()) };
        // The acknowledgement came before the lease did, and the shim looks for it as soon as it has that. If the disk does
        // not take it the sandbox is ended, which is safe.
        self.shared.lease.is_written(LEASE_DEADLINE).await;
        life.deliver(&self.shared, Signal::SIGHUP).await
    }

    async fn adopt(&self, sandbox_id: &str, cluster_id: &str) -> Result<(), RuntimeFault> {
        recover::label(&self.shared, sandbox_id, cluster_id).await
    }

    fn lease(&self) -> Option<Arc<LeaseKeeper>> {
        Some(Arc::clone(&self.shared.lease))
    }

    fn log(&self, sandbox_id: &str) -> Result<PathBuf, String> {
        Ok(self.shared.log(sandbox_id))
    }

    async fn release(&self) {
        self.shared.released.cancel();
        self.shared.watchers.close();
        self.shared.watchers.wait().await;
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.hierarchy.leave()).await;
    }
}

#[cfg(test)]
mod tests;
