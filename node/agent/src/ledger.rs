//! The ledger: what an agent must not forget, on disk.
//!
//! It holds who the agent is (a UUID and how often it has started: the incarnation), the cluster it belongs to, and the
//! highest term that it has seen there. A term is durable *before* a command of that term is obeyed, so no deposed
//! leader is obeyed after a restart either. It does not hold generations: what really runs carries its own generation
//! (the runtime's records), and of what is gone nothing need be remembered, because nothing of an old incarnation,
//! session or term is obeyed and a leader orders its own commands.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{self, Durability, FileFault};

const MAGIC: &[u8; 8] = b"SKLEDGER";
/// The format that is written. Older ones are still read.
const VERSION: u16 = 1;
/// Magic, version, length, checksum.
const HEADER: usize = 8 + 2 + 4 + 4;
/// A ledger is some hundred bytes; whatever is larger is not one.
const MAX_BYTES: usize = 64 * 1024;

/// Why the ledger can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another process holds the data directory.
    #[error("data directory {} is in use by another agent (process {holder})", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// The process id that the lock file names.
        holder: String,
    },
    /// The data directory belongs to another agent.
    #[error(
        "data directory {} belongs to agent {theirs}, not to {ours}: start it as {theirs}, or with another --data-dir",
        path.display()
    )]
    OtherAgent {
        /// The data directory.
        path: PathBuf,
        /// Whom the ledger names.
        theirs: String,
        /// Who asked.
        ours: String,
    },
    /// The content is not what was written.
    #[error("ledger {} is damaged: {what}", path.display())]
    Damaged {
        /// The ledger.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A newer version of Sandkeeper wrote it.
    #[error("ledger {} has format {found}, and this version reads up to {VERSION}: use a newer one", path.display())]
    Newer {
        /// The ledger.
        path: PathBuf,
        /// The format that was found.
        found: u16,
    },
    /// This node's disk failed.
    #[error(transparent)]
    Fault(#[from] FileFault),
}

/// One life of a ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incarnation {
    /// The ledger's UUID.
    pub ledger_id: String,
    /// How often an agent has started with it: 1, 2, …
    pub start: u64,
}

/// What is on disk, format 1. Fields are positional: never reorder them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    agent_id: String,
    ledger_id: String,
    start: u64,
    cluster_id: Option<String>,
    /// Highest term by cluster id: one entry for each cluster that the agent has ever belonged to.
    terms: BTreeMap<String, u64>,
}

/// The open ledger. Its data directory is locked as long as this lives.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    record: Record,
    _lock: File,
}

impl Ledger {
    /// Locks `data_dir`, reads or makes its ledger, and counts this start, durably.
    pub fn open(data_dir: &Path, agent_id: &str) -> Result<Self, LedgerError> {
        fs::create_dir_all(data_dir).map_err(FileFault::of("create", data_dir))?;
        let lock = lock(data_dir)?;
        let path = data_dir.join("ledger");
        let mut record = match files::read_if_there(&path)? {
            Some(content) => decode(&content, &path)?,
            None => Record {
                agent_id: agent_id.to_owned(),
                ledger_id: uuid::Uuid::new_v4().to_string(),
                start: 0,
                cluster_id: None,
                terms: BTreeMap::new(),
            },
        };
        if record.agent_id != agent_id {
            return Err(LedgerError::OtherAgent {
                path: data_dir.to_owned(),
                theirs: record.agent_id,
                ours: agent_id.to_owned(),
            });
        }
        record.start += 1;
        let mut ledger = Self { path, record: record.clone(), _lock: lock };
        ledger.write(record)?;
        Ok(ledger)
    }

