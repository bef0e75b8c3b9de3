//! The lease: until when AUTO_RECREATE sandboxes may run although no leader is heard of.
//!
//! A leader acknowledges a heartbeat only after a quorum has confirmed that it led after the heartbeat came; and it, or its
//! successor, starts such a sandbox elsewhere only when it has heard nothing of this agent for the length of the lease. So
//! what has ended by then, counted from *sending* the newest heartbeat that was acknowledged, never runs twice. The time
//! is CLOCK_BOOTTIME, which goes on while the machine sleeps. `docs/guarantees.md` has the whole argument.
//!
//! The agent only writes down when that heartbeat was sent (`DATA/lease.json`). Each sandbox's shim reads it when its time
//! seems to be over, and ends the sandbox if it is; so neither a dead nor a stopped agent keeps a sandbox alive.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

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
    /// When the sandbox is killed, so that it is dead by the end of the lease.
    pub fn deadline(&self, acknowledged: BootTime) -> BootTime {
        acknowledged.after(self.length.saturating_sub(KILLING + self.length / DRIFT))
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
    /// Its time means nothing in another boot.
    boot_id: String,
    /// When the newest acknowledged heartbeat was sent.
    acknowledged: BootTime,
}

/// When the newest acknowledged heartbeat was sent, as the file says. None: none was, in this boot.
pub(crate) fn read(path: &Path, boot_id: &str) -> io::Result<Option<BootTime>> {
    let Some(content) = files::read_if_there(path).map_err(|fault| fault.source)? else { return Ok(None) };
    let record: LeaseRecord = serde_json::from_slice(&content)?;
    Ok((record.boot_id == boot_id).then_some(record.acknowledged))
}

/// Keeps the file up to date.
#[derive(Debug)]
pub(crate) struct LeaseKeeper {
    path: PathBuf,
    boot_id: String,
    /// The newest acknowledgement.
    heard: watch::Sender<Option<BootTime>>,
    /// The newest that is in the file.
    written: watch::Sender<Option<BootTime>>,
}

impl LeaseKeeper {
    /// Goes on from what an agent of this boot has written before. Reads the disk.
    ///
    /// # Errors
    /// If the file is there and can't be read.
    pub(crate) fn open(data_dir: &Path, boot_id: &str) -> Result<Self, FileFault> {
        let path = data_dir.join("lease.json");
        let known = read(&path, boot_id).map_err(FileFault::of("read", &path))?;
        let (heard, written) = (watch::channel(known).0, watch::channel(known).0);
        Ok(Self { path, boot_id: boot_id.to_owned(), heard, written })
    }

    /// Where the shims find it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A heartbeat was acknowledged that was sent at `sent`.
    pub(crate) fn acknowledged(&self, sent: BootTime) {
        self.heard.send_if_modified(|known| {
            let newer = known.is_none_or(|known| known < sent);
            if newer {
                *known = Some(sent);
            }
            newer
        });
    }

    /// Whether a sandbox under these terms may be started now: by what has been acknowledged up to now, never by what comes
    /// later. (An agent that was stopped for longer than its lease finds old creates in its buffers when it wakes, and a
    /// moment later a leader that acknowledges it again, and has started the sandbox elsewhere.) Waits, for `patience`, until
    /// the shim can read it.
    pub(crate) async fn holds(&self, terms: LeaseTerms, patience: Duration) -> bool {
        let known = *self.heard.borrow();
        let lives = || known.is_some_and(|at| terms.deadline(at) > BootTime::now());
        if !lives() {
            return false;
        }
        let mut written = self.written.subscribe();
        let is_written = written.wait_for(|written| *written >= known);
        tokio::time::timeout(patience, is_written).await.is_ok_and(|found| found.is_ok()) && lives()
    }

    /// Writes every newer acknowledgement down, until `token` is cancelled. A disk that fails ends leases, and no more.
    pub(crate) async fn keep(self: Arc<Self>, token: CancellationToken) {
        let mut heard = self.heard.subscribe();
        // Something may have been acknowledged before this task began to listen.
        heard.mark_changed();
        while let Some(Ok(())) = token.run_until_cancelled(heard.changed()).await {
            let newest = *heard.borrow_and_update();
            let Some(acknowledged) = newest.filter(|_| newest != *self.written.borrow()) else { continue };
            let keeper = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || keeper.write(acknowledged)).await {
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

    fn write(&self, acknowledged: BootTime) -> Result<(), FileFault> {
        let record = LeaseRecord { version: VERSION, boot_id: self.boot_id.clone(), acknowledged };
        let content = serde_json::to_vec(&record).expect("a record of numbers and text is always JSON");
        files::replace(&self.path, &content, Durability::UntilReboot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    async fn the_newest_acknowledgement_is_written_and_read_in_the_same_boot_only() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = Arc::new(LeaseKeeper::open(folder.path(), "this").unwrap());
        let token = CancellationToken::new();
        let keeping = tokio::spawn(Arc::clone(&keeper).keep(token.clone()));
        assert!(!keeper.holds(terms(10), Duration::from_secs(60)).await, "nothing was acknowledged");
        keeper.acknowledged(BootTime(1));
        assert!(
            !keeper.holds(terms(0), Duration::from_secs(60)).await,
            "not long enough ago, and it does not wait"
        );
        let now = BootTime::now();
        keeper.acknowledged(now);
        assert!(keeper.holds(terms(10), Duration::from_secs(60)).await);
        keeper.acknowledged(BootTime(1));
        assert_eq!(read(keeper.path(), "this").unwrap(), Some(now), "an older one changes nothing");
        assert_eq!(read(keeper.path(), "another").unwrap(), None);
        token.cancel();
        keeping.await.unwrap();
        let again = LeaseKeeper::open(folder.path(), "this").unwrap();
        assert_eq!(*again.written.borrow(), Some(now), "an agent that is started again goes on");
        std::fs::write(keeper.path(), "{").unwrap();
        assert!(LeaseKeeper::open(folder.path(), "this").is_err());
    }
}
