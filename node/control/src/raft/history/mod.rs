//! History that this node does not have: fetched from its peers in the background, and read from them until then; and how
//! peers are given what this node has.
//!
//! | file | what |
//! | --- | --- |
//! | `keeper` | the one task: drops what is beyond the retention, has fetched what a snapshot jumped over |
//! | `fetch` | collects entries from peers, and goes on with another one when one fails |
//! | `chain` | whether entries lead to the state of this node: the proof that they are its history (pure) |
//! | `elsewhere` | reads for callers what only peers have |
//! | `serve` | what a peer is given |
//!
//! Architecture invariants: what is fetched counts only when the chain of digests over it ends in a digest of this node's
//! own state; until then it stands in a folder that a start removes. What a peer is given is what this node has itself, so no
//! request goes in circles.

mod chain;
mod elsewhere;
mod fetch;
mod keeper;
mod serve;

use sandkeeper_statemachine::Digest;

pub(crate) use elsewhere::OtherNodes;
pub use keeper::Fetching;
pub(super) use keeper::{Keeper, Progress};
#[cfg(test)]
pub(super) use serve::Tamper;

use crate::history::checkpoints::Checkpoint;
use crate::storage::log::HistoryStart;

/// The position that a recorded start of the history names, if it does.
pub(super) fn position_of(start: HistoryStart) -> Option<Checkpoint> {
    let (revision, digest) = start.before?;
    Some(Checkpoint { index: start.index, revision, digest: Digest(digest) })
}

fn start_at(position: Checkpoint) -> HistoryStart {
    HistoryStart { index: position.index, before: Some((position.revision, position.digest.0)) }
}
