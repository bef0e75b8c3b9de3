//! The oracle: hears every event and every operation, and knows whether they can be.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sandkeeper_client::v1;
use tokio::sync::watch;

use super::chronicle::Chronicle;
use super::fold::Fold;
use super::invariants::capacity::Totals;
use super::invariants::digests::Digests;
use super::invariants::durable::{Durable, Heard, acknowledged};
use super::invariants::request_ids::RequestIds;
use super::invariants::watches::Watcher;
use super::invariants::{linearizable, single_life};
use super::record::{Operation, Outcome};
use super::violation::{Breach, Invariant, Violation};
use super::workload::LIVES;
use crate::diary;

/// A refusal is judged this long after it came, when everything that it may rest on is known.
const SETTLES: Duration = Duration::from_secs(1);
/// More violations than this say nothing new.
const ENOUGH: usize = 100;

/// What became of the operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Answered with what was asked for, and changed something.
    pub acknowledged: u64,
    /// Answered, and read something.
    pub read: u64,
    /// Refused.
    pub refused: u64,
    /// Not answered; they were asked again.
    pub unknown: u64,
}

/// Knows everything. Shared by all that watch and work.
#[derive(Debug)]
pub struct Oracle {
    began: Instant,
    /// The highest revision that anybody was told.
    floor: AtomicU64,
    inner: Mutex<Inner>,
    violated: watch::Sender<usize>,
}

#[derive(Debug)]
struct Inner {
    durable: Durable,
    fold: Fold,
    totals: Totals,
    digests: Digests,
    request_ids: RequestIds,
    chronicle: Chronicle,
    /// Of which namespace each event is, as an index, and what these mean.
    spaces: Vec<u16>,
    names: Vec<String>,
    /// Waits for the history to reach a revision.
    later: BTreeMap<u64, Vec<Operation>>,
    /// Refusals, and from when on they can be judged.
    refusals: VecDeque<(Duration, Operation)>,
    /// Which can be judged once the history has reached this.
    settled: VecDeque<(u64, Operation)>,
    counts: Counts,
    checks: BTreeMap<Invariant, u64>,
    violations: Vec<Violation>,
    /// When it was heard that a sandbox is gone, of those that write down their lives: hundredths of a second since boot.
    gone: HashMap<String, u64>,
    /// Generations that live on the agent that the test plays.
    alive: HashSet<(String, u64)>,
}

