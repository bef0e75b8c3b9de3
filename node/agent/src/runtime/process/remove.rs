//! The removal of a sandbox: its processes, its folders, its log, its control groups.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::timeout;

use super::{RuntimeFault, Shared, blocking, leftovers};
use crate::files::{self, FileFault};
use crate::shim::cgroup::Group;

/// What the shim gets beyond the grace period to kill, reap and write before it is killed itself.
const SHIM_MARGIN: Duration = Duration::from_secs(5);
/// Begins the names of folders that are only to be deleted. No sandbox id begins with a dot.
pub(super) const GONE: &str = ".gone-";

pub(super) async fn remove(
    shared: &Arc<Shared>,
    sandbox_id: &str,
    grace: Duration,
) -> Result<(), RuntimeFault> {
    if let Some(life) = shared.life(sandbox_id) {
        life.want(|wanted| wanted.grace = grace);
        life.deliver(shared, Signal::SIGTERM).await?;
        if timeout(grace.saturating_add(SHIM_MARGIN), life.ended()).await.is_err() {
            tracing::warn!(sandbox_id, "the shim did not end its sandbox in time and is killed with it");
            let killed = Arc::clone(&life);
            blocking(move || killed.signal(Signal::SIGKILL)).await;
            // It may be held up by a device; what it left is dealt with below, and that has a deadline.
            let _ = timeout(SHIM_MARGIN, life.ended()).await;
        }
    }
    clear(shared, sandbox_id).await
}

/// Takes away what is left of a sandbox whose shim is gone.
pub(super) async fn clear(shared: &Arc<Shared>, sandbox_id: &str) -> Result<(), RuntimeFault> {
    let folder = shared.folder(sandbox_id);
    let exit_path = folder.path().join("exit.json");
    let (exit, folder) = blocking(move || (folder.read_exit(), folder)).await;
    if exit.map_err(FileFault::of("read", &exit_path))?.is_none() {
        leftovers::kill_all(shared, sandbox_id, folder).await?;
    }
    let shared = Arc::clone(shared);
    let id = sandbox_id.to_owned();
    blocking(move || clear_files(&shared, &id)).await
}

fn clear_files(shared: &Shared, id: &str) -> Result<(), RuntimeFault> {
    let folder = shared.folder(id);
    let spec_path = folder.spec();
    let spec = folder.read_spec().map_err(FileFault::of("read", &spec_path))?;
    let groups = spec.map(|spec| spec.groups).unwrap_or_default();
    groups.iter().try_for_each(remove_group)?;
    files::remove(&shared.work(id))?;
    files::remove(&shared.log(id))?;
    // The record goes last and at once, so that it is never half there.
    let gone = folder.path().with_file_name(format!("{GONE}{id}"));
    files::remove(&gone)?;
    match fs::rename(folder.path(), &gone) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileFault { action: "remove", path: folder.path().to_owned(), source: error }.into())
        }
        _ => Ok(files::remove(&gone)?),
    }
}

/// A group stays busy for a moment after its last process has been reaped. If it stays so for longer, the caller tries
/// again later.
fn remove_group(group: &Group) -> Result<(), RuntimeFault> {
    const TRIES: u32 = 200;
    let mut tries = 0;
    loop {
        match group.remove() {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < TRIES => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(FileFault::of("remove", Path::new(&group.path))(error).into()),
        }
    }
}
