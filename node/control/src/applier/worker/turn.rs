//! Registering an agent and reading its inventory, when it is its turn ([`Turns`](crate::agents::Turns)).

use sandkeeper_statemachine::State;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::{Finished, Worker};
use crate::agents::LONGEST_TURN;

/// Whether it is this agent's turn.
#[derive(Debug)]
pub(super) enum Turn {
    /// It is not, and it does not wait for one.
    None,
    /// It waits.
    Waiting,
    /// It is, since then.
    Has { _permit: OwnedSemaphorePermit, since: Instant },
}

impl Worker {
    /// Whether it is this agent's turn. If not, it waits for one from now on, and is looked after when it comes.
    pub(super) fn has_turn(&mut self) -> bool {
        match self.turn {
            Turn::Has { .. } => true,
            Turn::Waiting => false,
            Turn::None => {
                self.turn = Turn::Waiting;
                let turns = self.turns.clone();
                self.tasks.spawn(async move { Finished::Turn(turns.take().await) });
                false
            }
        }
    }

    /// It is its turn.
    pub(super) fn begin_turn(&mut self, permit: OwnedSemaphorePermit, state: &State) {
        self.turn = Turn::Has { _permit: permit, since: Instant::now() };
        self.look_after(state);
    }

    /// Ends a turn in which the agent has not answered for too long. What it was asked for is taken when it comes.
    pub(super) fn end_long_turn(&mut self) {
        if matches!(self.turn, Turn::Has { since, .. } if since.elapsed() > LONGEST_TURN) {
            self.turn = Turn::None;
        }
    }
}
