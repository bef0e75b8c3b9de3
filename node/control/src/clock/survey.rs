//! Asking the other voters for their clocks.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use sandkeeper_proto::internal::ClockRequest;
use sandkeeper_statemachine::Timestamp;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Clocks, nanos, wall};
use crate::metrics::Metrics;
use crate::raft::LeaderTerm;
use crate::raft::node::RaftNode;
use crate::raft::replica::View;
use crate::raft::types::NodeId;

/// Between two surveys of one term.
const INTERVAL: Duration = Duration::from_secs(10);
/// The longest that one waits for a majority. A leader without one decides nothing anyway.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much longer it waits for those that a majority does not need: with them the middle clock says more.
const COURTESY: Duration = Duration::from_millis(50);
/// Before a survey that found no majority is made again.
const PAUSE: Duration = Duration::from_millis(100);
/// A clock that is further off is somebody's to mend: NTP keeps machines within milliseconds.
const NOTICEABLE: Duration = Duration::from_secs(1);

/// How far a voter's clock is ahead of this node's, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    node: NodeId,
    ahead: i64,
}

/// Agrees on the time of each term in which this node leads, and keeps it right, until `stop`.
pub(crate) async fn keep(raft: RaftNode, clocks: Clocks, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut leads = raft.leadership();
    loop {
        let leadership = *leads.borrow_and_update();
        let surveys = async {
            match leadership {
                Some(leadership) => survey_again_and_again(&raft, &clocks, &metrics, leadership).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leads.changed() => if changed.is_err() { return },
            () = surveys => {}
        }
    }
}

async fn survey_again_and_again(
    raft: &RaftNode,
    clocks: &Clocks,
    metrics: &Metrics,
    LeaderTerm { term }: LeaderTerm,
) {
    loop {
        let view = raft.replica().view();
        let clock = clocks.of(term, view.state.last_time());
        let voters = view.membership.voter_ids().count();
        let readings = survey(raft, &view, voters).await;
        let Some(ahead) = agreement(&readings, voters) else {
            debug!(term, "no majority says what time it is");
            sleep(PAUSE).await;
            continue;
        };
        clock.agree(wall().plus(ahead));
        metrics.clock_skew_seconds.set(-seconds(ahead));
        let skews =
            readings.iter().map(|reading| (reading.node, seconds(reading.ahead.saturating_sub(ahead))));
        clocks.note_skews(term, skews.collect());
        for reading in &readings {
            let off = reading.ahead.saturating_sub(ahead);
            if off.unsigned_abs() > u64::try_from(nanos(NOTICEABLE)).unwrap_or(u64::MAX) {
                let node = name_of(&view, reading.node);
                warn!(
                    node,
                    ahead_seconds = seconds(off),
                    "this node's clock is off: see to its time service (NTP)"
                );
            }
        }
        sleep(INTERVAL).await;
    }
}

/// What the voters' clocks say; this node's own is among them.
async fn survey(raft: &RaftNode, view: &View, voters: usize) -> Vec<Reading> {
    let this = raft.local().node_id;
    let others = view.membership.voter_ids().filter(|id| *id != this).map(|id| ask(raft, view, id));
    let mut others: FuturesUnordered<_> = others.collect();
    let mut readings = vec![Reading { node: this, ahead: 0 }];
    let mut deadline = Instant::now() + PATIENCE;
    let mut is_majority = readings.len() > voters / 2;
    while let Ok(Some(answer)) = timeout_at(deadline, others.next()).await {
        readings.extend(answer);
        if !is_majority && readings.len() > voters / 2 {
            is_majority = true;
            deadline = deadline.min(Instant::now() + COURTESY);
        }
    }
    readings
}

async fn ask(raft: &RaftNode, view: &View, id: NodeId) -> Option<Reading> {
    let address = &view.membership.get_node(&id)?.peer_address;
    let mut client = raft.peers().client(address, Some(id)).ok()?;
    let sent = Instant::now();
    match client.clock(ClockRequest {}).await {
        Ok(answer) => {
            // It read its clock somewhere between the two.
            let middle = wall().plus(-nanos(sent.elapsed() / 2));
            let theirs = Timestamp(answer.into_inner().unix_nanos);
            Some(Reading { node: id, ahead: theirs.0.saturating_sub(middle.0) })
        }
        Err(status) => {
            debug!(peer = name_of(view, id), %status, "it does not say what time it is");
            None
        }
    }
}

/// How far the agreed time is ahead of this node's clock: what the middle one of the voters' clocks says, so that one
/// wrong clock moves nothing, wherever it is. Of two in the middle the one that is behind counts: nobody's sandbox ends
/// early. `None`: no majority has answered.
fn agreement(readings: &[Reading], voters: usize) -> Option<i64> {
    if readings.len() <= voters / 2 {
        return None;
    }
    let mut ahead: Vec<_> = readings.iter().map(|reading| reading.ahead).collect();
    ahead.sort_unstable();
    ahead.get((ahead.len() - 1) / 2).copied()
}

fn seconds(nanos: i64) -> f64 {
    nanos as f64 / 1e9
}

fn name_of(view: &View, node: NodeId) -> String {
    view.membership.get_node(&node).map_or_else(|| node.to_string(), |member| member.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_clock_counts_and_of_two_the_earlier_one() {
        const HOUR: i64 = 3_600_000_000_000;
        let agreed = |ahead: &[i64], voters| {
            let readings = ahead.iter().zip(1..).map(|(ahead, node)| Reading { node, ahead: *ahead });
            agreement(&readings.collect::<Vec<_>>(), voters)
        };
        let table: [(&[i64], usize, Option<i64>); 11] = [
            (&[0], 1, Some(0)),
            (&[0], 2, None),
            (&[0], 3, None),
            (&[0, 5], 3, Some(0)),
            // This node is an hour ahead.
            (&[0, -HOUR], 3, Some(-HOUR)),
            (&[0, -HOUR, -HOUR + 7], 3, Some(-HOUR + 7)),
            // Another one is.
            (&[0, HOUR], 3, Some(0)),
            (&[0, HOUR, 7], 3, Some(7)),
            // One is two hours behind.
            (&[0, -2 * HOUR, 7], 3, Some(0)),
            (&[0, -2 * HOUR, HOUR, 7, 9], 5, Some(7)),
            (&[0, 7], 5, None),
        ];
        for (ahead, voters, expected) in table {
            assert_eq!(agreed(ahead, voters), expected, "{ahead:?} of {voters}");
        }
    }
}
