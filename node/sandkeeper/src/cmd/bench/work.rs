//! Kinds of work.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use futures::{StreamExt, TryStreamExt, stream};
use sandkeeper_client::{Client, ClientError, Code, v1};
use sandkeeper_load::{Found, Load};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep};

use crate::error::CliError;
use crate::output::with_progress;

/// What was made bears this label, with the number of the run.
const LABEL: &str = "sandkeeper-bench";
/// Terminations at a time, when it is cleaned up.
const CLEANERS: usize = 64;
/// What was terminated is gone within this time, or its agent does not answer.
const GONE: Duration = Duration::from_mins(2);
/// Between two looks whether all are gone.
const LOOK: Duration = Duration::from_millis(50);
/// Creates of one stream that wait for their answers.
const IN_FLIGHT: usize = 256;

/// Kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// Creates, one in each call
    Create,
    /// Creates, many in each call, all or nothing; what is counted is sandboxes
    Batch,
    /// Creates, through one stream for each caller
    Stream,
    /// Create, wait until it runs, terminate, wait until it is gone
    Cycle,
    /// Reads of one sandbox, linearizable
    Get,
    /// Reads of one sandbox, as the node that is asked has it
    GetLocal,
}

/// The cluster that is measured.
#[derive(Clone, Debug)]
pub struct Target {
    /// Connections.
    pub clients: Vec<Client>,
    /// Where sandboxes are made.
    pub namespace: String,
    /// What tells this run's sandboxes from all others.
    pub run: String,
    /// Sandboxes in a batch.
    pub batch: u16,
    /// How many names were given.
    pub named: Arc<AtomicU64>,
}

impl Target {
    /// Asks for something, so that a cluster that is not there is told before anything is measured.
    pub async fn check(&self) -> Result<(), CliError> {
        self.clients[0].capacity(v1::ReadOptions::default()).await?;
        Ok(())
    }

    fn client(&self, caller: u16) -> &Client {
        &self.clients[usize::from(caller) % self.clients.len()]
    }

    fn create(&self) -> v1::CreateSandboxRequest {
        v1::CreateSandboxRequest {
            namespace: self.namespace.clone(),
            name: self.name(),
            command: vec!["sleep".to_owned(), "infinity".to_owned()],
            labels: self.label(),
            ..Default::default()
        }
    }

    /// A name that no other sandbox of this run has.
    fn name(&self) -> String {
        format!("bench-{}-{}", self.run, self.named.fetch_add(1, Ordering::Relaxed))
    }

    fn label(&self) -> BTreeMap<String, String> {
        [(LABEL.to_owned(), self.run.clone())].into()
    }

    /// Terminates everything that this run has made.
    async fn clean_up(&self) -> Result<(), CliError> {
        let list = v1::ListSandboxesRequest {
            namespace: self.namespace.clone(),
            label_selector: self.label(),
            ..Default::default()
        };
        let deadline = Instant::now() + GONE;
        let work = async {
            loop {
                let mut made = self.clients[0].list_all(list.clone()).await?.sandboxes;
                if made.is_empty() {
                    return Ok(());
                }
                if Instant::now() > deadline {
                    let (left, label) = (made.len(), format!("{LABEL}={}", self.run));
                    return Err(CliError::Failed(anyhow::anyhow!(
                        "{left} sandboxes are not gone {GONE:?} after they were terminated: `sandkeeper list --label {label}`"
                    )));
                }
                // The others are on their way.
                made.retain(|sandbox| sandbox.phase() != v1::Phase::Terminating);
                if made.is_empty() {
                    sleep(LOOK).await;
                }
                stream::iter((0..).zip(made))
                    .map(|(number, sandbox)| self.terminate(number, sandbox.sandbox_id))
                    .buffer_unordered(CLEANERS)
                    .try_collect::<()>()
                    .await?;
            }
        };
        with_progress("terminating what was made", work).await
    }

    async fn terminate(&self, number: usize, sandbox_id: String) -> Result<(), ClientError> {
        let request = v1::TerminateSandboxRequest { r#ref: Some(by_id(sandbox_id)), ..Default::default() };
        match self.clients[number % self.clients.len()].terminate(request).await {
            // It has ended by itself.
            Err(error) if error.code() == Some(Code::NotFound) => Ok(()),
            ended => ended.map(drop),
        }
    }
}

impl Work {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Batch => "batch",
            Self::Stream => "stream",
            Self::Cycle => "cycle",
            Self::Get => "get",
            Self::GetLocal => "get-local",
        }
    }

    /// One round of it. What it makes is terminated before it returns, and is not measured.
    /// `what` is for the user: what goes on.
    pub async fn run(self, target: &Target, load: Load, what: &str) -> Result<Found, CliError> {
        let round = async {
            match self {
                Self::Create => creates(target, load).await,
                Self::Batch => batches(target, load).await,
                Self::Stream => streams(target, load).await,
                Self::Cycle => cycles(target, load).await,
                Self::Get => reads(target, load, v1::Consistency::Linearizable).await,
                Self::GetLocal => reads(target, load, v1::Consistency::Local).await,
            }
        };
        let found = with_progress(what, round).await;
        target.clean_up().await?;
        found
    }
}

