//! The agents' sessions with this node. Agents dial in, to every control node; a control node dials nobody.

pub mod members;
mod service;
mod session;
mod tunnels;
mod turns;
pub(crate) mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandkeeper_proto::v1;
use sandkeeper_statemachine::{AgentId, AgentSpec, Incarnation, SandboxId};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use service::AgentGate;
pub use tunnels::MAX_TUNNELS;
use tunnels::Tunnels;
pub(crate) use turns::LONGEST_TURN;
pub use turns::Turns;

/// Messages to one agent that wait to be sent. A reconcile that finds it full goes on when there is room.
pub(crate) const OUTBOX: usize = 1_024;

/// Sandboxes of one agent that wait to be looked at by name; beyond it, all of the agent's are looked at.
const MAX_DIRTY: usize = 8_192;

/// What is known of one agent's session with this node, for those beside the session's own task.
#[derive(Debug)]
pub struct Session {
    /// What it said of itself.
    pub spec: AgentSpec,
    /// Which of the agent's sessions with this node it is.
    pub number: u64,
    /// `{agent_id}-{host-and-port}`.
    pub connection_id: String,
    pub(crate) outbox: mpsc::Sender<Result<v1::ServerMessage, tonic::Status>>,
    pub(crate) dirty: Dirty,
    pub(crate) ended: CancellationToken,
    heard: Mutex<Instant>,
}

impl Session {
    /// When it was last heard of.
    pub(crate) fn last_heard(&self) -> Instant {
        *lock(&self.heard)
    }

    pub(crate) fn hear(&self) {
        *lock(&self.heard) = Instant::now();
    }
}

/// What of an agent has to be looked at again. Carries no news: whoever wakes up reads the state.
#[derive(Debug, Default)]
pub struct Dirty {
    marked: Mutex<Marked>,
    wake: Notify,
}

#[derive(Debug, Default)]
pub(crate) struct Marked {
    pub(crate) all: bool,
    pub(crate) sandboxes: BTreeSet<SandboxId>,
}

impl Dirty {
    pub(crate) fn mark(&self, id: &SandboxId) {
        let mut marked = lock(&self.marked);
        if marked.sandboxes.len() >= MAX_DIRTY {
            marked.all = true;
            marked.sandboxes.clear();
        }
        if !marked.all {
            marked.sandboxes.insert(id.clone());
        }
        self.wake.notify_one();
    }

    pub(crate) fn mark_all(&self) {
        lock(&self.marked).all = true;
        self.wake.notify_one();
    }

    /// Waits until something is marked, and takes it.
    pub(crate) async fn take(&self) -> Marked {
        loop {
            let taken = std::mem::take(&mut *lock(&self.marked));
            if taken.all || !taken.sandboxes.is_empty() {
                return taken;
            }
            self.wake.notified().await;
        }
    }
}

/// Why a hello opens no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotEntered {
    /// A newer session of the same agent is there.
    Older,
    /// Another ledger under the same name is alive.
    OtherLedger,
}

/// All sessions of this node. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    by_agent: Arc<Mutex<BTreeMap<AgentId, Arc<Session>>>>,
    /// When the agents of sessions that are over were last heard of, until somebody takes it.
    departed: Arc<Mutex<BTreeMap<AgentId, (Incarnation, Instant)>>>,
    tunnels: Tunnels,
}

impl Sessions {
    /// The session of an agent, if it has one with this node right now.
    pub fn get(&self, agent: &AgentId) -> Option<Arc<Session>> {
        lock(&self.by_agent).get(agent).cloned()
    }

    /// The id of an agent's connection with this node.
    pub fn connection_id(&self, agent: &AgentId) -> Option<String> {
        self.get(agent).map(|session| session.connection_id.clone())
    }

    /// How many agents have a session with this node.
    pub fn count(&self) -> usize {
        lock(&self.by_agent).len()
    }

    /// All sessions.
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        lock(&self.by_agent).values().cloned().collect()
    }

    /// A newer session of an agent takes the place of the older one, which is ended. `alive`: an agent that was heard of
    /// within this time lives.
    ///
    /// # Errors
    /// If it is not the newest: an agent obeys only its newest session, and the hello of an older one may be late (two
    /// addresses can lead to one node). Or if the agent lives, with another ledger.
    fn enter(&self, session: Arc<Session>, alive: Duration) -> Result<(), NotEntered> {
        let mut sessions = lock(&self.by_agent);
        if let Some(old) = sessions.get(&session.spec.agent_id) {
            let (was, is) = (old.spec.incarnation, session.spec.incarnation);
            let lives = !old.ended.is_cancelled() && old.last_heard().elapsed() < alive;
            if was.ledger != is.ledger && lives {
                return Err(NotEntered::OtherLedger);
            }
            if was.ledger == is.ledger && (is.start, session.number) < (was.start, old.number) {
                return Err(NotEntered::Older);
            }
            old.ended.cancel();
            self.note_departed(old);
        }
        sessions.insert(session.spec.agent_id.clone(), session);
        Ok(())
    }

    /// An agent that gets no session was heard of all the same.
    fn heard(&self, spec: &AgentSpec) {
        lock(&self.departed).insert(spec.agent_id.clone(), (spec.incarnation, Instant::now()));
    }

    /// Takes a session out, unless a newer one has taken its place.
    fn leave(&self, session: &Arc<Session>) {
        // Before it is out of sight.
        self.note_departed(session);
        let mut sessions = lock(&self.by_agent);
        let id = &session.spec.agent_id;
        if sessions.get(id).is_some_and(|present| Arc::ptr_eq(present, session)) {
            sessions.remove(id);
        }
    }

    /// What a session heard last is not forgotten with it: leases are counted from there.
    fn note_departed(&self, session: &Session) {
        let (incarnation, heard) = (session.spec.incarnation, session.last_heard());
        let mut departed = lock(&self.departed);
        let known = departed.entry(session.spec.agent_id.clone()).or_insert((incarnation, heard));
        if known.1 <= heard {
            *known = (incarnation, heard);
        }
    }

    /// When the agents of sessions that are over were last heard of. Whoever looks at agents' silence takes this after
    /// it has looked at their sessions: what is not in the one is in the other.
    pub(crate) fn take_departed(&self) -> BTreeMap<AgentId, (Incarnation, Instant)> {
        std::mem::take(&mut *lock(&self.departed))
    }

    /// Asks an agent for a sandbox's log. The receiver yields its bytes; dropping it ends the tunnel.
    ///
    /// # Errors
    /// A text for the caller, if the agent can't be asked, or does not answer by `deadline`.
    pub async fn open_logs(
        &self,
        agent: &AgentId,
        sandbox_id: String,
        follow: bool,
        tail_lines: u32,
        deadline: Instant,
    ) -> Result<mpsc::Receiver<Result<Vec<u8>, String>>, String> {
        let Some(session) = self.get(agent) else {
            return Err(format!(
                "agent {agent} has no session with this control node right now: try again, or another node"
            ));
        };
        let logs = v1::LogsRequest { follow, tail_lines };
        let kind = Some(v1::open_tunnel::Kind::Logs(logs));
        self.tunnels.open(&session, sandbox_id, kind, deadline).await
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks here guard is whole after every statement, so a panic elsewhere has not torn it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
