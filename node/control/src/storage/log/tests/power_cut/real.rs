//! Cuts of the power on real file systems.
//!
//! Needs root, loop devices, xfsprogs, e2fsprogs and strace, so it is not run by default:
//! `cargo test -p sandkeeper-control power_cuts -- --ignored --nocapture`

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use test_disks::FileSystem;

use super::machine::{Machine, Running};
use super::oracle::Oracle;
use super::victim::{Life, Sizes};
use super::*;

const CUTS: &str = "SANDKEEPER_POWER_CUTS";
const SEED: &str = "SANDKEEPER_POWER_CUT_SEED";

/// When the power goes.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// When the victim has begun to work, and so much later: the only wait here that is not for a condition.
    After(Duration),
    /// Instead of the so manieth call of this kind by one of its threads.
    Call(&'static str, u32),
}

impl Moment {
    /// By turns: anywhere, or where the most may depend on what is durable.
    fn random(number: u64, rng: &mut StdRng) -> Self {
        match number % 4 {
            0 | 2 => Self::After(Duration::from_micros(rng.random_range(0..300_000))),
            1 => Self::Call("fdatasync", rng.random_range(1..200)),
            _ => Self::Call("fsync", rng.random_range(1..60)),
        }
    }
}

/// Cuts the power once, and looks what is left.
fn cut(machine: &mut Machine, oracle: &mut Oracle, moment: Moment, life: Life) -> Result<(), String> {
    match moment {
        Moment::After(more) => {
            machine.start(life.command(&[], &machine.log()));
            machine.wait("the victim works", |victim| {
                assert!(!victim.has_ended(), "the victim ended by itself");
                victim.said() > 20
            });
            std::thread::sleep(more);
        }
        Moment::Call(call, number) => {
            let (trace, inject) =
                (format!("trace={call}"), format!("inject={call}:signal=KILL:when={number}"));
            let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
            machine.start(life.command(&strace, &machine.log()));
            machine.wait("the victim was killed", Running::has_ended);
        }
    }
    for line in machine.cut() {
        oracle.hear(line)?;
    }
    let (found, after) = recover(&machine.log())?;
    oracle.check(&found)?;
    oracle.restart(after);
    Ok(())
}

fn lose_nothing(kind: FileSystem) {
    let (cuts, seed, began) = (number(CUTS, 8), number(SEED, rand::random()), Instant::now());
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut machine, mut oracle) = (Machine::new(kind), Oracle::default());
    for number in 0..cuts {
        let (moment, life) = (Moment::random(number, &mut rng), Life::endless(rng.random()));
        if let Err(failure) = cut(&mut machine, &mut oracle, moment, life) {
            panic!("{SEED}={seed}, cut {number} at {moment:?}: {failure}");
        }
    }
    let took = began.elapsed().as_secs_f64();
    let acknowledged = oracle.acknowledged;
    eprintln!(
        "{cuts} power cuts on {kind:?}: all of {acknowledged} acknowledged operations found; {took:.0} s"
    );
    assert!(acknowledged > cuts, "the victim got on");
}

#[test]
#[ignore = "needs root, loop devices, xfsprogs and strace"]
fn power_cuts_on_xfs_lose_nothing_that_was_acknowledged() {
    lose_nothing(FileSystem::Xfs);
}

#[test]
#[ignore = "needs root, loop devices, e2fsprogs, xfsprogs and strace"]
fn power_cuts_on_ext4_lose_nothing_that_was_acknowledged() {
    lose_nothing(FileSystem::Ext4);
}

#[test]
#[ignore = "needs root, loop devices, xfsprogs, e2fsprogs and strace"]
fn power_cuts_without_the_fsync_lose_acknowledged_entries() {
    for kind in [FileSystem::Xfs, FileSystem::Ext4] {
        let (wanted, mut rng) = (number(CUTS, 8), rand::make_rng::<StdRng>());
        let (mut cuts, mut lost, mut failures) = (0, 0, Vec::new());
        // A few may all be lucky: what the file system writes by itself may be enough.
        while cuts < wanted || (lost == 0 && cuts < 5 * wanted) {
            let moment = Moment::After(Duration::from_micros(rng.random_range(0..100_000)));
            // Each new database brings fsyncs of folders, which make much durable that nobody asked for.
            let life = Life { fsync: false, sizes: Sizes::Endless, ..Life::endless(rng.random()) };
            // A new one each time: what a cut has left may not open again.
            let (mut machine, mut oracle) = (Machine::new(kind), Oracle::default());
            failures.extend(cut(&mut machine, &mut oracle, moment, life).err());
            lost = failures.iter().filter(|failure| failure.contains("was acknowledged")).count();
            cuts += 1;
        }
        let broken = failures.len() - lost;
        eprintln!(
            "{cuts} power cuts on {kind:?} without fsync: {lost} lost something, {broken} did not open"
        );
        assert!(lost > 0, "{failures:#?}");
    }
}
