//! Real processes, under the shim that `examples/shim.rs` is.

mod leases;
mod recovery;

use std::collections::BTreeSet;
use std::time::Instant;

use procfs::process::all_processes;
use tokio::time::timeout;

use super::*;
use crate::plan::Ended;
use crate::table::Phase;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// The shim that cargo built beside these tests.
fn shim() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().unwrap().with_file_name("examples").join("shim");
    assert!(path.exists(), "{} is missing: run the tests through cargo, which builds it", path.display());
    path
}

struct Agent {
    runtime: ProcessRuntime,
    exited: mpsc::Receiver<Exited>,
}

/// An agent on a machine that allows everything that this one does.
async fn agent(data_dir: &Path) -> Agent {
    let (exits, exited) = mpsc::channel(16);
    let config = ProcessConfig { shim_program: Some(shim()), ..ProcessConfig::default() };
    // Tests run side by side on one machine: the agent's groups are told apart by this name.
    let id = format!("test-{}", data_dir.file_name().unwrap().to_string_lossy().trim_start_matches('.'));
    let runtime = ProcessRuntime::open(data_dir, &id, config, Duration::from_secs(10), exits).await.unwrap();
    Agent { runtime, exited }
}

impl Agent {
    /// A leader has acknowledged a heartbeat that is sent now.
    async fn acknowledge(&self) -> BootTime {
        let lease = Arc::clone(&self.runtime.shared.lease);
        let token = CancellationToken::new();
        let keeping = tokio::spawn(Arc::clone(&lease).keep(token.clone()));
        tokio::task::yield_now().await;
        let now = BootTime::now();
        lease.acknowledged(now, now);
        assert!(lease.is_written(PATIENCE).await);
        token.cancel();
        keeping.await.unwrap();
        now
    }
}

/// An agent on a machine that allows nothing: no namespaces, no control groups.
async fn poor_agent(data_dir: &Path) -> Agent {
    let mut agent = agent(data_dir).await;
    let shared = Arc::get_mut(&mut agent.runtime.shared).unwrap();
    shared.namespaces = false;
    shared.hierarchy.leave();
    shared.hierarchy = Hierarchy::Unavailable("the test says so".to_owned());
    agent
}

fn order(id: &str, script: &str) -> Order {
    Order {
        spec: Arc::new(SandboxSpec {
            sandbox_id: id.to_owned(),
            generation: 1,
            name: "web".to_owned(),
            namespace: "prod".to_owned(),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            cluster_id: "blue".to_owned(),
            ..SandboxSpec::default()
        }),
        expires_at: None,
        lease: None,
        heard: None,
    }
}

/// An id that no other test has: the environments of all processes are searched for it.
fn fresh_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

impl Drop for Agent {
    /// Control groups are not in the test's temporary folder.
    fn drop(&mut self) {
        for id in fs::read_dir(self.runtime.shared.data_dir.join("sandboxes")).unwrap().flatten() {
            let spec = order(&id.file_name().to_string_lossy(), "").spec;
            for group in self.runtime.shared.hierarchy.groups(&spec, 1) {
                // It is busy when its sandbox runs on for the test's next agent.
                let _ = group.remove();
            }
        }
        self.runtime.shared.hierarchy.leave();
    }
}

impl Agent {
    async fn exit(&mut self, id: &str) -> Ended {
        let exited = timeout(PATIENCE, self.exited.recv()).await.expect("it exits in time").unwrap();
        assert_eq!(exited.sandbox_id, id);
        exited.exit
    }

    fn log(&self, id: &str) -> String {
        fs::read_to_string(self.runtime.log(id).unwrap()).unwrap()
    }

    /// The agent goes as if it were killed: nothing is told to the shims.
    async fn kill(self) {
        self.runtime.release().await;
    }