    /// Which life this is.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation { ledger_id: self.record.ledger_id.clone(), start: self.record.start }
    }

    /// The cluster that the agent belongs to, once a control node has welcomed it.
    pub fn cluster_id(&self) -> Option<&str> {
        self.record.cluster_id.as_deref()
    }

    /// The highest term seen in the agent's cluster; 0 if none.
    pub fn term(&self) -> u64 {
        self.record.cluster_id.as_ref().and_then(|id| self.record.terms.get(id)).copied().unwrap_or(0)
    }

    /// Records the cluster, durably. The caller has made sure that the agent belongs to no other.
    pub fn join(&mut self, cluster_id: &str) -> Result<(), LedgerError> {
        let record = Record { cluster_id: Some(cluster_id.to_owned()), ..self.record.clone() };
        self.write(record)
    }

    /// The clusters that the agent has left, and the highest term seen in each.
    pub fn former(&self) -> BTreeMap<String, u64> {
        let mut former = self.record.terms.clone();
        former.retain(|cluster_id, _| self.record.cluster_id.as_ref() != Some(cluster_id));
        former
    }

    /// Records that the agent has changed over to another cluster, durably. The one that it leaves is not forgotten.
    pub fn rehome(&mut self, cluster_id: &str) -> Result<(), LedgerError> {
        let mut record = self.record.clone();
        if let Some(left) = record.cluster_id.replace(cluster_id.to_owned()) {
            record.terms.entry(left).or_default();
        }
        self.write(record)
    }

    /// Records a term of the agent's cluster, durably. A lower one than is known changes nothing.
    pub fn raise_term(&mut self, term: u64) -> Result<(), LedgerError> {
        let Some(cluster_id) = self.record.cluster_id.clone() else { return Ok(()) };
        if term <= self.term() {
            return Ok(());
        }
        let mut record = self.record.clone();
        record.terms.insert(cluster_id, term);
        self.write(record)
    }

    fn write(&mut self, record: Record) -> Result<(), LedgerError> {
        files::replace(&self.path, &encode(&record), Durability::Durable)?;
        self.record = record;
        Ok(())
    }
}

fn lock(data_dir: &Path) -> Result<File, LedgerError> {
    let path = data_dir.join("LOCK");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(FileFault::of("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).map_err(FileFault::of("read", &path))?;
            return Err(LedgerError::InUse { path: data_dir.to_owned(), holder: holder.trim().to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(FileFault { action: "lock", path, source }.into()),
    }
    file.set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(file, "{}", std::process::id()))
        .map_err(FileFault::of("write", &path))?;
    Ok(file)
}

fn encode(record: &Record) -> Vec<u8> {
    let body = bincode::serde::encode_to_vec(record, bincode::config::standard())
        .expect("strings, numbers and maps of them can always be encoded");
    let mut content = Vec::with_capacity(HEADER + body.len());
    content.extend_from_slice(MAGIC);
    content.extend_from_slice(&VERSION.to_be_bytes());
    content.extend_from_slice(&(body.len() as u32).to_be_bytes());
    content.extend_from_slice(&crc32fast::hash(&body).to_be_bytes());
    content.extend_from_slice(&body);
    content
}

fn decode(content: &[u8], path: &Path) -> Result<Record, LedgerError> {
    let damaged = |what: String| LedgerError::Damaged { path: path.to_owned(), what };
    if content.len() < HEADER || &content[..8] != MAGIC {
        return Err(damaged(format!("its {} bytes do not begin as a ledger's do", content.len())));
    }
    let version = u16::from_be_bytes([content[8], content[9]]);
    match version {
        0 => return Err(damaged("there is no format 0".to_owned())),
        VERSION => {}
        found => return Err(LedgerError::Newer { path: path.to_owned(), found }),
    }
    let length = u32::from_be_bytes([content[10], content[11], content[12], content[13]]) as usize;
    let checksum = u32::from_be_bytes([content[14], content[15], content[16], content[17]]);
    let body = &content[HEADER..];
    if length != body.len() {
        return Err(damaged(format!(
            "it should have {length} bytes after its header and has {}",
            body.len()
        )));
    }
    if checksum != crc32fast::hash(body) {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    let (record, read) =
        bincode::serde::decode_from_slice(body, bincode::config::standard().with_limit::<MAX_BYTES>())
            .map_err(|error| damaged(error.to_string()))?;
    if read != body.len() {
        return Err(damaged(format!("{} bytes are left over", body.len() - read)));
    }
    Ok(record)
}

#[cfg(test)]
mod tests;
