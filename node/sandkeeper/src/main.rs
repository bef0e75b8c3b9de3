//! The one binary: control node, agent, a whole cluster for trying out, and the command line.
//!
//! `main` only wires; every subcommand is a file in `cmd`.

mod cli;
mod cmd;
mod error;
mod human;
mod json;
mod machine;
mod output;
mod parse;
#[cfg(feature = "planted-bugs")]
mod planted;

use std::process::ExitCode;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // The shim stands beside every process sandbox: it starts before anything that costs memory or threads.
    if let Some(code) = sandkeeper_agent::shim::run(std::env::args_os()) {
        return code;
    }
    cmd::run()
}
