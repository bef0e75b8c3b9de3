//! Looks whether the campaign finds the bugs that can be planted: for each, campaigns with a binary that has it, until one
//! sees a violation; and one campaign with the same binary and no bug, which must see none.

use std::fmt;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
pub use planted_bugs::Bug;
use planted_bugs::VARIABLE;
use serde::{Deserialize, Serialize};

use crate::binary::{BINARY, build};
use crate::chaos::violation::Invariant;

/// One campaign. What a seed has not shown by then another one shows sooner.
const CAMPAIGN: Duration = Duration::from_secs(90);
/// A campaign that goes on for so much longer than it was told hangs.
const HANGS: Duration = Duration::from_secs(300);
/// How long the cluster may take to work again: this is not about speed, and bugs are looked for on busy machines too.
const WITHIN: &str = "20s";
/// A campaign that is asked to end does so within this time.
const ENDS: Duration = Duration::from_secs(30);
/// Between two looks at a campaign.
const LOOK: Duration = Duration::from_millis(100);
/// What of a violation stands in the table, characters.
const SHOWN: usize = 110;

/// What is looked for, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which bugs.
    pub bugs: Vec<Bug>,
    /// How long each is looked for.
    pub budget: Duration,
    /// Of the first campaign of each.
    pub seed: u64,
    /// Whether all faults are done, and not only those that show a bug soon.
    pub all_faults: bool,
    /// For how long a campaign without any bug runs; zero: none does.
    pub without: Duration,
    /// Where what the campaigns have seen is kept; None: nowhere.
    pub keep: Option<PathBuf>,
}

/// What has come of one bug, or of none.
#[derive(Clone, Debug, Serialize)]
pub struct Hunt {
    /// None: nothing was planted.
    pub bug: Option<&'static str>,
    /// What was seen.
    pub found: Option<Found>,
    /// Why the last campaign that told nothing did not: that is no proof of anything.
    pub broke_off: Option<String>,
    /// How long all campaigns took.
    pub seconds: f64,
    /// How many there were.
    pub campaigns: u64,
}

/// The first violation.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// Of which invariant.
    pub invariant: String,
    /// What was seen.
    pub what: String,
    /// Since the start of the first campaign.
    pub after_seconds: f64,
    /// Of the campaign that saw it.
    pub seed: u64,
}

/// The part of a campaign's report that counts here.
#[derive(Debug, Deserialize)]
struct Report {
    violations: Vec<Violation>,
}

#[derive(Debug, Deserialize)]
struct Violation {
    invariant: Invariant,
    what: String,
    seconds: f64,
}

/// By which faults a bug shows soon, and as a violation of which invariants. What else is seen meanwhile (a cluster on a busy
/// machine that takes its time) is no proof that it was found.
fn signs_of(bug: Bug) -> (&'static [&'static str], &'static [Invariant]) {
    use Invariant::{
        Capacity, Convergence, Digests, Durable, Linearizable, Progress, RequestIds, SingleLife, Watches,
    };
    match bug {
        Bug::NoFence => (&["late-leader"], &[SingleLife, Convergence]),
        Bug::RequestIdsNotReplicated => {
            (&["kill-leader", "transfer", "pause-leader"], &[RequestIds, Durable])
        }
        Bug::AckBeforeFlush => (&["kill-all-slow", "power-cut"], &[Durable, Linearizable, Watches]),
        Bug::RejectionBeforeCommit => {
            (&["partition-leader", "pause-leader", "kill-leader"], &[Durable, Linearizable, RequestIds])
        }
        Bug::LeaseFromReceiving => (&["late-agent"], &[SingleLife]),
        Bug::OldInventoryAsProof => (&["late-agent", "deaf-agent"], &[SingleLife, Convergence]),
        Bug::ReadWithoutReadIndex => (&["partition-leader", "pause-node", "delay"], &[Linearizable]),
        Bug::CapacityAtTerminating | Bug::ReleasedTwice => (&["kill-leader", "transfer"], &[Capacity]),
        Bug::GenerationNotChecked => {
            (&["kill-agent", "pause-agent", "cut-agent", "transfer"], &[SingleLife, Convergence, Capacity])
        }
        Bug::BaseRevisionIgnored => (
            &["kill-leader", "transfer", "pause-leader"],
            &[Durable, Capacity, Digests, Watches, Progress, Linearizable],
        ),
        Bug::SyncTakenOut => (&["power-cut"], &[Durable, Linearizable, Watches]),
        Bug::SnapshotWithoutRequests => (&["snapshot", "empty-disk", "kill-leader"], &[Digests, RequestIds]),
        Bug::NameFreedTooLate => (&["kill-leader", "transfer"], &[Linearizable, RequestIds]),
        Bug::NameFreedTooEarly => {
            (&["kill-agent", "pause-agent", "cut-agent", "transfer"], &[Durable, Linearizable])
        }
        Bug::ApplierOnFollower => (&["transfer", "kill-leader", "agent-storm"], &[Convergence, SingleLife]),
        Bug::WatchSkipsAtCompaction => (&["snapshot", "transfer"], &[Watches]),
        Bug::WatchMissesFirst => (&["kill-leader", "transfer"], &[Watches]),
        Bug::MinRevisionIgnored => (&["delay", "pause-node", "partition-one-way"], &[Linearizable]),
        Bug::RecoveryWithoutLease => (&["kill-agent", "cut-agent"], &[SingleLife]),
        Bug::AgentFromZero => (&["kill-agent"], &[SingleLife, Convergence]),
    }
}

