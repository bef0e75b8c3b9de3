//! What the core costs for each entry of sandboxes' lives (a create, a report that it runs, a termination, a report that it
//! is gone): deciding, encoding, decoding, and folding as a replica does while it serves and while it starts.
//!
//! ```text
//! cargo bench -p sandkeeper-statemachine --bench core
//! cargo bench -p sandkeeper-statemachine --bench core -- --entries 1000000 --live 100000 --agents 10000
//! ```
#![allow(missing_docs, reason = "a program")]
#![allow(clippy::print_stdout, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "it measures")]

use std::time::{Duration, Instant};

use clap::Parser;
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use sandkeeper_statemachine::{Applied, Entry, State};
use test_lives::{Lives, Population, TERM};

/// Entries that a replica applies before it publishes the state.
const BATCH: usize = 64;

/// Measure the core
#[derive(Debug, Parser)]
struct Args {
    /// Entries
    #[arg(long, default_value_t = 200_000)]
    entries: usize,
    /// Sandboxes that live at a time
    #[arg(long, default_value_t = 10_000)]
    live: u64,
    /// Agents
    #[arg(long, default_value_t = 100)]
    agents: u64,
    /// Rounds, in which each is measured once, in turns. The medians are told
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let mut measured: Vec<(&str, Vec<Duration>)> = Vec::new();
    for _ in 0..args.rounds {
        let began = Instant::now();
        let mut lives = Lives::new(Population { agents: args.agents, live: args.live });
        let entries: Vec<Entry> = (0..args.entries).map(|_| lives.decide()).collect();
        let decided = began.elapsed();
        note(&mut measured, "decide, and fold into the working copy", decided);
        note(&mut measured, "decode", timed(|| decode(&entries)));
        note(
            &mut measured,
            "fold, serving: 64 entries between two copies",
            timed(|| fold(&entries, lives.state())),
        );
        note(
            &mut measured,
            "fold, starting: no copy, one digest at the end",
            timed(|| refold(&entries, lives.state())),
        );
    }
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(["", "µs an entry", "entries/s"]);
    for (what, mut took) in measured {
        took.sort();
        let each = took[took.len() / 2].as_secs_f64() / args.entries as f64;
        table.add_row([what.to_owned(), format!("{:.2}", each * 1e6), format!("{:.0}", 1.0 / each)]);
    }
    println!("{} entries, {} sandboxes live at a time, {} agents", args.entries, args.live, args.agents);
    println!("{table}");
}

fn note(measured: &mut Vec<(&'static str, Vec<Duration>)>, what: &'static str, took: Duration) {
    match measured.iter_mut().find(|(known, _)| *known == what) {
        Some((_, all)) => all.push(took),
        None => measured.push((what, vec![took])),
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn decode(entries: &[Entry]) {
    for entry in entries {
        assert_eq!(
            Entry::decode(entry.encoded()).map(|decoded| decoded.base_revision),
            Ok(entry.base_revision)
        );
    }
}

fn refold(entries: &[Entry], expected: &State) {
    let mut state = State::new().without_digest();
    for entry in entries {
        assert!(matches!(state.apply(entry, TERM), Applied::Done { .. }));
    }
    assert_eq!(state.state_digest(), expected.state_digest());
}

fn fold(entries: &[Entry], expected: &State) {
    let (mut state, mut published) = (State::new(), State::new());
    for batch in entries.chunks(BATCH) {
        for entry in batch {
            assert!(matches!(state.apply(entry, TERM), Applied::Done { .. }));
        }
        published = state.clone();
    }
    assert_eq!(published.state_digest(), expected.state_digest());
}
