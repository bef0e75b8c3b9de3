//! Chaos: a cluster under load is attacked, and an oracle that sees everything says whether it stayed true to its word.
//!
//! [`run`] is one campaign. [`faults`] do harm, [`workload`] keeps the cluster busy and looks at every replica, the
//! [`oracle`] folds the history by a model of its own and compares with it all that anybody was told; [`invariants`] say what
//! must hold.

pub mod checks;
pub mod chronicle;
pub mod faults;
pub mod fold;
pub mod invariants;
pub mod oracle;
pub mod progress;
pub mod record;
pub mod report;
pub mod rig;
pub mod schedule;
pub mod versions;
pub mod violation;
pub mod workload;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use checks::{Lives, all_is_well};
use chronicle::Chronicle;
use oracle::Oracle;
use progress::Progress;
use report::{Failover, Report};
use rig::{Means, Rig, RigOptions};
use schedule::{Drawn, Schedule, choose};
use violation::{Breach, Invariant, Violation};
use workload::{Target, Workload};

/// Between two faults, milliseconds.
const PAUSE: std::ops::Range<u64> = 200..1_200;
/// Before the first fault.
const WARM_UP: Duration = Duration::from_secs(2);
/// Between two looks at the diaries.
const LIVES: Duration = Duration::from_secs(10);

/// What a campaign is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Workload and faults follow from it.
    pub seed: u64,
    /// How long faults are done.
    pub duration: Duration,
    /// Control nodes.
    pub nodes: usize,
    /// Only these faults; none: all.
    pub faults: Vec<String>,
    /// Where everything goes that is needed to understand a violation; None: where it is, in a temporary folder.
    pub keep: Option<PathBuf>,
    /// Whether it goes on after a violation.
    pub keep_going: bool,
    /// It goes on, but after a violation of one of these; none: of any.
    pub stop_at: Vec<Invariant>,
    /// Whether it does as if this were not root.
    pub without_root: bool,
    /// The cluster works again within this time after a fault.
    pub within: Duration,
    /// Whether no progress is shown.
    pub quiet: bool,
}

/// Runs a campaign.
///
/// # Errors
/// If it can't be run: a fault is unknown, or can't be undone, a file can't be made. A violation is no error.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let mut means = Means::look();
    means.root &= !options.without_root;
    let (kinds, skipped) = choose(&options.faults, &means)?;
    let rig_options = RigOptions { nodes: options.nodes, seed: options.seed, means };
    let oracle = |folder: &Path| Ok(Oracle::new(Chronicle::new(folder)?));
    let mut rig = Rig::start(&rig_options, oracle).await?;
    let target = Target {
        apis: rig.cluster.nodes[..rig.nodes].iter().map(|node| node.api.clone()).collect(),
        diaries: rig.diaries(),
        seed: options.seed,
    };
    let workload = Workload::start(&target, &rig.oracle);
    let progress = Progress::start(&rig.oracle, options.duration, options.quiet);
    let mut campaign = Campaign {
        schedule: Schedule::new(options.seed, &kinds),
        workload,
        progress,
        agents: None,
        faults: BTreeMap::new(),
        in_vain: BTreeMap::new(),
        lives: Lives::default(),
        looked: Instant::now(),
        steps: 0,
        within: options.within,
    };
    let result = campaign.go(&mut rig, options).await;
    campaign.progress.end();
    if let Err(error) = &result {
        // What can't be undone is the cluster's fault, as far as anybody knows.
        let what = format!("the cluster was not brought back: {error:#}");
        rig.oracle.checked(Invariant::Progress, Err(Breach::of(Invariant::Progress, what)));
    }
    let kept =
        if rig.oracle.violations().is_empty() { None } else { Some(Campaign::keep(&mut rig, options)?) };
    Ok(campaign.report(&rig, options, &skipped, kept))
}

/// Waits for a violation that ends the campaign: of one of these invariants, or, if there are none, of any.
async fn enough(violated: &mut watch::Receiver<usize>, oracle: &Oracle, of: &[Invariant]) {
    loop {
        let some = *violated.borrow_and_update() > 0;
        let counts = |violation: &Violation| of.is_empty() || of.contains(&violation.invariant);
        if some && oracle.violations().iter().any(counts) {
            return;
        }
        if violated.changed().await.is_err() {
            // The oracle, which tells of more, lives as long as the campaign.
            std::future::pending::<()>().await;
        }
    }
}

/// A fault of the agents that is not over.
struct Ongoing {
    drawn: Drawn,
    until: Instant,
}

struct Campaign {
    schedule: Schedule,
    workload: Workload,
    progress: Progress,
    agents: Option<Ongoing>,
    faults: BTreeMap<String, u64>,
    in_vain: BTreeMap<String, u64>,
    lives: Lives,
    looked: Instant,
    steps: u64,
    within: Duration,
}