/// Looks for all of them, and tells of each as it goes.
///
/// # Errors
/// If a program can't be built or started.
pub fn hunt(options: &Options, tell: impl Fn(&Hunt)) -> anyhow::Result<Vec<Hunt>> {
    let programs = Programs::build(options.keep.clone());
    let mut hunts = Vec::new();
    let mut done = |hunt: Hunt| {
        tell(&hunt);
        hunts.push(hunt);
    };
    for bug in &options.bugs {
        done(programs.hunt(Some(*bug), options, options.budget)?);
    }
    if !options.without.is_zero() {
        done(programs.hunt(None, options, options.without)?);
    }
    Ok(hunts)
}

/// What is run.
struct Programs {
    /// The binary that can have bugs.
    broken: PathBuf,
    campaign: PathBuf,
    keep: Option<PathBuf>,
}

impl Programs {
    fn build(keep: Option<PathBuf>) -> Self {
        let of_package = |package: &'static str, bin: &'static str| ["--package", package, "--bin", bin];
        let mut broken = of_package("sandkeeper", "sandkeeper").to_vec();
        broken.extend(["--features", "planted-bugs", "--profile", "planted"]);
        let campaign = of_package("cluster-tests", "campaign");
        Self { broken: build(&broken, "sandkeeper"), campaign: build(&campaign, "campaign"), keep }
    }

    /// One campaign after the other, until one sees something or the budget is used up.
    fn hunt(&self, bug: Option<Bug>, options: &Options, budget: Duration) -> anyhow::Result<Hunt> {
        let began = Instant::now();
        let (faults, signs) = bug.map_or((&[][..], &Invariant::ALL[..]), signs_of);
        let faults = if options.all_faults { &[] } else { faults };
        let name = bug.map(Bug::name);
        let mut campaigns = 0;
        let (mut found, mut broke_off) = (None, None);
        while found.is_none() && began.elapsed() < budget {
            let seed = options.seed + campaigns;
            let before = began.elapsed();
            let left = budget.saturating_sub(before);
            let lasts = if bug.is_some() { left.min(CAMPAIGN) } else { left };
            campaigns += 1;
            match self.campaign(name, seed, (faults, signs), lasts)? {
                Ok(seen) => found = seen,
                Err(why) => broke_off = Some(why),
            }
            if let Some(found) = &mut found {
                found.after_seconds += before.as_secs_f64();
            }
        }
        Ok(Hunt { bug: name, found, broke_off, seconds: began.elapsed().as_secs_f64(), campaigns })
    }

    /// The first violation that one campaign sees; or why it told nothing.
    fn campaign(
        &self,
        bug: Option<&str>,
        seed: u64,
        (faults, signs): (&[&str], &[Invariant]),
        lasts: Duration,
    ) -> anyhow::Result<Result<Option<Found>, String>> {
        let temporary = tempfile::tempdir()?;
        let kept = match &self.keep {
            Some(keep) => keep.join(format!("{}-{seed}", bug.unwrap_or("none"))),
            None => temporary.path().to_owned(),
        };
        std::fs::create_dir_all(&kept).with_context(|| kept.display().to_string())?;
        let (out, log) = (temporary.path().join("report.json"), kept.join("campaign.log"));
        let mut command = Command::new(&self.campaign);
        command.args(["--json", "--within", WITHIN, "--seed", &seed.to_string()]);
        command.args(["--duration", &format!("{}ms", lasts.as_millis())]).arg("--keep").arg(&kept);
        let signs_by_number: Vec<_> = signs.iter().map(|sign| sign.number()).collect();
        command.args(["--stop-at", &signs_by_number.join(",")]);
        if !faults.is_empty() {
            command.args(["--faults", &faults.join(",")]);
        }
        command.env(BINARY, &self.broken).env_remove(VARIABLE);
        command.envs(bug.map(|bug| (VARIABLE, bug)));
        command.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&log)?).process_group(0);
        let mut child = command.spawn().context("the campaign does not start")?;
        let ended = wait(&mut child, lasts + HANGS)?;
        let report = std::fs::read(&out)?;
        let log = || std::fs::read_to_string(&log).unwrap_or_default().trim().to_owned();
        Ok(match (ended, serde_json::from_slice::<Report>(&report)) {
            (Some(_), Ok(report)) => {
                let seen = report.violations.into_iter().filter(|seen| signs.contains(&seen.invariant));
                let first = seen.min_by(|a, b| a.seconds.total_cmp(&b.seconds));
                Ok(first.map(|Violation { invariant, what, seconds }| Found {
                    invariant: invariant.title().to_owned(),
                    what,
                    after_seconds: seconds,
                    seed,
                }))
            }
            (Some(status), Err(_)) => Err(format!("{status}: {}", log())),
            (None, _) => Err(format!("it did not end in time: {}", log())),
        })
    }
}

