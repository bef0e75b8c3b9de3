//! The heart of the agent: what an input means, given what is known. Pure: no IO, no clock.
//!
//! [`plan`] reads the [`State`] and says what to do, as a list of [`Action`]s. Whoever performs them applies each to the
//! state in the same order ([`State::apply`]) and does its outside part; an action whose outside part fails is not
//! followed by the rest. So a term is on disk before anything of it is obeyed, and a placeholder is in the table before
//! the runtime is called.

mod admission;
mod commands;
mod runtime;
mod state;

use std::fmt;

use crate::boottime::BootTime;
use crate::lease::LeaseTerms;
use crate::ledger::Incarnation;
use crate::spec::SandboxSpec;
use crate::table::{Order, Sandbox};

pub use state::{Fence, Origin, State};

/// Something that has happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A session with a control node has begun.
    Opened {
        /// Its number: higher than that of every session before it, whatever node it is with.
        session: u64,
    },
    /// The session is over; nothing of it comes after this.
    Closed {
        /// Its number.
        session: u64,
    },
    /// The control node has said who it is.
    Welcome {
        /// The session it was said in.
        session: u64,
        /// The cluster of the node.
        cluster_id: String,
        /// The cluster whose agents that one takes over; empty: none.
        predecessor_id: String,
    },
    /// A leader, or one who believes to be, wants something.
    Command(Command),
    /// The runtime has started a sandbox, or could not; in that case nothing of it is left.
    Created {
        /// What it was told to start.
        order: Order,
        /// The reason if it could not.
        result: Result<(), String>,
    },
    /// The workload of a sandbox has ended.
    Exited {
        /// Which.
        sandbox_id: String,
        /// How.
        exit: Ended,
    },
    /// Whoever guards a sandbox has been told its newest lease.
    Instructed {
        /// Which.
        sandbox_id: String,
        /// What was told.
        lease: Option<LeaseTerms>,
    },
    /// A sandbox has got a label.
    Adopted {
        /// Which.
        sandbox_id: String,
        /// The cluster's.
        cluster_id: String,
    },
    /// Nothing of a sandbox is left.
    Removed {
        /// Which.
        sandbox_id: String,
    },
    /// Time has passed.
    Tick,
}

/// How a workload ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The code, or 128 and the signal's number; `None` if nobody saw it.
    pub exit_code: Option<i32>,
    /// For people.
    pub reason: String,
    /// It was ended because its time was over.
    pub expired: bool,
    /// It was ended because its lease was over.
    pub lease_over: bool,
}

/// A command and what fences it.
#[derive(Clone, Debug)]
pub struct Command {
    /// The session it came in.
    pub session: u64,
    /// The term of its sender.
    pub term: u64,
    /// Its place in the session: 1, 2, …
    pub sequence: u64,
    /// Whom it is for.
    pub incarnation: Incarnation,
    /// What is wanted.
    pub body: Body,
}

/// What a command wants.
#[derive(Clone, Debug)]
pub enum Body {
    /// Start this.
    Create(Order),
    /// A create that no agent with this runtime could obey.
    Unusable {
        /// Which.
        sandbox_id: String,
        /// Which assignment of it.
        generation: u64,
        /// Why not.
        reason: String,
    },
    /// Remove it, and every lower generation.
    Terminate {
        /// Which.
        sandbox_id: String,
        /// Up to which generation.
        generation: u64,
    },
    /// Change its end and its lease.
    Update {
        /// Which.
        sandbox_id: String,
        /// Which assignment of it.
        generation: u64,
        /// When its time is over from now on.
        expires_at: Option<BootTime>,
        /// When it has to be dead if no leader is heard of.
        lease: Option<LeaseTerms>,
    },
    /// Label it as ours.
    Adopt {
        /// Which.
        sandbox_id: String,
        /// Which assignment of it.
        generation: u64,
    },
    /// Say what there is.
    Inventory,
}

impl Body {
    /// What the command is about; an inventory is about no sandbox.
    pub fn subject(&self) -> (&str, u64) {
        match self {
            Self::Create(order) => (&order.spec.sandbox_id, order.spec.generation),
            Self::Unusable { sandbox_id, generation, .. }
            | Self::Terminate { sandbox_id, generation }
            | Self::Update { sandbox_id, generation, .. }
            | Self::Adopt { sandbox_id, generation } => (sandbox_id, *generation),
            Self::Inventory => ("", 0),
        }
    }

