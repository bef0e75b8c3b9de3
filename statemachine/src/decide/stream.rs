//! Streams of creates: opening and keeping them, and what becomes of a create by its sequence.

use super::Surroundings;
use crate::command::{CreateSandbox, StreamPosition};
use crate::decide::Outcome;
use crate::draft::{Cause, Draft};
use crate::event::{EventKind, Subject};
use crate::ids::{RequestId, Timestamp};
use crate::limits::{MAX_DURATION_NANOS, MAX_STREAM_CLIENTS, STREAM_WINDOW};
use crate::rejection::Rejection;
use crate::state::{RequestKey, StreamClient, StreamKey};

impl Draft {
    pub(super) fn open_stream(
        &mut self,
        cause: &mut Cause,
        stream: &StreamKey,
        resume: bool,
        acknowledged_below: u64,
        retention: i64,
    ) -> Result<Outcome, Rejection> {
        let ends = self.end_of(retention)?;
        let known = self.state().stream_client(stream).copied();
        // The opening of a new client may be asked for again, as long as nothing was made.
        let made_some = known.is_some_and(|known| known.acknowledged_below > 1)
            || self.state().has_stream_answers(stream);
        match known {
            None if resume => return Err(Rejection::StreamForgotten(stream.client)),
            None if self.state().stream_count() >= MAX_STREAM_CLIENTS => {
                return Err(Rejection::TooManyStreamClients);
            }
            Some(_) if !resume && made_some => return Err(Rejection::StreamClientExists(stream.client)),
            _ => {}
        }
        if !resume && acknowledged_below > 1 {
            let text = "a new client has no answers yet: must be 0 or 1";
            return Err(Rejection::invalid("acknowledged_below", text));
        }
        let before = known.map_or(1, |known| known.acknowledged_below);
        let acknowledged_below = before.max(acknowledged_below);
        let kind = EventKind::StreamOpened { stream: stream.clone(), acknowledged_below, ends };
        self.push(cause, Subject::default(), 0, kind, String::new());
        Ok(Outcome::Stream(StreamPosition { opened: self.state().revision(), acknowledged_below }))
    }

    pub(super) fn keep_stream(
        &mut self,
        cause: &mut Cause,
        stream: &StreamKey,
        position: StreamPosition,
        retention: i64,
    ) -> Result<Outcome, Rejection> {
        let ends = self.end_of(retention)?;
        let known = self.current_stream(stream, position)?;
        let acknowledged_below = known.acknowledged_below.max(position.acknowledged_below);
        let kind = EventKind::StreamKept { stream: stream.clone(), acknowledged_below, ends };
        self.push(cause, Subject::default(), 0, kind, String::new());
        Ok(Outcome::Stream(StreamPosition { opened: known.opened, acknowledged_below }))
    }

    pub(super) fn create_in_stream(
        &mut self,
        cause: &mut Cause,
        create: &CreateSandbox,
        around: &mut dyn Surroundings,
    ) -> Result<Outcome, Rejection> {
        if cause.request.is_none() {
            return Err(Rejection::invalid("sequence", "a create of a stream has one"));
        }
        self.create_sandbox(cause, create, around)
    }

    /// The answer to a create of a stream that was carried out before. None: it can be carried out now.
    pub(super) fn answer_in_stream(
        &self,
        key: &RequestKey,
        position: StreamPosition,
        digest: [u8; 16],
    ) -> Result<Option<Outcome>, Rejection> {
        let (RequestId::Stream { client, sequence }, Some(namespace)) = (&key.id, &key.namespace) else {
            return Err(Rejection::invalid("sequence", "a create of a stream has one"));
        };
        let (stream, sequence) = (StreamKey { namespace: namespace.clone(), client: *client }, *sequence);
        let known = self.current_stream(&stream, position)?;
        let acknowledged_below = known.acknowledged_below.max(position.acknowledged_below);
        if sequence < acknowledged_below {
            return Err(Rejection::Acknowledged { sequence, acknowledged_below });
        }
        if let Some(answer) = self.state().stream_answer(&stream, sequence) {
            if answer.digest != digest {
                return Err(Rejection::RequestIdReused(key.id.clone()));
            }
            return self.answer_of(&answer.result).map(Some);
        }
        if sequence - acknowledged_below >= STREAM_WINDOW {
            return Err(Rejection::StreamWindowFull { sequence, acknowledged_below });
        }
        Ok(None)
    }

    /// The client of a stream, if that is its newest.
    fn current_stream(
        &self,
        stream: &StreamKey,
        position: StreamPosition,
    ) -> Result<StreamClient, Rejection> {
        match self.state().stream_client(stream) {
            None => Err(Rejection::StreamForgotten(stream.client)),
            Some(known) if known.opened != position.opened => Err(Rejection::StreamSuperseded(stream.client)),
            Some(known) => Ok(*known),
        }
    }

    fn end_of(&self, retention: i64) -> Result<Timestamp, Rejection> {
        if !(0..=MAX_DURATION_NANOS).contains(&retention) {
            return Err(Rejection::invalid("request_retention", "must be 0 to ten years"));
        }
        Ok(self.next_time().plus(retention))
    }
}
