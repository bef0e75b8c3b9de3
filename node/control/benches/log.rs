//! The log store beside the limit of the disk, in one run: a preallocated file that one thread writes, and makes durable with
//! one `fdatasync` for all that waits. Both get the same records from the same number of writers, each of which waits until
//! its own is durable before it writes the next.
//!
//! ```text
//! cargo bench -p sandkeeper-control --bench log
//! cargo bench -p sandkeeper-control --bench log -- --writers 256 --rounds 9 --folder /mnt/disk
//! ```
#![allow(missing_docs, reason = "a program")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports")]
#![allow(clippy::unwrap_used, reason = "a fault ends it")]

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Parser;
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use openraft::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogStorage as _};
use openraft::type_config::TypeConfigExt as _;
use sandkeeper_control::raft::types::{EntryData, LogEntry, LogId, TypeConfig};
use sandkeeper_control::storage::log::{LogOptions, LogStore};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;

/// The file is written over from its beginning when its end is reached.
const RAW_BYTES: usize = 64 << 20;
/// How many records may wait for the raw file's thread: as many as for the log's.
const QUEUE: usize = 1024;

/// Measure the log store beside a raw file
#[derive(Debug, Parser)]
struct Args {
    /// Numbers of writers
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    writers: Vec<usize>,
    /// Rounds, in which each is measured once, in turns. The medians are told
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds for each
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Bytes of a record
    #[arg(long, default_value_t = 256)]
    bytes: usize,
    /// Where the files are made [default: the folder for temporary files]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

/// What one measurement found.
#[derive(Clone, Copy, Debug)]
struct Found {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

/// A record that is to become durable.
type Waiting = (Arc<[u8]>, oneshot::Sender<()>);

/// The preallocated file and its thread.
struct Raw {
    queue: mpsc::Sender<Waiting>,
    thread: JoinHandle<()>,
}

impl Raw {
    fn start(path: &Path) -> Self {
        let mut file = File::create(path).unwrap();
        // Zeros, not holes: writing must not allocate.
        file.write_all(&vec![0; RAW_BYTES]).unwrap();
        file.sync_all().unwrap();
        let (queue, waiting) = mpsc::channel(QUEUE);
        let thread = std::thread::spawn(move || write_raw(&file, waiting));
        Self { queue, thread }
    }

    async fn append(&self, record: Arc<[u8]>) {
        let (done, told) = oneshot::channel();
        self.queue.send((record, done)).await.unwrap();
        told.await.unwrap();
    }
}

/// Group commit, as the log's writer does it.
fn write_raw(file: &File, mut waiting: mpsc::Receiver<Waiting>) {
    let (mut at, mut bytes, mut told) = (0, Vec::new(), Vec::new());
    while let Some((record, done)) = waiting.blocking_recv() {
        bytes.extend_from_slice(&record);
        told.push(done);
        while told.len() < QUEUE
            && let Ok((record, done)) = waiting.try_recv()
        {
            bytes.extend_from_slice(&record);
            told.push(done);
        }
        if at + bytes.len() > RAW_BYTES {
            at = 0;
        }
        file.write_all_at(&bytes, at as u64).unwrap();
        file.sync_data().unwrap();
        at += bytes.len();
        bytes.clear();
        // A writer whose time is over does not wait any more.
        for done in told.drain(..) {
            let _ = done.send(());
        }
    }
}

/// The log store. Raft appends in order, so a number is drawn and queued at once.
struct Log {
    store: Mutex<(LogStore, u64)>,
}

impl Log {
    fn open(folder: &Path) -> Self {
        let store = LogStore::open(folder, LogOptions::default()).unwrap();
        Self { store: Mutex::new((store, 0)) }
    }

