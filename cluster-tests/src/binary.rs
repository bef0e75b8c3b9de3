//! The binary under test.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use cargo_metadata::Message;

/// Names the binary to test, in place of the one that is built: one from a package, or of another version.
const BINARY: &str = "SANDKEEPER_TEST_BINARY";

/// The `sandkeeper` binary, built once, in the profile that the tests are built in (or the one that
/// `SANDKEEPER_TEST_BINARY` names).
///
/// # Panics
/// If it does not build.
pub fn binary() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| std::env::var_os(BINARY).map_or_else(build, PathBuf::from))
}

fn build() -> PathBuf {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([
        "build",
        "--package",
        "sandkeeper",
        "--bin",
        "sandkeeper",
        "--message-format",
        "json-render-diagnostics",
    ]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    if cfg!(feature = "jemalloc") {
        cargo.args(["--features", "jemalloc"]);
    }
    let output = cargo.stderr(Stdio::inherit()).output().expect("cargo runs, as it runs this test");
    assert!(output.status.success(), "the binary under test does not build");
    Message::parse_stream(&output.stdout[..])
        .filter_map(Result::ok)
        .find_map(|message| match message {
            Message::CompilerArtifact(artifact) if artifact.target.name == "sandkeeper" => {
                artifact.executable
            }
            _ => None,
        })
        .expect("cargo names the binary that it built")
        .into()
}
