//! When a snapshot is made: after so many bytes of log, not after so many entries.

use std::time::Duration;

use openraft::Raft;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::disk::DiskSpace;
use crate::raft::replica::Replica;
use crate::raft::snapshots::SnapshotState;
use crate::raft::state_machine::StateMachine;
use crate::raft::types::TypeConfig;

/// A trigger can get lost in openraft (#1829). If no snapshot is being made by then, it is repeated.
const REPEAT_AFTER: Duration = Duration::from_secs(5);

/// How often it is looked whether there is room for a snapshot that is due.
const LOOK: Duration = Duration::from_secs(5);

/// Triggers snapshots until `cancel`, or until Raft stops. One for which there is no room is put off: nothing is purged
/// meanwhile, and the node goes on, while a snapshot that fails stops it.
pub(super) async fn run(
    raft: Raft<TypeConfig, StateMachine>,
    snapshots: SnapshotState,
    replica: Replica,
    space: DiskSpace,
    log_bytes: u64,
    cancel: CancellationToken,
) {
    let mut views = replica.subscribe();
    let mut quiet_until = Instant::now();
    let mut put_off = false;
    loop {
        let due = snapshots.is_due(log_bytes);
        let wait = quiet_until.saturating_duration_since(Instant::now());
        if due && wait.is_zero() {
            if let Err(why) = snapshots.has_room(&space) {
                if !put_off {
                    tracing::warn!(%why, "a snapshot is due, and is put off until there is room for it");
                }
                (put_off, quiet_until) = (true, Instant::now() + LOOK);
                continue;
            }
            put_off = false;
            tracing::info!(bytes = snapshots.bytes_since(), "a snapshot is due");
            if raft.trigger().snapshot().await.is_err() {
                return;
            }
            quiet_until = Instant::now() + REPEAT_AFTER;
            continue;
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(wait), if due => {}
            changed = views.changed() => if changed.is_err() { return },
        }
    }
}