impl Campaign {
    async fn go(&mut self, rig: &mut Rig, options: &Options) -> anyhow::Result<()> {
        let end = Instant::now() + options.duration;
        let (oracle, mut violated) = (Arc::clone(&rig.oracle), rig.oracle.violated());
        let mut stopped = false;
        sleep(WARM_UP).await;
        while Instant::now() < end {
            tokio::select! {
                () = enough(&mut violated, &oracle, &options.stop_at), if !options.keep_going => {
                    stopped = true;
                    break;
                }
                done = self.step(rig) => done?,
            }
        }
        if stopped {
            return Ok(());
        }
        if let Some(ongoing) = self.agents.take() {
            self.heal(rig, ongoing.drawn).await?;
        }
        rig.oracle.remark("all faults are over");
        self.progress.now("the last checks");
        self.workload.finish(&rig.oracle).await;
        rig.sweep();
        all_is_well(rig).await;
        self.lives.look(&rig.oracle, &rig.diaries());
        rig.oracle.close();
        self.workload.assert_sighted()
    }

    /// One fault of the nodes, and perhaps one of the agents, which may last longer.
    async fn step(&mut self, rig: &mut Rig) -> anyhow::Result<()> {
        self.steps += 1;
        if self.agents.is_none()
            && let Some(mut drawn) = self.schedule.maybe_of_agents()
        {
            self.inject(rig, &mut drawn).await;
            self.agents = Some(Ongoing { until: Instant::now() + drawn.lasts, drawn });
        }
        let mut name = "nothing";
        if let Some(mut drawn) = self.schedule.next_of_nodes() {
            name = drawn.name;
            self.inject(rig, &mut drawn).await;
            sleep(drawn.lasts).await;
            self.heal(rig, drawn).await?;
        }
        if let Some(ongoing) = self.agents.take() {
            if name == "nothing" {
                tokio::time::sleep_until(ongoing.until).await;
            }
            if ongoing.until <= Instant::now() {
                self.heal(rig, ongoing.drawn).await?;
            } else {
                self.agents = Some(ongoing);
            }
        }
        rig.sweep();
        checks::progress(rig, name, self.steps, self.within).await;
        if self.looked.elapsed() > LIVES {
            self.lives.look(&rig.oracle, &rig.diaries());
            self.looked = Instant::now();
        }
        self.workload.assert_sighted()?;
        let pause = rig.some_time(PAUSE);
        sleep(pause).await;
        Ok(())
    }

    async fn inject(&mut self, rig: &mut Rig, drawn: &mut Drawn) {
        rig.oracle.remark(&format!("{} begins", drawn.name));
        self.progress.now(drawn.name);
        if let Err(error) = drawn.fault.inject(rig).await {
            rig.oracle.remark(&format!("{} could not be done: {error:#}", drawn.name));
        }
    }

    async fn heal(&mut self, rig: &mut Rig, mut drawn: Drawn) -> anyhow::Result<()> {
        rig.oracle.remark(&format!("{} ends", drawn.name));
        let proved = drawn.fault.heal(rig).await.context(drawn.name)?;
        let counts = if proved { &mut self.faults } else { &mut self.in_vain };
        *counts.entry(drawn.name.to_owned()).or_default() += 1;
        rig.oracle.remark(&format!("{} is over; it happened: {proved}", drawn.name));
        self.progress.count(self.faults.values().sum());
        Ok(())
    }

    /// Keeps everything that is needed to understand what was seen.
    fn keep(rig: &mut Rig, options: &Options) -> anyhow::Result<PathBuf> {
        rig.oracle.write_timeline().context("the timeline can't be written")?;
        let folder = rig.cluster.folder().to_owned();
        let Some(keep) = &options.keep else {
            rig.cluster.keep();
            return Ok(folder);
        };
        std::fs::create_dir_all(keep).with_context(|| keep.display().to_string())?;
        // With all nodes' data, also of those that have a disk of their own, which goes with the campaign.
        copy(&folder, keep)?;
        for node in &rig.cluster.nodes {
            let target = keep.join(&node.name);
            if !target.exists() && node.data_dir.exists() {
                copy(&node.data_dir, &target)?;
            }
        }
        Ok(keep.clone())
    }

    fn report(&self, rig: &Rig, options: &Options, skipped: &[&str], kept: Option<PathBuf>) -> Report {
        let violations = rig.oracle.violations();
        let counts = rig.oracle.counts();
        Report {
            seed: options.seed,
            nodes: options.nodes,
            seconds: rig.oracle.now().as_secs_f64(),
            acknowledged: counts.acknowledged,
            read: counts.read,
            refused: counts.refused,
            unknown: counts.unknown,
            events: rig.oracle.head(),
            faults: self.faults.clone(),
            faults_without_proof: self.in_vain.clone(),
            skipped: skipped.iter().map(|name| (*name).to_owned()).collect(),
            invariants: report::checks(&rig.oracle.checks(), &violations),
            failover: Failover::of(rig.failovers.clone()),
            violations,
            kept,
        }
    }
}

/// Copies what is in a folder. The cluster is alive: what goes away meanwhile is not worth losing the report for.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let mut copy = std::process::Command::new("cp");
    copy.args(["--recursive", "--sparse=always"]).arg(from.join(".")).arg(to);
    if !copy.status().context("there is no `cp`")?.success() {
        eprintln!("not all of {} could be copied to {}", from.display(), to.display());
    }
    Ok(())
}
