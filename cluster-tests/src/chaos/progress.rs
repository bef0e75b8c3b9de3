//! What is seen of a campaign while it runs.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::oracle::Oracle;

/// Between two lines.
const LINE: Duration = Duration::from_millis(250);

/// A line on the terminal.
pub struct Progress {
    bar: ProgressBar,
    faults: Arc<std::sync::atomic::AtomicU64>,
    now: Arc<std::sync::Mutex<String>>,
    /// Ends with this.
    _task: JoinSet<()>,
}

impl Progress {
    /// Shows how a campaign goes.
    pub fn start(oracle: &Arc<Oracle>, duration: Duration, quiet: bool) -> Self {
        let style = ProgressStyle::with_template("{bar:20} {elapsed} {msg}");
        let style = style.expect("the template is a constant that is well-formed");
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(duration.as_secs()), target).with_style(style);
        let faults = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let now = Arc::new(std::sync::Mutex::new(String::new()));
        let mut task = JoinSet::new();
        task.spawn(show(bar.clone(), Arc::clone(oracle), Arc::clone(&faults), Arc::clone(&now)));
        Self { bar, faults, now, _task: task }
    }

    /// What is done now.
    pub fn now(&self, what: &str) {
        what.clone_into(&mut self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    /// So many faults have happened.
    pub fn count(&self, faults: u64) {
        self.faults.store(faults, std::sync::atomic::Ordering::Relaxed);
    }

    /// Nothing more is shown.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

async fn show(
    bar: ProgressBar,
    oracle: Arc<Oracle>,
    faults: Arc<std::sync::atomic::AtomicU64>,
    now: Arc<std::sync::Mutex<String>>,
) {
    loop {
        let counts = oracle.counts();
        let checks: u64 = oracle.checks().values().sum();
        let violations = oracle.violations().len();
        let what = now.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let faults = faults.load(std::sync::atomic::Ordering::Relaxed);
        bar.set_position(oracle.now().as_secs());
        bar.set_message(format!(
            "{} acknowledged, {} read, {} refused, {} unknown; {checks} checks, {violations} violations; {faults} faults, now {what}",
            counts.acknowledged, counts.read, counts.refused, counts.unknown
        ));
        sleep(LINE).await;
    }
}
