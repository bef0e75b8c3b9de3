//! The arrows between the crates run one way, as `docs/architecture.md` draws them:
//!
//! ```text
//! sandkeeper -> control, agent, client, load, proto      control -> statemachine, proto      agent, client -> proto
//! ```
//!
//! The tests of all of them may take `test-ports`, `test-disks` and, where there is a state, `test-lives`. Where bugs can be planted `planted-bugs` is asked, which is
//! nothing in what is released.
//!
//! An arrow that is added here has to be wanted, not convenient. Read from the manifests and sources, so it needs no
//! build of what it checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{Metadata, MetadataCommand, Package};

/// Each crate of ours, and the crates of ours that it may name (in any kind of dependency).
const ARROWS: [(&str, &[&str]); 12] = [
    (
        "cluster-tests",
        &[
            "planted-bugs",
            "sandkeeper-client",
            "sandkeeper-load",
            "sandkeeper-proto",
            "test-disks",
            "test-ports",
        ],
    ),
    ("planted-bugs", &[]),
    (
        "sandkeeper",
        &[
            "planted-bugs",
            "sandkeeper-agent",
            "sandkeeper-client",
            "sandkeeper-control",
            "sandkeeper-load",
            "sandkeeper-proto",
            "test-ports",
        ],
    ),
    ("sandkeeper-agent", &["planted-bugs", "sandkeeper-proto", "test-ports"]),
    ("sandkeeper-client", &["sandkeeper-proto"]),
    (
        "sandkeeper-control",
        &[
            "planted-bugs",
            "sandkeeper-proto",
            "sandkeeper-statemachine",
            "test-disks",
            "test-lives",
            "test-ports",
        ],
    ),
    ("sandkeeper-load", &[]),
    ("sandkeeper-proto", &[]),
    ("sandkeeper-statemachine", &["planted-bugs", "test-lives"]),
    ("test-disks", &[]),
    ("test-lives", &["sandkeeper-statemachine"]),
    ("test-ports", &[]),
];

/// Consensus and storage are the control node's own.
const CONTROL_ONLY: [&str; 2] = ["openraft", "sled"];

/// What the pure core must not get at, even by a dependency: a runtime, clocks, randomness, the file system, the wire.
const NOT_IN_THE_CORE: [&str; 10] =
    ["tokio", "futures", "rand", "getrandom", "jiff", "nix", "tonic", "prost", "tempfile", "tracing"];

fn workspace() -> Metadata {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    MetadataCommand::new().manifest_path(manifest).no_deps().exec().expect("cargo reads its own workspace")
}

fn packages(metadata: &Metadata) -> BTreeMap<&str, &Package> {
    metadata.workspace_packages().into_iter().map(|package| (package.name.as_str(), package)).collect()
}

/// The names of all that a package depends on, of every kind.
fn dependencies(package: &Package) -> BTreeSet<&str> {
    package.dependencies.iter().map(|dependency| dependency.name.as_str()).collect()
}

fn folder(package: &Package) -> PathBuf {
    package.manifest_path.parent().expect("a manifest stands in a folder").into()
}

/// All Rust sources below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("folders of sources can be read") {
            let path = entry.expect("folders of sources can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn crates_name_only_whom_they_may() {
    let metadata = workspace();
    let packages = packages(&metadata);
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(packages.keys().copied().collect::<BTreeSet<_>>(), known, "each crate has its arrows here");
    for (name, may) in ARROWS {
        let names: BTreeSet<_> = dependencies(packages[name]).intersection(&known).copied().collect();
        let may: BTreeSet<_> = may.iter().copied().collect();
        let forbidden: Vec<_> = names.difference(&may).collect();
        assert!(forbidden.is_empty(), "{name} must not depend on {forbidden:?}");
    }
}

#[test]
fn only_the_control_node_knows_consensus_and_storage() {
    let metadata = workspace();
    let packages = packages(&metadata);
    for (name, package) in &packages {
        let found: Vec<_> =
            dependencies(package).into_iter().filter(|found| CONTROL_ONLY.contains(found)).collect();
        assert!(*name == "sandkeeper-control" || found.is_empty(), "{name} must not depend on {found:?}");
    }
    let control = dependencies(packages["sandkeeper-control"]);
    assert!(CONTROL_ONLY.iter().all(|name| control.contains(name)), "or this test checks nothing");
}

