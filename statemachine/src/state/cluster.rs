//! The record of the cluster as a whole.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{Digest, Revision, Timestamp};
use crate::state::digest::digest_of;
use crate::state::{Sandbox, State};

/// What is known of the cluster as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Drawn once; a restore draws another one.
    pub id: Uuid,
    /// Gates new kinds of event.
    pub version: u32,
    /// When it was created.
    pub created: Timestamp,
    /// The cluster whose agents this one takes over, with what they run: an operator has said so.
    pub predecessor: Option<Uuid>,
    /// If it began as a backup of another one.
    pub restored: Option<Restored>,
}

/// Where a restored cluster comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// The cluster that the backup was made of.
    pub from: Uuid,
    /// The last revision of the backup.
    pub revision: Revision,
    /// When it was restored.
    pub time: Timestamp,
    /// Whether an operator has said that the agents are here and that this state holds.
    pub confirmed: bool,
}

impl Cluster {
    pub(crate) fn digest(&self) -> Digest {
        digest_of(&("cluster", self))
    }
}

impl State {
    /// The restore that no operator has confirmed yet. Until then agents may run what the backup has never heard of, and
    /// may not run any more what it has: nothing unknown is ended, and nothing from before is started or recovered.
    pub fn unconfirmed_restore(&self) -> Option<Restored> {
        self.cluster?.restored.filter(|restored| !restored.confirmed)
    }

    /// Whether a sandbox comes from a backup whose restore is not confirmed: it may run elsewhere.
    pub fn is_held_back(&self, sandbox: &Sandbox) -> bool {
        self.unconfirmed_restore().is_some_and(|restored| sandbox.created <= restored.time)
    }

    pub(crate) fn put_cluster(&mut self, cluster: Cluster) {
        if let Some(before) = self.cluster.replace(cluster) {
            self.sum.remove(|| before.digest());
        }
        self.sum.add(|| cluster.digest());
    }
}
