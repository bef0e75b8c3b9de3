//! Damage of every kind, in a place drawn at random, to a data directory as a node leaves it. Then everything is read, as a
//! node does it: what is damaged is found, or what is read is what was written.
//!
//! `SANDKEEPER_DAMAGES=500 cargo test -p sandkeeper-control --lib whatever_is_damaged_anywhere -- --nocapture`;
//! `SANDKEEPER_DAMAGE_SEED` draws others. Each is read by a process of its own, with a limit of time and memory: a hang, an
//! abort and an allocation without bounds are failures, as is anything that is read and was not written.

mod directory;
mod reading;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use directory::{Truth, make};

const DAMAGES: &str = "SANDKEEPER_DAMAGES";
const SEED: &str = "SANDKEEPER_DAMAGE_SEED";
const USUAL: usize = 20;
const TIME: Duration = Duration::from_secs(120);
/// Of addresses, KiB; a start takes a small part of it.
const MEMORY: &str = "8388608";
/// At a time.
const READERS: usize = 2;

/// Numbers that follow from a seed (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Detected,
    Harmless,
    Wrong,
}

/// What the file is, for the table.
fn kind(path: &Path) -> String {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let above = path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    match above.as_str() {
        database if database.starts_with("log-") => {
            let name = if name.starts_with("snap.") { "snap" } else { &name };
            format!("log database: {name}")
        }
        "meta" if name.starts_with("snap.") => "log/meta: snap".to_owned(),
        "meta" => format!("log/meta: {name}"),
        "snapshots" => "snapshot".to_owned(),
        "index" => "index section".to_owned(),
        "log" => format!("log/{name}"),
        above if above.starts_with("fetching") || above.starts_with("removed") => "left over".to_owned(),
        _ => name,
    }
}

fn files(folder: &Path, out: &mut Vec<PathBuf>) {
    for item in fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() { files(&path, out) } else { out.push(path) }
    }
}

/// Damages one file, drawn by kind, and says how.
fn damage(dir: &Path, numbers: &mut Numbers) -> (String, String) {
    let mut all = Vec::new();
    files(dir, &mut all);
    all.sort();
    let mut by_kind = BTreeMap::<String, Vec<PathBuf>>::new();
    for path in all.into_iter().filter(|path| fs::metadata(path).unwrap().len() > 0) {
        by_kind.entry(kind(&path)).or_default().push(path);
    }
    let kinds: Vec<_> = by_kind.keys().cloned().collect();
    // What most is in gets half of it.
    let kind = match numbers.below(2) {
        0 => "log database: db".to_owned(),
        _ => kinds[numbers.below(kinds.len() as u64) as usize].clone(),
    };
    let of_kind = &by_kind[&kind];
    let path = &of_kind[numbers.below(of_kind.len() as u64) as usize];
    let mut bytes = fs::read(path).unwrap();
    let at = numbers.below(bytes.len() as u64) as usize;
    let how = match numbers.below(20) {
        0..14 => {
            let bit = numbers.below(8);
            bytes[at] ^= 1 << bit;
            format!("bit {bit} of byte {at} flipped")
        }
        14..17 => {
            bytes.truncate(at);
            format!("cut off at byte {at}")
        }
        _ => {
            let (from, to) = (at / 4096 * 4096, (at / 4096 * 4096 + 4096).min(bytes.len()));
            bytes[from..to].fill(0);
            format!("zeroes from byte {from} to {to}")
        }
    };
    fs::write(path, bytes).unwrap();
    (kind, format!("{}: {how}", path.strip_prefix(dir).unwrap().display()))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let path = item.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Lets a process read it; what it said.
fn read_by_a_process(dir: &Path) -> Result<String, String> {
    let (out, error) = (dir.join("../said"), dir.join("../complained"));
    let script = format!("ulimit -v {MEMORY} && exec \"$0\" \"$@\"");
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args(["inspect::verify::damage::reading::reader", "--exact", "--ignored", "--nocapture"])
        .env(reading::FOLDER, dir)
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::from(fs::File::create(&out).unwrap()))
        .stderr(Stdio::from(fs::File::create(&error).unwrap()))
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if begun.elapsed() > TIME => {
                child.kill().unwrap();
                child.wait().unwrap();
                return Err("it hangs".to_owned());
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let said = fs::read_to_string(&out).unwrap();
    if status.success() {
        return Ok(said);
    }
    let complained = fs::read_to_string(&error).unwrap();
    Err(format!("{status}: {said} {complained}"))
}

/// One damage: its kind, what was done, how it ended, and whether `verify` found it.
struct Case {
    kind: String,
    what: String,
    outcome: Outcome,
    verified: bool,
    said: String,
}

fn run(base: &Path, truth: &Truth, seed: u64) -> Case {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    copy(base, &data);
    let (kind, what) = damage(&data, &mut Numbers(seed));
    let (outcome, verified, said) = match read_by_a_process(&data) {
        Err(died) => (Outcome::Wrong, false, died),
        Ok(said) => {
            let (outcome, why) = truth.judge(&said);
            (outcome, said.lines().any(|line| line.starts_with("problem ")), why)
        }
    };
    Case { kind, what, outcome, verified, said }
}

fn table(cases: &[Case]) -> String {
    let mut rows = BTreeMap::<&str, [usize; 4]>::new();
    for case in cases {
        for row in [case.kind.as_str(), "~ all"] {
            let row = rows.entry(row).or_default();
            row[case.outcome as usize] += 1;
            row[3] += usize::from(case.verified);
        }
    }
    let head = format!("{:<26}{:>9}{:>9}{:>7}{:>14}\n", "", "detected", "harmless", "WRONG", "verify found");
    let rows = rows.iter().map(|(kind, [a, b, c, d])| format!("{kind:<26}{a:>9}{b:>9}{c:>7}{d:>14}\n"));
    head + &rows.collect::<String>()
}

#[test]
fn whatever_is_damaged_anywhere_is_detected_or_harmless() {
    let number = |name: &str, usual: u64| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    let (damages, seed) = (number(DAMAGES, USUAL as u64), number(SEED, 1));
    let dir = tempfile::tempdir().unwrap();
    let (bases, truth) = make(dir.path());
    for base in &bases {
        let sound = dir.path().join("sound/data");
        copy(base, &sound);
        let said = read_by_a_process(&sound).unwrap();
        assert_eq!(truth.judge(&said).0, Outcome::Harmless, "{said}");
        assert!(!said.contains("problem "), "{said}");
        fs::remove_dir_all(&sound).unwrap();
    }
    let next = std::sync::atomic::AtomicU64::new(0);
    let cases = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    if at >= damages {
                        return;
                    }
                    let base = &bases[(at % bases.len() as u64) as usize];
                    let case = run(base, &truth, seed.wrapping_mul(1_000_003) + at);
                    cases.lock().unwrap().push(case);
                }
            });
        }
    });
    let cases = cases.into_inner().unwrap();
    writeln!(io::stdout(), "{}", table(&cases)).unwrap();
    let mut failures = Vec::new();
    for case in &cases {
        let line =
            format!("{:?} (verify: {}) {}: {}", case.outcome, case.verified, case.what, case.said.trim());
        if std::env::var_os(DAMAGES).is_some() {
            writeln!(io::stdout(), "{line}").unwrap();
        }
        if case.outcome == Outcome::Wrong || (case.outcome == Outcome::Detected && !case.verified) {
            failures.push(line);
        }
    }
    assert!(failures.is_empty(), "{} of {damages}:\n{}", failures.len(), failures.join("\n"));
}