impl Oracle {
    /// One that knows nothing yet, and writes down what it hears.
    pub fn new(chronicle: Chronicle) -> Self {
        let inner = Inner {
            durable: Durable::default(),
            fold: Fold::default(),
            totals: Totals::default(),
            digests: Digests::default(),
            request_ids: RequestIds::default(),
            chronicle,
            spaces: Vec::new(),
            names: Vec::new(),
            later: BTreeMap::new(),
            refusals: VecDeque::new(),
            settled: VecDeque::new(),
            counts: Counts::default(),
            checks: BTreeMap::new(),
            violations: Vec::new(),
            gone: HashMap::new(),
            alive: HashSet::new(),
        };
        let violated = watch::channel(0).0;
        Self { began: Instant::now(), floor: AtomicU64::new(0), inner: Mutex::new(inner), violated }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the campaign's start.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The highest revision that anybody was told. A read that begins now may not be older.
    pub fn floor(&self) -> u64 {
        self.floor.load(Ordering::SeqCst)
    }

    /// The end of the history, as far as it is known.
    pub fn head(&self) -> u64 {
        self.inner().fold.head()
    }

    /// Becomes true of a number above 0 when something is violated.
    pub fn violated(&self) -> watch::Receiver<usize> {
        self.violated.subscribe()
    }

    /// A replica tells events of its history.
    pub fn hear(&self, node: usize, events: &[v1::Event]) -> Heard {
        let now = self.now();
        let mut inner = self.inner();
        for event in events {
            inner.count(Invariant::Durable, 1);
            match inner.durable.hear(node, event) {
                Ok(Heard::New) => {
                    self.floor.fetch_max(event.revision, Ordering::SeqCst);
                    inner.learn(now, event);
                }
                Ok(Heard::Known) => {}
                Ok(Heard::Early) => return Heard::Early,
                Err(breach) => inner.violate(now, breach),
            }
        }
        inner.judge(now, self.floor());
        self.tell(&inner);
        Heard::Known
    }

    /// A call has ended.
    pub fn note(&self, operation: Operation) {
        let now = self.now();
        if let Some(at) = operation.outcome.revision() {
            self.floor.fetch_max(at, Ordering::SeqCst);
        }
        let mut inner = self.inner();
        inner.chronicle.operation(&operation);
        inner.tally(&operation);
        inner.count(Invariant::Linearizable, u64::from(operation.outcome.is_ok()));
        if let Err(breach) = linearizable::fresh(&operation) {
            inner.violate(now, breach);
        }
        match operation.outcome.revision() {
            Some(at) => inner.later.entry(at).or_default().push(operation),
            None if matches!(operation.outcome, Outcome::Refused(_)) => {
                inner.refusals.push_back((now + SETTLES, operation));
            }
            None => {}
        }
        inner.judge(now, self.floor());
        self.tell(&inner);
    }

    /// The cluster has compared its own digests.
    pub fn verified(&self, answer: &v1::VerifyResponse) {
        let now = self.now();
        let mut inner = self.inner();
        inner.count(Invariant::Digests, 1);
        if let Err(breach) = inner.digests.verified(answer) {
            inner.violate(now, breach);
        }
        self.tell(&inner);
    }

    /// A watcher was told something.
    pub fn watched(&self, watcher: &mut Watcher, message: &v1::WatchEventsResponse) {
        let now = self.now();
        self.floor.fetch_max(message.revision, Ordering::SeqCst);
        let mut inner = self.inner();
        let head = inner.fold.head();
        let heard =
            watcher.hear(message).and_then(|()| watcher.compare(head, |revision| inner.truth(revision)));
        match heard {
            Ok(count) => inner.count(Invariant::Watches, count),
            Err(breach) => inner.violate(now, breach),
        }
        self.tell(&inner);
    }

    /// Something was checked elsewhere.
    pub fn checked(&self, invariant: Invariant, result: Result<(), Breach>) {
        let now = self.now();
        let mut inner = self.inner();
        inner.count(invariant, 1);
        if let Err(breach) = result {
            inner.violate(now, breach);
        }
        self.tell(&inner);
    }

    /// A generation lives on the agent that the test plays, or does no more.
    pub fn lives(&self, sandbox_id: &str, generation: u64, alive: bool) {
        let life = (sandbox_id.to_owned(), generation);
        let mut inner = self.inner();
        if alive {
            inner.alive.insert(life);
        } else {
            inner.alive.remove(&life);
        }
    }

    /// For the timeline.
    pub fn remark(&self, text: &str) {
        let now = self.now();
        self.inner().chronicle.note(now, text);
    }

    /// Asks the truth.
    pub fn with_fold<T>(&self, ask: impl FnOnce(&Fold) -> T) -> T {
        ask(&self.inner().fold)
    }

    /// The sandbox that a request has made, as the history says; and when it was heard that it is gone, if it is one that
    /// writes down its life: hundredths of a second since boot.
    pub fn made_by(&self, namespace: &str, request_id: &str) -> Option<(String, Option<u64>)> {
        let inner = self.inner();
        let id = inner.request_ids.made_by(namespace, request_id)?;
        Some((id.clone(), inner.gone.get(id).copied()))
    }

    /// The campaign is over, and the history known to its end: what still waits for more will wait for ever.
    pub fn close(&self) {
        let now = self.now();
        let mut inner = self.inner();
        let floor = self.floor();
        inner.judge(now + SETTLES, floor);
        inner.judge(now + SETTLES, floor);
        for operation in std::mem::take(&mut inner.later).into_values().flatten() {
            if let Err(breach) = acknowledged(&inner.fold, &operation) {
                inner.violate(now, breach);
            }
        }
        self.tell(&inner);
    }

    /// How often each invariant was checked.
    pub fn checks(&self) -> BTreeMap<Invariant, u64> {
        let inner = self.inner();
        let mut checks = inner.checks.clone();
        *checks.entry(Invariant::Digests).or_default() += inner.digests.compared();
        checks
    }

    /// What was violated.
    pub fn violations(&self) -> Vec<Violation> {
        self.inner().violations.clone()
    }

    /// What became of the operations.
    pub fn counts(&self) -> Counts {
        self.inner().counts
    }

    /// Writes the timeline of all violations.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write_timeline(&self) -> std::io::Result<std::path::PathBuf> {
        let mut inner = self.inner();
        let violations = inner.violations.clone();
        inner.chronicle.write_timeline(&violations)
    }

