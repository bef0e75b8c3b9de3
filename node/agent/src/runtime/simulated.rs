//! Sandboxes that are only said to run: for capacity planning and load tests.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc;

use super::{CreateError, Exited, Recovered, Runtime, RuntimeFault};
use crate::boottime::BootTime;
use crate::config::SimulatedConfig;
use crate::lease::{LeaseKeeper, LeaseTerms};
use crate::plan::Ended;
use crate::spec::SandboxSpec;
use crate::table::Order;

/// A runtime that starts nothing. What it "runs" is gone with the process.
#[derive(Debug)]
pub struct Simulated {
    start_time: Duration,
    failure_rate: f64,
    dice: Mutex<StdRng>,
    running: Mutex<BTreeSet<String>>,
    exits: mpsc::Sender<Exited>,
}

impl Simulated {
    /// One agent's runtime. `index` tells the agents of one process apart, so that each has dice of its own.
    pub fn new(config: &SimulatedConfig, index: u64, exits: mpsc::Sender<Exited>) -> Self {
        Self {
            start_time: config.start_time,
            failure_rate: config.failure_rate.clamp(0.0, 1.0),
            dice: Mutex::new(StdRng::seed_from_u64(config.seed.wrapping_add(index))),
            running: Mutex::default(),
            exits,
        }
    }

    fn running(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runtime for Simulated {
    fn admit(&self, _spec: &SandboxSpec) -> Result<(), String> {
        Ok(())
    }

    async fn recover(&self) -> Result<Vec<Recovered>, RuntimeFault> {
        Ok(Vec::new())
    }

    async fn create(&self, order: Order) -> Result<(), CreateError> {
        let fails = {
            let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
            dice.random_bool(self.failure_rate)
        };
        if !self.start_time.is_zero() {
            tokio::time::sleep(self.start_time).await;
        }
        if fails {
            return Err(CreateError::Start("the simulated start failed".to_owned()));
        }
        self.running().insert(order.spec.sandbox_id.clone());
        Ok(())
    }

    async fn end(&self, sandbox_id: &str, _grace: Duration) -> Result<(), RuntimeFault> {
        if !self.running().remove(sandbox_id) {
            return Ok(());
        }
        let reason = "exited with code 0".to_owned();
        let exit = Ended { exit_code: Some(0), reason, expired: false, lease_over: false };
        // The receiver is gone only when the agent is: then nobody waits for the exit.
        let _ = self.exits.send(Exited { sandbox_id: sandbox_id.to_owned(), exit }).await;
        Ok(())
    }

    async fn remove(&self, sandbox_id: &str, _grace: Duration) -> Result<(), RuntimeFault> {
        self.running().remove(sandbox_id);
        Ok(())
    }

    fn instruct(&self, _sandbox_id: &str, _expires_at: Option<BootTime>, _lease: Option<LeaseTerms>) {}

    async fn deliver(&self, _sandbox_id: &str) -> Result<(), RuntimeFault> {
        Ok(())
    }

    /// Nothing that it "runs" was there before it.
    async fn adopt(&self, _sandbox_id: &str, _cluster_id: &str) -> Result<(), RuntimeFault> {
        Ok(())
    }

    /// What only seems to run needs no guard.
    fn lease(&self) -> Option<Arc<LeaseKeeper>> {
        None
    }

    fn log(&self, _sandbox_id: &str) -> Result<PathBuf, String> {
        Err("the runtime \"simulated\" keeps no logs".to_owned())
    }

    async fn release(&self) {}
}
