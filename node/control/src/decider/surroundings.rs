//! What only the leader knows: random numbers, and which agents have which image.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};

use sandkeeper_statemachine::{AgentId, Surroundings};
use uuid::Uuid;

/// Which agents have which image, as their heartbeats say.
pub type Images = BTreeMap<String, BTreeSet<AgentId>>;

/// What the leader knows beyond the state. Cheap to clone; written by the sessions, read once a batch.
#[derive(Clone, Debug, Default)]
pub struct LeaderKnowledge {
    images: Arc<RwLock<Arc<Images>>>,
}

impl LeaderKnowledge {
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
    pub(super) fn surroundings(&self) -> Now {
        let images = self.images.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Now { images: Arc::clone(&images) }
    }
}

pub(super) struct Now {
    images: Arc<Images>,
}

impl Surroundings for Now {
    fn new_uuid(&mut self) -> Uuid {
        Uuid::new_v4()
    }

    fn agents_with_image(&self, image: &str) -> Option<&BTreeSet<AgentId>> {
        self.images.get(image)
    }
}
