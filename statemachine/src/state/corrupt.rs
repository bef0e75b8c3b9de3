//! A hook for tests of replicas that diverge. It is not there in release builds.

use std::sync::Arc;

use super::State;
use crate::ids::SandboxId;

impl State {
    /// Changes the first sandbox's record behind the back of digests and indexes, as a bit that flips in memory does.
    /// Its id; `None`: there is no sandbox.
    pub fn corrupt_one_record(&mut self) -> Option<SandboxId> {
        let id = self.sandboxes.keys().next()?.clone();
        let sandbox = self.sandboxes.get_mut(&id)?;
        Arc::make_mut(&mut sandbox.status).reason.push_str(" (corrupted by a test)");
        Some(id)
    }
}