    /// Makes a create unusable if the runtime can't run such a sandbox.
    pub fn judge(&mut self, admit: impl FnOnce(&SandboxSpec) -> Result<(), String>) {
        if let Self::Create(order) = self
            && let Err(reason) = admit(&order.spec)
        {
            let spec = &order.spec;
            *self =
                Self::Unusable { sandbox_id: spec.sandbox_id.clone(), generation: spec.generation, reason };
        }
    }
}

/// Why a command is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// It does not fit, or can't be run here. Nothing was started.
    Admission,
    /// A higher term has been seen.
    StaleTerm,
    /// A higher generation is known.
    StaleGeneration,
    /// It was for another incarnation.
    WrongIncarnation,
    /// The sandbox bears no label, or another cluster's.
    NotOurs,
}

/// A refusal, as it goes back in the session that the command came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The session.
    pub session: u64,
    /// The highest term seen.
    pub term: u64,
    /// The sequence of the command.
    pub sequence: u64,
    /// What the command was about.
    pub sandbox_id: String,
    /// Which assignment of it.
    pub generation: u64,
    /// The kind.
    pub kind: RefusalKind,
    /// For people.
    pub reason: String,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Remember the session.
    Track { session: u64 },
    /// Forget the session.
    Forget { session: u64 },
    /// The session's node belongs to our cluster.
    Welcomed { session: u64 },
    /// The command has been dealt with.
    Processed { session: u64, sequence: u64 },
    /// Write the cluster into the ledger.
    Join { cluster_id: String },
    /// Write into the ledger that the agent has changed over to another cluster, with what it runs.
    Rehome { cluster_id: String },
    /// Write the term into the ledger.
    RaiseTerm { term: u64 },
    /// From now on this session is the leader's: reports go there.
    Obey { session: u64 },
    /// Put it into the table, in place of what has its id.
    Put(Box<Sandbox>),
    /// Drop it from the table.
    Drop { sandbox_id: String },
    /// Have the runtime start it.
    Create(Order),
    /// Have the runtime end its workload, and keep its record.
    End { sandbox_id: String },
    /// Have the runtime end it and remove everything of it.
    Remove { sandbox_id: String },
    /// Tell whoever keeps watch over it about its new end and lease.
    Instruct { sandbox_id: String, expires_at: Option<BootTime>, lease: Option<LeaseTerms> },
    /// Have the runtime label it.
    Adopt { sandbox_id: String, cluster_id: String },
    /// Tell the leader how it is with this generation.
    Report { sandbox_id: String, generation: u64 },
    /// Tell the sender of a command that it is not obeyed.
    Refuse(Refusal),
    /// Tell everything.
    Inventory { session: u64 },
    /// End the session: its other side breaks the rules, or belongs to a cluster that the agent has left.
    Close { session: u64, reason: String },
    /// End the agent: the node belongs to another cluster.
    WrongCluster { session: u64, theirs: String },
}

/// What `input` means in `state`. `now` is the time at which the input was received.
pub fn plan(state: &State, input: &Input, now: BootTime) -> Vec<Action> {
    match input {
        Input::Opened { session } => vec![Action::Track { session: *session }],
        Input::Closed { session } => vec![Action::Forget { session: *session }],
        Input::Welcome { session, cluster_id, predecessor_id } => {
            welcome(state, *session, cluster_id, predecessor_id)
        }
        Input::Command(command) => commands::plan(state, command),
        Input::Created { order, result } => runtime::created(state, order, result),
        Input::Exited { sandbox_id, exit } => runtime::exited(state, sandbox_id, exit),
        Input::Instructed { sandbox_id, lease } => runtime::instructed(state, sandbox_id, *lease),
        Input::Adopted { sandbox_id, cluster_id } => runtime::adopted(state, sandbox_id, cluster_id),
        Input::Removed { sandbox_id } => runtime::removed(state, sandbox_id),
        Input::Tick => runtime::tick(state, now),
    }
}

