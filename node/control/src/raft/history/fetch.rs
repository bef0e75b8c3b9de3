//! Collecting history from peers: one that fails is left for another one, which goes on where it ended.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use sandkeeper_proto::internal::{HistoryEntriesRequest, HistoryStartRequest, HistoryStartResponse};
use sandkeeper_statemachine::{DIGEST_FORM, Digest};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::chain::Chain;
use super::elsewhere::OtherNodes;
use super::keeper::Progress;
use super::start_at;
use crate::history::checkpoints::{Checkpoint, Checkpoints};
use crate::history::fold::SourceError;
use crate::raft::codec;
use crate::raft::peers::reason;
use crate::raft::types::{LogEntry, Member, NodeId};
use crate::storage::StorageError;
use crate::storage::log::{FetchedLog, LogStore};

/// A peer that does not answer for this long is left.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// What is asked for in a second at most, bytes: a few in a hundred of what a disk and a network bear, so that Raft, which
/// uses the same, does not feel it. A million small entries take half a minute.
const BYTES_PER_SECOND: u64 = 16 << 20;
/// After every peer has failed in turn this often, the attempt ends; the next one begins anew.
const ROUNDS: u32 = 5;
/// Pause after every peer has failed.
const ROUND_PAUSE: Duration = Duration::from_secs(1);
/// Progress is told this often.
const TELL: Duration = Duration::from_secs(2);

/// Why nothing was fetched.
#[derive(Debug)]
pub(super) enum Failure {
    /// No peer has more than this node, of those that answered.
    NobodyHasMore {
        /// All have answered.
        certain: bool,
    },
    /// The peers failed, or what came from these is not this node's history.
    Peers { why: String, distrusted: BTreeSet<NodeId> },
    /// This node's disk failed.
    Fault(StorageError),
}

impl From<StorageError> for Failure {
    fn from(fault: StorageError) -> Self {
        Self::Fault(fault)
    }
}

fn peers(why: impl Into<String>) -> Failure {
    Failure::Peers { why: why.into(), distrusted: BTreeSet::new() }
}

/// One attempt.
pub(super) struct Fetch<'a> {
    pub(super) others: &'a OtherNodes,
    pub(super) log: &'a LogStore,
    pub(super) progress: &'a Progress,
    /// Whose history did not lead here.
    pub(super) distrusted: &'a BTreeSet<NodeId>,
    /// The first index that is wanted.
    pub(super) wanted: u64,
    /// The index that this node's history begins with.
    pub(super) end: u64,
    /// A position of this node's own state, at or behind `end`.
    pub(super) own: Checkpoint,
}

/// Entries on the disk, and the chain over them.
struct Collected {
    log: FetchedLog,
    chain: Chain,
}

