//! Commands: what callers, agents and the leader's own reconcilers ask for. May be refused, never stored.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::event::SandboxUpdate;
use crate::ids::{
    AgentId, Generation, Incarnation, Label, RequestId, Revision, SandboxId, SandboxName, Timestamp,
};
use crate::spec::{Actor, AgentSpec, FailurePolicy, Labels, SandboxSpec};
use crate::state::StreamKey;

/// A command, and who gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Who.
    pub actor: Actor,
    /// Callers' commands carry an id; the same id and command give the same answer.
    pub id: Option<CallerId>,
    /// What.
    pub command: Command,
}

/// The id of a caller's request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerId {
    /// The id.
    pub id: RequestId,
    /// For how long it is remembered, nanoseconds (see [`crate::event::RequestMemory`]).
    pub retention: i64,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first of every history; later ones change nothing.
    CreateCluster {
        /// Drawn by the leader.
        cluster_id: Uuid,
        /// The version of the events that the cluster may hold.
        cluster_version: u32,
    },
    /// Make a sandbox.
    CreateSandbox(Box<CreateSandbox>),
    /// Change what may change.
    UpdateSandbox {
        /// Which.
        target: Target,
        /// What.
        update: SandboxUpdate,
    },
    /// The next generation, please.
    ResetSandbox(Target),
    /// End it.
    TerminateSandbox(Target),
    /// An agent's hello.
    RegisterAgent(Box<AgentSpec>),
    /// It was not heard of for too long, says the leader.
    LoseAgent {
        /// Which.
        agent: AgentId,
        /// The incarnation that was not heard of; a newer one is not meant.
        incarnation: Incarnation,
    },
    /// No new sandboxes for it.
    CordonAgent {
        /// Which.
        agent: AgentId,
        /// Why, for people.
        reason: String,
    },
    /// New sandboxes again.
    UncordonAgent(AgentId),
    /// Take it out of the state.
    RemoveAgent {
        /// Which.
        agent: AgentId,
        /// The operator vouches that it is off.
        fenced: bool,
    },
    /// Find another place for an AUTO_RECREATE sandbox, says the leader: its agent was not heard of for longer than its
    /// lease, or it has failed, and its recovery timeout is over.
    RecoverSandbox {
        /// Which.
        sandbox_id: SandboxId,
        /// The generation that is down; a newer one is not meant.
        generation: Generation,
    },
    /// What an agent says of one generation of a sandbox.
    Report(Report),
    /// Terminate what has expired; fail what has waited too long for capacity; forget old requests; finish what was
    /// too much for one entry. Due at [`crate::State::next_deadline`].
    Housekeeping,
    /// This state goes on as another cluster, says the tool that restores a backup.
    RestoreCluster {
        /// Drawn by the tool.
        cluster_id: Uuid,
    },
    /// The restored state holds, says an operator: what agents run and it does not know is ended, and what it knows is
    /// started and recovered again.
    ConfirmRestore,
    /// The agents of another cluster are this one's from now on.
    RehomeAgents {
        /// The other one; None: the one that the backup was made of.
        from: Option<Uuid>,
    },
    /// Changes nothing: tells what agents run and the state does not know.
    ListUnknown {
        /// On which agent; None: on all.
        agent: Option<AgentId>,
    },
    /// Take sandboxes without a label into the state, as they run.
    AdoptSandboxes {
        /// Whose.
        agent: AgentId,
        /// Where they get their names.
        namespace: Label,
        /// Which; empty: all that can be.
        ids: Vec<SandboxId>,
    },
    /// Recover what this LOST agent ran although many agents were lost with it.
    RecoverAgent(AgentId),
    /// Make all of these sandboxes, or none.
    CreateSandboxes(Vec<CreateSandbox>),
    /// Open a stream of creates.
    OpenStream {
        /// Whose.
        stream: StreamKey,
        /// The client has sent creates before: it must not have been forgotten.
        resume: bool,
        /// See [`StreamPosition`].
        acknowledged_below: u64,
        /// For how long the client is remembered after this, nanoseconds.
        retention: i64,
    },
    /// A stream is still open, says the node that serves it.
    KeepStream {
        /// Whose.
        stream: StreamKey,
        /// Where it stands.
        position: StreamPosition,
        /// For how long the client is remembered after this, nanoseconds.
        retention: i64,
    },
    /// Make a sandbox, in a stream. The request's id says which create it is.
    CreateInStream {
        /// Where the stream stands.
        position: StreamPosition,
        /// The create.
        create: Box<CreateSandbox>,
    },
    /// No new sandboxes for it, and what it runs is to leave.
    DrainAgent {
        /// Which.
        agent: AgentId,
        /// Why, for people.
        reason: String,
        /// For how long that is waited for, nanoseconds; None: as long as it takes.
        deadline: Option<i64>,
        /// What is left at the deadline is ended.
        terminate: bool,
    },
}

