//! kill -9 of control nodes.

use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use sandkeeper_client::v1;
use tokio::time::{Instant, sleep};

use super::Fault;
use super::fsync::Slow;
use crate::by_id;
use crate::chaos::rig::Rig;
use crate::chaos::workload::QUIET;

/// How long a client waits for the next leader.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who is killed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Whom {
    Leader,
    Follower,
    All,
}

/// Kills, and starts again.
pub(super) struct Kill {
    whom: Whom,
    gone: bool,
    /// What was done to the disks before, if anything.
    slow: Option<Slow>,
}

impl Kill {
    pub(super) fn of(whom: Whom) -> Self {
        Self { whom, gone: false, slow: None }
    }

    /// All of them, while the disks of all of them are slow: much is under way then.
    pub(super) fn all_with_slow_disks() -> Self {
        Self { whom: Whom::All, gone: false, slow: Some(Slow::everywhere()) }
    }
}

impl Fault for Kill {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            let whom = match self.whom {
                Whom::Leader => vec![rig.leader().await],
                Whom::Follower => vec![rig.follower().await],
                Whom::All => rig.shuffled_nodes(),
            };
            if let Some(slow) = &mut self.slow {
                slow.inject(rig).await?;
                let meanwhile = rig.some_time(300..1_500);
                sleep(meanwhile).await;
            }
            let began = Instant::now();
            self.gone = rig.kill(&whom);
            if let Whom::Leader = self.whom {
                failover(rig, began).await;
            }
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        async move {
            let slow = match &mut self.slow {
                Some(slow) => slow.heal(rig).await?,
                None => true,
            };
            rig.start_missing();
            Ok(self.gone && slow)
        }
        .boxed_local()
    }
}

/// Takes the time until a create is acknowledged that was begun when the leader was killed.
async fn failover(rig: &mut Rig, began: Instant) {
    let alive = rig.running();
    let client = rig.cluster.client_of(&alive).with_deadline(PATIENCE);
    let request = v1::CreateSandboxRequest {
        namespace: "failover".to_owned(),
        name: format!("after-{}", rig.failovers.len()),
        pool_ref: QUIET.to_owned(),
        command: vec!["true".to_owned()],
        ..v1::CreateSandboxRequest::default()
    };
    match client.create(request).await {
        Ok(answer) => {
            rig.failovers.push(began.elapsed().as_secs_f64() * 1_000.0);
            let id = answer.sandbox.unwrap_or_default().sandbox_id;
            let end = v1::TerminateSandboxRequest {
                r#ref: Some(by_id(&id)),
                ..v1::TerminateSandboxRequest::default()
            };
            // If not it stays, and harms nothing.
            let _ = client.terminate(end).await;
        }
        Err(error) => rig.oracle.remark(&format!("no failover: {error}")),
    }
}
