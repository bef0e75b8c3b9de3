//! The shim itself: starts the second stage, keeps the deadline, reaps, and writes down how it ended.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigEvent, SigSet, SigevNotify, Signal, kill, killpg};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::time::ClockId;
use nix::unistd::{Pid, setsid};
use procfs::process::{Process, all_processes};

use super::files::VERSION;
use super::{
    ExitRecord, Folder, ID_VARIABLE, Instructions, Outcome, SECOND_STAGE, ShimProcess, ShimSpec, StageError,
};
use crate::boottime::BootTime;
use crate::lease::{self, Acknowledged};

/// What the shim acts upon. Everything else stays blocked and pending for ever.
fn signals() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGALRM] {
        set.add(signal);
    }
    set
}

/// Runs the sandbox whose `spec.json` this is, from its start to its end.
pub(super) fn run(spec_path: &Path) -> Result<(), StageError> {
    SigSet::all().thread_set_mask().map_err(StageError::of("can't block signals"))?;
    setsid().map_err(StageError::of("can't begin a session"))?;
    prctl::set_child_subreaper(true).map_err(StageError::of("can't become the reaper of the sandbox"))?;
    let folder = Folder::new(spec_path.parent().unwrap_or(Path::new("/")).to_owned());
    let spec = there(folder.read_spec(), "spec.json")?;
    let instructions = there(folder.read_instructions(), "instructions.json")?;
    folder.write_process(&this_process()?).map_err(|fault| {
        let what = fault.to_string();
        StageError { what, cause: fault.source }
    })?;
    let mut shim = Shim {
        folder,
        spec,
        instructions,
        main: Pid::from_raw(0),
        kill_at: None,
        expired: false,
        lease_until: None,
        lease_over: false,
    };
    shim.run(spec_path)
}