/// Waits until the campaign has ended; None: it had to be killed, with all that it had started.
fn wait(child: &mut Child, patience: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(LOOK);
    }
    // It ends all that it has started, if it still can.
    let group = Pid::from_raw(child.id().cast_signed());
    kill(group, Signal::SIGTERM)?;
    let deadline = Instant::now() + ENDS;
    while Instant::now() < deadline && child.try_wait()?.is_none() {
        std::thread::sleep(LOOK);
    }
    // If nothing is left, so much the better.
    let _ = killpg(group, Signal::SIGKILL);
    child.wait()?;
    Ok(None)
}

impl Hunt {
    /// Whether it is as it should be: a bug was found, and where there is none a whole campaign has seen nothing.
    pub fn is_good(&self) -> bool {
        match self.bug {
            Some(_) => self.found.is_some(),
            None => self.found.is_none() && self.broke_off.is_none(),
        }
    }

    /// What there is to tell if nothing was found.
    fn nothing(&self) -> String {
        let broke_off = self.broke_off.as_ref().map(|why| format!("; one broke off: {}", shortened(why)));
        let (seconds, campaigns) = (self.seconds, self.campaigns);
        format!("nothing in {seconds:.0} s ({campaigns} campaigns{})", broke_off.unwrap_or_default())
    }
}

impl fmt::Display for Hunt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.bug.unwrap_or("no bug");
        match &self.found {
            Some(found) => {
                let Found { invariant, what, after_seconds, seed } = found;
                write!(f, "{name}: {invariant} after {after_seconds:.1} s (seed {seed}): {}", shortened(what))
            }
            None => write!(f, "{name}: {}", self.nothing()),
        }
    }
}

fn shortened(what: &str) -> String {
    let line = what.replace('\n', " ");
    if line.chars().count() <= SHOWN { line } else { line.chars().take(SHOWN).chain(['…']).collect() }
}

/// All of it, for people.
pub fn table(hunts: &[Hunt]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(["bug", "found by", "after", "seed", "what was seen"]);
    for hunt in hunts {
        let name = hunt.bug.unwrap_or("no bug");
        match &hunt.found {
            Some(found) => table.add_row([
                name,
                &found.invariant,
                &format!("{:.1} s", found.after_seconds),
                &found.seed.to_string(),
                &shortened(&found.what),
            ]),
            None => table.add_row([name, "nothing", "", "", &hunt.nothing()]),
        };
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::faults::KINDS;

    fn hunted(bug: Option<&'static str>, found: bool) -> Hunt {
        let found = found.then(|| Found {
            invariant: "I9".into(),
            what: "a gap\nof two".into(),
            after_seconds: 7.0,
            seed: 3,
        });
        Hunt { bug, found, broke_off: None, seconds: 60.0, campaigns: 2 }
    }

    #[test]
    fn a_campaign_that_broke_off_has_neither_found_a_bug_nor_shown_that_there_is_none() {
        let broke_off = |bug| Hunt { broke_off: Some("killed".into()), ..hunted(bug, false) };
        assert!(!broke_off(Some("x")).is_good() && !broke_off(None).is_good());
        let told = broke_off(None).to_string();
        assert_eq!(told, "no bug: nothing in 60 s (2 campaigns; one broke off: killed)");
    }

    #[test]
    fn a_bug_has_to_be_found_and_nothing_where_there_is_none() {
        assert!(hunted(Some("x"), true).is_good() && hunted(None, false).is_good());
        assert!(!hunted(Some("x"), false).is_good() && !hunted(None, true).is_good());
        assert_eq!(hunted(Some("x"), true).to_string(), "x: I9 after 7.0 s (seed 3): a gap of two");
    }

    #[test]
    fn every_bug_is_looked_for_by_faults_that_there_are() {
        for bug in Bug::ALL {
            let (faults, signs) = signs_of(*bug);
            assert!(!faults.is_empty() && !signs.is_empty());
            assert!(faults.iter().all(|fault| KINDS.iter().any(|kind| kind.name == *fault)), "{faults:?}");
        }
    }
}
