//! The agent as a whole: its start, its one loop, its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use planted_bugs::{Bug, planted};
use sandkeeper_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::boottime::BootTime;
use crate::config::{AgentConfig, RuntimeConfig};
use crate::error::AgentError;
use crate::execute::{Executor, Parts};
use crate::ledger::Ledger;
use crate::mailbox::{self, Message};
use crate::plan::{Fence, Input, State, plan};
use crate::runtime::process::ProcessRuntime;
use crate::runtime::{Exited, Recovered, Runtime};
use crate::session::{self, Connections, Directory, Sessions, Standing};
use crate::table::{Sandbox, Table};
use crate::{simulated, wire};

/// How many messages the loop takes before it tells the leader what is new.
const BATCH: usize = 256;
/// How many exits wait at most for the loop.
const EXITS: usize = 256;
/// The longest that the loop sleeps while a sandbox has a deadline: timers stand still while the machine is suspended,
/// and deadlines do not.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// How long an agent that ends waits for runtime calls that are under way.
const FINISH_DEADLINE: Duration = Duration::from_secs(5);

/// Runs the agent until `token` is cancelled (then `Ok`), or until it can't go on. Process sandboxes run on.
pub async fn run(config: AgentConfig, token: CancellationToken) -> Result<(), AgentError> {
    check(&config)?;
    let RuntimeConfig::Process(process) = config.runtime.clone() else {
        return simulated::run(config, token).await;
    };
    let ledger = open_ledger(&config).await?;
    let (exits, exited) = mpsc::channel(EXITS);
    let runtime =
        ProcessRuntime::open(&config.data_dir, &config.agent_id, process, config.terminate_grace, exits)
            .await?;
    let (directory, look_up) = Directory::new(config.servers.clone(), token.child_token());
    let looking = tokio::spawn(look_up);
    let network =
        Network { connections: Arc::new(Connections::new(session::STREAMS_PER_CONNECTION)), directory };
    let result = drive(config, ledger, runtime, exited, network, token.child_token()).await;
    looking.abort();
    result
}

/// What all agents of a process share.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) connections: Arc<Connections>,
    pub(crate) directory: Directory,
}

/// Refuses settings that can't work.
pub(crate) fn check(config: &AgentConfig) -> Result<(), AgentError> {
    let bad = |what: String| Err(AgentError::Config(what));
    if !crate::spec::is_usable_id(&config.agent_id) {
        return bad(format!(
            "agent id {:?} may only have letters, digits, '-', '_' and '.'",
            config.agent_id
        ));
    }
    if config.servers.is_empty() {
        return bad("no control node is named (--servers)".to_owned());
    }
    if config.heartbeat_interval.is_zero() {
        return bad("the heartbeat interval must not be zero".to_owned());
    }
    if let RuntimeConfig::Simulated(simulated) = &config.runtime {
        if simulated.count == 0 {
            return bad("an agent process needs at least one agent".to_owned());
        }
        if !(0.0..=1.0).contains(&simulated.failure_rate) {
            return bad(format!("failure rate {} is not between 0 and 1", simulated.failure_rate));
        }
    }
    Ok(())
}

