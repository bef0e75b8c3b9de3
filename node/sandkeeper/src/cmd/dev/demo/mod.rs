//! `dev --demo`: what a cluster promises, shown with real programs, and each step checked.

mod steps;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::anyhow;
use sandkeeper_client::{Client, ClientError, v1};
use tokio::time::{sleep, timeout};

use crate::cmd::dev::cluster::Cluster;
use crate::cmd::dev::processes;
use crate::cmd::dev::story::{Story, say};
use crate::error::CliError;
use crate::{human, output};

/// A call of the demo, retries included: longer than an election on a machine that is busy.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// What has to happen within a step, happens within this time.
const STEP_DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// How long the workloads of the demo would run.
const WORKLOAD_SECONDS: u32 = 600;

/// Tells the story. It ends at the first claim that does not hold.
pub async fn tell(cluster: &mut Cluster, story: &mut Story) -> Result<(), CliError> {
    story.title("Sandkeeper: a control plane for sandboxes, on this machine, from one binary.")?;
    start(cluster, story).await?;
    let mut demo =
        Demo { client: cluster.client.with_deadline(CALL_DEADLINE), pids: BTreeMap::new(), cluster, story };
    demo.create_through_each_node().await?;
    demo.one_view_of_capacity().await?;
    demo.fill_it_up().await?;
    demo.retry_a_create().await?;
    let killed = demo.kill_the_leader().await?;
    demo.bring_it_back(&killed).await?;
    demo.same_name_at_once().await?;
    demo.end_everything().await
}

async fn start(cluster: &mut Cluster, story: &mut Story) -> Result<(), CliError> {
    story.step(&format!(
        "Start {} control nodes and {}.",
        cluster.layout().nodes.len(),
        cluster.layout().agents()
    ))?;
    let announcement = cluster.layout().announcement();
    say(announcement.lines().skip(1).collect::<Vec<_>>().join("\n"))?;
    let took = cluster.start().await?;
    let mut rows = cluster.rows().await?;
    let nodes = cluster.layout().nodes.len();
    for row in rows.iter_mut().skip(nodes) {
        row.push(format!("a session with each of {nodes} nodes"));
    }
    let leaders = rows.iter().filter(|row| row[3] == "leader").count();
    say(output::table(&["NAME", "PID", "ADDRESS", "ROLE", ""], rows))?;
    story.check(
        leaders == 1,
        format!("all are ready after {}, and agree on one leader", human::stopwatch(took)),
    )
}

/// What the steps work with.
struct Demo<'a> {
    cluster: &'a mut Cluster,
    story: &'a mut Story,
    client: Client,
    /// Every workload process seen, and the name of its sandbox: none may be left at the end.
    pids: BTreeMap<i32, String>,
}

impl Demo<'_> {
    /// Each node's name and a client of only it.
    fn node_clients(&self) -> Vec<(String, Client)> {
        let one = |(name, client): (&str, &Client)| (name.to_owned(), client.with_deadline(CALL_DEADLINE));
        self.cluster.nodes().map(one).collect()
    }

    /// The sandbox, as soon as it runs.
    async fn until_running(&self, id: &str) -> Result<v1::Sandbox, CliError> {
        let phases = [v1::Phase::Running, v1::Phase::Failed, v1::Phase::Lost];
        let sandbox = self.client.wait(by_id(id), phases).await?.sandbox.unwrap_or_default();
        if sandbox.phase() == v1::Phase::Running {
            return Ok(sandbox);
        }
        let (name, phase, reason) = (&sandbox.name, human::phase(&sandbox), &sandbox.reason);
        Err(CliError::Failed(anyhow!("{name} is {phase}: {reason}")))
    }

    /// The process that a sandbox runs, once it has become the workload.
    async fn pid_of(&mut self, sandbox: &v1::Sandbox) -> Result<i32, CliError> {
        let workload = ["sleep".to_owned(), WORKLOAD_SECONDS.to_string()];
        let looking = async {
            loop {
                let found = processes::of_sandbox(&sandbox.sandbox_id);
                if let Some(process) = found.into_iter().find(|process| process.command == workload) {
                    return process.pid;
                }
                sleep(PAUSE).await;
            }
        };
        let pid = timeout(STEP_DEADLINE, looking).await;
        let pid = pid.map_err(|_| anyhow!("{} is RUNNING, but its process is not there", sandbox.name))?;
        self.pids.insert(pid, sandbox.name.clone());
        Ok(pid)
    }

    /// The first line that a sandbox wrote.
    async fn first_line(&self, client: &Client, name: &str) -> Result<String, CliError> {
        let request = v1::StreamLogsRequest { r#ref: Some(by_name(name)), follow: true, tail_lines: 0 };
        let reading = async {
            let mut logs = client.logs(request).await?;
            let mut text = Vec::new();
            while !text.contains(&b'\n') {
                match logs.next().await? {
                    Some(piece) => text.extend(piece),
                    None => break,
                }
            }
            Ok::<_, ClientError>(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned())
        };
        let line = timeout(STEP_DEADLINE, reading).await;
        Ok(line.map_err(|_| anyhow!("{name} wrote nothing within {} s", STEP_DEADLINE.as_secs()))??)
    }

    /// Every node's capacity, asked until all answer from one revision: late reports of agents still come in.
    async fn same_revision(&self) -> Result<Vec<(String, v1::GetCapacityResponse)>, CliError> {
        let nodes = self.node_clients();
        let asking = async {
            loop {
                let mut answers = Vec::new();
                for (name, client) in &nodes {
                    answers.push((name.clone(), client.capacity(linearizable()).await?));
                }
                if answers.iter().all(|(_, answer)| answer.revision == answers[0].1.revision) {
                    return Ok::<_, ClientError>(answers);
                }
                sleep(PAUSE).await;
            }
        };
        let answers = timeout(STEP_DEADLINE, asking).await;
        Ok(answers.map_err(|_| {
            anyhow!("the nodes do not come to one revision, though nothing is asked of them")
        })??)
    }

    fn check_digests(&mut self, answers: &[(String, v1::GetCapacityResponse)]) -> Result<(), CliError> {
        let digests =
            |answer: &v1::GetCapacityResponse| (answer.history_digest.clone(), answer.state_digest.clone());
        let first = digests(&answers[0].1);
        let equal = !first.0.is_empty()
            && !first.1.is_empty()
            && answers.iter().all(|(_, one)| digests(one) == first);
        let revision = answers[0].1.revision;
        self.story
            .check(equal, format!("at revision {revision} all {} nodes have equal digests", answers.len()))
    }
}

/// A real program: says hello, and then stays.
fn workload(name: &str) -> v1::CreateSandboxRequest {
    let script = format!("echo \"hello from $SANDKEEPER_SANDBOX_NAME\"; exec sleep {WORKLOAD_SECONDS}");
    let command = vec!["sh".to_owned(), "-c".to_owned(), script];
    v1::CreateSandboxRequest { name: name.to_owned(), command, ..Default::default() }
}

fn terminate(target: v1::SandboxRef) -> v1::TerminateSandboxRequest {
    v1::TerminateSandboxRequest { r#ref: Some(target), ..Default::default() }
}

fn by_name(name: &str) -> v1::SandboxRef {
    v1::SandboxRef { namespace: "default".to_owned(), name: name.to_owned(), ..Default::default() }
}

fn by_id(id: &str) -> v1::SandboxRef {
    v1::SandboxRef { sandbox_id: id.to_owned(), ..Default::default() }
}

fn linearizable() -> v1::ReadOptions {
    v1::ReadOptions { consistency: v1::Consistency::Linearizable.into(), min_revision: 0 }
}
