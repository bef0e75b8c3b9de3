//! Processes of a sandbox whose shim was killed. Normally there are none: the kernel kills the sandbox with its shim.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::all_processes;

use super::{RuntimeFault, Shared, blocking};
use crate::files::FileFault;
use crate::shim::{Folder, ID_VARIABLE, ShimSpec};

/// Between two looks at what was killed.
const PAUSE: Duration = Duration::from_millis(5);
/// A process that does not die of SIGKILL for so long waits for the disk or another device.
const DEADLINE: Duration = Duration::from_secs(10);

/// Kills them until none is left, or says that some do not die. May be called again.
pub(super) async fn kill_all(
    shared: &Arc<Shared>,
    sandbox_id: &str,
    folder: Folder,
) -> Result<(), RuntimeFault> {
    let spec_path = folder.spec();
    let spec = blocking(move || folder.read_spec()).await.map_err(FileFault::of("read", &spec_path))?;
    // After a restart of the machine nothing can be left, and process ids and groups are others'.
    let Some(spec) = spec.filter(|spec| spec.boot_id == shared.boot_id).map(Arc::new) else { return Ok(()) };
    let fault = |what: String| RuntimeFault::Processes { sandbox_id: sandbox_id.to_owned(), what };
    let begun = tokio::time::Instant::now();
    loop {
        let looked_at = Arc::clone(&spec);
        let left = blocking(move || kill_once(&looked_at)).await.map_err(|error| fault(error.to_string()))?;
        if left == 0 {
            return Ok(());
        }
        if begun.elapsed() > DEADLINE {
            return Err(fault(format!("{left} of them did not die of SIGKILL within {DEADLINE:?}")));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Sends SIGKILL to each, and says how many there were.
fn kill_once(spec: &ShimSpec) -> io::Result<usize> {
    let mut found = 0;
    for group in &spec.groups {
        found += group.kill()?;
    }
    for process in all_processes().map_err(io::Error::other)?.flatten() {
        // A process that has ended or is another user's can't be looked into; the agent starts none of another user.
        let Ok(environment) = process.environ() else { continue };
        if environment.get(OsStr::new(ID_VARIABLE)).is_some_and(|id| *id == *spec.sandbox.sandbox_id) {
            found += 1;
            // One that has ended in between is as good.
            let _ = kill(Pid::from_raw(process.pid()), Signal::SIGKILL);
        }
    }
    Ok(found)
}
