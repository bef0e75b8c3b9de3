//! The answers that wait for one entry.

use sandkeeper_statemachine::{Outcome, Revision};
use tokio::sync::oneshot;

use super::{Answer, Refusal, Undecided};
use crate::raft::types::Applied;

/// Answers that are ready, but must not be given before the entry that they rest on is applied.
#[derive(Default)]
pub(super) struct Batch {
    answers: Vec<(oneshot::Sender<Answer>, Result<Outcome, Refusal>)>,
    /// The revision after the batch's entry; None: it has none, and waits for a confirmation only.
    revision: Option<Revision>,
}

impl Batch {
    pub(super) fn push(&mut self, reply: oneshot::Sender<Answer>, decision: Result<Outcome, Refusal>) {
        self.answers.push((reply, decision));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    pub(super) fn expects(&mut self, revision: Revision) {
        self.revision = Some(revision);
    }

    /// Whether what the batch rested on came true.
    pub(super) fn holds(&self, fate: &Result<Applied, Undecided>) -> bool {
        match (fate, self.revision) {
            (Ok(Applied::Done { revision }), Some(expected)) => *revision == expected,
            (Ok(Applied::Internal), None) => true,
            _ => false,
        }
    }

    /// Gives the answers, or says that nothing is decided.
    pub(super) fn answer(self, fate: Result<Applied, Undecided>) {
        let holds = self.holds(&fate);
        let why = match fate {
            Err(why) => why,
            Ok(applied) => Undecided(format!("the entry was {applied}")),
        };
        for (reply, decision) in self.answers {
            // A caller that has gone away hears nothing; its request id is remembered all the same.
            let _ = reply.send(if holds { Ok(decision) } else { Err(why.clone()) });
        }
    }
}
