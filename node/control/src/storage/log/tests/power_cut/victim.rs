//! The process that is cut off.

use std::collections::VecDeque;
use std::io::Write as _;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::oracle::Line;
use super::*;

const FOLDER: &str = "SANDKEEPER_POWER_CUT_FOLDER";
const SEED: &str = "SANDKEEPER_POWER_CUT_VICTIM_SEED";
const OPERATIONS: &str = "SANDKEEPER_POWER_CUT_VICTIM_OPERATIONS";
const DIES_AT: &str = "SANDKEEPER_POWER_CUT_VICTIM_DIES_AT";
const FSYNC: &str = "SANDKEEPER_POWER_CUT_VICTIM_FSYNC";
const SIZES: &str = "SANDKEEPER_POWER_CUT_VICTIM_SIZES";

/// How a victim works.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub seed: u64,
    /// It shuts its store down after so many operations.
    pub operations: u64,
    /// It dies instead of so manieth fsync, as by kill -9; 0: it does not.
    pub dies_at: u64,
    /// Whether `LogStore` makes its files durable; else its fsync does nothing.
    pub fsync: bool,
    pub sizes: Sizes,
}

/// How much the victim writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sizes {
    /// Databases of some entries, so that many are begun, sealed and removed.
    Small,
    /// Databases of several of sled's segments (2 MiB).
    Large,
    /// One database whose entries are truncated again and again: sled uses its segments again.
    Churn,
    /// One database that only grows. One that was opened again has its space, and what is written there may survive
    /// without an fsync.
    Endless,
}

impl Sizes {
    const ALL: [Self; 4] = [Self::Small, Self::Large, Self::Churn, Self::Endless];

    fn database_bytes(self) -> u64 {
        match self {
            Self::Small => 64 << 10,
            Self::Large => 6 << 20,
            Self::Churn | Self::Endless => u64::MAX,
        }
    }
}

impl Life {
    /// One that goes on until it is killed.
    pub(super) fn endless(seed: u64) -> Self {
        Self { seed, operations: u64::MAX, dies_at: 0, fsync: true, sizes: Sizes::Small }
    }

    /// A command that lives it on the store in `folder`: the program, or a program that runs it, with its arguments.
    pub(super) fn command(&self, wrapper: &[&str], folder: &Path) -> Command {
        let program = std::env::current_exe().unwrap().into_os_string();
        let words = wrapper.iter().map(std::ffi::OsString::from).chain([program]);
        let mut words = words.collect::<VecDeque<_>>();
        let mut command = Command::new(words.pop_front().unwrap());
        let test = "storage::log::tests::power_cut::victim::victim";
        command.args(words).args([test, "--exact", "--ignored", "--nocapture"]);
        command.env(FOLDER, folder).env(SEED, self.seed.to_string());
        command.env(OPERATIONS, self.operations.to_string()).env(DIES_AT, self.dies_at.to_string());
        command.env(FSYNC, u64::from(self.fsync).to_string()).env(SIZES, (self.sizes as u64).to_string());
        command
    }

    fn from_environment() -> Self {
        Self {
            seed: number(SEED, 0),
            operations: number(OPERATIONS, u64::MAX),
            dies_at: number(DIES_AT, 0),
            fsync: number(FSYNC, 1) != 0,
            sizes: Sizes::ALL[number(SIZES, 0) as usize],
        }
    }

    fn options(self) -> LogOptions {
        // Over all of its stores, or one that is opened again and again would not die.
        static SYNCS: AtomicU64 = AtomicU64::new(0);
        let sync_data = move |file: &File| {
            if SYNCS.fetch_add(1, Ordering::Relaxed) + 1 == self.dies_at {
                // Nothing is dropped and nothing flushed. What is written stays in the page cache.
                std::process::exit(0);
            }
            if self.fsync { file.sync_data() } else { Ok(()) }
        };
        let hooks = Hooks { sync_data: Some(Arc::new(sync_data)), at_step: None };
        LogOptions { database_bytes: self.sizes.database_bytes(), hooks, ..LogOptions::default() }
    }
}

fn say(line: &Line) {
    // As one write, however long: an acknowledgement counts when all of it is out.
    io::stdout().lock().write_all(line.encode().as_bytes()).unwrap();
}

#[test]
#[ignore = "it is started by the tests of power cuts"]
fn victim() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let life = Life::from_environment();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Victim::live(Path::new(&folder), life));
}

type Durable = std::pin::Pin<Box<dyn Future<Output = io::Result<()>>>>;

