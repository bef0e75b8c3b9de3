//! The decider: the one task, on the leader, that turns commands into entries.
//!
//! It lives for one term, and starts after an entry of that term has been applied here. Group commit: it takes all
//! commands that wait (bounded), decides them one after another on a working copy of the state, proposes one entry,
//! and while that commits decides the next batch on the copy. What it answers rests on entries that have been applied:
//!
//! - A command that made events is answered when its entry has been applied.
//! - A command that made none (a refusal, a duplicate, a no-op) is answered when every entry that the working copy
//!   rested on has been applied, and the leadership was confirmed by a quorum after the decision: by the entry of its own
//!   batch, or by a read index. A deposed leader tells nobody "already exists".
//!
//! When an entry is skipped or its fate unknown, the working copy is worthless: the decider ends, and everything that
//! rested on it is answered with [`Undecided`]; the caller's side tries again with the same request id.

mod batch;
mod queue;
mod supervisor;
mod surroundings;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use planted_bugs::{Bug, planted};
use sandkeeper_statemachine::{
    Actor, CLUSTER_VERSION, Command, Draft, Outcome, Rejection, Request, State, Term,
};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::clock::{Clocks, LeaderClock};
use crate::disk::{DiskSpace, LowDisks};
use crate::metrics::Metrics;
use crate::raft::types::{Applied, EntryData};
use batch::Batch;
pub use queue::{CommandQueue, Full, MAX_QUEUED_BYTES, MAX_QUEUED_COMMANDS, QueueSender, Queued, queue};
pub use supervisor::supervise;
pub use surroundings::{Images, LeaderKnowledge, Teller};

/// Entries on their way at once. Two keep disk and CPU busy at the same time; more help only when the network is far
/// slower than the disk, and make each failure more expensive.
const MAX_IN_FLIGHT: usize = 4;

/// The most commands of one entry: some milliseconds of deciding, so that no answer waits long for the others.
const MAX_BATCH: usize = 2_048;

/// The most bytes of commands that are taken at once: about an entry's worth.
const BATCH_BYTES: usize = 256 * 1024;

/// How often expiry and other work of time is looked at, at most.
const HOUSEKEEPING: Duration = Duration::from_millis(200);

/// How often one look may be repeated at once while there is more to do (each forgets up to 1,000 requests).
const HOUSEKEEPING_ROUNDS: usize = 4;

/// The command was not decided, or its fate is not known. It may be sent again with the same request id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undecided(pub String);

/// Why a command is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Every leader would refuse it in this state.
    Rejected(Rejection),
    /// It is new work, and there is no room for it on the disks.
    DiskLow(LowDisks),
}

/// What becomes of a command.
pub type Answer = Result<Result<Outcome, Refusal>, Undecided>;

/// The fate of a proposed entry.
pub type Fate = BoxFuture<'static, Result<Applied, Undecided>>;

/// What the decider needs of Raft.
pub trait Consensus: Send + Sync + 'static {
    /// Appends an entry as the leader of `term`. The outer future ends when it is in line, in the order of the calls;
    /// the inner when it was applied, or its fate can't be known.
    fn propose(&self, term: Term, entry: EntryData) -> BoxFuture<'_, Result<Fate, Undecided>>;

    /// Ends well if this node is still the leader of `term` by the word of a quorum asked after this call.
    fn confirm(&self, term: Term) -> BoxFuture<'static, Result<(), Undecided>>;
}

/// What a decider has beside state and consensus.
#[derive(Clone)]
pub struct Surroundings {
    /// What placement may use beyond the state.
    pub knowledge: LeaderKnowledge,
    /// Counted here: batches, and how long they take.
    pub metrics: Arc<Metrics>,
    /// The time of each term.
    pub clocks: Clocks,
    /// How much room there is for what is decided.
    pub disk: DiskSpace,
}

/// Runs the decider of one term, until it is cancelled or something that it rests on fails. Commands that are left in
/// the queue stay there.
pub async fn run(
    term: Term,
    state: State,
    queue: &mut CommandQueue,
    consensus: Arc<dyn Consensus>,
    surroundings: Surroundings,
    stop: CancellationToken,
) {
    info!(term, revision = state.revision(), "this node leads; the decider starts");
    let clock = surroundings.clocks.of(term, state.last_time());
    let mut decider = Decider {
        term,
        working: state,
        consensus,
        knowledge: surroundings.knowledge,
        metrics: surroundings.metrics,
        clock,
        disk: surroundings.disk,
        in_flight: FuturesOrdered::new(),
        next_housekeeping: Instant::now(),
    };
    let ended = decider.serve(queue, &stop).await;
    // Whoever comes meanwhile is not kept waiting for the fate of others: it may be long until that is known.
    tokio::select! {
        () = decider.drain(ended.is_ok()) => {}
        () = queue.refuse_all("the decider of this node is ending") => {}
    }
    match ended {
        Ok(()) => info!(term, "the decider ends"),
        Err(why) => warn!(term, %why, "the decider ends, its working copy is void"),
    }
}

struct Decider {
    term: Term,
    working: State,
    consensus: Arc<dyn Consensus>,
    knowledge: LeaderKnowledge,
    metrics: Arc<Metrics>,
    clock: LeaderClock,
    disk: DiskSpace,
    in_flight: FuturesOrdered<BoxFuture<'static, (Batch, Result<Applied, Undecided>)>>,
    next_housekeeping: Instant,
}

