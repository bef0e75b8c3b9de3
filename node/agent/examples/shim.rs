//! The shim as a program of its own, for this crate's tests: cargo builds it beside them. The product's shim is a hidden
//! subcommand of `sandkeeper`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sandkeeper_agent::shim::run(std::env::args_os()).unwrap_or(ExitCode::FAILURE)
}
