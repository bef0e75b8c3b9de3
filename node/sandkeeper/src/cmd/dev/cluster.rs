//! The cluster of `dev`: started, ready, stopped.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use futures::{StreamExt, stream};
use indicatif::ProgressBar;
use nix::sys::signal::Signal;
use sandkeeper_client::{Client, ClientError, v1};
use tokio::time::{sleep, timeout};

use super::launcher::{Exit, Launcher};
use super::layout::{Layout, NodePlace};
use super::processes::{self, Process};
use super::ready::{self, Expected, Watched};
use crate::error::CliError;
use crate::human;
use crate::output::{self, note};

/// Starting takes a second; on a busy machine some.
const READY_DEADLINE: Duration = Duration::from_mins(1);
/// A call while everything is stopped: if the cluster does not answer, it is stopped without.
const END_CALL_DEADLINE: Duration = Duration::from_secs(5);
/// All sandboxes are gone after this time: their grace period is 10 s.
const END_SANDBOXES_DEADLINE: Duration = Duration::from_secs(20);
/// What is left over gets this long to heed SIGTERM.
const LEFT_OVER_GRACE: Duration = Duration::from_secs(3);
/// Between two looks at what is still there.
const PAUSE: Duration = Duration::from_millis(50);
/// Terminates that are sent at once.
const CONCURRENT_TERMINATES: usize = 32;

/// A cluster on this machine.
#[derive(Debug)]
pub struct Cluster {
    layout: Layout,
    /// Its processes.
    pub launcher: Launcher,
    /// A client of all its nodes.
    pub client: Client,
    nodes: Vec<Watched>,
    was_ready: bool,
}

impl Cluster {
    /// Not started yet. Inside of a tokio runtime.
    pub fn new(layout: Layout) -> Result<Self, CliError> {
        let launcher = Launcher::new(layout.logs())?;
        let client = Client::builder().servers(layout.servers()).build()?;
        let clients = client.on_each_server().into_iter();
        let watched = |(place, (_, client)): (&NodePlace, (String, Client))| Watched {
            name: place.name.clone(),
            client,
            http: place.http,
        };
        let nodes = layout.nodes.iter().zip(clients).map(watched).collect();
        Ok(Self { layout, launcher, client, nodes, was_ready: false })
    }

    /// Where everything is.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Keeps data and logs, also those that are temporary.
    pub fn keep_data(&mut self) {
        self.layout.keep();
        note(format!("data and logs are kept in {}", self.layout.root().display()));
    }