impl Decider {
    async fn serve(&mut self, queue: &mut CommandQueue, stop: &CancellationToken) -> Result<(), Undecided> {
        if self.working.cluster().is_none() {
            let command =
                Command::CreateCluster { cluster_id: Uuid::new_v4(), cluster_version: CLUSTER_VERSION };
            self.decide(Vec::new(), vec![command]).await?;
        }
        loop {
            let may_propose = self.in_flight.len() < MAX_IN_FLIGHT;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some((batch, fate)) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    let good = batch.holds(&fate);
                    batch.answer(fate);
                    if !good {
                        return Err(Undecided("an entry was skipped, or its fate is not known".into()));
                    }
                }
                // Before the queue, which may never be empty; it comes once in a while only.
                () = sleep_until(self.next_housekeeping), if may_propose => {
                    self.next_housekeeping = Instant::now() + HOUSEKEEPING;
                    if self.has_housekeeping() {
                        self.decide(Vec::new(), vec![Command::Housekeeping; HOUSEKEEPING_ROUNDS]).await?;
                    }
                }
                commands = queue.take(MAX_BATCH, BATCH_BYTES), if may_propose => {
                    let Some(commands) = commands else { return Ok(()) };
                    self.decide(commands, Vec::new()).await?;
                }
            }
        }
    }

    /// What is in flight is waited for: an entry of ours that commits is answered truly, even now. What stands behind a
    /// failed one rests on it, though, and a confirmation of its own does not mend that.
    async fn drain(&mut self, mut sound: bool) {
        while let Some((batch, fate)) = self.in_flight.next().await {
            sound = sound && batch.holds(&fate);
            let void = || {
                Undecided("an entry that the answer rests on was skipped, or its fate is not known".into())
            };
            batch.answer(if sound { fate } else { Err(void()) });
        }
    }

    fn has_housekeeping(&self) -> bool {
        self.working.next_deadline().is_some_and(|time| time <= self.clock.now())
    }

    /// Decides commands on the working copy, and proposes what comes of them: one entry, or several if they are large.
    /// `own`: commands of the leader itself, as long as they change something.
    async fn decide(&mut self, commands: Vec<Queued>, own: Vec<Command>) -> Result<(), Undecided> {
        self.metrics.batch_commands.observe(commands.len() as f64);
        let mut commands = commands.into_iter();
        let mut own = own.into_iter();
        loop {
            let begun = Instant::now();
            let mut draft = Draft::new(self.working.clone(), self.clock.now());
            let mut batch = Batch::default();
            let mut surroundings = self.knowledge.surroundings();
            let low = self.disk.refusal();
            while !draft.is_full()
                && let Some(command) = own.next()
            {
                let before = draft.len();
                let request = Request { actor: Actor::Leader, id: None, command };
                if let Err(rejection) = draft.decide(&request, &mut surroundings) {
                    warn!(%rejection, "a command of the control plane itself was refused");
                }
                if draft.len() == before {
                    own = Vec::new().into_iter();
                }
            }
            while !draft.is_full()
                && let Some(queued) = commands.next()
            {
                if queued.deadline <= begun || queued.reply.is_closed() {
                    queued.give_up("its deadline passed before it was decided");
                    continue;
                }
                if queued.term.is_some_and(|term| term != self.term) {
                    queued.give_up("it rests on what the leader of another term has observed");
                    continue;
                }
                let before = draft.len();
                let decision = match &low {
                    Some(low) if queued.request.command.is_new_work() => draft
                        .decide_without_events(&queued.request, &mut surroundings)
                        .map_or_else(|| Err(Refusal::DiskLow(low.clone())), as_answer),
                    _ => as_answer(draft.decide(&queued.request, &mut surroundings)),
                };
                if planted(Bug::RejectionBeforeCommit) && draft.len() == before {
                    let _ = queued.reply.send(Ok(decision));
                    continue;
                }
                batch.push(queued.reply, decision);
            }
            self.metrics.decide_seconds.observe(begun.elapsed().as_secs_f64());
            let full = draft.is_full();
            self.propose(draft, batch).await?;
            // Deciding is work without a pause: others on this thread, Raft among them, come first now.
            tokio::task::yield_now().await;
            if !full {
                return Ok(());
            }
        }
    }

    async fn propose(&mut self, draft: Draft, mut batch: Batch) -> Result<(), Undecided> {
        if draft.is_empty() {
            if !batch.is_empty() {
                let confirmed = self.consensus.confirm(self.term);
                // In order behind the entries in flight: those are what these answers rest on.
                self.in_flight.push_back(Box::pin(async move {
                    let fate = confirmed.await.map(|()| Applied::Internal);
                    (batch, fate)
                }));
            }
            return Ok(());
        }
        let (entry, state) = draft.seal(self.term);
        batch.expects(state.revision());
        self.working = state;
        let fate = match self.consensus.propose(self.term, EntryData::new(entry)).await {
            Ok(fate) => fate,
            Err(why) => {
                batch.answer(Err(why.clone()));
                return Err(why);
            }
        };
        let (metrics, proposed) = (Arc::clone(&self.metrics), Instant::now());
        self.in_flight.push_back(Box::pin(async move {
            let fate = fate.await;
            metrics.commit_seconds.observe(proposed.elapsed().as_secs_f64());
            (batch, fate)
        }));
        Ok(())
    }
}

fn as_answer(decision: Result<Outcome, Rejection>) -> Result<Outcome, Refusal> {
    decision.map_err(Refusal::Rejected)
}
