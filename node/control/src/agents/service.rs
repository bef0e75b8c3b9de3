//! `AgentService`: where agents dial in.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use sandkeeper_proto::v1::{self, agent_service_server::AgentService};
use sandkeeper_statemachine::{AgentSpec, Cluster};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;
use uuid::Uuid;

use super::session::{self, farewell, goodbye, not_yet};
use super::{Dirty, NotEntered, OUTBOX, Session, Sessions, Turns, wire};
use crate::clock::Clocks;
use crate::commands::Commands;
use crate::decider::LeaderKnowledge;
use crate::metrics::Metrics;
use crate::raft::LeaderTerm;
use crate::raft::replica::Replica;

/// How long an agent may take to say hello, and a new cluster to be created.
const HELLO: Duration = Duration::from_secs(10);

/// Everything that sessions need of this node. Cheap to clone.
#[derive(Clone)]
pub struct AgentGate {
    /// The sessions of this node.
    pub sessions: Sessions,
    /// Where registrations and reports go.
    pub commands: Commands,
    /// The term in which this node leads, once it has applied an entry of it.
    pub leads: watch::Receiver<Option<LeaderTerm>>,
    /// What this node has applied.
    pub replica: Replica,
    /// Where all control nodes are served.
    pub members: watch::Receiver<Vec<String>>,
    /// What placement may use beyond the state.
    pub knowledge: LeaderKnowledge,
    /// Counted here: calls to agents.
    pub metrics: Arc<Metrics>,
    /// The name of this node.
    pub node: String,
    /// An agent that was not heard of for this long is lost.
    pub lost_after: Duration,
    /// The time of each term.
    pub clocks: Clocks,
    /// How long something unknown may stay on an agent.
    pub orphan_grace: Duration,
    /// So that not all agents are registered at once.
    pub turns: Turns,
    /// Ends all sessions.
    pub stop: CancellationToken,
    /// Owns the sessions' tasks.
    pub tasks: TaskTracker,
}

/// Whose an agent is that says hello.
enum Belonging {
    Ours,
    /// Of a cluster whose agents this one takes over.
    Moves,
    /// Of the cluster that this one was restored from: no operator has said yet that it is to move. Why it has to wait.
    Waits(String),
    /// Of another one. What is to be done.
    Elsewhere(String),
}

/// `theirs`: the cluster of the agent; empty: none yet.
fn belonging(cluster: &Cluster, theirs: &str) -> Belonging {
    let is = |id: Option<Uuid>| id.is_some_and(|id| id.to_string() == theirs);
    if theirs.is_empty() || is(Some(cluster.id)) {
        Belonging::Ours
    } else if is(cluster.predecessor) {
        Belonging::Moves
    } else if is(cluster.restored.map(|restored| restored.from)) {
        Belonging::Waits(format!(
            "this agent belongs to cluster {theirs}, of which cluster {} is a restored backup: if it is to move, say so \
             with `sandkeeper agents rehome`",
            cluster.id
        ))
    } else {
        Belonging::Elsewhere(format!(
            "this agent belongs to cluster {theirs}, and this is cluster {}: point it at its own control nodes, give it a \
             new data directory, or let it move with `sandkeeper agents rehome --from {theirs}`",
            cluster.id
        ))
    }
}

type Outbound = BoxStream<'static, Result<v1::ServerMessage, Status>>;

async fn hello_of(inbound: &mut Streaming<v1::AgentMessage>) -> Result<v1::Hello, Status> {
    let message = timeout(HELLO, inbound.message()).await;
    match message.map_err(|_| Status::deadline_exceeded("no hello came"))??.and_then(|message| message.body) {
        Some(v1::agent_message::Body::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("the first message of a session is the agent's hello")),
    }
}

/// Says something in the first place: the channel is new and has room, and whoever calls this has its other end.
fn say_first(outbox: &mpsc::Sender<Result<v1::ServerMessage, Status>>, message: v1::ServerMessage) {
    let _ = outbox.try_send(Ok(message));
}

/// What an agent is told that is not let in.
fn not_entered(refused: NotEntered, spec: &AgentSpec) -> v1::ServerMessage {
    match refused {
        NotEntered::Older => goodbye("a newer session of this agent is there", false),
        NotEntered::OtherLedger => {
            let reason = format!(
                "agent {} is alive with another ledger: give this agent another --agent-id, or stop the other one and wait \
                 until it is lost",
                spec.agent_id
            );
            goodbye(&reason, true)
        }
    }
}

