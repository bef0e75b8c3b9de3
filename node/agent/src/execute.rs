//! Does what a plan says, thinly: the state's part by [`State::apply`], the outside part here.
//!
//! Only ledger writes are waited for, because what follows rests on them. Runtime calls become tasks whose results come
//! back through the mailbox; one that fails is tried again until it succeeds, because its sandbox is what the table says
//! only then, and because one workload must not be able to stop the agent of all others. What goes to control nodes never
//! waits: a session whose queue is full is closed, and the inventory that its successor is asked for says everything again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sandkeeper_proto::v1;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::AgentError;
use crate::ledger::{Ledger, LedgerError};
use crate::mailbox::{Link, Message};
use crate::plan::{Action, Input, State};
use crate::runtime::{CreateError, Runtime, RuntimeFault};
use crate::session::Standing;
use crate::table::{Order, Phase};
use crate::tunnel::{self, Source};
use crate::wire;

/// The most tunnels at once: each costs a file and 128 KiB.
const TUNNELS: usize = 256;

/// How long runtime calls go on when the agent ends.
const LATE_CALLS: Duration = Duration::from_secs(4);
/// The first and the longest pause before a runtime call that failed is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Does `call` until it succeeds.
async fn insist<F: Future<Output = Result<(), RuntimeFault>>>(
    what: &str,
    sandbox_id: &str,
    call: impl Fn() -> F,
) {
    let mut pause = FIRST_PAUSE;
    while let Err(fault) = call().await {
        tracing::error!(sandbox_id, fault = fault.with_causes(), "can't {what}; trying again in {pause:?}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What the loop has in its hands to do things with.
pub(crate) struct Executor<R> {
    pub(crate) state: State,
    runtime: Arc<R>,
    ledger: Arc<Mutex<Ledger>>,
    links: BTreeMap<u64, Link>,
    /// Generations whose news the leader has not been told.
    unreported: BTreeSet<(String, u64)>,
    /// For those who read logs: cancelled when the sandbox writes no more.
    endings: HashMap<String, CancellationToken>,
    standing: watch::Sender<Standing>,
    mailbox: mpsc::Sender<Message>,
    tasks: TaskTracker,
    tunnels: Arc<Semaphore>,
    token: CancellationToken,
    host: String,
    grace: Duration,
    data_dir: PathBuf,
}

/// What an executor is made of.
pub(crate) struct Parts<R> {
    pub(crate) state: State,
    pub(crate) runtime: Arc<R>,
    pub(crate) ledger: Ledger,
    pub(crate) standing: watch::Sender<Standing>,
    pub(crate) mailbox: mpsc::Sender<Message>,
    pub(crate) token: CancellationToken,
    pub(crate) host: String,
    pub(crate) grace: Duration,
    pub(crate) data_dir: PathBuf,
}

impl<R: Runtime> Executor<R> {
    pub(crate) fn new(parts: Parts<R>) -> Self {
        Self {
            state: parts.state,
            runtime: parts.runtime,
            ledger: Arc::new(Mutex::new(parts.ledger)),
            links: BTreeMap::new(),
            unreported: BTreeSet::new(),
            endings: HashMap::new(),
            standing: parts.standing,
            mailbox: parts.mailbox,
            tasks: TaskTracker::new(),
            tunnels: Arc::new(Semaphore::new(TUNNELS)),
            token: parts.token,
            host: parts.host,
            grace: parts.grace,
            data_dir: parts.data_dir,
        }
    }

    /// Does `actions` in their order. An error ends the agent, and nothing after it is done.
    pub(crate) async fn perform(&mut self, actions: Vec<Action>) -> Result<(), AgentError> {
        for action in actions {
            tracing::debug!(%action);
            match &action {
                // Durable before it is true in the state.
                Action::Join { cluster_id } => {
                    let cluster_id = cluster_id.clone();
                    self.write_ledger(move |ledger| ledger.join(&cluster_id)).await?;
                }
                Action::Rehome { cluster_id } => {
                    tracing::warn!(
                        cluster_id,
                        "this agent changes over to another cluster, with what it runs"
                    );
                    let cluster_id = cluster_id.clone();
                    self.write_ledger(move |ledger| ledger.rehome(&cluster_id)).await?;
                }
                Action::RaiseTerm { term } => {
                    let term = *term;
                    self.write_ledger(move |ledger| ledger.raise_term(term)).await?;
                }
                Action::WrongCluster { session, theirs } => return Err(self.wrong_cluster(*session, theirs)),
                _ => {}
            }
            self.state.apply(&action);
            self.perform_outside(action);
        }
        Ok(())
    }

    /// The part of an action that nothing waits for.
    fn perform_outside(&mut self, action: Action) {
        match action {
            Action::Forget { session } => self.close(session),
            Action::Close { session, reason } => {
                tracing::warn!(session, server = self.server(session), reason, "session closed");
                self.close(session);
            }
            Action::Put(sandbox) => {
                if matches!(sandbox.phase, Phase::Exited { .. } | Phase::Failed { .. } | Phase::Creating) {
                    self.end_reading(&sandbox.order.spec.sandbox_id);
                }
            }
            Action::Drop { sandbox_id } => self.end_reading(&sandbox_id),
            Action::Create(order) => self.create(order),
            Action::End { sandbox_id } => {
                let (runtime, grace) = (Arc::clone(&self.runtime), self.grace);
                self.spawn(async move {
                    insist("end a sandbox", &sandbox_id, || runtime.end(&sandbox_id, grace)).await;
                    None
                });
            }
            Action::Remove { sandbox_id } => {
                let (runtime, grace) = (Arc::clone(&self.runtime), self.grace);
                self.spawn(async move {
                    insist("remove a sandbox", &sandbox_id, || runtime.remove(&sandbox_id, grace)).await;
                    Some(Input::Removed { sandbox_id })
                });
            }
            Action::Instruct { sandbox_id, expires_at, lease } => {
                self.runtime.instruct(&sandbox_id, expires_at, lease);
                let runtime = Arc::clone(&self.runtime);
                self.spawn(async move {
                    insist("instruct a sandbox's shim", &sandbox_id, || runtime.deliver(&sandbox_id)).await;
                    Some(Input::Instructed { sandbox_id, lease })
                });
            }
            Action::Adopt { sandbox_id, cluster_id } => {
                let runtime = Arc::clone(&self.runtime);
                self.spawn(async move {
                    insist("label a sandbox", &sandbox_id, || runtime.adopt(&sandbox_id, &cluster_id)).await;
                    Some(Input::Adopted { sandbox_id, cluster_id })
                });
            }
            Action::Report { sandbox_id, generation } => {
                self.unreported.insert((sandbox_id, generation));
            }
            Action::Refuse(refusal) => {
                tracing::info!(
                    sandbox_id = refusal.sandbox_id, generation = refusal.generation,
                    kind = ?refusal.kind, reason = refusal.reason, "command refused"
                );
                // A refusal names the last command that was processed: what the commands before it did is told first, or
                // the leader would take what it has not heard of for absent.
                self.flush();
                self.send(refusal.session, vec![wire::refusal(&refusal)]);
            }
            Action::Inventory { session } => {
                let processed = self.state.fence.sessions.get(&session).map_or(0, |fence| fence.processed);
                let parts = wire::inventory(&self.state, processed, &self.host);
                self.send(session, parts);
            }
            Action::Track { .. }
            | Action::Welcomed { .. }
            | Action::Processed { .. }
            | Action::Join { .. }
            | Action::Rehome { .. }
            | Action::RaiseTerm { .. }
            | Action::Obey { .. }
            | Action::WrongCluster { .. } => {}
        }
    }

    /// Tells the leader what is new, as it is now, and sessions how much is in use.
    pub(crate) fn flush(&mut self) {
        let standing = Standing {
            cluster_id: self.state.fence.cluster_id.clone().unwrap_or_default(),
            term: self.state.fence.term,
            used: self.state.table.used(),
        };
        self.standing.send_if_modified(|known| {
            let changed = *known != standing;
            *known = standing;
            changed
        });
        let news = std::mem::take(&mut self.unreported);
        // Without a leader nobody has to be told: the next one asks for the inventory.
        let Some((session, processed)) = self.state.fence.leader() else { return };
        let reports = news
            .iter()
            .map(|(id, generation)| wire::report(&self.state, id, *generation, &self.host))
            .collect();
        self.send(session, wire::reports(self.state.fence.term, processed, reports));
    }

    /// Remembers how to answer in a session.
    pub(crate) fn link(&mut self, session: u64, link: Link) {
        self.links.insert(session, link);
    }

    /// The address of the control node at the other end.
    fn server(&self, session: u64) -> String {
        self.links.get(&session).map_or_else(|| format!("of session {session}"), |link| link.server.clone())
    }

    fn send(&mut self, session: u64, messages: Vec<v1::AgentMessage>) {
        let Some(link) = self.links.get(&session) else { return };
        for message in messages {
            if link.outbound.try_send(message).is_err() {
                tracing::warn!(
                    session,
                    server = link.server,
                    "the control node does not read: session closed"
                );
                link.close.cancel();
                self.links.remove(&session);
                return;
            }
        }
    }

    fn close(&mut self, session: u64) {
        if let Some(link) = self.links.remove(&session) {
            link.close.cancel();
        }
    }

    fn wrong_cluster(&self, session: u64, theirs: &str) -> AgentError {
        AgentError::WrongCluster {
            server: self.server(session),
            theirs: theirs.to_owned(),
            ours: self.state.fence.cluster_id.clone().unwrap_or_default(),
            data_dir: self.data_dir.clone(),
        }
    }

    async fn write_ledger(
        &self,
        write: impl FnOnce(&mut Ledger) -> Result<(), LedgerError> + Send + 'static,
    ) -> Result<(), AgentError> {
        let ledger = Arc::clone(&self.ledger);
        let written = tokio::task::spawn_blocking(move || {
            write(&mut ledger.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match written.await {
            Ok(result) => Ok(result?),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn create(&self, order: Order) {
        let runtime = Arc::clone(&self.runtime);
        self.spawn(async move {
            let id = &order.spec.sandbox_id;
            let result = match runtime.create(order.clone()).await {
                Ok(()) => Ok(()),
                Err(CreateError::Start(reason)) => Err(reason),
                Err(CreateError::Fault(fault)) => {
                    // "Failed" means that nothing is left.
                    insist("clear a failed start", id, || runtime.remove(id, Duration::ZERO)).await;
                    Err(fault.with_causes())
                }
            };
            Some(Input::Created { order, result })
        });
    }

    /// Runs a runtime call beside the loop. One that fails again and again ends with the agent.
    fn spawn(&self, call: impl Future<Output = Option<Input>> + Send + 'static) {
        let mailbox = self.mailbox.clone();
        let token = self.token.clone();
        self.tasks.spawn(async move {
            // When the agent ends, calls under way get some time to end too.
            let late = async {
                token.cancelled().await;
                tokio::time::sleep(LATE_CALLS).await;
            };
            tokio::select! {
                input = call => if let Some(input) = input {
                    // The loop is gone only when the agent ends: what is there then is found at the next start.
                    let _ = mailbox.send(Message::Runtime(input)).await;
                },
                () = late => {}
            }
        });
    }

    fn end_reading(&mut self, sandbox_id: &str) {
        if let Some(ending) = self.endings.remove(sandbox_id) {
            ending.cancel();
        }
    }

    /// Opens the tunnel that a control node asked for.
    pub(crate) fn open_tunnel(&mut self, session: u64, request: v1::OpenTunnel) {
        let Some(link) = self.links.get(&session) else { return };
        let Some(v1::open_tunnel::Kind::Logs(logs)) = request.kind else {
            tracing::warn!(session, tunnel_id = request.tunnel_id, "a tunnel of unknown kind was asked for");
            return;
        };
        let lease = link.lease.clone();
        let permit = Arc::clone(&self.tunnels).try_acquire_owned();
        let source = match &permit {
            Ok(_) => self.log_source(&request.sandbox_id),
            Err(_) => Err(format!("{TUNNELS} tunnels are open already")),
        };
        let token = self.token.clone();
        self.tasks.spawn(async move {
            tunnel::run(&lease, request.tunnel_id, source, logs, token).await;
            drop(permit);
        });
    }

    fn log_source(&mut self, sandbox_id: &str) -> Result<Source, String> {
        let sandbox = self.state.table.get(sandbox_id).ok_or("the agent has no such sandbox")?;
        let path = self.runtime.log(sandbox_id)?;
        let ended = match sandbox.phase {
            Phase::Exited { .. } | Phase::Failed { .. } => {
                let ended = CancellationToken::new();
                ended.cancel();
                ended
            }
            _ => self.endings.entry(sandbox_id.to_owned()).or_default().clone(),
        };
        Ok(Source { path, ended })
    }

    /// Waits for runtime calls that are under way, but not for ever.
    pub(crate) async fn finish(self, deadline: Duration) {
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                "the agent ends in the middle of runtime calls; the next start takes up what is there"
            );
        }
    }
}
