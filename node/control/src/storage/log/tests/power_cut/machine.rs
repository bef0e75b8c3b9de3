//! A file system of our own whose power can be cut.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use test_disks::{FileSystem, LoopDisk};

use super::oracle::Line;
use super::*;

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(120);

/// A process that works on the file system, and what it says.
pub(super) struct Running {
    child: Child,
    listener: Option<JoinHandle<()>>,
    lines: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        // In a process group of its own: it may be a program that runs the victim.
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = BufReader::new(child.stdout.take().unwrap());
        let lines = Arc::new(std::sync::Mutex::new(Vec::new()));
        let heard = Arc::clone(&lines);
        let listener = std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                heard.lock().unwrap().push(line);
            }
        });
        Self { child, listener: Some(listener), lines }
    }

    /// How many lines it has said.
    pub(super) fn said(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    pub(super) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Kills it and all that it started; what it has said.
    fn kill(mut self) -> Vec<Line> {
        self.kill_all();
        self.listener.take().unwrap().join().unwrap();
        let lines = std::mem::take(&mut *self.lines.lock().unwrap());
        lines.iter().filter_map(|line| Line::decode(line)).collect()
    }

    fn kill_all(&mut self) {
        // The group may be gone already.
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.listener.is_some() {
            self.kill_all();
        }
    }
}

/// A file system of our own, and the process that works on it. Both are gone when this is dropped.
pub(super) struct Machine {
    // Before the disk: it must have ended.
    running: Option<Running>,
    disk: LoopDisk,
}

impl Machine {
    pub(super) fn new(kind: FileSystem) -> Self {
        Self { running: None, disk: LoopDisk::new(kind, 400 << 20) }
    }

    /// Where the log is.
    pub(super) fn log(&self) -> PathBuf {
        self.disk.path().join("log")
    }

    pub(super) fn start(&mut self, command: Command) {
        self.running = Some(Running::start(command));
    }

    /// Waits until the process is where it is to be.
    pub(super) fn wait(&mut self, what: &str, mut is: impl FnMut(&mut Running) -> bool) {
        let (running, start) = (self.running.as_mut().expect("it was started"), Instant::now());
        while !is(running) {
            assert!(start.elapsed() < LONG, "not within {LONG:?}: {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What is not durable is lost at once. Returns what the process said.
    pub(super) fn cut(&mut self) -> Vec<Line> {
        self.disk.cut_power();
        let said = self.running.take().map_or_else(Vec::new, Running::kill);
        self.disk.remount();
        said
    }
}
