//! The proof that what is told to be stored is stored: a file system is shut down under a writer, as by a power
//! cut, so that everything that was not fsynced is gone.
//!
//! Needs root, loop devices, and xfsprogs, so it is not run by default:
//! `cargo test -p sandkeeper-control power_cuts -- --ignored --nocapture`

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;

const FOLDER: &str = "SANDKEEPER_POWER_CUT_FOLDER";
const CYCLES: u64 = 60;

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status();
    assert!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "{program} {args:?}: {status:?}");
}

/// Ends the writer and takes the file system away, also when the test fails.
struct Machine<'a> {
    mount: &'a str,
    victim: Option<Child>,
}

impl Machine<'_> {
    fn power_off(&mut self) {
        if let Some(mut victim) = self.victim.take() {
            victim.kill().unwrap();
            victim.wait().unwrap();
        }
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        self.power_off();
        // Lazily: after a failure a store may still hold files in it.
        run("umount", &["-l", self.mount]);
    }
}

fn options() -> LogOptions {
    LogOptions { database_bytes: 256 << 10, ..LogOptions::default() }
}

fn size(index: u64) -> usize {
    match index % 50 {
        0 => 60_000,
        n => (n * 37) as usize,
    }
}

/// The writer that is cut off. It says on its output what it was told to be durable.
#[test]
#[ignore = "it is started by the test below"]
fn victim() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut store = LogStore::open(Path::new(&folder), options()).unwrap();
        let mut next = state(&mut store).await.1.map_or(0, |last| last + 1);
        let mut told = std::collections::VecDeque::new();
        loop {
            told.push_back((next, start_append(&mut store, [entry(1, next, size(next))]).await));
            while told.len() > (next % 7) as usize {
                let (index, durable) = told.pop_front().unwrap();
                durable.await.unwrap();
                say("entry", index);
            }
            if next % 20 == 0 {
                store.save_vote(&vote(next)).await.unwrap();
                say("vote", next);
            }
            if next % 400 == 0 && next > 400 {
                store.purge(log_id(1, next - 400)).await.unwrap();
                say("purge", next - 400);
                // A purge only moves a mark; the disk would fill up.
                store.trim_history(start(next - 399)).await.unwrap();
            }
            next += 1;
        }
    });
}

fn say(what: &str, number: u64) {
    writeln!(io::stdout(), "{what} {number}").unwrap();
}

fn start_victim(folder: &Path) -> Child {
    let test = "storage::log::tests::power_cut::victim";
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The highest numbers that the victim said: entry, vote, purge.
#[derive(Default)]
struct Heard([AtomicU64; 3]);

impl Heard {
    fn hear(&self, line: &str) {
        let Some((what, number)) = line.split_once(' ') else { return };
        let Some(place) = ["entry", "vote", "purge"].iter().position(|name| *name == what) else { return };
        if let Ok(number) = number.parse() {
            self.0[place].fetch_max(number, Ordering::SeqCst);
        }
    }

    fn get(&self, place: usize) -> u64 {
        self.0[place].load(Ordering::SeqCst)
    }
}

/// Everything that was said must be there, unchanged, without a hole.
async fn check(folder: &Path, heard: &Heard) {
    let mut store = LogStore::open(folder, options()).unwrap();
    let (purged, last) = state(&mut store).await;
    assert!(
        last >= Some(heard.get(0)),
        "entry {} was acknowledged, the log ends with {last:?}",
        heard.get(0)
    );
    assert!(purged.unwrap_or(0) >= heard.get(2));
    let voted = store.reader().read_vote().await.unwrap().map_or(0, |vote| vote.leader_id.term);
    assert!(voted >= heard.get(1), "vote {} was acknowledged, {voted} is stored", heard.get(1));
    let entries = all(&store).await;
    let first = purged.map_or(0, |purged| purged + 1);
    let expected: Vec<_> = (first..).map_while(|i| (Some(i) <= last).then(|| entry(1, i, size(i)))).collect();
    assert!(entries == expected, "the entries that were written");
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, loop devices and xfsprogs"]
async fn power_cuts_lose_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
    let (image, mount_name) = (image.to_str().unwrap(), mount.to_str().unwrap());
    fs::create_dir(&mount).unwrap();
    File::create(image).unwrap().set_len(400 << 20).unwrap();
    run("mkfs.xfs", &["-q", image]);
    run("mount", &["-o", "loop", image, mount_name]);
    let mut machine = Machine { mount: mount_name, victim: None };
    let folder = mount.join("log");
    let heard = Arc::new(Heard::default());
    for cycle in 0..CYCLES {
        let victim = machine.victim.insert(start_victim(&folder));
        let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let (heard_too, before) = (Arc::clone(&heard), heard.get(0));
        let listener = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                heard_too.hear(&line);
            }
        });
        while heard.get(0) < before + 20 {
            assert!(victim.try_wait().unwrap().is_none(), "the victim ended by itself");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Somewhere in the middle of its work: the only wait here that is not for a condition.
        tokio::time::sleep(Duration::from_micros(cycle * 7_919 % 300_000)).await;
        run("xfs_io", &["-x", "-c", "shutdown", mount_name]);
        machine.power_off();
        listener.join().unwrap();
        run("umount", &[mount_name]);
        run("mount", &["-o", "loop", image, mount_name]);
        check(&folder, &heard).await;
    }
    drop(machine);
    let [entries, votes, purged] = [0, 1, 2].map(|place| heard.get(place));
    assert!(purged > 0, "the test reached purges");
    say("acknowledged entries, with every one of them found:", entries);
    say("votes up to:", votes);
}
