//! The binary under test.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use cargo_metadata::Message;

/// Names the binary to test, in place of the one that is built: one from a package, or of another version.
pub(crate) const BINARY: &str = "SANDKEEPER_TEST_BINARY";

/// The `sandkeeper` binary, built once, in the profile that the tests are built in (or the one that
/// `SANDKEEPER_TEST_BINARY` names).
///
/// # Panics
/// If it does not build.
pub fn binary() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| std::env::var_os(BINARY).map_or_else(build_plain, PathBuf::from))
}

fn build_plain() -> PathBuf {
    let mut arguments = vec!["--package", "sandkeeper", "--bin", "sandkeeper"];
    if cfg!(feature = "jemalloc") {
        arguments.extend(["--features", "jemalloc"]);
    }
    if !cfg!(debug_assertions) {
        arguments.push("--release");
    }
    build(&arguments, "sandkeeper")
}

/// The program that `cargo build` makes by these arguments.
///
/// # Panics
/// If it does not build.
pub(crate) fn build(arguments: &[&str], name: &str) -> PathBuf {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--message-format", "json-render-diagnostics"]).args(arguments);
    let output = cargo.stderr(Stdio::inherit()).output().expect("cargo runs, as it runs this test");
    assert!(output.status.success(), "{name} does not build");
    Message::parse_stream(&output.stdout[..])
        .filter_map(Result::ok)
        .find_map(|message| match message {
            Message::CompilerArtifact(artifact) if artifact.target.name == name => artifact.executable,
            _ => None,
        })
        .expect("cargo names the program that it built")
        .into()
}
