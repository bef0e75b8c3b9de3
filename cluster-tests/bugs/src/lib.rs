//! Bugs that are planted on purpose, one at a time, to see whether the campaign of the cluster tests finds them.
//!
//! The product asks [`planted`] at the place of each, in one line or two. Without the feature `planted` that is a
//! constant `false`, and the compiler takes the place out. With it a process plants what it is told ([`plant`]): the
//! binary reads [`VARIABLE`].

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!("a release build must not be able to plant bugs: use the profile `planted` (or dev) instead");

/// Names the bug that a process plants, if its binary was built with the feature.
pub const VARIABLE: &str = "SANDKEEPER_PLANTED_BUG";

macro_rules! bugs {
    ($($variant:ident $name:literal $what:literal)*) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Bug {
            $(#[doc = $what] $variant,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// By which it is chosen.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// What is wrong, for people.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$variant => $what),* }
            }
        }
    };
}

bugs! {
    NoFence "no-fence" "An agent obeys commands of every term, session and incarnation."
    RequestIdsNotReplicated "request-ids-not-replicated" "Only the leader that carried a request out remembers its id."
    AckBeforeFlush "ack-before-flush" "The log says that an entry is stored when it is in line to be written."
    RejectionBeforeCommit "rejection-before-commit" "What makes no event is answered before that on which it rests has committed."
    LeaseFromReceiving "lease-from-receiving" "A lease runs from the receipt of an acknowledgement, not from the sending of its heartbeat."
    OldInventoryAsProof "old-inventory-as-proof" "An inventory proves absence although the agent gave it before it heard the last command."
    ReadWithoutReadIndex "read-without-read-index" "A linearizable read answers what this replica happens to have."
    CapacityAtTerminating "capacity-at-terminating" "Capacity is given back when a sandbox is to end, not when it is gone."
    GenerationNotChecked "generation-not-checked" "What any agent reports of any generation counts for the current one."
    BaseRevisionIgnored "base-revision-ignored" "A leader decides before it has applied what stands in its log, and apply does not compare revisions."
    SyncTakenOut "sync-taken-out" "The log is written, but no fdatasync is waited for."
    SnapshotWithoutRequests "snapshot-without-requests" "Who reads a snapshot does not take over the requests that are remembered."
    NameFreedTooLate "name-freed-too-late" "A name is free only when the sandbox that had it is gone."
    NameFreedTooEarly "name-freed-too-early" "A name is free while the sandbox that has it is FAILED or LOST."
    ApplierOnFollower "applier-on-follower" "Control nodes that do not lead command agents too."
    WatchSkipsAtCompaction "watch-skips-at-compaction" "A watch from a revision that is not kept any more goes on from the oldest one."
    WatchMissesFirst "watch-misses-first" "A watch that is resumed misses its first event."
    MinRevisionIgnored "min-revision-ignored" "A local read does not wait for the revision that the caller has seen."
    RecoveryWithoutLease "recovery-without-lease" "What a lost agent ran is started elsewhere before its lease is over."
    ReleasedTwice "released-twice" "The allocation of a sandbox that has failed is released twice."
    AgentFromZero "agent-from-zero" "An agent that starts again does not look at what its runtime runs."
}

impl std::str::FromStr for Bug {
    type Err = UnknownBug;

    fn from_str(name: &str) -> Result<Self, UnknownBug> {
        Self::ALL.iter().copied().find(|bug| bug.name() == name).ok_or_else(|| UnknownBug(name.to_owned()))
    }
}

/// No bug has this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownBug(String);

impl std::fmt::Display for UnknownBug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no bug is called {:?}; there are:", self.0)?;
        Bug::ALL.iter().try_for_each(|bug| write!(f, "\n  {}: {}", bug.name(), bug.what()))
    }
}

impl std::error::Error for UnknownBug {}

/// Whether this process has this bug. A build without the feature has none.
#[cfg(not(feature = "planted"))]
#[inline]
pub const fn planted(_: Bug) -> bool {
    false
}

#[cfg(feature = "planted")]
static PLANTED: std::sync::OnceLock<Bug> = std::sync::OnceLock::new();

/// Whether this process has this bug.
#[cfg(feature = "planted")]
#[inline]
pub fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(&bug)
}

/// Gives this process a bug, from now on. One; a second one changes nothing.
#[cfg(feature = "planted")]
pub fn plant(bug: Bug) -> Bug {
    *PLANTED.get_or_init(|| bug)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_is_found_by_its_name_and_by_no_other() {
        let names: std::collections::BTreeSet<_> = Bug::ALL.iter().map(|bug| bug.name()).collect();
        assert_eq!(names.len(), Bug::ALL.len());
        assert!(Bug::ALL.iter().all(|bug| bug.name().parse() == Ok(*bug)));
        let text = "no-such-bug".parse::<Bug>().unwrap_err().to_string();
        assert!(Bug::ALL.iter().all(|bug| text.contains(bug.name())), "{text}");
    }

    #[test]
    #[cfg(not(feature = "planted"))]
    fn nothing_is_planted_without_the_feature() {
        assert!(Bug::ALL.iter().all(|bug| !planted(*bug)));
    }
}
