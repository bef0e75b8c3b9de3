//! The start of a sandbox: folder, shim, first words.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::Arc;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::{
    CreateError, LEASE_DEADLINE, Life, START_DEADLINE, Shared, blocking, life, remove, shim_program,
};
use crate::boottime::BootTime;
use crate::files::{self, FileFault};
use crate::shim::{self, Folder, ID_VARIABLE, Instructions, Outcome, ShimSpec};
use crate::spec::SandboxSpec;
use crate::table::Order;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) async fn create(shared: &Arc<Shared>, order: Order) -> Result<(), CreateError> {
    let leased_since = BootTime::now();
    if let Some(terms) = order.lease
        && !shared.lease.holds(terms, order.heard, LEASE_DEADLINE).await
    {
        let reason = format!(
            "its leader has not acknowledged a heartbeat for {:?}: its lease would be over",
            terms.length
        );
        return Err(CreateError::Start(reason));
    }
    let id = order.spec.sandbox_id.clone();
    let starting = Arc::clone(shared);
    let (expires_at, lease, grace) = (order.expires_at, order.lease, shared.grace);
    let instructions = Instructions { version: 1, expires_at, lease, leased_since, grace };
    let first = instructions.clone();
    let started = blocking(move || start(&starting, &order.spec, &first)).await;
    let result = match started {
        Ok((child, alive)) => take_up(shared, &id, instructions, child, alive).await,
        Err(fault) => Err(format!("{fault}: {}", fault.source)),
    };
    let Err(reason) = result else { return Ok(()) };
    // Whatever came into being is taken away again, so that "nothing is left" is true.
    remove::clear(shared, &id).await?;
    Err(CreateError::Start(reason))
}

/// Makes everything that the shim needs, and starts it.
fn start(shared: &Shared, spec: &SandboxSpec, first: &Instructions) -> Result<(Child, File), FileFault> {
    let folder = shared.folder(&spec.sandbox_id);
    make_folder(folder.path())?;
    let work = shared.work(&spec.sandbox_id);
    if spec.working_dir.is_empty() {
        make_folder(&work)?;
    }
    folder.write_instructions(first)?;
    mkfifo(&folder.alive(), Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(io::Error::from)
        .map_err(FileFault::of("make", &folder.alive()))?;
    folder.write_spec(&shim_spec(shared, spec))?;
    let alive = life::open_alive(&folder).map_err(FileFault::of("open", &folder.alive()))?;
    let child = start_shim(shared, &folder)?;
    Ok((child, alive))
}

fn make_folder(path: &std::path::Path) -> Result<(), FileFault> {
    // What an earlier agent left half made, or a generation that is gone, is not this one's.
    files::remove(path)?;
    fs::DirBuilder::new().mode(0o700).create(path).map_err(FileFault::of("create", path))
}

fn start_shim(shared: &Shared, folder: &Folder) -> Result<Child, FileFault> {
    let complaints = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(folder.complaints())
        .map_err(FileFault::of("create", &folder.complaints()))?;
    // The writing end is the shim's alone: this copy is closed when the command is dropped. Opened for reading too, so
    // that the shim can write whether or not an agent listens.
    let alive = OpenOptions::new()
        .read(true)
        .write(true)
        .open(folder.alive())
        .map_err(FileFault::of("open", &folder.alive()))?;
    let program = shim_program(&shared.config);
    let mut command = std::process::Command::new(program);
    command
        .arg0("sandkeeper")
        .args([shim::SHIM, "--spec"])
        .arg(folder.spec())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(alive))
        .stdout(Stdio::null())
        .stderr(Stdio::from(complaints));
    Command::from(command).kill_on_drop(false).spawn().map_err(FileFault::of("start", program))
}

/// Waits for the shim's first words. `Err`: why the workload does not run; the shim is gone then.
async fn take_up(
    shared: &Arc<Shared>,
    id: &str,
    instructions: Instructions,
    mut child: Child,
    alive: File,
) -> Result<(), String> {
    let receiver =
        pipe::Receiver::from_file(alive).map_err(|error| format!("can't listen to the shim: {error}"));
    let mut receiver = match receiver {
        Ok(receiver) => BufReader::new(receiver),
        Err(reason) => return Err(abandon(&mut child, reason).await),
    };
    let mut word = String::new();
    match tokio::time::timeout(START_DEADLINE, receiver.read_line(&mut word)).await {
        Err(_) => {
            return Err(abandon(&mut child, format!("it did not start within {START_DEADLINE:?}")).await);
        }
        Ok(Err(error)) => return Err(abandon(&mut child, format!("can't listen to the shim: {error}")).await),
        Ok(Ok(_)) => {}
    }
    let folder = shared.folder(id);
    if word.trim_end() != "started" {
        let _ = child.wait().await;
        return Err(blocking(move || why_it_failed(&folder)).await);
    }
    match blocking(move || folder.read_process()).await {
        Ok(Some(process)) => {
            let life = Arc::new(Life::new(id.to_owned(), process, instructions));
            // What else it said was read with the first words; only its end matters from here.
            life::watch(shared, life, receiver.into_inner(), Some(child));
            Ok(())
        }
        Ok(None) => Err(abandon(&mut child, "the shim did not say which process it is".to_owned()).await),
        Err(error) => Err(abandon(&mut child, error.to_string()).await),
    }
}

async fn abandon(child: &mut Child, reason: String) -> String {
    match child.kill().await {
        Ok(()) => reason,
        Err(error) => format!("{reason}; and the shim can't be killed: {error}"),
    }
}

fn why_it_failed(folder: &Folder) -> String {
    if let Ok(Some(record)) = folder.read_exit()
        && let Outcome::Failed(reason) = record.outcome
    {
        return reason;
    }
    let complaints = fs::read_to_string(folder.complaints()).unwrap_or_default();
    match complaints.trim() {
        "" => "the shim was killed before it could start anything".to_owned(),
        complaint => format!("the shim failed: {complaint}"),
    }
}

fn shim_spec(shared: &Shared, spec: &SandboxSpec) -> ShimSpec {
    let working_dir = match spec.working_dir.as_str() {
        "" => shared.work(&spec.sandbox_id),
        given => given.into(),
    };
    let text = |text: &str| text.to_owned();
    let mut envs = BTreeMap::from([
        (text("PATH"), text(PATH)),
        (text("HOME"), working_dir.to_string_lossy().into_owned()),
        (text("LANG"), text("C.UTF-8")),
    ]);
    envs.extend(spec.envs.clone());
    // The caller's variables do not hide who the sandbox is: leftovers are found by it.
    envs.extend([
        (text(ID_VARIABLE), spec.sandbox_id.clone()),
        (text("SANDKEEPER_SANDBOX_NAMESPACE"), spec.namespace.clone()),
        (text("SANDKEEPER_SANDBOX_NAME"), spec.name.clone()),
    ]);
    let memory_limit = (spec.memory_bytes > 0).then_some(spec.memory_bytes);
    ShimSpec {
        version: 1,
        sandbox: spec.clone(),
        boot_id: shared.boot_id.clone(),
        lease_file: shared.lease.path().to_owned(),
        argv: spec.command.iter().chain(&spec.args).cloned().collect(),
        envs,
        working_dir,
        log: shared.log(&spec.sandbox_id),
        namespaces: shared.namespaces,
        groups: shared.hierarchy.groups(spec, shared.config.processes),
        open_files: shared.config.open_files,
        address_space: memory_limit.filter(|_| !shared.hierarchy.limits_memory()),
    }
}
