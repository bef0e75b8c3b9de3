//! What only the leader knows: random numbers, which agents have which image, and what they run that is not in the
//! state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};

use sandkeeper_statemachine::{AgentId, Surroundings, UnknownByAgent, UnknownSandbox};
use uuid::Uuid;

/// Which agents have which image, as their heartbeats say.
pub type Images = BTreeMap<String, BTreeSet<AgentId>>;

/// What the leader knows beyond the state. Cheap to clone; written by the sessions, read once a batch.
#[derive(Clone, Debug, Default)]
pub struct LeaderKnowledge {
    images: Arc<RwLock<Arc<Images>>>,
    unknown: Arc<RwLock<Unknown>>,
}

/// What agents run that is not in the state, and who said so.
#[derive(Debug, Default)]
struct Unknown {
    sandboxes: UnknownByAgent,
    told_by: BTreeMap<AgentId, Teller>,
}

/// A worker of the applier: the session and the term in which it listens to its agent.
pub type Teller = (u64, u64);

impl LeaderKnowledge {
    /// An agent runs just these that are not in the state.
    pub fn set_unknown(&self, agent: &AgentId, teller: Teller, sandboxes: Vec<UnknownSandbox>) {
        let mut unknown = self.unknown.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        unknown.sandboxes.insert(agent.clone(), sandboxes.into());
        unknown.told_by.insert(agent.clone(), teller);
    }

    /// The worker listens no more. What a newer one has said since stays.
    pub fn forget_unknown(&self, agent: &AgentId, teller: Teller) {
        let mut unknown = self.unknown.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if unknown.told_by.get(agent) == Some(&teller) {
            unknown.told_by.remove(agent);
            unknown.sandboxes.remove(agent);
        }
    }

    /// An agent has just these images.
    pub fn set_images(&self, agent: &AgentId, images: &[String]) {
        let mut shared = self.images.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let index = Arc::make_mut(&mut shared);
        index.retain(|_, agents| {
            agents.remove(agent);
            !agents.is_empty()
        });
        for image in images {
            index.entry(image.clone()).or_default().insert(agent.clone());
        }
    }

    /// As it is now, for one batch.
    pub(crate) fn surroundings(&self) -> Now {
        let images = self.images.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let unknown = self.unknown.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Now { images: Arc::clone(&images), unknown: unknown.sandboxes.clone() }
    }
}

pub(crate) struct Now {
    images: Arc<Images>,
    unknown: UnknownByAgent,
}

impl Surroundings for Now {
    fn new_uuid(&mut self) -> Uuid {
        Uuid::new_v4()
    }

    fn agents_with_image(&self, image: &str) -> Option<&BTreeSet<AgentId>> {
        self.images.get(image)
    }

    fn unknown(&self) -> UnknownByAgent {
        self.unknown.clone()
    }
}