impl Command {
    /// Whether it asks for more than there is: a sandbox, or the next generation of one. While there is no room for the
    /// history this waits; what ends something, what tells what is so, and the leader's own upkeep do not.
    pub fn is_new_work(&self) -> bool {
        match self {
            Self::CreateSandbox(_)
            | Self::CreateSandboxes(_)
            | Self::CreateInStream { .. }
            | Self::ResetSandbox(_)
            | Self::AdoptSandboxes { .. } => true,
            Self::CreateCluster { .. }
            | Self::UpdateSandbox { .. }
            | Self::TerminateSandbox(_)
            | Self::RegisterAgent(_)
            | Self::LoseAgent { .. }
            | Self::CordonAgent { .. }
            | Self::UncordonAgent(_)
            | Self::RemoveAgent { .. }
            | Self::RecoverSandbox { .. }
            | Self::Report(_)
            | Self::Housekeeping
            | Self::RestoreCluster { .. }
            | Self::ConfirmRestore
            | Self::RehomeAgents { .. }
            | Self::ListUnknown { .. }
            | Self::RecoverAgent(_)
            | Self::DrainAgent { .. }
            | Self::OpenStream { .. }
            | Self::KeepStream { .. } => false,
        }
    }
}

/// Where a stream of creates stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPosition {
    /// The revision of the event that opened it: what comes from an earlier stream of the same client is refused.
    pub opened: Revision,
    /// The client has the answers of all sequences below, and will never send these again.
    pub acknowledged_below: u64,
}

/// Make a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSandbox {
    /// What it is.
    pub spec: SandboxSpec,
    /// See [`crate::event::SandboxCreated`].
    pub labels: Labels,
    /// When it ends by itself.
    pub expiry: Option<Expiry>,
    /// See [`FailurePolicy`].
    pub failure_policy: FailurePolicy,
    /// Seconds.
    pub recovery_timeout_seconds: u32,
    /// If there is no room: wait for so many nanoseconds instead of being refused.
    pub wait: Option<i64>,
}

/// When a sandbox ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expiry {
    /// Nanoseconds after its create timestamp.
    After(i64),
    /// At this time.
    At(Timestamp),
}

/// Which sandbox a command means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// By id or by name.
    pub sandbox: SandboxRef,
    /// Only if its record is still of this revision.
    pub expected_revision: Option<Revision>,
}

/// Names a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxRef {
    /// That one, whatever it is called now.
    Id {
        /// The namespace that the caller works in: request ids are remembered there.
        namespace: Label,
        /// The id.
        id: SandboxId,
    },
    /// The live one of that name.
    Name(SandboxName),
}

/// What an agent says of one generation of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Who says it.
    pub agent: AgentId,
    /// In which life.
    pub incarnation: Incarnation,
    /// Of which sandbox.
    pub sandbox_id: SandboxId,
    /// Of which generation.
    pub generation: Generation,
    /// What.
    pub state: ReportedState,
}

/// What an agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReportedState {
    /// It runs.
    Running {
        /// Where its ports are reached, `host:port`.
        endpoints: Vec<String>,
        /// The revision of the lease that it is kept under; 0: none.
        lease_revision: Revision,
    },
    /// The workload ended.
    Exited {
        /// If it is known.
        exit_code: Option<i32>,
        /// Why, for people.
        reason: String,
        /// The agent ended it because its time was over.
        expired: bool,
        /// It was ended because its lease was over.
        lease_over: bool,
    },
    /// It could not be started; nothing of it is left.
    StartFailed {
        /// Why, for people.
        reason: String,
    },
    /// It is proven not to be there: absent from an inventory given to this leader's term after its last command.
    Absent,
    /// The agent refused it before anything was started.
    AdmissionRefused {
        /// Why, for people.
        reason: String,
    },
}

impl Command {
    /// Where the id of the command's request is known. None: among the requests about agents and the cluster.
    pub fn namespace(&self) -> Option<Label> {
        match self {
            Self::CreateSandbox(create) | Self::CreateInStream { create, .. } => {
                Some(create.spec.name.namespace.clone())
            }
            Self::CreateSandboxes(creates) => {
                creates.first().map(|create| create.spec.name.namespace.clone())
            }
            Self::UpdateSandbox { target, .. }
            | Self::ResetSandbox(target)
            | Self::TerminateSandbox(target) => match &target.sandbox {
                SandboxRef::Id { namespace, .. } => Some(namespace.clone()),
                SandboxRef::Name(name) => Some(name.namespace.clone()),
            },
            _ => None,
        }
    }

    /// A digest of the canonical form: what tells a retry from another request with the same id. Where its stream stands
    /// is no part of a create.
    ///
    /// # Panics
    /// Never: a command always encodes.
    pub fn digest(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        let config = bincode::config::standard();
        let hashed = match self {
            Self::CreateInStream { create, .. } => {
                bincode::serde::encode_into_std_write(create, &mut hasher, config)
            }
            other => bincode::serde::encode_into_std_write(other, &mut hasher, config),
        };
        hashed.expect("commands are plain data, and a hasher never refuses bytes");
        let mut digest = [0; 16];
        hasher.finalize_xof().fill(&mut digest);
        digest
    }
}
