//! A live shim: how it is told things, and how its end is noticed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::Child;
use tokio_util::sync::CancellationToken;

use super::{Exited, RuntimeFault, Shared, blocking, leftovers};
use crate::files::FileFault;
use crate::plan::Ended;
use crate::shim::{ExitRecord, Folder, Instructions, Outcome, ShimProcess};

/// The pause after a look at an ended sandbox that failed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// A shim that lives, or lived a moment ago.
#[derive(Debug)]
pub(super) struct Life {
    sandbox_id: String,
    process: ShimProcess,
    /// The newest instructions, delivered or not.
    wanted: Mutex<Instructions>,
    /// Held while instructions are written, so that an older set never replaces a newer one.
    delivering: tokio::sync::Mutex<()>,
    ended: CancellationToken,
}

impl Life {
    pub(super) fn new(sandbox_id: String, process: ShimProcess, instructions: Instructions) -> Self {
        Self {
            sandbox_id,
            process,
            wanted: Mutex::new(instructions),
            delivering: tokio::sync::Mutex::default(),
            ended: CancellationToken::new(),
        }
    }

    /// Changes what the shim is to be told.
    pub(super) fn want(&self, change: impl FnOnce(&mut Instructions)) {
        change(&mut self.wanted.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Writes the newest instructions and sends the shim a signal to read them.
    pub(super) async fn deliver(
        self: &Arc<Self>,
        shared: &Shared,
        signal: Signal,
    ) -> Result<(), RuntimeFault> {
        let _turn = self.delivering.lock().await;
        let folder = shared.folder(&self.sandbox_id);
        let life = Arc::clone(self);
        blocking(move || {
            let wanted = life.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if !life.ended.is_cancelled() {
                folder.write_instructions(&wanted)?;
                life.signal(signal);
            }
            Ok(())
        })
        .await
    }

    /// Until the shim is gone, and with it every process of the sandbox.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Sends it a signal, if it still lives. Reads /proc.
    pub(super) fn signal(&self, signal: Signal) {
        let same = Process::new(self.process.pid)
            .and_then(|process| process.stat())
            .is_ok_and(|stat| stat.starttime == self.process.start_ticks);
        if same && !self.ended.is_cancelled() {
            // That it has ended in between is as good: its watcher will see it.
            let _ = kill(Pid::from_raw(self.process.pid), signal);
        }
    }
}

/// Opens the reading end of a sandbox's `alive` without waiting for a writer.
pub(super) fn open_alive(folder: &Folder) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(folder.alive())
}

/// Whether the FIFO has a writer: the shim. Eats what was in it.
pub(super) fn has_writer(alive: &mut File) -> io::Result<bool> {
    let mut words = [0u8; 64];
    loop {
        match alive.read(&mut words) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The instructions in the folder. Whoever has a live shim has written some.
pub(super) fn instructions(folder: &Folder) -> Result<Instructions, RuntimeFault> {
    let path = folder.path().join("instructions.json");
    folder
        .read_instructions()
        .and_then(|read| read.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(FileFault::of("read", &path))
        .map_err(Into::into)
}

/// Keeps watch over a shim until it is gone, then tells how the sandbox ended.
pub(super) fn watch(shared: &Arc<Shared>, life: Arc<Life>, alive: pipe::Receiver, child: Option<Child>) {
    shared.lives().insert(life.sandbox_id.clone(), Arc::clone(&life));
    let task = watch_until_released(Arc::clone(shared), life, alive, child);
    shared.watchers.spawn(task);
}

async fn watch_until_released(
    shared: Arc<Shared>,
    life: Arc<Life>,
    alive: pipe::Receiver,
    child: Option<Child>,
) {
    let id = life.sandbox_id.clone();
    let exit = tokio::select! {
        // The shim lives on; the next agent takes it up again.
        () = shared.released.cancelled() => return,
        exit = async {
            wait_for_end(alive, child).await;
            how_it_surely_ended(&shared, &id).await
        } => exit,
    };
    shared.lives().remove(&id);
    life.ended.cancel();
    tokio::select! {
        () = shared.released.cancelled() => {}
        // The receiver is gone only when the agent is: then nobody waits for the exit.
        _ = shared.exits.send(Exited { sandbox_id: id, exit }) => {}
    }
}

async fn wait_for_end(mut alive: pipe::Receiver, child: Option<Child>) {
    let mut words = [0u8; 64];
    loop {
        match alive.read(&mut words).await {
            Ok(1..) => {}
            Ok(0) => break,
            Err(error) => {
                tracing::error!(%error, "the FIFO of a shim can't be read");
                break;
            }
        }
    }
    if let Some(mut child) = child {
        // Its end is certain; this only takes it out of the list of processes.
        let _ = child.wait().await;
    }
}

/// As [`how_it_ended`], again and again until it is known: "it has ended" must be true when it is said.
async fn how_it_surely_ended(shared: &Arc<Shared>, sandbox_id: &str) -> Ended {
    loop {
        match how_it_ended(shared, sandbox_id).await {
            Ok(exit) => return exit,
            Err(fault) => {
                let fault = fault.with_causes();
                tracing::error!(
                    sandbox_id,
                    fault,
                    "it is not clear whether a sandbox has ended; looking again"
                );
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }
}

/// Reads the exit record. If there is none, the shim was killed: makes sure that nothing of the sandbox is left.
pub(super) async fn how_it_ended(shared: &Arc<Shared>, sandbox_id: &str) -> Result<Ended, RuntimeFault> {
    let folder = shared.folder(sandbox_id);
    let path = folder.path().join("exit.json");
    let (record, folder) = blocking(move || (folder.read_exit(), folder)).await;
    if let Some(record) = record.map_err(FileFault::of("read", &path))? {
        return Ok(describe(&record));
    }
    leftovers::kill_all(shared, sandbox_id, folder).await?;
    let reason = "vanished: its shim was killed, or the machine was restarted".to_owned();
    Ok(Ended { exit_code: None, reason, expired: false, lease_over: false })
}

/// What an exit record says to people and to leaders.
fn describe(record: &ExitRecord) -> Ended {
    let (exit_code, how) = match &record.outcome {
        Outcome::Exited(code) => (Some(*code), format!("exited with code {code}")),
        Outcome::Signalled(number) => {
            let name = Signal::try_from(*number).map_or("a signal", Signal::as_str);
            (Some(128 + number), format!("killed by {name} ({number})"))
        }
        Outcome::Failed(reason) => (None, reason.clone()),
    };
    let why = match record {
        ExitRecord { out_of_memory: true, .. } => "its memory was used up: ",
        ExitRecord { expired: true, .. } => "its time was over: ",
        ExitRecord { lease_over: true, .. } => "no leader was heard of, and its lease was over: ",
        _ => "",
    };
    let (expired, lease_over) = (record.expired, record.lease_over);
    Ended { exit_code, reason: format!("{why}{how}"), expired, lease_over }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_says_code_and_reason() {
        let exit = |outcome, expired, out_of_memory| {
            describe(&ExitRecord { expired, out_of_memory, ..ExitRecord::now(outcome) })
        };
        let of = |exit: Ended| (exit.exit_code, exit.reason);
        assert_eq!(of(exit(Outcome::Exited(3), false, false)), (Some(3), "exited with code 3".to_owned()));
        assert_eq!(
            of(exit(Outcome::Signalled(9), false, true)),
            (Some(137), "its memory was used up: killed by SIGKILL (9)".to_owned())
        );
        assert_eq!(
            of(exit(Outcome::Signalled(15), true, false)),
            (Some(143), "its time was over: killed by SIGTERM (15)".to_owned())
        );
    }
}
