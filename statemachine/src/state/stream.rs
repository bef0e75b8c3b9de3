//! Clients of streams: exactly once for callers that make many. Instead of one request a create, a window of answers is
//! remembered for each client.

use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{RequestResult, State};
use crate::ids::{Digest, Label, Revision, Timestamp};
use crate::state::digest::{RecordSum, digest_of};

/// Whose stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StreamKey {
    /// The namespace that it works in.
    pub namespace: Label,
    /// Drawn by the client.
    pub client: Uuid,
}

/// What is remembered of a stream's client, beside answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamClient {
    /// The revision of the event that opened its newest stream. What comes from an earlier one is refused.
    pub opened: Revision,
    /// It has the answers of all sequences below, and will never send these again.
    pub acknowledged_below: u64,
    /// When it is forgotten, unless its stream is opened again or kept by then.
    pub ends: Timestamp,
}

/// What is remembered of a create in a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamAnswer {
    /// A digest of the create's canonical form.
    pub digest: [u8; 16],
    /// What came of it.
    pub result: RequestResult,
}

/// A client and its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    pub client: StreamClient,
    /// By sequence. Acknowledged ones are taken out little by little.
    pub answers: OrdMap<u64, StreamAnswer>,
}

impl Stream {
    /// Adds the digests of the client and of all answers.
    pub(crate) fn add_to(&self, sum: &mut RecordSum, key: &StreamKey) {
        sum.add(self.client.digest(key));
        self.answers.iter().for_each(|(sequence, answer)| sum.add(answer.digest(key, *sequence)));
    }
}

impl StreamClient {
    fn digest(&self, key: &StreamKey) -> Digest {
        digest_of(&("stream", key, self))
    }
}

impl StreamAnswer {
    fn digest(&self, key: &StreamKey, sequence: u64) -> Digest {
        digest_of(&("stream answer", key, sequence, self))
    }
}

impl State {
    /// What is known of a stream's client.
    pub fn stream_client(&self, key: &StreamKey) -> Option<&StreamClient> {
        self.streams.get(key).map(|stream| &stream.client)
    }

    /// The answer to a create in a stream, if it is remembered.
    pub fn stream_answer(&self, key: &StreamKey, sequence: u64) -> Option<&StreamAnswer> {
        self.streams.get(key).and_then(|stream| stream.answers.get(&sequence))
    }

    /// Whether any answer of a client is remembered.
    pub(crate) fn has_stream_answers(&self, key: &StreamKey) -> bool {
        self.streams.get(key).is_some_and(|stream| !stream.answers.is_empty())
    }

    /// How many clients of streams are remembered.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Puts a client's record in place of the one with its key, if there is one; its answers stay.
    pub(crate) fn put_stream_client(&mut self, key: StreamKey, client: StreamClient) {
        self.sum.add(|| client.digest(&key));
        let Some(stream) = self.streams.get_mut(&key) else {
            self.stream_ends.insert((client.ends, key.clone()));
            self.streams.insert(key, Stream { client, answers: OrdMap::new() });
            return;
        };
        let old = std::mem::replace(&mut stream.client, client);
        self.sum.remove(|| old.digest(&key));
        if old.ends != client.ends {
            self.stream_ends.remove(&(old.ends, key.clone()));
            self.stream_ends.insert((client.ends, key));
        }
    }

    /// Puts the answer to a create in place of the one with its sequence, if there is one. None: there is no such client.
    pub(crate) fn put_stream_answer(
        &mut self,
        key: &StreamKey,
        sequence: u64,
        answer: StreamAnswer,
    ) -> Option<()> {
        let stream = self.streams.get_mut(key)?;
        self.sum.add(|| answer.digest(key, sequence));
        self.remembered_more += 1;
        if let Some(old) = stream.answers.insert(sequence, answer) {
            self.sum.remove(|| old.digest(key, sequence));
            self.remembered_more -= 1;
        }
        Some(())
    }

    /// Forgets up to `most` answers that a client has acknowledged, oldest first.
    pub(crate) fn forget_acknowledged(&mut self, key: &StreamKey, most: usize) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let below = stream.client.acknowledged_below;
        for _ in 0..most {
            let Some((sequence, answer)) = stream.answers.get_min().filter(|(first, _)| *first < below)
            else {
                return;
            };
            let sequence = *sequence;
            self.sum.remove(|| answer.digest(key, sequence));
            self.remembered_more -= 1;
            stream.answers.remove(&sequence);
        }
    }

    /// Forgets a client with all its answers, and says how many these were.
    pub(crate) fn remove_stream(&mut self, key: &StreamKey) -> usize {
        let Some(stream) = self.streams.remove(key) else { return 0 };
        self.sum.remove(|| stream.client.digest(key));
        self.stream_ends.remove(&(stream.client.ends, key.clone()));
        for (sequence, answer) in &stream.answers {
            self.sum.remove(|| answer.digest(key, *sequence));
        }
        self.remembered_more -= stream.answers.len();
        stream.answers.len()
    }
}
