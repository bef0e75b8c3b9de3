//! The typed methods: one for each RPC, in a file for each service.

mod cluster;
mod event;
mod fleet;
mod sandbox;

use sandkeeper_proto::v1::cluster_service_client::ClusterServiceClient;
use sandkeeper_proto::v1::event_service_client::EventServiceClient;
use sandkeeper_proto::v1::fleet_service_client::FleetServiceClient;
use sandkeeper_proto::v1::sandbox_service_client::SandboxServiceClient;
use tonic::transport::Channel;
use uuid::Uuid;

/// The largest answer that is accepted, bytes: a page of 5,000 sandboxes of average size, with room to spare.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

pub(crate) fn sandbox(channel: Channel) -> SandboxServiceClient<Channel> {
    SandboxServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

pub(crate) fn event(channel: Channel) -> EventServiceClient<Channel> {
    EventServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

pub(crate) fn fleet(channel: Channel) -> FleetServiceClient<Channel> {
    FleetServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

pub(crate) fn cluster(channel: Channel) -> ClusterServiceClient<Channel> {
    ClusterServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// The caller's request id, or a new one: made once, before the first try, so that all tries bear the same.
fn with_request_id(request_id: &mut String) {
    if request_id.is_empty() {
        *request_id = Uuid::new_v4().to_string();
    }
}

/// One unary call through the engine of `client.rs`.
macro_rules! unary {
    ($client:expr, $service:ident, $method:ident, $kind:expr, $request:expr) => {
        $client
            .call($kind, $request, |channel, request| async move {
                $crate::calls::$service(channel).$method(request).await
            })
            .await
    };
}
use unary;
