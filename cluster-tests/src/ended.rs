//! Programs that are expected to end by themselves.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;
use tokio::time::timeout;

use crate::{LONG, binary};

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; None: a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ended {
    /// Asserts that it failed (exit code 1), without a panic, and that its standard error has all these parts.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn failed_saying(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(1), "{self:#?}");
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        let message = self.stderr.lines().find(|line| line.starts_with("error: "));
        assert!(message.is_some(), "a line says what is wrong: {self:#?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is missing in {self:#?}");
        }
    }
}

/// Runs the binary under test until it ends.
///
/// # Panics
/// If it has not ended after [`LONG`].
pub async fn run_to_end<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ended {
    run_program(binary(), arguments).await
}

/// Runs a program until it ends; it is killed if the test ends first.
///
/// # Panics
/// If it can't be started, or has not ended after [`LONG`].
pub async fn run_program<S: AsRef<OsStr>>(program: &Path, arguments: impl IntoIterator<Item = S>) -> Ended {
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true).stdin(Stdio::null());
    let line = format!("{command:?}");
    let ended = timeout(LONG, command.output()).await;
    let output = ended.unwrap_or_else(|_| panic!("still running after {LONG:?}: {line}"));
    let output = output.unwrap_or_else(|error| panic!("{line}: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}