fn welcome(state: &State, session: u64, cluster_id: &str, predecessor_id: &str) -> Vec<Action> {
    match state.fence.cluster_id.as_deref() {
        _ if cluster_id.is_empty() => {
            vec![Action::Close { session, reason: "its welcome names no cluster".to_owned() }]
        }
        Some(ours) if ours == cluster_id => vec![Action::Welcomed { session }],
        Some(ours) if ours == predecessor_id => rehome(state, cluster_id),
        Some(_) if state.fence.former.contains_key(cluster_id) => {
            let reason = format!("its node belongs to cluster {cluster_id}, which this agent has left");
            vec![Action::Close { session, reason }]
        }
        Some(_) => vec![Action::WrongCluster { session, theirs: cluster_id.to_owned() }],
        None => vec![Action::Join { cluster_id: cluster_id.to_owned() }, Action::Welcomed { session }],
    }
}

/// Every session begins anew: what was said in the old ones was said to an agent of the old cluster.
fn rehome(state: &State, cluster_id: &str) -> Vec<Action> {
    let reason = format!("this agent changes over to cluster {cluster_id}");
    let close = |session: &u64| Action::Close { session: *session, reason: reason.clone() };
    let mut actions = vec![Action::Rehome { cluster_id: cluster_id.to_owned() }];
    actions.extend(state.fence.sessions.keys().map(close));
    actions
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Track { session } => write!(f, "track session {session}"),
            Self::Forget { session } => write!(f, "forget session {session}"),
            Self::Welcomed { session } => write!(f, "session {session} is welcomed"),
            Self::Processed { session, sequence } => {
                write!(f, "session {session} is processed up to {sequence}")
            }
            Self::Join { cluster_id } => write!(f, "ledger: join cluster {cluster_id}"),
            Self::Rehome { cluster_id } => write!(f, "ledger: change over to cluster {cluster_id}"),
            Self::RaiseTerm { term } => write!(f, "ledger: raise term to {term}"),
            Self::Obey { session } => write!(f, "obey session {session}"),
            Self::Put(sandbox) => write!(f, "table: put {sandbox}"),
            Self::Drop { sandbox_id } => write!(f, "table: drop {sandbox_id}"),
            Self::Create(order) => {
                write!(f, "runtime: create {} generation {}", order.spec.sandbox_id, order.spec.generation)
            }
            Self::End { sandbox_id } => write!(f, "runtime: end {sandbox_id}"),
            Self::Remove { sandbox_id } => write!(f, "runtime: remove {sandbox_id}"),
            Self::Instruct { sandbox_id, expires_at, lease } => {
                let end = expires_at.map_or("never".to_owned(), |at| at.0.to_string());
                let lease = lease.map_or("no lease".to_owned(), |lease| lease.to_string());
                write!(f, "runtime: instruct {sandbox_id}: expires {end}, {lease}")
            }
            Self::Adopt { sandbox_id, cluster_id } => {
                write!(f, "runtime: label {sandbox_id} as cluster {cluster_id}'s")
            }
            Self::Report { sandbox_id, generation } => {
                write!(f, "report {sandbox_id} generation {generation}")
            }
            Self::Refuse(refusal) => write!(
                f,
                "refuse command {} of session {} about {:?} generation {}: {:?}: {}",
                refusal.sequence,
                refusal.session,
                refusal.sandbox_id,
                refusal.generation,
                refusal.kind,
                refusal.reason
            ),
            Self::Inventory { session } => write!(f, "send the inventory to session {session}"),
            Self::Close { session, reason } => write!(f, "close session {session}: {reason}"),
            Self::WrongCluster { session, theirs } => {
                write!(f, "stop: the node of session {session} belongs to cluster {theirs}")
            }
        }
    }
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::table::Phase;
        write!(f, "{} generation {} ", self.order.spec.sandbox_id, self.generation)?;
        match &self.phase {
            Phase::Creating => write!(f, "CREATING"),
            Phase::Running => write!(f, "RUNNING"),
            Phase::Ending => write!(f, "ENDING"),
            Phase::Stopping { creating, next, .. } => {
                write!(f, "STOPPING")?;
                if *creating {
                    write!(f, " after its start")?;
                }
                next.as_ref().map_or(Ok(()), |next| write!(f, ", then generation {}", next.spec.generation))
            }
            Phase::Exited { exit_code, reason } => {
                let code = exit_code.map_or("unknown".to_owned(), |code| code.to_string());
                write!(f, "EXITED with {code} ({reason})")
            }
            Phase::Failed { reason } => write!(f, "FAILED ({reason})"),
        }?;
        if let Some(lease) = self.guarded {
            write!(f, ", under {lease}")?;
        }
        if self.expired { write!(f, ", expired") } else { Ok(()) }
    }
}

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