impl Fetch<'_> {
    /// Fetches and verifies. What comes back counts when it is adopted.
    pub(super) async fn run(&self) -> Result<(FetchedLog, Checkpoints), Failure> {
        let (sources, certain) = self.sources().await;
        let Some(start) = sources.first().map(|source| source.start) else {
            return Err(Failure::NobodyHasMore { certain });
        };
        tracing::info!(
            from = start.index,
            to = self.end - 1,
            peers = sources.len(),
            "fetching history from peers"
        );
        let mut used = BTreeSet::new();
        // Whoever claims where it begins answers for that, too.
        used.extend(sources.first().map(|source| source.id));
        let mut collected = self.collect(&sources, start, &mut used).await?;
        let own_entries = self.follow_own(&mut collected.chain).await;
        own_entries.map_err(|error| peers(format!("the own log could not be followed: {error}")))?;
        match collected.chain.leads_to(self.own) {
            Ok(positions) => Ok((collected.log, positions)),
            Err(other) => {
                discard(collected.log).await;
                let why = format!(
                    "the history from index {} on leads to revision {} with digest {}, and this node's state had \
                     revision {} with digest {} there: all of it was thrown away",
                    start.index, other.revision, other.digest, self.own.revision, self.own.digest
                );
                Err(Failure::Peers { why, distrusted: used })
            }
        }
    }

    /// The peers that have more than this node, with the position that each would begin at; and whether all have answered.
    async fn sources(&self) -> (Vec<Source>, bool) {
        let asked = self.others.all().into_iter().filter(|(id, _)| !self.distrusted.contains(id));
        let answers = asked.map(|(id, member)| async move {
            match self.start_of(id, &member).await {
                Ok(start) => Some(Source { id, member, start }),
                Err(why) => {
                    tracing::debug!(peer = member.name, %why, "a peer does not say what history it has");
                    None
                }
            }
        });
        let answers = join_all(answers).await;
        let all_answered = self.distrusted.is_empty() && answers.iter().all(Option::is_some);
        let mut sources: Vec<Source> = answers.into_iter().flatten().collect();
        sources.retain(|source| source.start.index < self.end);
        sources.sort_by_key(|source| source.start.index);
        (sources, all_answered)
    }

    async fn start_of(&self, id: NodeId, member: &Member) -> Result<Checkpoint, String> {
        let mut client = self.others.client(id, member)?;
        let request = HistoryStartRequest { wanted_index: self.wanted };
        let answer = timeout(ANSWER_TIMEOUT, client.history_start(request)).await;
        let answer = answer.map_err(|_| "no answer in time".to_owned())?.map_err(|status| reason(&status))?;
        position(&answer.into_inner())
    }

    /// Asks one peer after the other for what comes next, until all is there.
    async fn collect(
        &self,
        sources: &[Source],
        start: Checkpoint,
        used: &mut BTreeSet<NodeId>,
    ) -> Result<Collected, Failure> {
        let log = self.log.clone();
        let begun = blocking(move || log.begin_fetch(start_at(start))).await?;
        let mut collected = Collected { log: begun, chain: Chain::new(start) };
        let mut pace = Pace::new();
        let (mut turn, mut failures, mut told) = (0, 0, Instant::now());
        while collected.log.end() < self.end {
            let next = collected.log.end();
            self.progress.is_missing(self.end - next);
            let source = &sources[turn % sources.len()];
            let entries = match self.entries(source, next).await {
                Ok(entries) => entries,
                Err(why) => {
                    tracing::info!(peer = source.member.name, next, %why, "history can't be fetched from this peer");
                    (turn, failures) = (turn + 1, failures + 1);
                    if failures as usize >= ROUNDS as usize * sources.len() {
                        discard(collected.log).await;
                        return Err(peers(format!("{}: {why}", source.member.name)));
                    }
                    if turn.is_multiple_of(sources.len()) {
                        sleep(ROUND_PAUSE).await;
                    }
                    continue;
                }
            };
            failures = 0;
            used.insert(source.id);
            pace.wait(&entries).await;
            let count = entries.len() as u64;
            collected = collected.append(entries).await?;
            self.progress.fetched(count);
            if told.elapsed() >= TELL {
                told = Instant::now();
                let (done, all) = (collected.log.end() - start.index, self.end - start.index);
                tracing::info!(peer = source.member.name, entries = done, of = all, "fetching history");
            }
        }
        collected.finish().await
    }

    /// The entries that come next, as one peer has them.
    async fn entries(&self, source: &Source, next: u64) -> Result<Vec<LogEntry>, String> {
        let request = HistoryEntriesRequest { from_index: next, before_index: self.end };
        let mut client = self.others.client(source.id, &source.member)?;
        let answer = timeout(ANSWER_TIMEOUT, client.history_entries(request)).await;
        let answer = answer.map_err(|_| "no answer in time".to_owned())?.map_err(|status| reason(&status))?;
        let entries =
            codec::decode_entries(answer.into_inner().entries).map_err(|error| error.to_string())?;
        let consecutive = (next..).zip(&entries).all(|(index, entry)| entry.log_id.index() == index);
        let within = entries.last().is_some_and(|entry| entry.log_id.index() < self.end);
        if consecutive && within {
            Ok(entries)
        } else {
            Err("it sent other entries than asked for".to_owned())
        }
    }

    /// Follows the chain through this node's own log, to the position whose digest is known.
    async fn follow_own(&self, chain: &mut Chain) -> Result<(), SourceError> {
        use crate::history::fold::LogSource;
        let reader = self.log.reader();
        while chain.at().index < self.own.index {
            let entries = LogSource::entries_from(&reader, chain.at().index, 1 << 20).await?;
            if entries.is_empty() {
                return Err(SourceError::Fault(format!("it ends before entry {}", chain.at().index)));
            }
            for entry in entries.iter().take_while(|entry| entry.log_id.index() < self.own.index) {
                chain.take(entry)?;
            }
        }
        Ok(())
    }
}

/// A peer that has what this node lacks.
struct Source {
    id: NodeId,
    member: Member,
    start: Checkpoint,
}

fn position(answer: &HistoryStartResponse) -> Result<Checkpoint, String> {
    if answer.form != DIGEST_FORM {
        return Err(format!("its digests have form {}, this node's have form {DIGEST_FORM}", answer.form));
    }
    let digest = answer.history_digest[..].try_into().map(Digest);
    let digest = digest.map_err(|_| "it sent no digest".to_owned())?;
    Ok(Checkpoint { index: answer.index, revision: answer.revision, digest })
}

impl Collected {
    async fn append(mut self, entries: Vec<LogEntry>) -> Result<Self, Failure> {
        let appended = spawn_blocking(move || {
            for entry in &entries {
                if let Err(error) = self.chain.take(entry) {
                    return Err(peers(error.to_string()));
                }
            }
            self.log.append(&entries)?;
            Ok(self)
        });
        appended.await.unwrap_or_else(|stopped| Err(peers(stopped.to_string())))
    }

    async fn finish(mut self) -> Result<Self, Failure> {
        blocking(move || {
            self.log.finish()?;
            Ok(self)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, Failure> {
    match spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(stopped) => Err(peers(stopped.to_string())),
    }
}

/// Removes what does not count, off the runtime.
pub(super) async fn discard(log: FetchedLog) {
    // If the runtime ends, the next start removes it.
    let _ = spawn_blocking(move || drop(log)).await;
}

/// Keeps to [`BYTES_PER_SECOND`].
struct Pace {
    free: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { free: Instant::now() }
    }

    async fn wait(&mut self, entries: &[LogEntry]) {
        let bytes = codec::entries_bytes(entries) as u64;
        self.free =
            self.free.max(Instant::now()) + Duration::from_micros(bytes * 1_000_000 / BYTES_PER_SECOND);
        sleep_until(self.free).await;
    }
}
