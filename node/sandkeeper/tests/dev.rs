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

/// Reads a stream's lines as they come, until one of them is what is waited for; gives all that were read.
fn read_until(lines: &mut impl Iterator<Item = std::io::Result<String>>, wanted: &str) -> Vec<String> {
    let mut seen = Vec::new();
    for line in lines {
        seen.push(line.expect("its output is text"));
        if seen.last().is_some_and(|line| line.contains(wanted)) {
            return seen;
        }
    }
    panic!("{wanted:?} never came: {seen:?}");
}

#[test]
fn it_goes_on_without_a_node_and_ends_without_a_majority() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().to_str().expect("a path of this test is text");
    let mut dev = command(&["dev", "--nodes", "3", "--agents", "1", "--data-dir", data]);
    let mut dev =
        Dev(dev.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary can be run"));
    let mut out = BufReader::new(dev.0.stdout.take().expect("its output is piped")).lines();
    let mut err = BufReader::new(dev.0.stderr.take().expect("its output is piped")).lines();
    let banner = read_until(&mut out, "Ctrl-C");
    let row = |name: &str| -> Vec<String> {
        let row = banner.iter().find(|line| line.starts_with(name)).expect("the banner has a row for each");
        row.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(row("NAME")[..4], ["NAME", "PID", "ADDRESS", "ROLE"]);
    let rows = ["node-1", "node-2", "node-3"].map(row);
    let leader = rows.iter().find(|row| row[3] == "leader").expect("one leads");
    let kill_9 = |row: &[String]| {
        let pid = Pid::from_raw(row[1].parse().expect("a process id"));
        kill(pid, Signal::SIGKILL).expect("it can be killed");
    };

    kill_9(leader);
    let told = read_until(&mut err, "To bring").join("\n");
    assert!(told.contains(&format!("{}, pid {}, has ended (signal: 9", leader[0], leader[1])), "{told}");
    assert!(told.contains("The rest goes on: 2 of 3 control nodes run"), "{told}");
    let by_hand = err.next().expect("a command").expect("its output is text");
    assert!(by_hand.contains(&format!("server --name {} --data-dir", leader[0])), "{by_hand}");
    let servers = rows.iter().map(|row| row[2].clone()).collect::<Vec<_>>().join(",");
    let ask = |args: &[&str]| {
        command(&[&["--servers", &servers], args].concat()).output().expect("the binary can be run")
    };
    succeed(&ask(&["create", "web", "--deadline", "1m", "--", "sleep", "600"]));
    // One is missing, and those that are there agree: that is no failure.
    let verified = succeed(&ask(&["cluster", "verify"]));
    let verdict = format!("{} did not answer", leader[0]);
    assert!(verified.contains("Identical among 2 of 3 nodes") && verified.contains(&verdict), "{verified}");
    assert!(succeed(&ask(&["capacity", "--every-node"])).contains("Identical among 2 of 3 nodes"));

    kill_9(rows.iter().find(|row| row[0] != leader[0]).expect("there are three"));
    let told = read_until(&mut err, "no majority").join("\n");
    assert!(told.contains("has ended"), "{told}");
    let status = dev.0.wait().expect("it ends");
    assert_eq!(status.code(), Some(1));
    assert_eq!(processes_naming(folder.path()), Vec::<String>::new(), "not even the sandbox is left");
}

#[test]
fn a_port_that_was_asked_for_and_is_taken_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("a bound socket has an address").port().to_string();
    let output = command(&["dev", "--base-port", &port]).output().expect("the binary can be run");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&format!("port {port} is taken")), "{}", text(&output.stderr));
}
