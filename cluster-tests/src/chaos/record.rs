//! What clients asked, and what they were told: the oracle's only source beside the history.

use std::fmt;
use std::time::Duration;

use sandkeeper_client::v1;

/// One call, from its first byte to its outcome.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Which client made it.
    pub client: String,
    /// Which node was asked.
    pub node: usize,
    /// What was asked.
    pub action: Action,
    /// When it began, since the campaign's start.
    pub began: Duration,
    /// When it ended.
    pub ended: Duration,
    /// The highest revision that anybody had been told when it began.
    pub floor: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum Action {
    /// `CreateSandbox`, or one create of a stream.
    Create {
        /// Where.
        namespace: String,
        /// As what.
        name: String,
        /// Empty: of a stream.
        request_id: String,
    },
    /// `BatchCreateSandboxes`.
    Batch {
        /// Where.
        namespace: String,
        /// How many.
        count: usize,
        /// Of the whole batch.
        request_id: String,
    },
    /// `TerminateSandbox`, `UpdateSandbox` or `ResetSandbox`.
    Change {
        /// Which of them.
        call: &'static str,
        /// Of which sandbox.
        sandbox_id: String,
    },
    /// `GetSandbox`.
    Get {
        /// By what.
        wanted: Wanted,
        /// How fresh.
        read: v1::ReadOptions,
    },
    /// All pages of `ListSandboxes`.
    List {
        /// Of which namespace.
        namespace: String,
        /// How fresh.
        read: v1::ReadOptions,
    },
    /// `GetCapacity`.
    Capacity {
        /// How fresh.
        read: v1::ReadOptions,
    },
}

/// How a sandbox is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// By its id.
    Id(String),
    /// By namespace and name.
    Name(String, String),
}

/// What can come of a call.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A sandbox was made, or had been made by the same request.
    Created {
        /// As it was answered.
        sandbox: Box<v1::Sandbox>,
        /// Of the event that made it.
        revision: u64,
        /// Of the answer.
        at: u64,
    },
    /// The same for a batch.
    CreatedAll {
        /// In the order of the request.
        sandboxes: Vec<v1::Sandbox>,
        /// Of the event that made the first.
        revision: u64,
        /// Of the answer.
        at: u64,
    },
    /// A sandbox, as a change left it, or as it was read.
    Sandbox {
        /// As it was answered.
        sandbox: Box<v1::Sandbox>,
        /// Of the answer.
        at: u64,
    },
    /// Sandboxes of one revision.
    Listed {
        /// Of all pages.
        sandboxes: Vec<v1::Sandbox>,
        /// Of the answer.
        at: u64,
    },
    /// Capacity and digests.
    Capacity(Box<v1::GetCapacityResponse>),
    /// The cluster said no.
    Refused(Refused),
    /// Nobody knows: the call may have had its effect, or have it later.
    Unknown(String),
}

/// A no.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The reason for programs.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The sandbox that stands in the way, if the refusal names one.
    pub holder: Option<String>,
}

impl Outcome {
    /// The revision of the answer, if it has one.
    pub fn revision(&self) -> Option<u64> {
        match self {
            Self::Created { at, .. }
            | Self::CreatedAll { at, .. }
            | Self::Sandbox { at, .. }
            | Self::Listed { at, .. } => Some(*at),
            Self::Capacity(answer) => Some(answer.revision),
            Self::Refused(_) | Self::Unknown(_) => None,
        }
    }

    /// Whether it was answered with what was asked for.
    pub fn is_ok(&self) -> bool {
        self.revision().is_some()
    }
}

impl Operation {
    /// Whether the answer has to reflect everything that was acknowledged before.
    pub fn is_linearizable(&self) -> bool {
        let fresh = |read: &v1::ReadOptions| read.consistency() != v1::Consistency::Local;
        match &self.action {
            Action::Get { read, .. } | Action::List { read, .. } | Action::Capacity { read } => fresh(read),
            Action::Create { .. } | Action::Batch { .. } | Action::Change { .. } => true,
        }
    }

    /// Whether it changes nothing.
    pub fn is_read(&self) -> bool {
        matches!(self.action, Action::Get { .. } | Action::List { .. } | Action::Capacity { .. })
    }

    /// The revision below which no replica may answer.
    pub fn least_revision(&self) -> u64 {
        let asked = match &self.action {
            Action::Get { read, .. } | Action::List { read, .. } | Action::Capacity { read } => {
                read.min_revision
            }
            _ => 0,
        };
        if self.is_linearizable() { self.floor.max(asked) } else { asked }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (began, ended) = (self.began.as_secs_f64(), self.ended.as_secs_f64());
        write!(f, "{began:9.3}-{ended:.3} {} at n{} floor {}: ", self.client, self.node, self.floor)?;
        match &self.action {
            Action::Create { namespace, name, request_id } => {
                write!(f, "create {namespace}/{name} as {request_id}")
            }
            Action::Batch { namespace, count, request_id } => {
                write!(f, "batch of {count} in {namespace} as {request_id}")
            }
            Action::Change { call, sandbox_id } => write!(f, "{call} {sandbox_id}"),
            Action::Get { wanted: Wanted::Id(id), read } => write!(f, "get {id} {}", freshness(read)),
            Action::Get { wanted: Wanted::Name(namespace, name), read } => {
                write!(f, "get {namespace}/{name} {}", freshness(read))
            }
            Action::List { namespace, read } => write!(f, "list {namespace} {}", freshness(read)),
            Action::Capacity { read } => write!(f, "capacity {}", freshness(read)),
        }?;
        match &self.outcome {
            Outcome::Created { sandbox, revision, at } => {
                write!(f, " -> {} made by {revision}, answered at {at}", sandbox.sandbox_id)
            }
            Outcome::CreatedAll { sandboxes, revision, at } => {
                write!(f, " -> {} made from {revision}, answered at {at}", sandboxes.len())
            }
            Outcome::Sandbox { sandbox, at } => {
                let (id, phase) = (&sandbox.sandbox_id, sandbox.phase().as_str_name());
                write!(
                    f,
                    " -> {id} {phase} generation {} of {}, at {at}",
                    sandbox.generation, sandbox.revision
                )
            }
            Outcome::Listed { sandboxes, at } => write!(f, " -> {} at {at}", sandboxes.len()),
            Outcome::Capacity(answer) => write!(f, " -> at {}", answer.revision),
            Outcome::Refused(refused) => write!(f, " -> refused: {} {}", refused.reason, refused.message),
            Outcome::Unknown(why) => write!(f, " -> unknown: {}", why.replace('\n', " ")),
        }
    }
}

fn freshness(read: &v1::ReadOptions) -> String {
    let kind = if read.consistency() == v1::Consistency::Local { "local" } else { "linearizable" };
    if read.min_revision > 0 { format!("({kind}, from {})", read.min_revision) } else { format!("({kind})") }
}
