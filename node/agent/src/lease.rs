//! The lease: until when AUTO_RECREATE sandboxes may run although no leader is heard of.
//!
//! A leader acknowledges a heartbeat only after a quorum has confirmed that it led after the heartbeat came; and it, or its
//! successor, starts such a sandbox elsewhere only when it has heard nothing of this agent for the length of the lease. So
//! what has ended by then, counted from *sending* the newest heartbeat that was acknowledged, never runs twice. The time
//! is CLOCK_BOOTTIME, which goes on while the machine sleeps. `docs/guarantees.md` has the whole argument.
//!
//! The agent only writes down when that heartbeat was sent, and which gaps there were before (`DATA/lease.json`). Each
//! sandbox's shim reads it when its time seems to be over, and ends the sandbox if it is; so neither a dead nor a stopped
//! agent keeps a sandbox alive, and a shim that is itself late finds out that the lease was over for a while.

mod acknowledged;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use acknowledged::Acknowledged;

use crate::boottime::BootTime;
use crate::files::{self, Durability, FileFault};

/// The format of the record.
const VERSION: u32 = 1;
/// From the SIGKILL until the kernel has ended every process of a sandbox: milliseconds, but on a machine that is too busy.
const KILLING: Duration = Duration::from_millis(500);
/// How much the two machines' clocks may differ in speed: 2 parts in 100; clocks that are not broken keep to 1 in 1,000.
const DRIFT: u32 = 50;
/// The pause after a write that failed.
const WRITE_AGAIN: Duration = Duration::from_millis(200);

/// When a sandbox has to be dead: so long after the sending of the newest acknowledged heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTerms {
    /// How long.
    pub length: Duration,
    /// Of the event that brought these terms about.
    pub revision: u64,
}

impl LeaseTerms {
    /// How long after the sending of an acknowledged heartbeat the sandbox is killed, so that it is dead by the end of the
    /// lease.
    pub fn patience(&self) -> Duration {
        self.length.saturating_sub(KILLING + self.length / DRIFT)
    }

    /// When the sandbox is killed if the heartbeat that was sent at `acknowledged` remains the newest.
    pub fn deadline(&self, acknowledged: BootTime) -> BootTime {
        acknowledged.after(self.patience())
    }
}

impl fmt::Display for LeaseTerms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lease {} of {:?}", self.revision, self.length)
    }
}

/// `lease.json`.
#[derive(Debug, Serialize, Deserialize)]
struct LeaseRecord {
    version: u32,
    /// Its times mean nothing in another boot.
    boot_id: String,
    #[serde(flatten)]
    acknowledged: Acknowledged,
}

