//! The binary as a user meets it: exit codes, what goes to standard output and what to standard error, forms of output.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sandkeeper_proto::v1;
use sandkeeper_proto::v1::fleet_service_server::{FleetService, FleetServiceServer};
use test_ports::Ports;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

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

fn run(args: &[&str]) -> Output {
    command(args).output().expect("the binary can be run")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ended by itself")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A control node that knows a capacity and no agents.
struct Fleet;

type Answered<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl FleetService for Fleet {
    async fn get_capacity(&self, _: Request<v1::GetCapacityRequest>) -> Answered<v1::GetCapacityResponse> {
        let capacity =
            |slots| Some(v1::Capacity { slots, cpu_millis: slots * 500, memory_bytes: slots << 30 });
        Ok(Response::new(v1::GetCapacityResponse {
            header: Some(v1::ResponseHeader { node: "node-1".into(), revision: 7, linearizable: true }),
            total: capacity(8),
            allocated: capacity(3),
            free: capacity(5),
            agents: Vec::new(),
            revision: 7,
            history_digest: "00aa".into(),
            state_digest: "00bb".into(),
            sandboxes: 3,
            pending: 0,
        }))
    }

    async fn get_agent(&self, request: Request<v1::GetAgentRequest>) -> Answered<v1::GetAgentResponse> {
        let id = request.into_inner().agent_id;
        let details = ErrorDetails::with_error_info("AGENT_UNKNOWN", "sandkeeper", HashMap::new());
        Err(Status::with_error_details(Code::NotFound, format!("there is no agent {id}"), details))
    }

    async fn list_agents(&self, _: Request<v1::ListAgentsRequest>) -> Answered<v1::ListAgentsResponse> {
        Ok(Response::new(v1::ListAgentsResponse::default()))
    }

    async fn cordon_agent(&self, _: Request<v1::CordonAgentRequest>) -> Answered<v1::CordonAgentResponse> {
        Err(Status::unimplemented("no test asks for it"))
    }

    async fn uncordon_agent(
        &self,
        _: Request<v1::UncordonAgentRequest>,
    ) -> Answered<v1::UncordonAgentResponse> {
        Err(Status::unimplemented("no test asks for it"))
    }

    async fn drain_agent(&self, _: Request<v1::DrainAgentRequest>) -> Answered<v1::DrainAgentResponse> {
        Err(Status::unimplemented("no test asks for it"))
    }

    async fn recover_agent(&self, _: Request<v1::RecoverAgentRequest>) -> Answered<v1::RecoverAgentResponse> {
        Err(Status::unimplemented("no test asks for it"))
    }

    async fn remove_agent(&self, _: Request<v1::RemoveAgentRequest>) -> Answered<v1::RemoveAgentResponse> {
        Err(Status::unimplemented("no test asks for it"))
    }

    async fn list_unknown(&self, _: Request<v1::ListUnknownRequest>) -> Answered<v1::ListUnknownResponse> {
        Err(Status::unimplemented("no test asks for it"))
    }

    async fn adopt_sandboxes(
        &self,
        _: Request<v1::AdoptSandboxesRequest>,
    ) -> Answered<v1::AdoptSandboxesResponse> {
        Err(Status::unimplemented("no test asks for it"))
    }

    async fn rehome_agents(&self, _: Request<v1::RehomeAgentsRequest>) -> Answered<v1::RehomeAgentsResponse> {
        Err(Status::unimplemented("no test asks for it"))
    }
}

/// Serves [`Fleet`] while the test runs, and gives its address.
async fn fleet() -> String {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address").to_string();
    let server = Server::builder().add_service(FleetServiceServer::new(Fleet));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

/// Runs the binary against [`Fleet`].
async fn run_with_fleet(args: &[&str]) -> Output {
    let address = fleet().await;
    let args: Vec<String> =
        args.iter().map(ToString::to_string).chain(["--servers".into(), address]).collect();
    let run = move || run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.expect("the binary can be run")
}

#[test]
fn help_and_version_are_results() {
    let help = run(&["--help"]);
    assert_eq!(code(&help), 0);
    assert!(text(&help.stdout).contains("sandkeeper dev"));
    assert!(text(&run(&["--version"]).stdout).starts_with("sandkeeper 0."));
}

#[test]
fn wrong_usage_is_2() {
    for args in [
        &["frobnicate"][..],
        &["get"],
        &["create", "web", "--cpu", "much"],
        &["create", "web", "--capacity-timeout", "1m"],
        &["update", "web"],
        &["list", "--servers", "nonsense"],
        &["server"],
        &["dev", "--demo", "--nodes", "1"],
    ] {
        let output = run(args);
        assert_eq!(code(&output), 2, "{args:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn nobody_there_is_3_and_says_who_was_asked_and_what_to_do() {
    let nobody = Ports::take(2);
    let addresses = nobody.addresses();
    let output = run(&["list", "--servers", &addresses.join(",")]);
    assert_eq!(code(&output), 3);
    let message = text(&output.stderr);
    for part in [addresses[0].as_str(), &addresses[1], "Connection refused", "--servers", "sandkeeper dev"] {
        assert!(message.contains(part), "{part} is missing in: {message}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn servers_come_from_the_environment_too() {
    let nobody = Ports::take(1);
    let address = nobody.socket(0).to_string();
    let output =
        command(&["list"]).env("SANDKEEPER_SERVERS", &address).output().expect("the binary can be run");
    assert_eq!(code(&output), 3);
    assert!(text(&output.stderr).contains(&address));
}

#[test]
fn bad_settings_are_1_and_name_the_file_and_the_key() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("server.toml");
    std::fs::write(&path, "listen_ap = '127.0.0.1:1'\n").expect("the file can be written");
    let output = run(&["server", "--config", path.to_str().expect("a path of this test is text")]);
    assert_eq!(code(&output), 1);
    let message = text(&output.stderr);
    assert!(
        message.contains("server.toml") && message.contains("`listen_ap`") && message.contains("listen_api"),
        "{message}"
    );
    let output = run(&["agent", "--data-dir", "d", "--log-level", "a=b=c"]);
    assert_eq!(code(&output), 1, "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("is not a log filter"));
}

#[test]
fn a_flag_is_before_the_environment_and_the_environment_before_the_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("server.toml");
    std::fs::write(&path, "bootstrap_expect = 3\n").expect("the file can be written");
    let complaint = |args: &[&str], environment: &str| {
        let mut command = command(&[&["server", "--config"], args].concat());
        let output =
            command.env("SANDKEEPER_BOOTSTRAP_EXPECT", environment).output().expect("the binary can be run");
        assert_eq!(code(&output), 2);
        text(&output.stderr)
    };
    let path = path.to_str().expect("a path of this test is text");
    // 0 is refused wherever it stands; what is complained of next is that there is no data directory.
    assert!(complaint(&[path], "0").contains("bootstrap_expect has to be at least 1"));
    assert!(complaint(&[path], "1").contains("`data_dir` is not set"));
    assert!(complaint(&[path, "--bootstrap-expect", "1"], "0").contains("`data_dir` is not set"));
    assert!(
        complaint(&[path, "--bootstrap-expect", "0"], "1").contains("bootstrap_expect has to be at least 1")
    );
}

#[tokio::test]
async fn a_refusal_is_1_and_says_why() {
    let output = run_with_fleet(&["agents", "get", "nobody"]).await;
    assert_eq!(code(&output), 1);
    let message = text(&output.stderr);
    assert!(message.starts_with("error: there is no agent nobody (NOT_FOUND, AGENT_UNKNOWN)\n"), "{message}");
    assert!(output.stdout.is_empty());
}

#[tokio::test]
async fn the_three_forms_of_a_result() {
    let table = run_with_fleet(&["capacity"]).await;
    assert_eq!(code(&table), 0, "{}", text(&table.stderr));
    insta::assert_snapshot!("capacity_table", text(&table.stdout));
    insta::assert_snapshot!("capacity_json", text(&run_with_fleet(&["capacity", "-o", "json"]).await.stdout));
    insta::assert_snapshot!("capacity_yaml", text(&run_with_fleet(&["capacity", "-o", "yaml"]).await.stdout));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = command(&["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary can be run");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((code(&output), text(&output.stderr).as_str()), (0, ""));
}

/// A control node whose log nobody reads any more: what it has to say is lost, and nothing else.
#[test]
fn a_server_goes_on_when_nobody_reads_its_log() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ports = Ports::take(3);
    let [api, peer, http] = [0, 1, 2].map(|index| ports.addresses()[index].clone());
    let data_dir = folder.path().to_str().expect("a path of this test is text");
    let parent = std::process::id().to_string();
    let mut args = vec!["server", "--name", "alone", "--data-dir", data_dir, "--bootstrap-expect", "1"];
    args.extend(["--join", &peer, "--listen-api", &api, "--listen-peer", &peer, "--listen-http", &http]);
    args.extend(["--exit-with-parent", &parent]);
    let mut child = command(&args).stderr(Stdio::piped()).spawn().expect("the binary can be run");
    // Before it has anything to say.
    drop(child.stderr.take());
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut asked = run(&["capacity", "--servers", &api]);
    while code(&asked) != 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        asked = run(&["capacity", "--servers", &api]);
    }
    assert_eq!(code(&asked), 0, "it does not serve: {}", text(&asked.stderr));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it runs");
    while child.try_wait().expect("it is this process's child").is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    // If it has not ended it is killed, and has no exit code.
    let _ = child.kill();
    assert_eq!(child.wait().expect("it has ended").code(), Some(0), "it ends in order when it is asked to");
}

#[test]
fn completions_know_the_subcommands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completion", shell]);
        assert_eq!(code(&output), 0);
        assert!(text(&output.stdout).contains("terminate"), "{shell}");
    }
}

#[test]
fn inspecting_what_is_no_data_directory_is_1_and_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().to_str().expect("a path of this test is text");
    let output = run(&["inspect", path]);
    assert_eq!(code(&output), 1);
    let message = text(&output.stderr);
    assert_eq!(
        message,
        format!("error: {path} is not the data directory of a control node: it has no node.toml\n")
    );
    assert!(output.stdout.is_empty());
    let output = run(&["inspect", &format!("{path}/nothing"), "--at", "7"]);
    assert_eq!(code(&output), 1, "{}", text(&output.stderr));
    assert_eq!(std::fs::read_dir(path).expect("it is there").count(), 0, "nothing was made in it");
    assert_eq!(code(&run(&["inspect", path, "--at", "yesterday"])), 2);
}