impl AgentGate {
    /// The cluster, which may be about to be created.
    async fn cluster(&self) -> Result<Cluster, Status> {
        let view = self.replica.wait_for(Instant::now() + HELLO, |view| view.state.cluster().is_some()).await;
        let cluster = view.ok().and_then(|view| view.state.cluster());
        cluster.ok_or_else(|| Status::unavailable("the cluster has not been created yet: try again"))
    }

    /// The answer to the hello of an agent that belongs to the cluster `theirs`, and whether a session begins with it.
    fn answer(
        &self,
        cluster: &Cluster,
        spec: &AgentSpec,
        theirs: &str,
        connection_id: &str,
    ) -> (v1::ServerMessage, bool) {
        let welcome = |predecessor_id: &str| {
            wire::welcome(v1::Welcome {
                cluster_id: cluster.id.to_string(),
                node: self.node.clone(),
                connection_id: connection_id.to_owned(),
                predecessor_id: predecessor_id.to_owned(),
            })
        };
        match belonging(cluster, theirs) {
            Belonging::Ours => match self.turns.come_back_in() {
                None => (welcome(""), true),
                Some(retry_after_millis) => {
                    self.sessions.heard(spec);
                    let reason = "more agents than this node takes in at once are here";
                    (farewell(reason, retry_after_millis, false), false)
                }
            },
            // It changes over, and comes back as one of ours.
            Belonging::Moves => (welcome(theirs), false),
            Belonging::Waits(reason) => (not_yet(&reason), false),
            Belonging::Elsewhere(reason) => (goodbye(&reason, true), false),
        }
    }
}

#[tonic::async_trait]
impl AgentService for AgentGate {
    type ConnectStream = Outbound;
    type TunnelStream = BoxStream<'static, Result<v1::TunnelDown, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Outbound>, Status> {
        let peer = request.remote_addr().map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        let mut inbound = request.into_inner();
        let hello = hello_of(&mut inbound).await?;
        let spec = wire::agent_spec(&hello).map_err(Status::invalid_argument)?;
        let cluster = self.cluster().await?;
        let (outbox, receiver) = mpsc::channel(OUTBOX);
        let outbound = ReceiverStream::new(receiver).boxed();
        let connection_id = format!("{}-{}", spec.agent_id, peer.replace(['.', ':'], "-"));
        let (answer, stays) = self.answer(&cluster, &spec, &hello.cluster_id, &connection_id);
        say_first(&outbox, answer);
        if !stays {
            return Ok(Response::new(outbound));
        }
        info!(agent = %spec.agent_id, incarnation = %spec.incarnation, %peer, "a session begins");
        let session = Arc::new(Session {
            spec,
            number: hello.session,
            connection_id,
            outbox,
            dirty: Dirty::default(),
            ended: CancellationToken::new(),
            heard: Mutex::new(Instant::now()),
        });
        if let Err(refused) = self.sessions.enter(Arc::clone(&session), self.lost_after / 2) {
            say_first(&session.outbox, not_entered(refused, &session.spec));
            return Ok(Response::new(outbound));
        }
        let gate = self.clone();
        self.tasks.spawn(async move {
            session::run(Arc::clone(&session), inbound, gate.clone()).await;
            gate.sessions.leave(&session);
        });
        Ok(Response::new(outbound))
    }

    async fn tunnel(
        &self,
        request: Request<Streaming<v1::TunnelUp>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let mut inbound = request.into_inner();
        let first = timeout(HELLO, inbound.message()).await;
        let Ok(Some(first)) = first.map_err(|_| Status::deadline_exceeded("the tunnel stays silent"))? else {
            return Err(Status::invalid_argument("the first message of a tunnel names it"));
        };
        let Some(chunks) = self.sessions.tunnels.dialled(&first.tunnel_id) else {
            return Err(Status::not_found("nobody waits for this tunnel"));
        };
        let (end, ended) = mpsc::channel::<Result<v1::TunnelDown, Status>>(1);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let mut message = Some(first);
            while let Some(v1::TunnelUp { data, error, .. }) = message.take() {
                let failed = !error.is_empty();
                let chunk = if failed { Err(error) } else { Ok(data) };
                let empty = matches!(&chunk, Ok(data) if data.is_empty());
                if (!empty && chunks.send(chunk).await.is_err()) || failed {
                    break;
                }
                message = tokio::select! {
                    () = stop.cancelled() => None,
                    () = chunks.closed() => None,
                    next = inbound.message() => match next {
                        Ok(next) => next,
                        Err(status) => {
                            // If the caller has gone there is nobody to tell.
                            let _ = chunks.send(Err(format!("the agent's tunnel broke: {}", status.message()))).await;
                            None
                        }
                    },
                };
            }
            drop(end); // ends the agent's half
        });
        Ok(Response::new(ReceiverStream::new(ended).boxed()))
    }
}
