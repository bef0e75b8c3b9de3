//! The threads that serve callers and agents, apart from those of Raft.
//!
//! A task keeps its thread until it waits for something. Thousands of callers and agents have tasks by the thousand, and
//! some of them are long (a page of a list, an inventory of 4,096 sandboxes); a heartbeat that stood in line behind them
//! came too late, and a healthy leader was voted out. On threads of its own Raft competes with them only for the
//! processor, which the kernel shares out fairly.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// The runtime of everything that callers and agents can keep busy. Dropped, it ends what is left on it without waiting.
pub(crate) struct Front {
    /// None only while it is dropped.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Front {
    /// Starts its threads: one for each processor.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().thread_name("front").enable_all().build()?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle })
    }

    /// Where to spawn.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // Waiting here would block a thread of Raft's runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