fn by_id(sandbox_id: String) -> v1::SandboxRef {
    v1::SandboxRef { sandbox_id, ..Default::default() }
}

async fn creates(target: &Target, load: Load) -> Result<Found, CliError> {
    let target = target.clone();
    load.run(move |caller, _| {
        let (client, create) = (target.client(caller).clone(), target.create());
        async move { client.create(create).await.map(|_| 1).map_err(|error| code(&error)) }
    })
    .await
    .map_err(panicked)
}

async fn batches(target: &Target, load: Load) -> Result<Found, CliError> {
    let target = target.clone();
    load.run(move |caller, _| {
        let client = target.client(caller).clone();
        let creates: Vec<_> = (0..target.batch).map(|_| target.create()).collect();
        let request = v1::BatchCreateSandboxesRequest {
            namespace: target.namespace.clone(),
            creates,
            ..Default::default()
        };
        async move {
            let made = client.batch_create(request).await.map_err(|error| code(&error))?;
            Ok(made.sandboxes.len() as u64)
        }
    })
    .await
    .map_err(panicked)
}

async fn cycles(target: &Target, load: Load) -> Result<Found, CliError> {
    let target = target.clone();
    load.run(move |caller, _| {
        let (client, create) = (target.client(caller).clone(), target.create());
        async move { cycle(&client, create).await.map(|()| 1).map_err(|error| code(&error)) }
    })
    .await
    .map_err(panicked)
}

async fn cycle(client: &Client, create: v1::CreateSandboxRequest) -> Result<(), ClientError> {
    let id = client.create(create).await?.sandbox.unwrap_or_default().sandbox_id;
    client.wait(by_id(id.clone()), [v1::Phase::Running]).await?;
    let request = v1::TerminateSandboxRequest { r#ref: Some(by_id(id.clone())), ..Default::default() };
    client.terminate(request).await?;
    client.wait(by_id(id), [v1::Phase::Gone]).await.map(drop)
}

async fn reads(target: &Target, load: Load, consistency: v1::Consistency) -> Result<Found, CliError> {
    let made = target.clients[0].create(target.create()).await?;
    let id = made.sandbox.unwrap_or_default().sandbox_id;
    let read = v1::ReadOptions { consistency: consistency.into(), min_revision: made.revision };
    let target = target.clone();
    load.run(move |caller, _| {
        let (client, target) = (target.client(caller).clone(), by_id(id.clone()));
        async move { client.get(target, read).await.map(|_| 1).map_err(|error| code(&error)) }
    })
    .await
    .map_err(panicked)
}

/// Each caller has a stream of its own, and sends as long as there are not too many on their way.
async fn streams(target: &Target, load: Load) -> Result<Found, CliError> {
    if load.rate.is_some() {
        let message = "--rate does not go with --work stream: its creates go as fast as they are answered";
        return Err(CliError::Usage(message.to_owned()));
    }
    let (began, mut callers) = (Instant::now(), JoinSet::new());
    for caller in 0..load.callers {
        callers.spawn(one_stream(target.clone(), caller, began + load.duration));
    }
    let mut found = Found::gather(callers).await.map_err(panicked)?;
    found.took = began.elapsed();
    Ok(found)
}

async fn one_stream(target: Target, caller: u16, end: Instant) -> Found {
    let mut found = Found::default();
    let (mut sender, mut answers) = target.client(caller).create_stream(&target.namespace).split();
    let mut sent: HashMap<u64, Instant> = HashMap::new();
    loop {
        let sends = sent.len() < IN_FLIGHT && Instant::now() < end;
        if !sends && sent.is_empty() {
            return found;
        }
        let began = Instant::now();
        tokio::select! {
            // First, or an answer would seem to take as long as it waits here.
            biased;
            answer = answers.next(), if !sent.is_empty() => match answer {
                Some(Ok(answer)) => {
                    let began = sent.remove(&answer.sequence).unwrap_or(began);
                    found.note(began, answer.result.map(|_| 1).map_err(|error| code(&error)));
                }
                Some(Err(error)) => {
                    found.note(began, Err(code(&error)));
                    return found;
                }
                None => return found,
            },
            // The namespace is the stream's.
            sequence = sender.send(v1::CreateSandboxRequest { namespace: String::new(), ..target.create() }), if sends => {
                match sequence {
                    Some(sequence) => drop(sent.insert(sequence, began)),
                    None => return found,
                }
            }
        }
    }
}

/// What errors are counted by.
fn code(error: &ClientError) -> String {
    let code = match error {
        ClientError::Refused(refusal) => refusal.code_name(),
        ClientError::Unreachable(_) => "UNREACHABLE",
        ClientError::Deadline { .. } => "DEADLINE_EXCEEDED",
        ClientError::Config(_) => "INVALID_ARGUMENT",
    };
    code.to_owned()
}

fn panicked(error: JoinError) -> CliError {
    CliError::Failed(error.into())
}
