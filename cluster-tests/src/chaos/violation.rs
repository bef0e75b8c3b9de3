//! What must never be, and where it was seen.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sandkeeper_client::v1;
use serde::{Deserialize, Serialize};

/// What has to hold, whatever happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Invariant {
    /// I1: no acknowledged event is lost, and the history is the same on every replica.
    Durable,
    /// I2: no sandbox generation is on two agents, and no two lives of one sandbox are at one time.
    SingleLife,
    /// I3: allocated is the sum of the unreleased allocations, on every replica, and never over capacity.
    Capacity,
    /// I4: equal digests at equal revisions.
    Digests,
    /// I5: what agents run becomes what the state says.
    Convergence,
    /// I6: the same request id gives the same sandbox.
    RequestIds,
    /// I7: reads are linearizable.
    Linearizable,
    /// I8: the cluster works again within 5 s after a fault.
    Progress,
    /// I9: watches are without gaps, and in order, across reconnects.
    Watches,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Durable,
        Self::SingleLife,
        Self::Capacity,
        Self::Digests,
        Self::Convergence,
        Self::RequestIds,
        Self::Linearizable,
        Self::Progress,
        Self::Watches,
    ];

    /// I1 to I9.
    pub fn number(self) -> &'static str {
        self.title().split_once(' ').map_or("", |(number, _)| number)
    }

    /// In few words.
    pub fn title(self) -> &'static str {
        match self {
            Self::Durable => "I1 nothing acknowledged is lost",
            Self::SingleLife => "I2 no two lives at once",
            Self::Capacity => "I3 capacity is the sum of allocations",
            Self::Digests => "I4 equal digests",
            Self::Convergence => "I5 agents converge",
            Self::RequestIds => "I6 same request, same sandbox",
            Self::Linearizable => "I7 linearizable reads",
            Self::Progress => "I8 progress after faults",
            Self::Watches => "I9 watches without gaps",
        }
    }
}

impl FromStr for Invariant {
    type Err = String;

    fn from_str(number: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|invariant| invariant.number() == number);
        found.ok_or_else(|| format!("`{number}` is none of I1 to I9"))
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// Which one.
    pub invariant: Invariant,
    /// What was seen.
    pub what: String,
    /// Around which revision; 0: around none.
    pub revision: u64,
    /// About which sandbox; empty: about none.
    pub sandbox_id: String,
}

impl Breach {
    /// An event that can't be.
    pub fn new(invariant: Invariant, event: &v1::Event, what: impl fmt::Display) -> Self {
        let (revision, kind) = (event.revision, event.r#type().as_str_name());
        let what = format!("event {revision}, {kind} of {}: {what}", event.sandbox_id);
        Self { invariant, what, revision, sandbox_id: event.sandbox_id.clone() }
    }

    /// Something else.
    pub fn of(invariant: Invariant, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into(), revision: 0, sandbox_id: String::new() }
    }

    /// The same, around a revision.
    pub fn at(self, revision: u64) -> Self {
        Self { revision, ..self }
    }

    /// The same, about a sandbox.
    pub fn about(self, sandbox_id: &str) -> Self {
        Self { sandbox_id: sandbox_id.to_owned(), ..self }
    }
}

/// A breach, and when it was noticed.
#[derive(Clone, Debug, Serialize)]
pub struct Violation {
    /// Of which invariant.
    pub invariant: Invariant,
    /// What was seen.
    pub what: String,
    /// Around which revision; 0: around none.
    pub revision: u64,
    /// About which sandbox; empty: about none.
    pub sandbox_id: String,
    /// When it was noticed, since the campaign's start.
    pub seconds: f64,
}

impl Violation {
    /// A breach that was noticed at this time.
    pub fn new(breach: Breach, at: Duration) -> Self {
        let Breach { invariant, what, revision, sandbox_id } = breach;
        Self { invariant, what, revision, sandbox_id, seconds: at.as_secs_f64() }
    }
}