    fn nothing_is_left(&self, id: &str) {
        let shared = &self.runtime.shared;
        assert_eq!(processes(id), BTreeSet::new());
        for path in [shared.folder(id).path().to_owned(), shared.work(id), shared.log(id)] {
            assert!(!path.exists(), "{} is left", path.display());
        }
        for group in shared.hierarchy.groups(&order(id, "").spec, 1) {
            assert!(!group.path.exists(), "{} is left", group.path.display());
        }
    }
}

/// The processes that have the sandbox's mark in their environment.
fn processes(id: &str) -> BTreeSet<i32> {
    all_processes()
        .unwrap()
        .flatten()
        .filter(|process| {
            process.environ().is_ok_and(|environment| {
                environment.get(std::ffi::OsStr::new(shim::ID_VARIABLE)).is_some_and(|value| value == id)
            })
        })
        .map(|process| process.pid())
        .collect()
}

/// Waits until `condition` holds.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_runs_writes_and_exits_with_its_code() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path()).await;
    let id = fresh_id();
    let mut order = order(
        &id,
        "echo \"$GREETING $SANDKEEPER_SANDBOX_NAMESPACE/$SANDKEEPER_SANDBOX_NAME\"; pwd; env | sort; exit 3",
    );
    Arc::make_mut(&mut order.spec).envs.insert("GREETING".to_owned(), "hello".to_owned());
    agent.runtime.create(order).await.unwrap();
    let exit = agent.exit(&id).await;
    assert_eq!(
        exit,
        Ended {
            exit_code: Some(3),
            reason: "exited with code 3".to_owned(),
            expired: false,
            lease_over: false
        }
    );
    let log = agent.log(&id);
    let work = agent.runtime.shared.work(&id);
    assert!(log.starts_with(&format!("hello prod/web\n{}\n", work.display())), "{log}");
    // Nothing of the agent's own environment comes through.
    assert!(!log.contains("CARGO"), "{log}");
    agent.runtime.remove(&id, Duration::ZERO).await.unwrap();
    agent.nothing_is_left(&id);
    agent.runtime.remove(&id, Duration::ZERO).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_started_says_why_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let mut missing = order(&fresh_id(), "");
    Arc::make_mut(&mut missing.spec).command = vec!["no-such-program".to_owned()];
    let mut homeless = order(&fresh_id(), "true");
    Arc::make_mut(&mut homeless.spec).working_dir = "/no/such/directory".to_owned();
    for (order, says) in [
        (missing, "no-such-program: No such file or directory"),
        (homeless, "working directory /no/such/directory"),
    ] {
        let id = order.spec.sandbox_id.clone();
        let error = agent.runtime.create(order).await.unwrap_err();
        assert!(error.to_string().starts_with(says), "{error}");
        agent.nothing_is_left(&id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_this_runtime_can_not_run_are_not_admitted() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let refused = |change: fn(&mut SandboxSpec)| {
        let mut order = order("a", "true");
        change(Arc::make_mut(&mut order.spec));
        agent.runtime.admit(&order.spec).unwrap_err()
    };
    assert!(refused(|spec| spec.command.clear()).contains("needs a command"));
    assert!(refused(|spec| spec.working_dir = "a/b".to_owned()).contains("not an absolute path"));
    assert!(refused(|spec| spec.args.push("a\0b".to_owned())).contains("zero byte"));
    assert!(refused(|spec| drop(spec.envs.insert("A=B".to_owned(), String::new()))).contains("A=B"));
    assert_eq!(agent.runtime.admit(&order("a", "true").spec), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_asked_for_first_and_forced_after_the_grace_period() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path()).await;
    let polite = fresh_id();
    let script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done";
    agent.runtime.create(order(&polite, script)).await.unwrap();
    until("it is ready", || agent.log(&polite).contains("ready")).await;
    agent.runtime.end(&polite, PATIENCE).await.unwrap();
    assert_eq!(agent.exit(&polite).await.exit_code, Some(7));
    assert!(agent.log(&polite).contains("bye"));

    let stubborn = fresh_id();
    let script = "trap '' TERM; echo ready; while :; do sleep 0.01; done";
    agent.runtime.create(order(&stubborn, script)).await.unwrap();
    until("it is ready", || agent.log(&stubborn).contains("ready")).await;
    let begun = Instant::now();
    agent.runtime.end(&stubborn, Duration::from_millis(300)).await.unwrap();
    let exit = agent.exit(&stubborn).await;
    assert_eq!((exit.exit_code, exit.reason.as_str()), (Some(137), "killed by SIGKILL (9)"));
    assert!(begun.elapsed() >= Duration::from_millis(300), "it had its grace period");
    for id in [polite, stubborn] {
        agent.runtime.remove(&id, Duration::ZERO).await.unwrap();
        agent.nothing_is_left(&id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_workload_dies_of_the_first_signal() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path()).await;
    let id = fresh_id();
    let mut order = order(&id, "");
    Arc::make_mut(&mut order.spec).command = ["sleep", "600"].map(str::to_owned).to_vec();
    agent.runtime.create(order).await.unwrap();
    agent.runtime.end(&id, PATIENCE * 10).await.unwrap();
    assert_eq!(agent.exit(&id).await.reason, "killed by SIGTERM (15)");
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_takes_daemons_and_children_too() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let id = fresh_id();
    let script = "sleep 600 & (setsid sh -c 'trap \"\" TERM; sleep 600 & while :; do sleep 1; done' &); \
                  echo ready; touch file; sleep 600";
    agent.runtime.create(order(&id, script)).await.unwrap();
    until("all of them run", || processes(&id).len() >= 5).await;
    agent.runtime.remove(&id, Duration::from_millis(100)).await.unwrap();
    agent.nothing_is_left(&id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_does_not_outlive_its_workload() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path()).await;
    let id = fresh_id();
    agent.runtime.create(order(&id, "setsid sleep 600 & exit 0")).await.unwrap();
    assert_eq!(agent.exit(&id).await.exit_code, Some(0));
    assert_eq!(processes(&id), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_end_is_delivered_to_the_shim() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path()).await;
    let (id, other) = (fresh_id(), fresh_id());
    let soon = || Some(BootTime::now().after(Duration::from_millis(200)));
    agent.runtime.create(Order { expires_at: soon(), ..order(&id, "sleep 600") }).await.unwrap();
    agent.runtime.instruct(&id, None, None);
    agent.runtime.deliver(&id).await.unwrap();
    // One that was to end after it ends, and it does not.
    agent.runtime.create(Order { expires_at: soon(), ..order(&other, "sleep 600") }).await.unwrap();
    assert!(agent.exit(&other).await.expired);
    assert_eq!(agent.runtime.shared.folder(&id).read_exit().unwrap(), None);
    agent.runtime.instruct(&id, None, None);
    agent.runtime.instruct(&id, soon(), None);
    agent.runtime.deliver(&id).await.unwrap();
    assert!(agent.exit(&id).await.expired);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_has_a_session_and_where_root_namespaces_and_limits_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path()).await;
    let id = fresh_id();
    let script = "ulimit -c; hostname; ls -d /proc/[0-9]* | wc -l; cat /proc/self/cgroup; sleep 600";
    let mut order = order(&id, script);
    let spec = Arc::make_mut(&mut order.spec);
    (spec.cpu_millis, spec.memory_bytes) = (500, 64 << 20);
    agent.runtime.create(order).await.unwrap();
    until("it wrote everything", || agent.log(&id).contains("pids") || agent.log(&id).contains("0::")).await;
    let own = procfs::process::Process::myself().unwrap().stat().unwrap().session;
    for pid in processes(&id) {
        let session = procfs::process::Process::new(pid).unwrap().stat().unwrap().session;
        assert_ne!(session, own);
    }
    let log = agent.log(&id);
    assert!(log.starts_with("0\n"), "no core files: {log}");
    let shared = &agent.runtime.shared;
    if shared.namespaces {
        assert!(log.contains("\nweb\n"), "its own host name: {log}");
        let seen: usize = log.lines().nth(2).unwrap().trim().parse().unwrap();
        assert!(seen < 10, "it sees {seen} processes");
    } else {
        eprintln!("SKIPPED: namespaces need root");
    }
    match &shared.hierarchy {
        Hierarchy::Unavailable(reason) => eprintln!("SKIPPED: no control groups: {reason}"),
        _ => assert!(log.contains(&format!("/{id}\n")), "it is in its groups: {log}"),
    }
    agent.runtime.remove(&id, Duration::from_secs(1)).await.unwrap();
    agent.nothing_is_left(&id);
    assert_eq!(agent.exit(&id).await.exit_code, Some(143));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_hog_is_killed_and_its_reason_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path()).await;
    if !agent.runtime.shared.hierarchy.limits_memory() {
        eprintln!("SKIPPED: no control group limits memory here");
        return;
    }
    let id = fresh_id();
    let mut order = order(&id, "x=$(head -c 200000000 /dev/zero | tr '\\0' a); echo done");
    Arc::make_mut(&mut order.spec).memory_bytes = 32 << 20;
    agent.runtime.create(order).await.unwrap();
    let exit = agent.exit(&id).await;
    assert!(exit.reason.starts_with("its memory was used up"), "{exit:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_namespaces_and_groups_sandboxes_begin_and_end_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = poor_agent(folder.path()).await;
    let (ends, polite, lingers) = (fresh_id(), fresh_id(), fresh_id());
    agent.runtime.create(order(&ends, "setsid sleep 600 & echo hello; exit 3")).await.unwrap();
    assert_eq!(agent.exit(&ends).await.exit_code, Some(3));
    assert_eq!(agent.log(&ends), "hello\n");
    assert_eq!(processes(&ends), BTreeSet::new(), "the daemon is gone before the exit is told");

    let mut limited =
        order(&polite, "ulimit -v; trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done");
    Arc::make_mut(&mut limited.spec).memory_bytes = 512 << 20;
    agent.runtime.create(limited).await.unwrap();
    until("it is ready", || agent.log(&polite).contains("ready")).await;
    assert!(agent.log(&polite).starts_with("524288\n"), "its address space is limited instead");
    agent.runtime.end(&polite, PATIENCE).await.unwrap();
    assert_eq!(agent.exit(&polite).await.exit_code, Some(7));

    let script = "(setsid sh -c 'trap \"\" TERM; sleep 600 & while :; do sleep 1; done' &); sleep 600";
    agent.runtime.create(order(&lingers, script)).await.unwrap();
    until("all of them run", || processes(&lingers).len() >= 4).await;
    agent.runtime.remove(&lingers, Duration::from_millis(100)).await.unwrap();
    agent.nothing_is_left(&lingers);
    assert_eq!(agent.exit(&lingers).await.exit_code, Some(143));

    let mut missing = order(&fresh_id(), "");
    Arc::make_mut(&mut missing.spec).command = vec!["no-such-program".to_owned()];
    let id = missing.spec.sandbox_id.clone();
    let error = agent.runtime.create(missing).await.unwrap_err();
    assert!(error.to_string().starts_with("no-such-program: No such file"), "{error}");
    agent.nothing_is_left(&id);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_namespaces_and_groups_a_killed_shim_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = poor_agent(folder.path()).await;
    let id = fresh_id();
    agent.runtime.create(order(&id, "setsid sleep 600 & sleep 600")).await.unwrap();
    until("all of it runs", || processes(&id).len() >= 3).await;
    let shim = agent.runtime.shared.folder(&id).read_process().unwrap().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim.pid), Signal::SIGKILL).unwrap();
    assert!(agent.exit(&id).await.reason.starts_with("vanished"));
    assert_eq!(processes(&id), BTreeSet::new());
}
