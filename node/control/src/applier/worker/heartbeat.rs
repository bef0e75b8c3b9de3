//! Acknowledging heartbeats: what the leases of AUTO_RECREATE sandboxes rest on (see `docs/guarantees.md`).

use sandkeeper_proto::v1::{self, server_message::Body};
use sandkeeper_statemachine::State;

use super::{Finished, Worker};

impl Worker {
    /// The agent's heart has beaten.
    pub(crate) fn beat(&mut self, number: u64, state: &State) {
        let first = self.heartbeat == 0;
        self.heartbeat = self.heartbeat.max(number);
        if first {
            self.look_after(state);
        } else {
            self.acknowledge(state);
        }
    }

    /// Acknowledges the newest heartbeat, once a quorum has confirmed that this node still leads: a round that begins
    /// after the heartbeat came. The agent's lease rests on it, so only an agent that the leader counts as alive, in this
    /// incarnation, gets it.
    pub(super) fn acknowledge(&mut self, state: &State) {
        let number = self.heartbeat;
        let record = state.agent(&self.session.spec.agent_id);
        let registered = record.is_some_and(|record| self.is_registered(record));
        if self.confirming || number <= self.acknowledged || !registered {
            return;
        }
        self.confirming = true;
        let (commands, term) = (self.commands.clone(), self.term);
        self.tasks.spawn(async move { Finished::Confirmed(number, commands.confirm_leadership(term).await) });
    }

    /// A quorum has answered, or has not.
    pub(super) fn confirmed(&mut self, number: u64, by_quorum: bool, state: &State) {
        self.confirming = false;
        if !by_quorum {
            return; // the next heartbeat asks again
        }
        let ack = v1::ServerMessage {
            term: self.term,
            body: Some(Body::HeartbeatAck(v1::HeartbeatAck { number })),
            ..v1::ServerMessage::default()
        };
        if self.session.outbox.try_send(Ok(ack)).is_err() {
            return; // it is full: the next heartbeat is acknowledged in place of this one
        }
        self.acknowledged = number;
        let waited = std::mem::take(&mut self.undecided);
        self.reconcile(state, waited);
        self.acknowledge(state);
    }
}
