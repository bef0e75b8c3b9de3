//! Every limit of a create, one by one, and all at once.

use std::collections::BTreeMap;

use cluster_tests::{Raw, refused, shell};
use sandkeeper_client::v1::create_sandbox_request::Expiry;
use sandkeeper_client::{Code, v1};

use crate::one;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// What is asked, the request, and the fields that have to be named.
type Case = (String, v1::CreateSandboxRequest, Vec<&'static str>);

fn good() -> v1::CreateSandboxRequest {
    shell("bad-input", "sleep 600")
}

fn case(what: impl Into<String>, field: &'static str, request: v1::CreateSandboxRequest) -> Case {
    (what.into(), request, vec![field])
}

fn numbered(count: usize) -> BTreeMap<String, String> {
    (0..count).map(|index| (format!("k{index}"), "v".to_owned())).collect()
}

fn names() -> Vec<Case> {
    let bad = ["", "UPPER", "under_score", "-a", "a-", "a.b", "a:b", "ä", "a b"];
    let long = "a".repeat(64);
    let mut cases = Vec::new();
    for text in bad.into_iter().chain([long.as_str()]) {
        let name = text.to_owned();
        cases.push(case(format!("name {text:?}"), "name", v1::CreateSandboxRequest { name, ..good() }));
        if text.is_empty() {
            continue;
        }
        let namespace = text.to_owned();
        let request = v1::CreateSandboxRequest { namespace, ..good() };
        cases.push(case(format!("namespace {text:?}"), "namespace", request));
        let request = v1::CreateSandboxRequest { pool_ref: text.to_owned(), ..good() };
        cases.push(case(format!("pool {text:?}"), "pool_ref", request));
    }
    let request = v1::CreateSandboxRequest { request_id: "r".repeat(129), ..good() };
    cases.push(case("a request id of 129 characters", "request_id", request));
    cases
}

fn environment_and_arguments() -> Vec<Case> {
    let envs = |envs| v1::CreateSandboxRequest { envs, ..good() };
    let args = |args| v1::CreateSandboxRequest { args, ..good() };
    let image = |bytes| v1::CreateSandboxRequest { image: "i".repeat(bytes), ..good() };
    let folder = |text: String| v1::CreateSandboxRequest { working_dir: text, ..good() };
    vec![
        case("129 variables", "envs", envs(numbered(129))),
        case("64 KiB of variables", "envs", envs(one("K", &"v".repeat(64 * KIB)))),
        case("a variable without a name", "envs", envs(one("", "v"))),
        case("a variable with = in its name", "envs", envs(one("A=B", "v"))),
        case("a variable with NUL in its name", "envs", envs(one("A\0", "v"))),
        case("a variable with NUL", "envs", envs(one("A", "v\0"))),
        // The command has three elements.
        case("257 arguments", "args", args(vec!["x".to_owned(); 254])),
        case("64 KiB of arguments", "args", args(vec!["x".repeat(64 * KIB)])),
        case("an argument with NUL", "args", args(vec!["a\0b".to_owned()])),
        case("an image of more than 4 KiB", "image", image(4 * KIB + 1)),
        case("a relative folder", "working_dir", folder("work".to_owned())),
        case("a folder with NUL", "working_dir", folder("/a\0b".to_owned())),
        case("a folder of more than 4 KiB", "working_dir", folder(format!("/{}", "d".repeat(4 * KIB)))),
    ]
}

fn labels() -> Vec<Case> {
    let long = "l".repeat(257);
    let bad = [
        ("65 of them", numbered(65)),
        ("a key without a name", one("", "v")),
        ("a key of 257 bytes", one(&long, "v")),
        ("a value of 257 bytes", one("k", &long)),
    ];
    let both = bad.into_iter().flat_map(|(what, labels)| {
        let selector = v1::CreateSandboxRequest { agent_selector: labels.clone(), ..good() };
        [
            case(format!("labels: {what}"), "labels", v1::CreateSandboxRequest { labels, ..good() }),
            case(format!("selector: {what}"), "agent_selector", selector),
        ]
    });
    both.collect()
}

fn ports() -> Vec<Case> {
    let bad: [(&str, Vec<i32>); 7] = [
        ("17 ports", (1..=17).collect()),
        ("port 0", vec![0]),
        ("port -1", vec![-1]),
        ("port 65536", vec![65_536]),
        ("the largest number as a port", vec![i32::MAX]),
        ("the smallest number as a port", vec![i32::MIN]),
        ("a port twice", vec![80, 443, 80]),
    ];
    let requests = bad.into_iter().map(|(what, exposed_ports)| {
        case(what, "exposed_ports", v1::CreateSandboxRequest { exposed_ports, ..good() })
    });
    requests.collect()
}

fn resources() -> Vec<Case> {
    let mut cases = Vec::new();
    for value in [0, -1, i64::MIN, i64::MAX, 65_536_001] {
        let wanted = v1::Resources { cpu_millis: Some(value), memory_bytes: None };
        let request = v1::CreateSandboxRequest { resources: Some(wanted), ..good() };
        cases.push(case(format!("{value} thousandths of a CPU"), "resources.cpu_millis", request));
    }
    for value in [0, -1, i64::MIN, i64::MAX, (1 << 46) + 1] {
        let wanted = v1::Resources { cpu_millis: None, memory_bytes: Some(value) };
        let request = v1::CreateSandboxRequest { resources: Some(wanted), ..good() };
        cases.push(case(format!("{value} bytes of memory"), "resources.memory_bytes", request));
    }
    cases
}

fn times() -> Vec<Case> {
    let ten_years = 10 * 365 * 24 * 3600;
    let mut cases = Vec::new();
    let bad =
        [(0, 0), (-1, 0), (0, -1), (ten_years, 1), (i64::MAX, 0), (i64::MIN, 0), (1, 1_000_000_000), (1, -1)];
    for (seconds, nanos) in bad {
        let duration = prost_types::Duration { seconds, nanos };
        let request = v1::CreateSandboxRequest { expiry: Some(Expiry::Ttl(duration)), ..good() };
        cases.push(case(format!("ttl of {seconds} s and {nanos} ns"), "ttl", request));
        let request =
            v1::CreateSandboxRequest { wait_for_capacity: true, capacity_timeout: Some(duration), ..good() };
        cases.push(case(format!("wait of {seconds} s and {nanos} ns"), "capacity_timeout", request));
    }
    for time in [0, -1, i64::MIN] {
        let request = v1::CreateSandboxRequest { expiry: Some(Expiry::ExpireTime(time)), ..good() };
        cases.push(case(format!("expire time {time}"), "expire_time", request));
    }
    let duration = prost_types::Duration { seconds: 1, nanos: 0 };
    let request = v1::CreateSandboxRequest { capacity_timeout: Some(duration), ..good() };
    cases.push(case("a wait that is none", "capacity_timeout", request));
    let request = v1::CreateSandboxRequest { recovery_timeout_seconds: 86_401, ..good() };
    cases.push(case("a recovery timeout of more than a day", "recovery_timeout_seconds", request));
    cases
}

fn enums() -> Vec<Case> {
    let values = [-1, 99, i32::MAX].into_iter().flat_map(|value| {
        let policy = v1::CreateSandboxRequest { failure_policy: value, ..good() };
        [
            case(format!("mode {value}"), "mode", v1::CreateSandboxRequest { mode: value, ..good() }),
            case(format!("failure policy {value}"), "failure_policy", policy),
        ]
    });
    values.collect()
}

/// Everything is wrong, and everything is said.
fn all_at_once() -> Case {
    let zero = v1::Resources { cpu_millis: Some(0), memory_bytes: Some(-1) };
    let request = v1::CreateSandboxRequest {
        request_id: "r".repeat(129),
        namespace: "No".into(),
        name: "No".into(),
        image: "i".repeat(5 * KIB),
        args: vec!["x".into(); 300],
        envs: one("", "v"),
        working_dir: "here".into(),
        exposed_ports: vec![0],
        resources: Some(zero),
        pool_ref: "No".into(),
        labels: one("", "v"),
        mode: 99,
        expiry: Some(Expiry::ExpireTime(-1)),
        failure_policy: 99,
        recovery_timeout_seconds: 86_401,
        ..good()
    };
    let fields = vec![
        "request_id",
        "namespace",
        "name",
        "image",
        "args",
        "envs",
        "working_dir",
        "exposed_ports",
        "resources.cpu_millis",
        "resources.memory_bytes",
        "pool_ref",
        "labels",
        "mode",
        "expire_time",
        "failure_policy",
        "recovery_timeout_seconds",
    ];
    ("everything at once".to_owned(), request, fields)
}

/// A node needs no leader for any of this.
pub async fn refused_by(node: &Raw) {
    let single = [names(), environment_and_arguments(), labels(), ports(), resources(), times(), enums()];
    let mut cases: Vec<Case> = single.into_iter().flatten().collect();
    cases.push(all_at_once());
    let large = v1::CreateSandboxRequest { image: "i".repeat(MIB), ..good() };
    cases.push(("a request of more than 1 MiB".to_owned(), large, vec!["request", "image"]));
    for (what, request, fields) in cases {
        refused(&what, node.sandboxes().create_sandbox(request).await).names(&fields);
    }
    let huge = v1::CreateSandboxRequest { image: "i".repeat(2 * MIB), ..good() };
    let refused = refused("a message of 2 MiB", node.sandboxes().create_sandbox(huge).await);
    assert_eq!(refused.code, Code::OutOfRange, "{refused:?}");
    refused.says("too large");
}
