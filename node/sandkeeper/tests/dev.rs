//! `sandkeeper dev` as a user meets it: the whole cluster, real programs, and nothing left behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Runs the binary without the settings of whoever runs the tests.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandkeeper"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SANDKEEPER_"))
    {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeed(output: &Output) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{:?}\n{out}\n{err}", output.status);
    out
}

/// The command lines of all processes that name this folder.
fn processes_naming(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().expect("a path of this test is text");
    let entries = fs::read_dir("/proc").expect("/proc can be read").flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| text(&line).replace('\0', " ")).filter(|line| line.contains(folder)).collect()
}

/// A `dev` that is killed if the test fails; its children notice that it is gone.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_demo_holds() {
    let output = command(&["dev", "--demo"]).output().expect("the binary can be run");
    let story = succeed(&output);
    assert!(!story.contains('\x1b'), "no colours outside of a terminal");
    assert!(!story.contains("DOES NOT HOLD"), "{story}");
    for part in [" 1. Start 3 control nodes", "8 slots, never 24", "kill -9", "no process of it is left over"]
    {
        assert!(story.contains(part), "{part:?} is missing in:\n{story}");
    }
    assert!(story.lines().last().is_some_and(|line| line.starts_with("All 9 steps held")), "{story}");
}

#[test]
fn ctrl_c_ends_sandboxes_and_processes_and_keeps_data_that_was_asked_for() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().to_str().expect("a path of this test is text");
    let mut dev = command(&["dev", "--nodes", "1", "--agents", "1", "--slots", "2", "--data-dir", data]);
    let mut dev =
        Dev(dev.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary can be run"));
    let mut servers = "127.0.0.1:7600".to_owned();
    let lines = BufReader::new(dev.0.stdout.take().expect("its output is piped")).lines();
    let mut seen = Vec::new();
    for line in lines {
        let line = line.expect("its output is text");
        if let Some(address) = line.trim().strip_prefix("export SANDKEEPER_SERVERS=") {
            address.clone_into(&mut servers);
        }
        seen.push(line);
        if seen.last().is_some_and(|line| line.starts_with("Ctrl-C")) {
            break;
        }
    }
    assert!(seen.last().is_some_and(|line| line.contains("keeps its data")), "{seen:?}");

    let ask = |args: &[&str]| {
        let output =
            command(&[args, &["--servers", &servers]].concat()).output().expect("the binary can be run");
        succeed(&output)
    };
    let marker = format!("{data}/marker");
    ask(&["create", "web", "--servers", &servers, "--", "sh", "-c", &format!("sleep 600; : {marker}")]);
    assert!(ask(&["wait", "web"]).contains("RUNNING"));
    assert!(ask(&["history", "web"]).contains("sandbox running"));
    assert!(processes_naming(folder.path()).iter().any(|line| line.contains(&marker)), "the workload runs");

    kill(Pid::from_raw(i32::try_from(dev.0.id()).expect("a process id is an i32")), Signal::SIGINT)
        .expect("it can be signalled");
    let status = dev.0.wait().expect("it ends");
    assert!(status.success(), "{status:?}");
    assert_eq!(processes_naming(folder.path()), Vec::<String>::new());
    for part in ["node-1", "agent-1", "logs/node-1.log", "logs/agent-1.log"] {
        assert!(folder.path().join(part).exists(), "{part} is kept");
    }
}

#[test]
fn a_port_that_was_asked_for_and_is_taken_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("a bound socket has an address").port().to_string();
    let output = command(&["dev", "--base-port", &port]).output().expect("the binary can be run");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&format!("port {port} is taken")), "{}", text(&output.stderr));
}
