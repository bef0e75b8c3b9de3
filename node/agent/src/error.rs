//! Why an agent stops.

use std::path::PathBuf;

use crate::files::FileFault;
use crate::ledger::LedgerError;
use crate::runtime::RuntimeFault;

/// Why an agent could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The settings can't be used.
    #[error("bad settings: {0}")]
    Config(String),
    /// The ledger can't be used: in use, of another agent, damaged, or not writable.
    #[error("the agent's ledger can't be used")]
    Ledger(#[from] LedgerError),
    /// A file or directory of the data directory can't be used.
    #[error("the agent's data directory can't be used")]
    Files(#[from] FileFault),
    /// The runtime can't do what it has to.
    #[error("the runtime failed")]
    Runtime(#[from] RuntimeFault),
    /// A control node of another cluster answered.
    #[error(
        "control node {server} belongs to cluster {theirs}, but this agent belongs to cluster {ours}: correct --servers, \
         or, if the agent is to move and none of its sandboxes runs any more, start it with another --data-dir than {}",
        data_dir.display()
    )]
    WrongCluster {
        /// The address that answered.
        server: String,
        /// The cluster of that node.
        theirs: String,
        /// The cluster that the ledger names.
        ours: String,
        /// Where the ledger is.
        data_dir: PathBuf,
    },
    /// A control node said that this agent must not come back as it is.
    #[error("control node {server} sent this agent away: {reason}")]
    SentAway {
        /// The address that answered.
        server: String,
        /// What it said.
        reason: String,
    },
}