fn there<T>(read: io::Result<Option<T>>, name: &str) -> Result<T, StageError> {
    read.and_then(|record| record.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(StageError::of(format!("can't read {name}")))
}

fn this_process() -> Result<ShimProcess, StageError> {
    let stat = Process::myself()
        .and_then(|process| process.stat())
        .map_err(|error| StageError::of("can't look at itself in /proc")(io::Error::other(error)))?;
    Ok(ShimProcess { version: VERSION, pid: stat.pid, start_ticks: stat.starttime })
}

struct Shim {
    folder: Folder,
    spec: ShimSpec,
    instructions: Instructions,
    /// The second stage, which leads the sandbox's session and process group.
    main: Pid,
    /// Set once the sandbox has been asked to end.
    kill_at: Option<BootTime>,
    /// It was asked to because its time was over.
    expired: bool,
    /// When it has to be killed unless the agent has written down a newer acknowledgement by then; or when it had to be.
    lease_until: Option<BootTime>,
    /// It was killed because its lease was over.
    lease_over: bool,
}

impl Shim {
    fn run(&mut self, spec_path: &Path) -> Result<(), StageError> {
        // The agent may have been stopped since it looked.
        self.read_lease();
        let is_over = self.lease_until.is_some_and(|at| at <= BootTime::now());
        let started = if is_over {
            let what = "it was not started, as its lease was over".to_owned();
            Err(StageError { what, cause: io::ErrorKind::TimedOut.into() })
        } else {
            self.start(spec_path)
        };
        let outcome = match started {
            Ok((_, first)) if first.starts_with("failed ") => {
                Outcome::Failed(first["failed ".len()..].to_owned())
            }
            Ok((status, _)) => {
                tell_agent("started");
                self.attend(status)?
            }
            Err(error) => Outcome::Failed(error.to_string()),
        };
        clear()?;
        let out_of_memory = self.spec.groups.iter().any(super::cgroup::Group::ran_out_of_memory);
        for group in &self.spec.groups {
            // The agent tries again when the sandbox is removed, and says so if that fails too.
            let _ = group.remove();
        }
        let failed = matches!(outcome, Outcome::Failed(_));
        let (expired, lease_over) = (self.expired, self.lease_over);
        let record = ExitRecord { expired, lease_over, out_of_memory, ..ExitRecord::now(outcome) };
        self.folder.write_exit(&record).map_err(|fault| {
            let what = fault.to_string();
            StageError { what, cause: fault.source }
        })?;
        if failed {
            tell_agent("failed");
        }
        Ok(())
    }

    /// Starts the second stage and waits for its first words: nothing if it has become the workload.
    fn start(&mut self, spec_path: &Path) -> Result<(BufReader<PipeReader>, String), StageError> {
        for group in &self.spec.groups {
            group.make().map_err(StageError::of(format!("can't make {}", group.path.display())))?;
        }
        if self.spec.namespaces {
            // For its children only: the shim stays where the agent can see it.
            unshare(CloneFlags::CLONE_NEWPID).map_err(StageError::of("can't make a process namespace"))?;
        }
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.spec.log)
            .map_err(StageError::of(format!("can't open {}", self.spec.log.display())))?;
        let errors = log.try_clone().map_err(StageError::of("can't share the log"))?;
        let (reader, writer) = io::pipe().map_err(StageError::of("can't make a pipe"))?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("sandkeeper")
            .args([SECOND_STAGE, "--spec"])
            .arg(spec_path)
            .env_clear()
            // By this it is found should the shim be killed before the second stage is bound to it.
            .env(ID_VARIABLE, &self.spec.sandbox.sandbox_id)
            .current_dir("/")
            .stdin(Stdio::from(writer))
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(errors));
        let child = command.spawn().map_err(StageError::of("can't start the second stage"))?;
        // It holds the writing end, without which the pipe never ends.
        drop(command);
        self.main = Pid::from_raw(child.id() as i32);
        let mut status = BufReader::new(reader);
        let mut first = String::new();
        status.read_line(&mut first).map_err(StageError::of("can't read the status pipe"))?;
        Ok((status, first.trim_end().to_owned()))
    }

    /// From the start of the workload to its end.
    fn attend(&mut self, mut status: BufReader<PipeReader>) -> Result<Outcome, StageError> {
        let event = SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGALRM, si_value: 0 });
        let mut timer =
            Timer::new(ClockId::CLOCK_BOOTTIME, event).map_err(StageError::of("can't make a timer"))?;
        self.arm(&mut timer)?;
        let ended = loop {
            // Before the first wait too: it may have ended before.
            if let Some(ended) = self.reap()? {
                break ended;
            }
            match signals().wait().map_err(StageError::of("can't wait for signals"))? {
                Signal::SIGTERM | Signal::SIGINT => {
                    self.read_instructions();
                    self.end();
                }
                Signal::SIGHUP => self.read_instructions(),
                Signal::SIGALRM => {
                    let now = BootTime::now();
                    if self.kill_at.is_some_and(|at| at <= now) {
                        self.kill();
                    }
                    if self.instructions.expires_at.is_some_and(|at| at <= now) {
                        self.end();
                    }
                    if self.lease_until.is_some_and(|at| at <= now) {
                        self.read_lease();
                        self.end_if_lease_is_over(now);
                    }
                }
                _ => {}
            }
            self.arm(&mut timer)?;
        };
        let mut last = String::new();
        // Every writer is dead, so this does not wait.
        status.read_line(&mut last).map_err(StageError::of("can't read the status pipe"))?;
        Ok(told(&last).unwrap_or(ended))
    }

    fn arm(&self, timer: &mut Timer) -> Result<(), StageError> {
        let expires_at = self.instructions.expires_at.filter(|_| self.kill_at.is_none());
        let lease_until = self.lease_until.filter(|_| !self.lease_over);
        let Some(at) = [self.kill_at, expires_at, lease_until].into_iter().flatten().min() else {
            return Ok(());
        };
        // Zero would disarm it; a time that has passed fires at once. Later than a century is never.
        let at = at.0.clamp(1, 100 * 365 * 86_400 * 1_000_000_000);
        let at = TimeSpec::new((at / 1_000_000_000) as i64, (at % 1_000_000_000) as i64);
        timer
            .set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            .map_err(StageError::of("can't set the timer"))
    }

    fn read_instructions(&mut self) {
        // The agent replaces the file whole, so what can't be read was not written by it: the last ones stand.
        match self.folder.read_instructions() {
            Ok(Some(instructions)) => {
                self.instructions = instructions;
                self.read_lease();
            }
            Ok(None) => {}
            Err(error) => {
                let _ =
                    writeln!(io::stderr(), "the instructions can't be read and stay as they were: {error}");
            }
        }
    }

    /// Finds out when the lease is over, from what the agent has written down by now.
    fn read_lease(&mut self) {
        let Some(terms) = self.instructions.lease else {
            self.lease_until = None;
            return;
        };
        let acknowledged = lease::read(&self.spec.lease_file, &self.spec.boot_id).unwrap_or_else(|error| {
            // Without proof that a leader was heard of none was.
            let _ = writeln!(io::stderr(), "the lease can't be read: {error}");
            Acknowledged::default()
        });
        self.lease_until = Some(acknowledged.end_of(terms, self.instructions.leased_since));
    }

    /// Kills at once: another agent may start the next generation a moment later.
    fn end_if_lease_is_over(&mut self, now: BootTime) {
        if self.lease_until.is_some_and(|at| at <= now) {
            self.lease_over = true;
            self.kill();
        }
    }

    /// Asks the sandbox to end. Once asked, the time until it is killed stands, unless a new one is shorter.
    fn end(&mut self) {
        let now = BootTime::now();
        self.expired |= self.instructions.expires_at.is_some_and(|at| at <= now);
        let kill_at = now.after(self.instructions.grace);
        if self.kill_at.is_none() {
            // The group has the workload and not the first process of its namespace, which ignores what it does not
            // handle. That there is nobody any more is as good.
            let _ = killpg(self.main, Signal::SIGTERM);
        }
        self.kill_at = Some(self.kill_at.map_or(kill_at, |before| before.min(kill_at)));
        if self.instructions.grace.is_zero() {
            self.kill();
        }
    }

    fn kill(&mut self) {
        let _ = kill(self.main, Signal::SIGKILL);
        let _ = killpg(self.main, Signal::SIGKILL);
        // It is dead as soon as the kernel gets to it; asking again later does no harm.
        self.kill_at = Some(BootTime::now().after(std::time::Duration::from_secs(1)));
    }

    /// Collects what has ended; says how the second stage did, if it did.
    fn reap(&self) -> Result<Option<Outcome>, StageError> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == self.main => {
                    return Ok(Some(Outcome::Exited(code)));
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.main => {
                    return Ok(Some(Outcome::Signalled(signal as i32)));
                }
                Ok(WaitStatus::StillAlive) => return Ok(None),
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(StageError::of("can't wait for the sandbox")(error)),
            }
        }
    }
}