    async fn append(&self, record: Arc<[u8]>) {
        let (sender, told) = TypeConfig::oneshot();
        let payload = EntryPayload::Normal(EntryData::from_bytes(record.to_vec().into()));
        {
            let mut store = self.store.lock().await;
            let (store, next) = &mut *store;
            let entry = LogEntry { log_id: LogId::new(1.into(), *next), payload };
            *next += 1;
            store.append([entry], IOFlushed::signal(sender)).await.unwrap();
        }
        told.await.unwrap().unwrap();
    }
}

/// One of the two.
enum Contender {
    Raw(Raw),
    Log(Log),
}

impl Contender {
    async fn append(&self, record: Arc<[u8]>) {
        match self {
            Self::Raw(raw) => raw.append(record).await,
            Self::Log(log) => log.append(record).await,
        }
    }

    async fn stop(self) {
        match self {
            Self::Raw(Raw { queue, thread }) => {
                drop(queue);
                tokio::task::spawn_blocking(move || thread.join()).await.unwrap().unwrap();
            }
            Self::Log(log) => log.store.into_inner().0.shutdown().await.unwrap(),
        }
    }
}

async fn measure(contender: Contender, args: &Args, writers: usize) -> Found {
    let contender = Arc::new(contender);
    let (record, until) = (vec![7; args.bytes], Instant::now() + Duration::from_secs_f64(args.seconds));
    let record: Arc<[u8]> = record.into();
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for _ in 0..writers {
        let (contender, record) = (Arc::clone(&contender), Arc::clone(&record));
        tasks.spawn(async move {
            let mut took = Vec::new();
            while Instant::now() < until {
                let began = Instant::now();
                contender.append(Arc::clone(&record)).await;
                took.push(began.elapsed());
            }
            took
        });
    }
    let mut took = tasks.join_all().await.concat();
    let per_second = took.len() as f64 / began.elapsed().as_secs_f64();
    let contender = Arc::into_inner(contender).expect("the writers have ended");
    contender.stop().await;
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    Found { per_second, p50: at(0.5), p99: at(0.99) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The medians over all rounds.
fn medians(found: &[Found]) -> [f64; 3] {
    let of = |value: fn(&Found) -> f64| median(found.iter().map(value).collect());
    [
        of(|found| found.per_second),
        of(|found| found.p50.as_secs_f64() * 1e3),
        of(|found| found.p99.as_secs_f64() * 1e3),
    ]
}

async fn rounds(args: &Args, writers: usize) -> Vec<[Found; 2]> {
    let folder = match &args.folder {
        Some(folder) => tempfile::tempdir_in(folder).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    let mut rounds = Vec::new();
    for round in 0..args.rounds {
        eprint!("\r{writers} writers, round {} of {}   ", round + 1, args.rounds);
        let raw = Contender::Raw(Raw::start(&folder.path().join("raw")));
        let raw = measure(raw, args, writers).await;
        let log = Contender::Log(Log::open(&folder.path().join(format!("log-{round}"))));
        let log = measure(log, args, writers).await;
        rounds.push([raw, log]);
    }
    rounds
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    assert!(args.rounds > 0 && args.seconds > 0.0 && args.bytes > 0, "nothing to measure");
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(["WRITERS", "RAW/S", "LOG/S", "LOG OF RAW", "RAW P50 P99", "LOG P50 P99"]);
    for writers in args.writers.clone() {
        let rounds = rounds(&args, writers).await;
        let of = |place: usize| medians(&rounds.iter().map(|round| round[place]).collect::<Vec<_>>());
        let ratio = median(rounds.iter().map(|[raw, log]| log.per_second / raw.per_second).collect());
        let ([raw, raw_p50, raw_p99], [log, log_p50, log_p99]) = (of(0), of(1));
        table.add_row([
            writers.to_string(),
            format!("{raw:.0}"),
            format!("{log:.0}"),
            format!("{:.0}%", ratio * 100.0),
            format!("{raw_p50:.2} {raw_p99:.2} ms"),
            format!("{log_p50:.2} {log_p99:.2} ms"),
        ]);
    }
    eprintln!();
    println!("{} bytes a record; medians of {} rounds of {} s", args.bytes, args.rounds, args.seconds);
    println!("{table}");
}
