//! Exactly once, for streams and batches: what the events alone say was made by which request.

use std::collections::{BTreeMap, BTreeSet};

use crate::*;

#[derive(Default)]
pub struct StreamOracle {
    /// Clients that are remembered: what each has acknowledged, and when it is forgotten.
    clients: BTreeMap<StreamKey, (u64, Timestamp)>,
    /// What each create of such a client has made.
    made: BTreeMap<(StreamKey, u64), SandboxId>,
    /// The same, of all times.
    ever: BTreeSet<(StreamKey, u64, SandboxId)>,
    batches: BTreeMap<RequestId, BTreeSet<Vec<SandboxId>>>,
}

impl StreamOracle {
    pub fn follow_event(&mut self, event: &Event) {
        let request = event.header.request.as_ref();
        match &event.kind {
            EventKind::StreamOpened { stream, acknowledged_below, ends }
            | EventKind::StreamKept { stream, acknowledged_below, ends } => {
                let before = self.clients.insert(stream.clone(), (*acknowledged_below, *ends));
                assert!(before.is_none_or(|(before, _)| before <= *acknowledged_below));
            }
            EventKind::RequestsPruned { until, .. } => {
                self.clients.retain(|_, (_, ends)| *ends > *until);
                self.made.retain(|(stream, _), _| self.clients.contains_key(stream));
            }
            EventKind::BatchCreated { sandboxes } => {
                let lists = self.batches.entry(request.unwrap().id.clone()).or_default();
                assert!(lists.insert(sandboxes.clone()), "the same sandboxes twice");
            }
            EventKind::SandboxCreated(created) => {
                let Some(RequestRef { id: RequestId::Stream { client, sequence }, memory }) = request else {
                    return;
                };
                let stream = StreamKey { namespace: created.spec.name.namespace.clone(), client: *client };
                let id = event.header.subject.sandbox.as_ref().unwrap().0.clone();
                self.make(stream, *sequence, memory.as_ref().unwrap(), id);
            }
            _ => {}
        }
    }

    fn make(&mut self, stream: StreamKey, sequence: u64, memory: &RequestMemory, id: SandboxId) {
        let (acknowledged_below, _) = self.clients.get_mut(&stream).expect("the client has a stream");
        assert!(sequence >= *acknowledged_below, "the client has the answer of {sequence} already");
        *acknowledged_below = memory.acknowledged_below.max(*acknowledged_below);
        let made_before = self.made.insert((stream.clone(), sequence), id.clone());
        assert_eq!(made_before, None, "create {sequence} of a stream has made two");
        self.ever.insert((stream, sequence, id));
    }

    /// Whoever asks hears of what his own request has made. Answers whether this was said again.
    pub fn check_answer(&self, request: &Request, outcome: &Result<Outcome, Rejection>) -> bool {
        let (Ok(outcome), Some(caller)) = (outcome, &request.id) else { return false };
        let (ids, again): (Vec<SandboxId>, bool) = match outcome {
            Outcome::Sandbox { sandbox, duplicate, .. } => (vec![sandbox.id.clone()], *duplicate),
            Outcome::Gone { id, duplicate, .. } => (vec![id.clone()], *duplicate),
            Outcome::Batch { sandboxes, duplicate, .. } => {
                (sandboxes.iter().map(|one| one.id.clone()).collect(), *duplicate)
            }
            _ => return false,
        };
        match (&request.command, &caller.id) {
            (Command::CreateSandboxes(_), id) => {
                assert!(self.batches[id].contains(&ids), "the answer of another batch");
            }
            (Command::CreateInStream { create, .. }, RequestId::Stream { client, sequence }) => {
                let stream = StreamKey { namespace: create.spec.name.namespace.clone(), client: *client };
                let answer = (stream, *sequence, ids[0].clone());
                assert!(self.ever.contains(&answer), "the answer of another create");
            }
            _ => return false,
        }
        again
    }
}