    /// Each node's name, and a client of only it.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Client)> {
        self.nodes.iter().map(|node| (node.name.as_str(), &node.client))
    }

    /// Starts all processes, and returns when all is ready, with the time that took.
    pub async fn start(&mut self) -> Result<Duration, CliError> {
        let began = Instant::now();
        for node in &self.layout.nodes {
            self.launcher.start(&self.layout.server_program(node))?;
        }
        for agent in &self.layout.agents {
            self.launcher.start(&self.layout.agent_program(agent))?;
        }
        self.until_ready().await?;
        Ok(began.elapsed())
    }

    /// Starts a node that was killed, and returns when it is ready again.
    pub async fn restart_node(&mut self, name: &str) -> Result<(), CliError> {
        let node = self.layout.nodes.iter().find(|node| node.name == name);
        let node = node.with_context(|| format!("there is no node {name}"))?;
        self.launcher.start(&self.layout.server_program(node))?;
        self.until_ready().await
    }

    async fn until_ready(&mut self) -> Result<(), CliError> {
        let expected = Expected {
            nodes: self.layout.nodes.len(),
            agents: self.layout.agents.len(),
            slots: self.layout.total_slots(),
        };
        // Turns on a terminal, and is not to be seen elsewhere.
        let spinner =
            if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        let mut last = String::new();
        let ready = ready::until_ready(&self.nodes, expected, |missing| {
            missing.clone_into(&mut last);
            spinner.set_message(missing.to_owned());
            spinner.tick();
        });
        let outcome = tokio::select! {
            ready = timeout(READY_DEADLINE, ready) => ready.map_err(|_| None),
            exit = self.launcher.unexpected_exit() => Err(Some(exit)),
        };
        spinner.finish_and_clear();
        match outcome {
            Ok(()) => {
                self.was_ready = true;
                Ok(())
            }
            Err(Some(exit)) => Err(self.died(&exit)),
            Err(None) => Err(CliError::Failed(anyhow!(
                "the cluster is not ready after {} s: {last}; its logs are in {}",
                READY_DEADLINE.as_secs(),
                self.layout.logs().display()
            ))),
        }
    }

    /// Returns when a process ends that should not, and says so, if the rest can go on.
    pub async fn unexpected_exit(&mut self) -> Result<String, CliError> {
        let exit = self.launcher.unexpected_exit().await;
        let (nodes, left) = (self.layout.nodes.len(), self.running_nodes());
        if left <= nodes / 2 {
            let died = self.obituary(&exit);
            return Err(CliError::Failed(anyhow!(
                "{died}\n{left} of {nodes} control nodes are left, which is no majority: nothing can be decided any more"
            )));
        }
        let goes_on = if self.layout.agents.contains(&exit.name) {
            "what it runs stays, and it takes that up again when it is back".to_owned()
        } else {
            format!("{left} of {nodes} control nodes run, and a majority is enough")
        };
        Ok(format!(
            "{}\nThe rest goes on: {goes_on}. To bring {} back:\n  {} {}",
            self.obituary(&exit),
            exit.name,
            program_name(),
            self.layout.program(&exit.name).arguments()
        ))
    }

    /// How many control nodes run, those included that the user has started again by hand.
    fn running_nodes(&self) -> usize {
        let processes = self.processes();
        let runs = |node: &&NodePlace| {
            let folder = node.data_dir.to_string_lossy();
            processes.iter().any(|process| process.command.iter().any(|argument| *argument == folder))
        };
        self.layout.nodes.iter().filter(runs).count()
    }

    fn died(&self, exit: &Exit) -> CliError {
        CliError::Failed(anyhow!("{}", self.obituary(exit)))
    }

    /// What ended, how, and its last words.
    fn obituary(&self, exit: &Exit) -> String {
        let (log, lines) = (self.launcher.log(&exit.name), self.launcher.last_lines(&exit.name));
        let lines: String = lines.lines().flat_map(|line| ["\n  ", line]).collect();
        let pid = exit.pid.map_or_else(String::new, |pid| format!(", pid {pid},"));
        format!("{}{pid} has ended ({}); the last of {}:{lines}", exit.name, exit.how(), log.display())
    }

    /// Each process, its id, where it is, and what it is.
    pub async fn rows(&self) -> Result<Vec<Vec<String>>, CliError> {
        let pid = |name: &str| {
            self.launcher.pid(name).map_or_else(|| human::NONE.to_owned(), |pid| pid.to_string())
        };
        let mut rows = Vec::new();
        for (node, (name, client)) in self.layout.nodes.iter().zip(self.nodes()) {
            let status = client.status().await?;
            rows.push(vec![name.to_owned(), pid(name), node.api.to_string(), status.state]);
        }
        let agents = self.layout.agents.iter();
        rows.extend(agents.map(|id| vec![id.clone(), pid(id), human::NONE.to_owned(), "agent".to_owned()]));
        Ok(rows)
    }

    /// What a person has to know about a cluster that runs.
    pub async fn welcome(&self, took: Duration) -> Result<String, CliError> {
        let layout = &self.layout;
        let mut rows = self.rows().await?;
        for (row, node) in rows.iter_mut().zip(&layout.nodes) {
            row.push(format!("http://{}", node.http));
        }
        let table = output::table(&["NAME", "PID", "ADDRESS", "ROLE", "HTTP (/metrics, /readyz)"], rows);
        let program = program_name();
        let servers = match layout.servers() {
            servers if servers[0].ends_with(":7600") => String::new(),
            servers => format!("  export SANDKEEPER_SERVERS={}\n", servers.join(",")),
        };
        let (root, logs) = (layout.root().display(), layout.logs());
        let logs = logs.display();
        let at_the_end = if layout.is_temporary() { "removes its data" } else { "keeps its data" };
        Ok(format!(
            "Ready in {}: {} control nodes, {}.\n\n{table}\n\ndata   {root}\nlogs   {logs}\n\nTry, in another terminal:\n\
             {servers}  {program} create web -- sh -c 'echo hello; sleep 600'\n  {program} logs web\n  \
             {program} capacity --every-node\n\nCtrl-C ends the sandboxes, stops the cluster and {at_the_end}.",
            human::stopwatch(took),
            layout.nodes.len(),
            layout.agents(),
        ))
    }

    /// Ends all sandboxes, stops all processes, and leaves nothing behind.
    pub async fn shut_down(&mut self) -> Result<(), CliError> {
        // Before it was ready nobody was told of it, and there is no sandbox.
        if self.was_ready
            && let Err(error) = self.end_sandboxes().await
        {
            note(format!("the sandboxes could not be ended through the cluster: {error}"));
        }
        let agents = self.layout.agents.clone();
        self.launcher.stop(|name| agents.iter().any(|agent| agent == name)).await;
        self.launcher.stop(|_| true).await;
        self.end_left_over().await
    }

    /// Terminates every sandbox through the cluster, and returns when all are gone.
    pub async fn end_sandboxes(&self) -> Result<(), ClientError> {
        let client = self.client.with_deadline(END_CALL_DEADLINE);
        let terminates = stream::iter(self.sandboxes(&client).await?).map(|sandbox| {
            let target = v1::SandboxRef { sandbox_id: sandbox.sandbox_id, ..Default::default() };
            let request = v1::TerminateSandboxRequest { r#ref: Some(target), ..Default::default() };
            let client = &client;
            async move { client.terminate(request).await }
        });
        let answers: Vec<_> = terminates.buffer_unordered(CONCURRENT_TERMINATES).collect().await;
        for answer in answers {
            match answer {
                // It is gone already, or going.
                Err(ClientError::Refused(_)) | Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        let gone = async {
            // What an agent holds that has ended can't be confirmed to be gone: that is left to `end_left_over`.
            let awaited = |sandbox: &v1::Sandbox| {
                sandbox.agent_id.is_empty() || self.launcher.pid(&sandbox.agent_id).is_some()
            };
            while self.sandboxes(&client).await?.iter().any(awaited) {
                sleep(PAUSE).await;
            }
            Ok(())
        };
        let failures = Vec::new();
        let too_late = ClientError::Deadline { deadline: END_SANDBOXES_DEADLINE, failures };
        timeout(END_SANDBOXES_DEADLINE, gone).await.unwrap_or(Err(too_late))
    }

    /// All sandboxes, also those that are going away.
    async fn sandboxes(&self, client: &Client) -> Result<Vec<v1::Sandbox>, ClientError> {
        Ok(client.list_all(v1::ListSandboxesRequest::default()).await?.sandboxes)
    }

    /// What still runs of this cluster, its own processes included.
    pub fn processes(&self) -> Vec<Process> {
        processes::of_cluster(self.layout.root(), &self.recorded())
    }

    fn recorded(&self) -> BTreeSet<String> {
        processes::recorded_sandboxes(self.layout.agents.iter().map(|agent| self.layout.root().join(agent)))
    }

    /// The last resort, for sandboxes that their agents did not end.
    async fn end_left_over(&self) -> Result<(), CliError> {
        // A shim that ends removes the record by which its workload is known.
        let recorded = self.recorded();
        let left = || processes::of_cluster(self.layout.root(), &recorded);
        if left().is_empty() {
            return Ok(());
        }
        note(format!("ending what is left over: {}", left().len()));
        for (signal, grace) in [(Signal::SIGTERM, LEFT_OVER_GRACE), (Signal::SIGKILL, LEFT_OVER_GRACE)] {
            processes::signal(&left(), signal);
            let began = Instant::now();
            while !left().is_empty() && began.elapsed() < grace {
                sleep(PAUSE).await;
            }
        }
        let lines: Vec<_> = left().iter().map(Process::line).collect();
        if lines.is_empty() {
            return Ok(());
        }
        Err(CliError::Failed(anyhow!("these processes could not be ended:\n  {}", lines.join("\n  "))))
    }
}

/// How the user started this program, so that what is suggested can be typed.
fn program_name() -> String {
    std::env::args().next().unwrap_or_else(|| "sandkeeper".to_owned())
}
