//! The cluster as a whole: its creation, its restore from a backup, and the agents that it takes over.

use uuid::Uuid;

use crate::decide::Outcome;
use crate::draft::{Cause, Draft};
use crate::event::{EventKind, Subject};
use crate::rejection::Rejection;

impl Draft {
    fn push_cluster(&mut self, cause: &mut Cause, kind: EventKind, reason: String) {
        self.push(cause, Subject::default(), 0, kind, reason);
    }

    pub(super) fn create_cluster(&mut self, cause: &mut Cause, cluster_id: Uuid, cluster_version: u32) {
        if self.state().cluster().is_none() {
            self.push_cluster(
                cause,
                EventKind::ClusterCreated { cluster_id, cluster_version },
                String::new(),
            );
        }
    }

    /// Not a caller's command: the tool that restores a backup gives it, before any node runs on the state.
    pub(super) fn restore_cluster(
        &mut self,
        cause: &mut Cause,
        cluster_id: Uuid,
    ) -> Result<Outcome, Rejection> {
        let Some(cluster) = self.state().cluster() else {
            return Err(Rejection::FailedPrecondition("the backup is of no cluster: it is empty".to_owned()));
        };
        let reason =
            format!("from a backup of cluster {} at revision {}", cluster.id, self.state().revision());
        self.push_cluster(cause, EventKind::ClusterRestored { cluster_id }, reason);
        Ok(Outcome::Done)
    }

    pub(super) fn confirm_restore(&mut self, cause: &mut Cause) -> Result<Outcome, Rejection> {
        if self.state().cluster().is_none_or(|cluster| cluster.restored.is_none()) {
            let text = "this cluster was not restored from a backup: there is nothing to confirm";
            return Err(Rejection::FailedPrecondition(text.to_owned()));
        }
        if self.state().unconfirmed_restore().is_some() {
            self.push_cluster(cause, EventKind::RestoreConfirmed, String::new());
        }
        Ok(Outcome::Done)
    }

    /// `from`: whose agents; None: those of the cluster that the backup was made of.
    pub(super) fn rehome_agents(
        &mut self,
        cause: &mut Cause,
        from: Option<Uuid>,
    ) -> Result<Outcome, Rejection> {
        let cluster = self.state().cluster();
        let restored_from = cluster.and_then(|cluster| cluster.restored).map(|restored| restored.from);
        let Some(from) = from.or(restored_from) else {
            let text = "this cluster was not restored from a backup: name the cluster whose agents it is to take over";
            return Err(Rejection::FailedPrecondition(text.to_owned()));
        };
        if cluster.is_some_and(|cluster| cluster.id == from) {
            return Err(Rejection::invalid(
                "from_cluster_id",
                "is this cluster: its agents are here already",
            ));
        }
        if cluster.is_none_or(|cluster| cluster.predecessor != Some(from)) {
            self.push_cluster(cause, EventKind::AgentsRehomed { from }, String::new());
        }
        Ok(Outcome::Done)
    }
}
