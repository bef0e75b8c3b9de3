//! What is remembered of requests, so that their retries get the first answer again.

use super::subject_agent;
use crate::event::{Event, EventKind, RequestMemory};
use crate::ids::{RequestId, Revision, SandboxId, Timestamp};
use crate::limits::FORGOTTEN_A_CREATE;
use crate::spec::Mode;
use crate::state::{
    BatchSandbox, Phase, RememberedBatch, RequestKey, RequestRecord, RequestResult, Sandbox, State,
    StreamAnswer, StreamClient, StreamKey,
};

impl State {
    /// Remembers the request behind an event, if this is the event that it is remembered by.
    pub(super) fn remember_request(&mut self, event: &Event, time: Timestamp) {
        let header = &event.header;
        let Some(request) = &header.request else { return };
        let Some(memory) = &request.memory else { return };
        let result = self.came_of(event, time);
        // Its own copy of the namespace is not kept, if the answer has one.
        let namespace = match (&memory.namespace, &result) {
            (Some(mine), RequestResult::Sandbox { name, .. }) if *mine == name.namespace => {
                Some(name.namespace.clone())
            }
            (mine, _) => mine.clone(),
        };
        if let RequestId::Stream { client, sequence } = request.id {
            let namespace = namespace.expect("a stream works in a namespace");
            self.remember_answer(&StreamKey { namespace, client }, sequence, memory, result);
            return;
        }
        // Sandboxes remember the request that made them; their end starts that request's retention.
        let made_it = matches!(event.kind, EventKind::SandboxCreated(_) | EventKind::BatchCreated { .. });
        let ends = (!made_it).then(|| time.plus(memory.retention));
        let key = RequestKey { namespace, id: request.id.clone() };
        let (digest, retention) = (memory.digest, memory.retention);
        self.put_request(key, RequestRecord { digest, retention, ends, result });
    }

    fn came_of(&self, event: &Event, time: Timestamp) -> RequestResult {
        let header = &event.header;
        match (&event.kind, &header.subject.sandbox) {
            (EventKind::BatchCreated { sandboxes }, _) => {
                RequestResult::Batch(Box::new(self.batch_of(sandboxes)))
            }
            (EventKind::AgentRemoved { released }, _) => {
                RequestResult::AgentRemoved { agent: subject_agent(header).clone(), released: *released }
            }
            (_, Some((id, name))) => {
                // The sandbox has the name too: it is in memory once.
                let sandbox = self.sandboxes.get(id);
                let created = sandbox.map_or(time, |sandbox| sandbox.created);
                let name = sandbox.map_or(name, |sandbox| &sandbox.spec.name).clone();
                let id = id.clone();
                RequestResult::Sandbox { id, name, created, revision: self.revision }
            }
            _ => RequestResult::Agent(subject_agent(header).clone()),
        }
    }

    /// The batch that these sandboxes, just made, are.
    fn batch_of(&self, ids: &[SandboxId]) -> RememberedBatch {
        let record = |id: &SandboxId| {
            let found = self.sandboxes.get(id);
            found.unwrap_or_else(|| {
                panic!("event {} is about sandbox {id}, which is not there", self.revision)
            })
        };
        // Its place in the queue is the revision at which a sandbox was made, until it moves.
        let revision: Revision = ids.first().map_or(self.revision, |id| record(id).status.queued);
        let sandboxes = ids.iter().map(record).map(|sandbox| BatchSandbox {
            id: sandbox.id.clone(),
            name: sandbox.spec.name.name.clone(),
            created: sandbox.created,
        });
        RememberedBatch::new(revision, sandboxes.collect())
    }

    fn remember_answer(
        &mut self,
        key: &StreamKey,
        sequence: u64,
        memory: &RequestMemory,
        result: RequestResult,
    ) {
        self.move_stream(key, |client| {
            client.acknowledged_below = client.acknowledged_below.max(memory.acknowledged_below);
        });
        assert!(
            self.stream_answer(key, sequence).is_none(),
            "create {sequence} of a stream is carried out twice"
        );
        self.put_stream_answer(key, sequence, StreamAnswer { digest: memory.digest, result })
            .expect("move_stream found it");
        self.forget_acknowledged(key, FORGOTTEN_A_CREATE);
    }

    pub(super) fn open_stream(&mut self, key: &StreamKey, acknowledged_below: u64, ends: Timestamp) {
        let client = StreamClient { opened: self.revision, acknowledged_below, ends };
        self.put_stream_client(key.clone(), client);
    }

    pub(super) fn keep_stream(&mut self, key: &StreamKey, acknowledged_below: u64, ends: Timestamp) {
        self.move_stream(key, |client| *client = StreamClient { acknowledged_below, ends, ..*client });
    }

    fn move_stream(&mut self, key: &StreamKey, change: impl FnOnce(&mut StreamClient)) {
        let known = self.stream_client(key);
        let before = *known.unwrap_or_else(|| {
            panic!("event {} is of the stream of {}, which is not there", self.revision, key.client)
        });
        let mut client = before;
        change(&mut client);
        if client != before {
            self.put_stream_client(key.clone(), client);
        }
    }

    /// A sandbox is out of the state: that begins the retention of the request that made it, unless others that it made
    /// are still there. A STRONG create that failed is answered with that from now on.
    pub(super) fn end_request_of(&mut self, sandbox: &Sandbox, reason: &str, time: Timestamp) {
        let rolled_back = sandbox.spec.mode == Mode::Strong && sandbox.status.phase == Phase::Failed;
        let rolled_back = rolled_back.then(|| RequestResult::RolledBack { reason: reason.to_owned() });
        let namespace = sandbox.spec.name.namespace.clone();
        // An id may have come to stand for another request, if this sandbox's own was not remembered.
        if let RequestId::Stream { client, sequence } = sandbox.spec.request_id {
            let key = StreamKey { namespace, client };
            let made_it = |answer: &&StreamAnswer| answer.result.made(sandbox);
            if let (Some(result), Some(answer)) =
                (rolled_back, self.stream_answer(&key, sequence).filter(made_it))
            {
                let answer = StreamAnswer { digest: answer.digest, result };
                self.put_stream_answer(&key, sequence, answer).expect("it was found a line above");
            }
            return;
        }
        let key = RequestKey { namespace: Some(namespace), id: sandbox.spec.request_id.clone() };
        let made_it = |record: &&RequestRecord| record.ends.is_none() && record.result.made(sandbox);
        let Some(mut record) = self.request(&key).filter(made_it).cloned() else { return };
        let others = match &mut record.result {
            RequestResult::Batch(batch) => {
                batch.live -= 1;
                batch.live > 0
            }
            _ => false,
        };
        record.ends = (!others).then(|| time.plus(record.retention));
        record.result = rolled_back.unwrap_or(record.result);
        self.put_request(key, record);
    }

    pub(super) fn prune_requests(&mut self, until: Timestamp, limit: u32) {
        let limit = limit as usize;
        let over: Vec<_> = self.forgettable(until).take(limit).cloned().collect();
        let mut forgotten = over.len();
        for key in over {
            self.remove_request(&key);
        }
        while forgotten < limit {
            let Some(key) = self.first_stream_over(until) else { return };
            forgotten += 1 + self.remove_stream(&key);
        }
    }
}
