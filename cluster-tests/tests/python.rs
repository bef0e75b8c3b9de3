//! A client in another language, made from nothing but an address: `python/client.py`.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::path::{Path, PathBuf};

use cluster_tests::{Cluster, run_program};

const NEEDED: &str = "import grpc, grpc_reflection, grpc_health, google.protobuf";

/// The Python that has what the client needs: the one that is named, which has to have it, or one that happens to.
async fn python() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("SANDKEEPER_TEST_PYTHON") {
        return Some(named.into());
    }
    let found = PathBuf::from("python3");
    let fits = tokio::process::Command::new(&found).args(["-c", NEEDED]).output().await;
    if fits.is_ok_and(|output| output.status.success()) {
        return Some(found);
    }
    eprintln!(
        "SKIPPED: the client in another language needs a Python with grpcio. To run it:\n    \
         python3 -m venv target/python\n    \
         target/python/bin/pip install grpcio grpcio-reflection grpcio-health-checking protobuf\n    \
         SANDKEEPER_TEST_PYTHON=$PWD/target/python/bin/python cargo test -p cluster-tests --test python"
    );
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_made_from_reflection_alone_lives_through_a_sandbox() {
    let Some(python) = python().await else { return };
    let cluster = Cluster::start().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/client.py");
    for (index, node) in cluster.nodes.iter().enumerate() {
        let name = format!("from-python-{index}");
        let ended = run_program(&python, [script.as_os_str(), node.api.as_ref(), name.as_ref()]).await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(report["sandbox"]["name"], name);
        assert_eq!(report["health"][""], "SERVING");
        let events: Vec<_> =
            report["events"].as_array().unwrap().iter().map(|event| event.as_str().unwrap()).collect();
        let story = [
            "EVENT_TYPE_SANDBOX_CREATED",
            "EVENT_TYPE_SANDBOX_ALLOCATED",
            "EVENT_TYPE_SANDBOX_RUNNING",
            "EVENT_TYPE_SANDBOX_TERMINATING",
            "EVENT_TYPE_SANDBOX_REMOVED",
        ];
        assert_eq!(events, story);
    }
    let view = cluster.wait_identical().await;
    assert_eq!((view.sandboxes, view.allocated.unwrap().slots), (0, 0), "nothing is left");
}
