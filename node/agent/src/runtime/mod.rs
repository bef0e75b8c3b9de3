//! How sandboxes are run. One room each: `process`, `simulated`; others (containers) stand beside them.

pub mod process;
pub mod simulated;

use std::error::Error;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::boottime::BootTime;
use crate::files::FileFault;
use crate::lease::{LeaseKeeper, LeaseTerms};
use crate::plan::Ended;
use crate::spec::SandboxSpec;
use crate::table::{Order, Phase};

/// This node can't do what it has to: the agent stops.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeFault {
    /// A file or folder of the data directory.
    #[error(transparent)]
    Files(#[from] FileFault),
    /// A process that can't be got rid of or looked at.
    #[error("processes of sandbox {sandbox_id}: {what}")]
    Processes {
        /// Whose.
        sandbox_id: String,
        /// What is wrong.
        what: String,
    },
}

impl RuntimeFault {
    /// What it says, with its causes: for logs and reports.
    pub fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }
}

/// Why a sandbox does not run.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// It could not be started, and nothing of it is left. For people.
    #[error("{0}")]
    Start(String),
    /// It could not be started, and it is not sure what is left.
    #[error(transparent)]
    Fault(#[from] RuntimeFault),
}

/// The workload of a sandbox has ended by itself, or because it was told to.
#[derive(Clone, Debug)]
pub struct Exited {
    /// Which.
    pub sandbox_id: String,
    /// How.
    pub exit: Ended,
}

/// A sandbox that was there when the agent started.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// What it is, and when its time is over.
    pub order: Order,
    /// Running or exited.
    pub phase: Phase,
    /// It was ended because its time was over.
    pub expired: bool,
    /// It was ended because its lease was over.
    pub lease_over: bool,
}

/// How an agent runs sandboxes.
///
/// For one sandbox the agent calls `create` and `remove` one after the other, never at once; `end`, `instruct` and
/// `deliver` only in between. Exits go to the channel that the runtime was made with.
pub trait Runtime: Send + Sync + 'static {
    /// Why a sandbox of this kind can't be run here at all. Looks at nothing but the spec.
    fn admit(&self, spec: &SandboxSpec) -> Result<(), String>;

    /// What runs or has run here, from what is really there. Called once, before everything else.
    fn recover(&self) -> impl Future<Output = Result<Vec<Recovered>, RuntimeFault>> + Send;

    /// Starts it. When this returns `Ok`, the workload has really been started.
    fn create(&self, order: Order) -> impl Future<Output = Result<(), CreateError>> + Send;

    /// Ends the workload: asks it to, and kills it after `grace`. Its record stays, and its exit will be told.
    fn end(&self, sandbox_id: &str, grace: Duration)
    -> impl Future<Output = Result<(), RuntimeFault>> + Send;

    /// Ends it as `end` does, if it still runs, and removes everything of it. When this returns `Ok`, nothing is left.
    fn remove(
        &self,
        sandbox_id: &str,
        grace: Duration,
    ) -> impl Future<Output = Result<(), RuntimeFault>> + Send;

    /// Notes when its time is over, and its lease, from now on. Notes count in the order of the calls; `deliver` brings
    /// the newest to whoever keeps watch over the sandbox.
    fn instruct(&self, sandbox_id: &str, expires_at: Option<BootTime>, lease: Option<LeaseTerms>);

    /// Delivers the newest instructions. When this returns `Ok`, they hold even if the agent dies.
    fn deliver(&self, sandbox_id: &str) -> impl Future<Output = Result<(), RuntimeFault>> + Send;

    /// Labels what has no label as a cluster's. When this returns `Ok`, the label stays.
    fn adopt(
        &self,
        sandbox_id: &str,
        cluster_id: &str,
    ) -> impl Future<Output = Result<(), RuntimeFault>> + Send;

    /// What is to be told when a leader has acknowledged a heartbeat; `None`: nothing here is kept under a lease.
    fn lease(&self) -> Option<Arc<LeaseKeeper>>;

    /// Where its output is; an error for people if this runtime keeps none.
    fn log(&self, sandbox_id: &str) -> Result<PathBuf, String>;

    /// Lets go of what runs, without ending it, and waits for the runtime's own tasks.
    fn release(&self) -> impl Future<Output = ()> + Send;
}
