//! Starts, watches and stops child processes of this binary.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A process that heeds SIGTERM has gone after this time; if not, it is killed. A control node gives itself 10 s.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// How much of a log is shown when its process has died.
const LAST_LINES: usize = 15;

/// The last flag of a child.
pub const EXIT_WITH_PARENT: &str = "--exit-with-parent";

/// A subcommand of this binary, to be run as a child.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name among the children, and that of its log.
    pub name: String,
    args: Vec<String>,
}

impl Program {
    /// `subcommand`, without arguments.
    pub fn new(name: &str, subcommand: &str) -> Self {
        Self { name: name.to_owned(), args: vec![subcommand.to_owned()] }
    }

    /// Adds a flag and its value.
    pub fn arg(&mut self, flag: &str, value: impl Display) -> &mut Self {
        self.args.extend([flag.to_owned(), value.to_string()]);
        self
    }

    /// Its arguments as they can be typed, but for those that only this process means for a child.
    pub fn arguments(&self) -> String {
        let children_only = self.args.windows(2).position(|pair| pair[0] == EXIT_WITH_PARENT);
        let typed = children_only.map_or(self.args.as_slice(), |at| &self.args[..at]);
        let special = |c: char| c.is_whitespace() || "'\"$`\\".contains(c);
        let quoted = |arg: &String| {
            if arg.contains(special) { format!("'{}'", arg.replace('\'', "'\\''")) } else { arg.clone() }
        };
        typed.iter().map(quoted).collect::<Vec<_>>().join(" ")
    }
}

/// A child that has ended.
#[derive(Debug)]
pub struct Exit {
    /// Its name.
    pub name: String,
    /// The process id that it had.
    pub pid: Option<Pid>,
    status: io::Result<ExitStatus>,
    asked_for: bool,
}

impl Exit {
    /// How it ended, for people.
    pub fn how(&self) -> String {
        self.status.as_ref().map_or_else(ToString::to_string, ToString::to_string)
    }
}

/// A child that runs.
#[derive(Debug)]
struct Running {
    pid: Pid,
    /// Its end is no surprise.
    asked_to_end: bool,
}

/// The children. Those that still run when it is dropped are killed.
#[derive(Debug)]
pub struct Launcher {
    program: PathBuf,
    logs: PathBuf,
    running: BTreeMap<String, Running>,
    ends: JoinSet<(String, io::Result<ExitStatus>)>,
}

impl Launcher {
    /// For children whose logs go to this folder.
    pub fn new(logs: PathBuf) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program's own file can't be found")?;
        Ok(Self { program, logs, running: BTreeMap::new(), ends: JoinSet::new() })
    }

    /// Starts a child, and gives its process id.
    pub fn start(&mut self, program: &Program) -> anyhow::Result<Pid> {
        let path = self.log(&program.name);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("the log {} can't be written", path.display()))?;
        let mut command = Command::new(&self.program);
        command.args(&program.args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Settings of the user's shell are for the command line, not for these; the log filter is a flag here.
        for (variable, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SANDKEEPER_"))
        {
            command.env_remove(variable);
        }
        // A group of its own: Ctrl-C is for this process, which then stops the children in order.
        command.env_remove("RUST_LOG").process_group(0).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("{} can't be started", program.name))?;
        let pid = child.id().context("a child that has just been started has a process id")?;
        let pid = Pid::from_raw(i32::try_from(pid).context("a process id is a positive i32")?);
        self.running.insert(program.name.clone(), Running { pid, asked_to_end: false });
        let name = program.name.clone();
        self.ends.spawn(async move { (name, child.wait().await) });
        Ok(pid)
    }

    /// The process id of a child that runs.
    pub fn pid(&self, name: &str) -> Option<Pid> {
        self.running.get(name).map(|running| running.pid)
    }

    /// Kills a child with SIGKILL, and returns when it is gone.
    pub async fn kill(&mut self, name: &str) {
        self.signal(name, Signal::SIGKILL);
        self.until_gone(&[name.to_owned()]).await;
    }

    /// Ends the children whose name `which` accepts: SIGTERM, and SIGKILL for those that do not heed it.
    pub async fn stop(&mut self, which: impl Fn(&str) -> bool) {
        let names: Vec<_> = self.running.keys().filter(|name| which(name)).cloned().collect();
        for name in &names {
            self.signal(name, Signal::SIGTERM);
        }
        if timeout(STOP_DEADLINE, self.until_gone(&names)).await.is_err() {
            for name in &names {
                self.signal(name, Signal::SIGKILL);
            }
            self.until_gone(&names).await;
        }
    }

    /// Returns when a child ends that was not asked to.
    pub async fn unexpected_exit(&mut self) -> Exit {
        loop {
            match self.next_exit().await {
                Some(exit) if !exit.asked_for => return exit,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// The last lines of a child's log.
    pub fn last_lines(&self, name: &str) -> String {
        let text = fs::read(self.log(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    /// Where a child's output goes.
    pub fn log(&self, name: &str) -> PathBuf {
        Path::new(&self.logs).join(format!("{name}.log"))
    }

    fn signal(&mut self, name: &str, signal: Signal) {
        let Some(running) = self.running.get_mut(name) else { return };
        running.asked_to_end = true;
        match kill(running.pid, signal) {
            // It has ended by itself, and its end is yet to be seen.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::warn!(name, %error, "a child could not be signalled"),
        }
    }

    async fn until_gone(&mut self, names: &[String]) {
        while names.iter().any(|name| self.running.contains_key(name)) {
            if self.next_exit().await.is_none() {
                return;
            }
        }
    }

    /// The next child that ends; `None`: there are none. Safe to cancel.
    async fn next_exit(&mut self) -> Option<Exit> {
        let joined = self.ends.join_next().await?;
        let (name, status) = joined.expect("a task that only waits does not panic, and nobody aborts it");
        let running = self.running.remove(&name);
        let pid = running.as_ref().map(|running| running.pid);
        Some(Exit { name, pid, status, asked_for: running.is_none_or(|running| running.asked_to_end) })
    }
}