    fn tell(&self, inner: &Inner) {
        let count = inner.violations.len();
        self.violated.send_if_modified(|known| std::mem::replace(known, count) != count);
    }
}

impl Inner {
    fn count(&mut self, invariant: Invariant, by: u64) {
        *self.checks.entry(invariant).or_default() += by;
    }

    fn violate(&mut self, now: Duration, breach: Breach) {
        if self.violations.len() < ENOUGH {
            self.chronicle.note(now, &format!("VIOLATION of {}: {}", breach.invariant, breach.what));
            self.violations.push(Violation::new(breach, now));
        }
    }

    fn tally(&mut self, operation: &Operation) {
        let counts = &mut self.counts;
        match &operation.outcome {
            Outcome::Refused(_) => counts.refused += 1,
            Outcome::Unknown(_) => counts.unknown += 1,
            _ if operation.is_read() => counts.read += 1,
            Outcome::CreatedAll { sandboxes, .. } => counts.acknowledged += sandboxes.len() as u64,
            _ => counts.acknowledged += 1,
        }
    }

    /// A new event.
    fn learn(&mut self, now: Duration, event: &v1::Event) {
        self.chronicle.event(now, event);
        let space = self.names.iter().position(|name| *name == event.namespace).unwrap_or_else(|| {
            self.names.push(event.namespace.clone());
            self.names.len() - 1
        });
        self.spaces.push(u16::try_from(space).unwrap_or(u16::MAX));
        let folded = self.fold.apply(event);
        let fits = self.totals.fits(&self.fold, event);
        let made = self.request_ids.event(event);
        if event.r#type() == v1::EventType::SandboxRemoved && event.namespace == LIVES {
            self.gone.insert(event.sandbox_id.clone(), diary::now());
        }
        self.count(Invariant::Capacity, 1);
        self.count(Invariant::RequestIds, 1);
        let fooled =
            single_life::released(event, |id, generation| self.alive.contains(&(id.to_owned(), generation)));
        for breach in [folded, fits, made, fooled].into_iter().filter_map(Result::err) {
            self.violate(now, breach);
        }
    }

    fn truth(&self, revision: u64) -> Option<(u64, String)> {
        let hash = self.durable.hash(revision)?;
        let space = *self.spaces.get(usize::try_from(revision - 1).ok()?)?;
        Some((hash, self.names.get(usize::from(space))?.clone()))
    }

    /// Judges what can be judged by now.
    fn judge(&mut self, now: Duration, floor: u64) {
        let head = self.fold.head();
        while let Some(entry) = self.later.first_entry().filter(|entry| *entry.key() <= head) {
            for operation in entry.remove() {
                self.judge_answer(now, &operation);
            }
        }
        while self.refusals.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, operation)) = self.refusals.pop_front() {
                self.settled.push_back((floor, operation));
            }
        }
        while self.settled.front().is_some_and(|(upper, _)| *upper <= head) {
            if let Some((_, operation)) = self.settled.pop_front() {
                self.count(Invariant::Linearizable, 1);
                self.count(Invariant::RequestIds, 1);
                let untrue = linearizable::refusal(&self.fold, &operation, head);
                let forgotten = self.request_ids.refusal(&operation);
                for breach in [untrue, forgotten].into_iter().filter_map(Result::err) {
                    self.violate(now, breach);
                }
            }
        }
    }

    fn judge_answer(&mut self, now: Duration, operation: &Operation) {
        self.count(Invariant::Durable, 1);
        self.count(Invariant::RequestIds, 1);
        let mut breaches = Vec::new();
        breaches.extend(acknowledged(&self.fold, operation).err());
        breaches.extend(linearizable::content(&self.fold, operation).err());
        breaches.extend(self.request_ids.answer(operation).err());
        if let Outcome::Capacity(answer) = &operation.outcome {
            self.count(Invariant::Capacity, 1);
            breaches.extend(self.totals.told(&self.fold, operation.node, answer));
            breaches.extend(self.digests.told(operation.node, answer).err());
        }
        for breach in breaches {
            self.violate(now, breach);
        }
    }
}
