//! Where the nodes stand, to show that something changed nothing.

use std::time::Duration;

use crate::{Cluster, eventually};

/// Where one node stands: its log and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub node: String,
    /// The end of its log.
    pub last_log_index: u64,
    /// The revision of its state.
    pub revision: u64,
    /// Over all events.
    pub history_digest: String,
    /// Over all records.
    pub state_digest: String,
}

impl Cluster {
    /// Where the running nodes stand, once all of them have applied all of one and the same log.
    pub async fn standing(&self) -> Vec<Standing> {
        self.standing_of(&self.running()).await
    }

    /// Where these nodes stand, once all of them have applied all of one and the same log.
    pub async fn standing_of(&self, nodes: &[usize]) -> Vec<Standing> {
        eventually("the nodes have applied all of one log", || async {
            let mut found: Vec<Standing> = Vec::new();
            for index in nodes {
                let client = self.client_of(&[*index]).with_deadline(Duration::from_secs(5));
                let status = client.status().await.map_err(|error| error.to_string())?;
                if status.applied_index != status.last_log_index {
                    let (applied, last) = (status.applied_index, status.last_log_index);
                    return Err(format!("n{index} has applied {applied} of {last}"));
                }
                found.push(Standing {
                    node: self.nodes[*index].name.clone(),
                    last_log_index: status.last_log_index,
                    revision: status.header.unwrap_or_default().revision,
                    history_digest: status.history_digest,
                    state_digest: status.state_digest,
                });
            }
            let same = found.windows(2).all(|pair| pair[0].last_log_index == pair[1].last_log_index);
            if same { Ok(found) } else { Err(format!("{found:?}")) }
        })
        .await
    }
}
