//! `EventService`.

use futures::stream::BoxStream;
use sandkeeper_proto::v1;
use sandkeeper_proto::v1::event_service_server::EventService;
use tonic::{Request, Response, Status};

use super::Api;
use super::call::{Call, DEFAULT_DEADLINE};
use super::convert::event::{Filter, filter};
use super::scan::list_limit;
use super::status::{history as history_status, rejected};

#[tonic::async_trait]
impl EventService for Api {
    type WatchEventsStream = BoxStream<'static, Result<v1::WatchEventsResponse, Status>>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let request = request.into_inner();
        let filter = filter(request.filter.as_ref()).map_err(|rejection| rejected(&rejection))?;
        self.watch(request.from_revision, filter).await.map(Response::new)
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let request = request.into_inner();
        let filter = Filter::of_list(request.filter.as_ref()).map_err(|rejection| rejected(&rejection))?;
        let limit = list_limit(request.limit).map_err(|rejection| rejected(&rejection))?;
        let read = self.read(request.read, call.deadline).await?;
        let found = self.inner.parts.searcher.events(read.state.revision(), &filter, limit, call.deadline);
        let found = self.unless_stopped(found).await?.map_err(|error| history_status(&error))?;
        let header = Some(self.header(&read));
        Ok(Response::new(v1::ListEventsResponse { header, events: found.events, truncated: found.truncated }))
    }
}