/// Kills and collects whatever is left: processes that left the group, which the kernel has given to this reaper.
fn clear() -> Result<(), StageError> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(nix::Error::ECHILD) => return Ok(()),
            Ok(WaitStatus::StillAlive) => {
                kill_children()?;
                match waitpid(None, None) {
                    Err(nix::Error::ECHILD) => return Ok(()),
                    Ok(_) | Err(nix::Error::EINTR) => {}
                    Err(error) => return Err(StageError::of("can't wait for what is left")(error)),
                }
            }
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(StageError::of("can't wait for what is left")(error)),
        }
    }
}

/// Sends SIGKILL to every child of this process. Their children become this one's, and are killed in the next round.
fn kill_children() -> Result<(), StageError> {
    let failed = |error| StageError::of("can't list processes")(io::Error::other(error));
    let own = Pid::this().as_raw();
    for process in all_processes().map_err(failed)?.flatten() {
        // One that has ended in between has no stat.
        if process.stat().is_ok_and(|stat| stat.ppid == own) {
            let _ = kill(Pid::from_raw(process.pid()), Signal::SIGKILL);
        }
    }
    Ok(())
}

/// What the first process of the namespace said about the workload's end.
fn told(line: &str) -> Option<Outcome> {
    let (what, number) = line.trim_end().split_once(' ')?;
    let number = number.parse().ok()?;
    match what {
        "exited" => Some(Outcome::Exited(number)),
        "signalled" => Some(Outcome::Signalled(number)),
        _ => None,
    }
}

/// Writes a line into the FIFO, which is this process's standard input. The agent may be gone; then nobody waits.
fn tell_agent(line: &str) {
    if let Ok(fd) = io::stdin().as_fd().try_clone_to_owned() {
        // In one write: the agent never reads half of it.
        let _ = File::from(fd).write_all(format!("{line}\n").as_bytes());
    }
}
