//! `EventService`. The watch itself is in `watch.rs`.

use sandkeeper_proto::v1;

use super::unary;
use crate::client::{Client, Kind};
use crate::error::ClientError;
use crate::watch::Watch;

impl Client {
    /// The history of one sandbox, agent or namespace, newest last.
    pub async fn events(
        &self,
        request: v1::ListEventsRequest,
    ) -> Result<v1::ListEventsResponse, ClientError> {
        unary!(self, event, list_events, Kind::SHORT, request)
    }

    /// Every event that matches the filter, from revision `from` on (0: from now on), as it happens. Goes on at
    /// another server after an error, without gaps or doubles.
    pub fn watch(&self, from: u64, filter: v1::EventFilter) -> Watch {
        Watch::new(self.clone(), from, filter)
    }
}
