//! Digests: of the history a chain, of the state a sum over its records, kept as they change.

use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::ids::Digest;

/// How digests are made: which records count, and how they are encoded. A change that gives the same history other
/// digests (a new field in a record) raises it, so that nodes of two versions do not take each other for corrupt.
pub const DIGEST_FORM: u32 = 1;

/// The blake3 hash of a value's encoding.
pub(crate) fn digest_of<T: Serialize>(value: &T) -> Digest {
    let mut hasher = blake3::Hasher::new();
    bincode::serde::encode_into_std_write(value, &mut hasher, bincode::config::standard())
        .expect("records are plain data, and a hasher never refuses bytes");
    Digest(hasher.finalize().into())
}

/// The next link of the history's chain. An entry without events adds none: replicas that have not seen it yet are at
/// the same revision, and must not seem to differ.
pub(crate) fn link(history: Digest, entry: &Entry) -> Digest {
    if entry.events.is_empty() { history } else { chain(history, entry.encoded()) }
}

/// The history digest after an encoded entry that was applied and has events. `history`: the one before it.
pub fn chain(history: Digest, encoded: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&history.0);
    hasher.update(encoded);
    Digest(hasher.finalize().into())
}

/// The sum of the digests of all records, in four lanes of 64 bits. It does not depend on order, so one changed
/// record costs two hashes. Made to find replicas that diverge by error, not to withstand forgery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordSum([u64; 4]);

impl RecordSum {
    pub(crate) fn add(&mut self, digest: Digest) {
        self.each_lane(digest, u64::wrapping_add);
    }

    pub(crate) fn remove(&mut self, digest: Digest) {
        self.each_lane(digest, u64::wrapping_sub);
    }

    fn each_lane(&mut self, digest: Digest, op: impl Fn(u64, u64) -> u64) {
        for (lane, bytes) in self.0.iter_mut().zip(digest.0.chunks_exact(8)) {
            let mut value = [0; 8];
            value.copy_from_slice(bytes);
            *lane = op(*lane, u64::from_le_bytes(value));
        }
    }

    pub(crate) fn digest(self) -> Digest {
        let mut bytes = [0; 32];
        for (chunk, lane) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&lane.to_le_bytes());
        }
        Digest(bytes)
    }
}

/// The sum, where it is kept. A state that is only decided on, or only folded on the way to a later one, goes without: half
/// of what a fold costs is hashing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeptSum(Option<RecordSum>);

impl Default for KeptSum {
    fn default() -> Self {
        Self(Some(RecordSum::default()))
    }
}

impl KeptSum {
    /// None is kept.
    pub(crate) const NONE: Self = Self(None);

    /// It is kept from now on.
    pub(crate) fn of(sum: RecordSum) -> Self {
        Self(Some(sum))
    }

    pub(crate) fn get(self) -> Option<RecordSum> {
        self.0
    }

    /// A record has come.
    pub(crate) fn add(&mut self, digest: impl FnOnce() -> Digest) {
        if let Some(sum) = &mut self.0 {
            sum.add(digest());
        }
    }

    /// A record has gone.
    pub(crate) fn remove(&mut self, digest: impl FnOnce() -> Digest) {
        if let Some(sum) = &mut self.0 {
            sum.remove(digest());
        }
    }
}

/// Where one is not kept there is nothing to compare.
#[cfg(test)]
impl PartialEq for KeptSum {
    fn eq(&self, other: &Self) -> bool {
        self.0.zip(other.0).is_none_or(|(mine, theirs)| mine == theirs)
    }
}