struct Victim {
    store: LogStore,
    /// What the store has when everything is done.
    state: State,
    rng: StdRng,
    /// Of new entries.
    term: u64,
    sizes: Sizes,
    /// Appends that are not yet told to be durable.
    waiting: VecDeque<Durable>,
}

impl Victim {
    async fn live(folder: &Path, life: Life) {
        let open = async || {
            let mut store = LogStore::open(folder, life.options()).unwrap();
            let state = read(&mut store).await.unwrap();
            say(&Line::Opened(state.clone()));
            (store, state)
        };
        let (store, state) = open().await;
        let term = state.last().map_or(0, |(term, _)| term).max(state.vote) + 1;
        let rng = StdRng::seed_from_u64(life.seed);
        let mut victim = Self { store, state, rng, term, sizes: life.sizes, waiting: VecDeque::new() };
        for _ in 0..life.operations {
            match victim.rng.random_range(0..100) {
                98 if life.sizes != Sizes::Endless => {
                    victim.drain(0).await;
                    victim.store.shutdown().await.unwrap();
                    (victim.store, victim.state) = open().await;
                }
                99 => {
                    victim.store.reader().find_places().await.unwrap();
                }
                roll => {
                    if let Some(op) = victim.choose(roll) {
                        victim.perform(op).await;
                    }
                }
            }
        }
        victim.drain(0).await;
        victim.store.shutdown().await.unwrap();
    }

    fn choose(&mut self, roll: u32) -> Option<Op> {
        let state = &self.state;
        let (first, next) = (state.first(), state.next());
        let mut within = |from: u64, end: u64| (from < end).then(|| self.rng.random_range(from..end));
        let uncommitted = state.committed.map_or(first, |committed| committed + 1).max(first);
        match roll {
            8..33 if self.sizes == Sizes::Churn => within(uncommitted, next).map(Op::Truncate),
            0..8 => {
                self.term += 1;
                Some(Op::Vote(self.term))
            }
            8..13 => within(uncommitted, next).map(Op::Truncate),
            13..21 => within(uncommitted, next).map(Op::Commit),
            21..26 => {
                let upto = within(first, uncommitted)?;
                Some(Op::Purge(state.get(upto)?.term, upto))
            }
            // As a snapshot from the leader does that goes beyond the end.
            26 => Some(Op::Purge(self.term, next + 2)),
            27..32 => within(state.history + 1, first + 1).map(Op::Trim),
            _ => {
                let count = self.rng.random_range(1..=4);
                let specs =
                    (next..next + count).map(|index| Spec { term: self.term, index, size: self.size() });
                Some(Op::Append(specs.collect()))
            }
        }
    }

    /// Mostly small; some in several parts.
    fn size(&mut self) -> usize {
        match self.rng.random_range(0..40) {
            0..20 if matches!(self.sizes, Sizes::Large | Sizes::Churn) => {
                self.rng.random_range(20_000..120_000)
            }
            0 => self.rng.random_range(23_900..70_000),
            1..4 => self.rng.random_range(2_000..20_000),
            _ => self.rng.random_range(20..800),
        }
    }

    async fn perform(&mut self, op: Op) {
        say(&Line::Begun(op.clone()));
        let before = self.state.clone();
        self.state.apply(&op);
        match op {
            Op::Append(specs) => {
                let entries: Vec<_> = specs.iter().map(Spec::entry).collect();
                self.waiting.push_back(Box::pin(start_append(&mut self.store, entries).await));
                let left = self.rng.random_range(0..4);
                return self.drain(left).await;
            }
            Op::Vote(term) => self.store.save_vote(&vote(term)).await.unwrap(),
            Op::Truncate(from) => {
                let after = before.entries.iter().rev().find(|spec| spec.index < from);
                let after = after.map(|spec| (spec.term, spec.index)).max(before.purged);
                self.store.truncate_after(after.map(|(term, index)| log_id(term, index))).await.unwrap();
                self.term += 1;
            }
            Op::Purge(term, index) => self.store.purge(log_id(term, index)).await.unwrap(),
            Op::Trim(index) => self.store.trim_history(start(index)).await.unwrap(),
            Op::Commit(index) => {
                let id = before.get(index).map(|spec| log_id(spec.term, index));
                self.store.save_committed(id).await.unwrap();
            }
        }
        // Done in their order, so what waited before this is durable too.
        self.drain(0).await;
        say(&Line::Done);
    }

    /// Waits until at most so many appends wait.
    async fn drain(&mut self, left: usize) {
        while self.waiting.len() > left
            && let Some(durable) = self.waiting.pop_front()
        {
            durable.await.unwrap();
            say(&Line::Done);
        }
    }
}
