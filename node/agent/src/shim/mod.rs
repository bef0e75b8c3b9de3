//! `sandkeeper shim`: the small program that stands beside each process sandbox.
//!
//! ```text
//! agent ──starts──► shim ──starts──► second stage ──► workload
//!   ▲                │  its own session, subreaper, keeps the deadline, reaps, writes exit.json
//!   └── alive (FIFO) ┘
//! ```
//! The shim survives the agent, so a sandbox does too, and its exit status is never lost. It holds the only writing end
//! of the FIFO `alive` in the sandbox's folder as its standard input: an agent that reads the end of that FIFO knows
//! that the shim is gone, without polling and whatever became of its process id.
//!
//! The second stage makes the surroundings (session, control groups, limits, namespaces). With a process namespace it
//! stays as that namespace's first process, so that the workload is not one (a first process ignores signals that it
//! does not handle), and so that everything dies with it. Without, it becomes the workload.
//!
//! Whoever stops agents from outside must leave the shims alone: under systemd that is `KillMode=process`.
//!
//! Architecture invariants: no async runtime and no second thread (a process namespace of its own forbids one); the
//! shim reads no configuration but the files in the sandbox's folder.

pub(crate) mod cgroup;
mod files;
mod second_stage;
mod supervise;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

pub(crate) use files::{ExitRecord, Folder, Instructions, Outcome, ShimProcess, ShimSpec};

/// The first argument of the shim.
pub const SHIM: &str = "shim";
/// The first argument of the second stage.
pub const SECOND_STAGE: &str = "shim-exec";
/// The first argument of the program that tries whether namespaces can be made here.
pub(crate) const PROBE: &str = "shim-probe";
/// Set in the environment of every sandbox's processes.
pub const ID_VARIABLE: &str = "SANDKEEPER_SANDBOX_ID";

/// Why a stage could not do its work.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
struct StageError {
    what: String,
    cause: io::Error,
}

impl StageError {
    fn of<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |cause| Self { what: what.into(), cause: cause.into() }
    }
}

/// Runs a hidden subcommand, if `args` (with the program's name first) names one: `shim --spec FILE`,
/// `shim-exec --spec FILE`, `shim-probe`. `None`: they are not for the shim.
///
/// Call it first of all in `main`, before any thread is started.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut args = args.into_iter().skip(1);
    let stage = args.next()?;
    let stage = stage.to_str().filter(|stage| [SHIM, SECOND_STAGE, PROBE].contains(stage))?;
    let result = match (stage, args.next(), args.next(), args.next()) {
        (PROBE, None, ..) => second_stage::probe().map(|()| ExitCode::SUCCESS),
        (SHIM, Some(flag), Some(spec), None) if flag == "--spec" => {
            supervise::run(Path::new(&spec)).map(|()| ExitCode::SUCCESS)
        }
        (SECOND_STAGE, Some(flag), Some(spec), None) if flag == "--spec" => {
            second_stage::run(Path::new(&spec)).map(ExitCode::from)
        }
        _ => Err(StageError {
            what: format!("usage: {stage} --spec FILE (the agent starts this by itself)"),
            cause: io::ErrorKind::InvalidInput.into(),
        }),
    };
    Some(result.unwrap_or_else(|error| {
        // The agent reads this from the file that it gave as standard error; there is nobody else to tell.
        let _ = writeln!(io::stderr(), "{error}");
        ExitCode::FAILURE
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(args: &[&str]) -> Vec<OsString> {
        args.iter().map(OsString::from).collect()
    }

    #[test]
    fn other_commands_are_left_alone_and_wrong_use_is_refused() {
        assert!(run(args(&["sandkeeper"])).is_none());
        assert!(run(args(&["sandkeeper", "agent", "--spec", "x"])).is_none());
        for wrong in [
            &["sandkeeper", "shim"][..],
            &["sandkeeper", "shim", "--spec"],
            &["sandkeeper", "shim", "x", "y"],
        ] {
            assert_eq!(format!("{:?}", run(args(wrong)).unwrap()), format!("{:?}", ExitCode::FAILURE));
        }
    }
}
