//! What agents run and the state does not know. Only the leader hears of it; it is no part of the state.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, Generation, SandboxId};
use crate::spec::{Labels, SandboxSpec};

/// Whose label a sandbox bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Origin {
    /// This cluster's, or that of one whose agents it took over: if the state does not know it, it is an orphan.
    Ours,
    /// Nobody's: it ran before Sandkeeper knew it. It may be adopted, and is left alone until then.
    Unlabelled,
    /// Another cluster's. It is left alone.
    Other,
}

/// What each agent that was heard has, and is not in the state; cheap to clone. One that has nothing of the kind has an
/// empty list, one that has not said yet what it runs has none.
pub type UnknownByAgent = imbl::OrdMap<AgentId, Arc<[UnknownSandbox]>>;

/// A sandbox that an agent has, and that is not in the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownSandbox {
    /// Who has it.
    pub agent: AgentId,
    /// Its id there.
    pub id: SandboxId,
    /// Its generation there.
    pub generation: Generation,
    /// Whose label it bears.
    pub origin: Origin,
    /// What it is, if it may be adopted.
    pub adoptable: Option<Box<Adoptable>>,
}

/// What is known of a sandbox that may be adopted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoptable {
    /// How it was started, as its agent says. Its name is its id.
    pub spec: SandboxSpec,
    /// Its labels.
    pub labels: Labels,
}