#[test]
fn only_storage_names_sled() {
    let metadata = workspace();
    let control = folder(packages(&metadata)["sandkeeper-control"]).join("src");
    let storage = control.join("storage");
    let naming: Vec<_> = sources(&control)
        .into_iter()
        .filter(|path| fs::read_to_string(path).expect("sources are text").contains("sled::"))
        .collect();
    let elsewhere: Vec<_> = naming.iter().filter(|path| !path.starts_with(&storage)).collect();
    assert!(elsewhere.is_empty(), "only control/src/storage may name sled: {elsewhere:?}");
    assert!(!naming.is_empty(), "storage names it, or this test checks nothing");
}

#[test]
fn the_core_can_reach_no_clock_no_randomness_and_no_io() {
    let metadata = workspace();
    let core = packages(&metadata)["sandkeeper-statemachine"];
    let normal = core
        .dependencies
        .iter()
        .filter(|dependency| !matches!(dependency.kind, cargo_metadata::DependencyKind::Development));
    let forbidden: Vec<_> = normal
        .map(|dependency| &dependency.name)
        .filter(|name| NOT_IN_THE_CORE.contains(&name.as_str()))
        .collect();
    assert!(forbidden.is_empty(), "statemachine must not depend on {forbidden:?}");

    let read = |path: &Path| fs::read_to_string(path).expect("clippy.toml can be read");
    let bans = read(&folder(core).join("clippy.toml"));
    let banned =
        ["HashMap", "HashSet", "std::time::SystemTime", "std::time::Instant", "std::fs::", "std::net::"];
    for what in banned {
        let lines: Vec<_> = bans.lines().filter(|line| line.contains(what)).collect();
        assert!(!lines.is_empty(), "statemachine/clippy.toml bans {what}");
        assert!(lines.iter().all(|line| line.contains("reason = ")), "the ban of {what} says why");
    }
    // It replaces the root's file, so what stands there has to stand here too.
    let root = read(&metadata.workspace_root.clone().into_std_path_buf().join("clippy.toml"));
    for line in root.lines().filter(|line| line.contains('=')) {
        assert!(bans.lines().any(|other| other == line), "statemachine/clippy.toml repeats {line:?}");
    }
}

#[test]
fn versions_stand_in_the_table_of_the_workspace_only() {
    let metadata = workspace();
    for (name, package) in packages(&metadata) {
        let manifest = fs::read_to_string(&package.manifest_path).expect("manifests can be read");
        let mut in_dependencies = false;
        for line in manifest.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            if line.starts_with('[') {
                in_dependencies = line.contains("dependencies");
            } else if in_dependencies {
                assert!(line.contains("workspace = true"), "{name}: {line:?} belongs into the root's table");
            }
        }
    }
}

/// A build that can have bugs on purpose has to be asked for, by name, of the binary; `planted-bugs` itself refuses to be
/// compiled so without debug assertions.
#[test]
fn no_build_can_have_planted_bugs_unasked() {
    let metadata = workspace();
    let packages = packages(&metadata);
    for (name, package) in &packages {
        for (feature, turns_on) in &package.features {
            let plants = turns_on.iter().any(|what| what.contains("planted"));
            assert!(
                !plants || (*name == "sandkeeper" && feature == "planted-bugs"),
                "{name}: feature {feature}"
            );
        }
        let of_bugs = package.dependencies.iter().filter(|dependency| dependency.name == "planted-bugs");
        for dependency in of_bugs {
            assert_eq!(dependency.features, Vec::<String>::new(), "{name} turns it on for everybody");
        }
    }
    let turns_on = &packages["sandkeeper"].features["planted-bugs"];
    assert_eq!(*turns_on, ["planted-bugs/planted"], "or this test checks nothing");
    let library = folder(packages["planted-bugs"]).join("src/lib.rs");
    let library = fs::read_to_string(library).expect("sources are text");
    let refusal = "#[cfg(all(feature = \"planted\", not(debug_assertions)))]\ncompile_error!";
    assert!(library.contains(refusal), "a release build must not compile with it");
}