/// What has been acknowledged in this boot, as the file says: nothing, if there is none.
pub(crate) fn read(path: &Path, boot_id: &str) -> io::Result<Acknowledged> {
    let Some(content) = files::read_if_there(path).map_err(|fault| fault.source)? else {
        return Ok(Acknowledged::default());
    };
    let record: LeaseRecord = serde_json::from_slice(&content)?;
    if record.version != VERSION {
        let what = format!("format {} is not known here, only {VERSION}", record.version);
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(if record.boot_id == boot_id { record.acknowledged } else { Acknowledged::default() })
}

/// Keeps the file up to date.
#[derive(Debug)]
pub(crate) struct LeaseKeeper {
    path: PathBuf,
    boot_id: String,
    /// What is known.
    heard: watch::Sender<Acknowledged>,
    /// What is in the file.
    written: watch::Sender<Acknowledged>,
}

impl LeaseKeeper {
    /// Goes on from what an agent of this boot has written before: that nothing was acknowledged while there was none is a
    /// gap. Reads the disk.
    ///
    /// # Errors
    /// If the file is there and can't be read.
    pub(crate) fn open(data_dir: &Path, boot_id: &str) -> Result<Self, FileFault> {
        let path = data_dir.join("lease.json");
        let known = read(&path, boot_id).map_err(FileFault::of("read", &path))?;
        let (heard, written) = (watch::channel(known.clone()).0, watch::channel(known).0);
        Ok(Self { path, boot_id: boot_id.to_owned(), heard, written })
    }

    /// Where the shims find it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// That the heartbeat which was sent at `sent` is acknowledged, is known at `known`.
    pub(crate) fn acknowledged(&self, sent: BootTime, known: BootTime) {
        self.heard.send_if_modified(|acknowledged| acknowledged.take(sent, known));
    }

    /// Whether a sandbox under these terms may be started now. `heard`: when the newest heartbeat was sent that had been
    /// acknowledged, in the session of the create, before the create came. What other sessions, and what came later, say of
    /// the lease does not count: an agent that was stopped for longer than its lease finds old creates in its buffers when it
    /// wakes, and a moment later a leader that acknowledges it again, and has started the sandbox elsewhere. Waits, for
    /// `patience`, until the shim can read what is known.
    pub(crate) async fn holds(&self, terms: LeaseTerms, heard: Option<BootTime>, patience: Duration) -> bool {
        let lives = || heard.is_some_and(|at| terms.deadline(at) > BootTime::now());
        lives() && self.is_written(patience).await && lives()
    }

    /// Waits, for `patience`, until all that is known by now is in the file.
    pub(crate) async fn is_written(&self, patience: Duration) -> bool {
        let newest = self.heard.borrow().newest();
        let mut written = self.written.subscribe();
        let is_written = written.wait_for(|written| written.newest() >= newest);
        tokio::time::timeout(patience, is_written).await.is_ok_and(|found| found.is_ok())
    }

    /// Writes every newer acknowledgement down, until `token` is cancelled. A disk that fails ends leases, and no more.
    pub(crate) async fn keep(self: Arc<Self>, token: CancellationToken) {
        let mut heard = self.heard.subscribe();
        // Something may have been acknowledged before this task began to listen.
        heard.mark_changed();
        while let Some(Ok(())) = token.run_until_cancelled(heard.changed()).await {
            let newest = heard.borrow_and_update().clone();
            if newest == *self.written.borrow() {
                continue;
            }
            let (keeper, content) = (Arc::clone(&self), newest.clone());
            match tokio::task::spawn_blocking(move || keeper.write(content)).await {
                Ok(Ok(())) => {
                    self.written.send_replace(newest);
                }
                Ok(Err(fault)) => {
                    tracing::error!(%fault, source = %fault.source, "the lease can't be written down");
                    token.run_until_cancelled(tokio::time::sleep(WRITE_AGAIN)).await;
                    heard.mark_changed();
                }
                Err(error) => tracing::error!(%error, "writing the lease down died"),
            }
        }
    }

    fn write(&self, acknowledged: Acknowledged) -> Result<(), FileFault> {
        let record = LeaseRecord { version: VERSION, boot_id: self.boot_id.clone(), acknowledged };
        let content = serde_json::to_vec(&record).expect("a record of numbers and text is always JSON");
        files::replace(&self.path, &content, Durability::UntilReboot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn terms(seconds: u64) -> LeaseTerms {
        LeaseTerms { length: Duration::from_secs(seconds), revision: 1 }
    }

    #[test]
    fn a_sandbox_is_killed_before_its_lease_is_over() {
        assert_eq!(terms(5).deadline(BootTime(0)), BootTime(4_400_000_000));
        assert_eq!(terms(100).deadline(BootTime(7)), BootTime(97_500_000_007));
        assert_eq!(terms(0).deadline(BootTime(7)), BootTime(7));
    }

    #[tokio::test]
    async fn what_is_acknowledged_is_written_and_read_in_the_same_boot_only() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = Arc::new(LeaseKeeper::open(folder.path(), "this").unwrap());
        let token = CancellationToken::new();
        let keeping = tokio::spawn(Arc::clone(&keeper).keep(token.clone()));
        let now = BootTime::now();
        keeper.acknowledged(now, now);
        assert!(keeper.is_written(PATIENCE).await);
        let written = read(keeper.path(), "this").unwrap();
        assert_eq!(written.newest(), now);
        keeper.acknowledged(BootTime(1), now);
        assert!(keeper.is_written(PATIENCE).await);
        assert_eq!(read(keeper.path(), "this").unwrap(), written, "an older one changes nothing");
        assert_eq!(read(keeper.path(), "another").unwrap(), Acknowledged::default());
        token.cancel();
        keeping.await.unwrap();
        let again = LeaseKeeper::open(folder.path(), "this").unwrap();
        let later = now.after(Duration::from_secs(9));
        again.acknowledged(later, later);
        again.write(again.heard.borrow().clone()).unwrap();
        let found = read(again.path(), "this").unwrap();
        assert_eq!(found.end_of(terms(5), now), terms(5).deadline(now), "no agent was there: that is a gap");
        std::fs::write(keeper.path(), r#"{"version":2,"boot_id":"this","acknowledged":1,"gaps":[]}"#)
            .unwrap();
        assert!(
            LeaseKeeper::open(folder.path(), "this").unwrap_err().source.to_string().contains("format 2")
        );
        std::fs::write(keeper.path(), "{").unwrap();
        assert!(LeaseKeeper::open(folder.path(), "this").is_err());
    }

    #[tokio::test]
    async fn a_start_rests_on_what_its_own_session_had_acknowledged_before() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = Arc::new(LeaseKeeper::open(folder.path(), "this").unwrap());
        let token = CancellationToken::new();
        let keeping = tokio::spawn(Arc::clone(&keeper).keep(token.clone()));
        let now = BootTime::now();
        // A new session has been acknowledged. The create comes from an older one.
        keeper.acknowledged(now, now);
        assert!(keeper.holds(terms(10), Some(now), PATIENCE).await);
        assert!(!keeper.holds(terms(10), None, PATIENCE).await, "nothing was acknowledged in it");
        let long_ago = BootTime(now.0.saturating_sub(11_000_000_000));
        assert!(!keeper.holds(terms(10), Some(long_ago), PATIENCE).await, "not for a long time");
        assert!(!keeper.holds(terms(0), Some(now), PATIENCE).await);
        token.cancel();
        keeping.await.unwrap();
        let later = BootTime::now();
        keeper.acknowledged(later, later);
        assert!(!keeper.holds(terms(10), Some(later), Duration::ZERO).await, "the shim could not read it");
    }
}