pub(crate) async fn open_ledger(config: &AgentConfig) -> Result<Ledger, AgentError> {
    let (data_dir, agent_id) = (config.data_dir.clone(), config.agent_id.clone());
    match tokio::task::spawn_blocking(move || Ledger::open(&data_dir, &agent_id)).await {
        Ok(result) => Ok(result?),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Runs one agent with its runtime, until `token` is cancelled or it can't go on.
pub(crate) async fn drive<R: Runtime>(
    config: AgentConfig,
    ledger: Ledger,
    runtime: R,
    exited: mpsc::Receiver<Exited>,
    network: Network,
    token: CancellationToken,
) -> Result<(), AgentError> {
    let runtime = Arc::new(runtime);
    let mut state = first_state(&config, &ledger);
    for recovered in runtime.recover().await? {
        if planted(Bug::AgentFromZero) {
            continue;
        }
        let Recovered { order, phase, expired, lease_over } = recovered;
        let guarded = order.lease;
        state.table.put(Sandbox { guarded, phase, expired, lease_over, ..Sandbox::creating(order) });
    }
    tracing::info!(
        agent_id = config.agent_id,
        start = state.fence.incarnation.start,
        term = state.fence.term,
        sandboxes = state.table.len(),
        "agent started"
    );
    let (standing, standing_seen) = watch::channel(Standing {
        cluster_id: state.fence.cluster_id.clone().unwrap_or_default(),
        term: state.fence.term,
        used: state.table.used(),
    });
    let (sender, mailbox) = mpsc::channel(mailbox::CAPACITY);
    let sessions = Arc::new(Sessions::new(
        &config,
        &state.fence.incarnation,
        standing_seen,
        sender.clone(),
        network.connections,
        network.directory,
        runtime.lease(),
    ));
    let executor = Executor::new(Parts {
        state,
        runtime: Arc::clone(&runtime),
        ledger,
        standing,
        mailbox: sender,
        token: token.clone(),
        host: config.host,
        grace: config.terminate_grace,
        data_dir: config.data_dir,
    });
    let keeper = tokio::spawn(session::keep(sessions, token.clone()));
    let lease = runtime.lease().map(|lease| tokio::spawn(lease.keep(token.clone())));
    let mut agent = Loop { executor, runtime: Arc::clone(&runtime), mailbox, exited };
    let result = agent.run(&token).await;
    token.cancel();
    agent.close(keeper).await;
    if let Some(lease) = lease
        && let Err(error) = lease.await
    {
        tracing::error!(%error, "the keeper of the lease failed");
    }
    runtime.release().await;
    result
}

fn first_state(config: &AgentConfig, ledger: &Ledger) -> State {
    State {
        fence: Fence {
            incarnation: ledger.incarnation(),
            cluster_id: ledger.cluster_id().map(str::to_owned),
            term: ledger.term(),
            obeyed: 0,
            sessions: BTreeMap::new(),
            former: ledger.former(),
        },
        table: Table::default(),
        capacity: config.capacity,
    }
}

/// The one loop. It alone changes the state.
struct Loop<R> {
    executor: Executor<R>,
    runtime: Arc<R>,
    mailbox: mpsc::Receiver<Message>,
    exited: mpsc::Receiver<Exited>,
}

impl<R: Runtime> Loop<R> {
    async fn run(&mut self, token: &CancellationToken) -> Result<(), AgentError> {
        let mut messages = Vec::with_capacity(BATCH);
        loop {
            let sleep = self.time_to_deadline();
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                _ = self.mailbox.recv_many(&mut messages, BATCH) => {
                    for message in messages.drain(..) {
                        self.take(message).await?;
                    }
                }
                Some(Exited { sandbox_id, exit }) = self.exited.recv() => {
                    self.plan(Input::Exited { sandbox_id, exit }, BootTime::now()).await?;
                }
                () = tokio::time::sleep(sleep.unwrap_or_default()), if sleep.is_some() => {
                    self.plan(Input::Tick, BootTime::now()).await?;
                }
            }
            self.executor.flush();
        }
    }

    fn time_to_deadline(&self) -> Option<Duration> {
        let deadline = self.executor.state.table.next_deadline()?;
        Some(BootTime::now().until(deadline).min(LONGEST_SLEEP))
    }

    async fn plan(&mut self, input: Input, now: BootTime) -> Result<(), AgentError> {
        let actions = plan(&self.executor.state, &input, now);
        self.executor.perform(actions).await
    }

    async fn take(&mut self, message: Message) -> Result<(), AgentError> {
        let now = BootTime::now();
        match message {
            Message::Opened { session, link } => {
                self.executor.link(session, link);
                self.plan(Input::Opened { session }, now).await
            }
            Message::Closed { session } => self.plan(Input::Closed { session }, now).await,
            Message::SentAway { server, reason } => Err(AgentError::SentAway { server, reason }),
            Message::Runtime(input) => self.plan(input, now).await,
            Message::Server { session, message, received, heard } => {
                self.hear(session, *message, received, heard).await
            }
        }
    }

    async fn hear(
        &mut self,
        session: u64,
        message: v1::ServerMessage,
        received: BootTime,
        heard: Option<BootTime>,
    ) -> Result<(), AgentError> {
        use v1::server_message::Body;
        match message.body {
            Some(Body::Welcome(welcome)) => {
                let v1::Welcome { cluster_id, predecessor_id, .. } = welcome;
                self.plan(Input::Welcome { session, cluster_id, predecessor_id }, received).await
            }
            Some(Body::OpenTunnel(request)) => {
                self.executor.open_tunnel(session, request);
                Ok(())
            }
            _ => {
                // A session that obeys is welcomed, so the cluster is known.
                let cluster_id = self.executor.state.fence.cluster_id.clone().unwrap_or_default();
                let Some(mut command) = wire::command(session, message, received, heard, cluster_id) else {
                    return Ok(());
                };
                command.body.judge(|spec| self.runtime.admit(spec));
                self.plan(Input::Command(command), received).await
            }
        }
    }

    /// Ends everything that the loop has begun. Its mailbox is emptied meanwhile, so that nobody waits for it.
    async fn close(self, keeper: tokio::task::JoinHandle<()>) {
        let Self { executor, mut mailbox, exited, .. } = self;
        drop(exited);
        let finish = async {
            if let Err(error) = keeper.await {
                tracing::error!(%error, "the keeper of the sessions failed");
            }
            executor.finish(FINISH_DEADLINE).await;
        };
        tokio::select! {
            () = finish => {}
            () = async { while mailbox.recv().await.is_some() {} std::future::pending().await } => {}
        }
    }
}
