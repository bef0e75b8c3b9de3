//! The services of one node without the product's client in between: no failover, no retries, no request ids of its
//! own. What a server really says is seen here.

use std::collections::HashMap;
use std::fmt::Debug;

use sandkeeper_client::v1::agent_service_client::AgentServiceClient;
use sandkeeper_client::v1::cluster_service_client::ClusterServiceClient;
use sandkeeper_client::v1::event_service_client::EventServiceClient;
use sandkeeper_client::v1::fleet_service_client::FleetServiceClient;
use sandkeeper_client::v1::sandbox_service_client::SandboxServiceClient;
use sandkeeper_proto::internal::peer_service_client::PeerServiceClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;

use crate::Cluster;

/// A connection to one port of one node.
#[derive(Clone, Debug)]
pub struct Raw {
    channel: Channel,
}

impl Raw {
    /// Of `host:port`. Dialled at the first call.
    pub fn new(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("host:port makes a URI");
        Self { channel: endpoint.connect_lazy() }
    }

    /// `SandboxService`.
    pub fn sandboxes(&self) -> SandboxServiceClient<Channel> {
        SandboxServiceClient::new(self.channel.clone())
    }

    /// `EventService`.
    pub fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone())
    }

    /// `FleetService`.
    pub fn fleet(&self) -> FleetServiceClient<Channel> {
        FleetServiceClient::new(self.channel.clone())
    }

    /// `ClusterService`.
    pub fn cluster(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.channel.clone())
    }

    /// `AgentService`.
    pub fn agents(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(self.channel.clone())
    }

    /// `PeerService`.
    pub fn peers(&self) -> PeerServiceClient<Channel> {
        PeerServiceClient::new(self.channel.clone())
    }
}

impl Cluster {
    /// The API port of a node.
    pub fn raw(&self, index: usize) -> Raw {
        Raw::new(&self.nodes[index].api)
    }
}

/// A call that was not answered with OK, taken apart.
#[derive(Debug)]
pub struct Refused {
    /// Which call it was.
    pub what: String,
    /// The gRPC code.
    pub code: Code,
    /// For people.
    pub message: String,
    /// The reason of `google.rpc.ErrorInfo`; empty: there is none.
    pub reason: String,
    /// The metadata of `google.rpc.ErrorInfo`.
    pub metadata: HashMap<String, String>,
    /// The fields of `google.rpc.BadRequest`, in the order in which they were named.
    pub fields: Vec<String>,
    /// Whether there is a `google.rpc.RetryInfo`.
    pub retry: bool,
}

/// The refusal that `answer` has to be.
///
/// # Panics
/// If it is none. `what` names the call in messages.
pub fn refused<T: Debug>(what: &str, answer: Result<Response<T>, Status>) -> Refused {
    match answer {
        Ok(answer) => panic!("{what}: it was not refused, but answered: {answer:?}"),
        Err(status) => Refused::new(what, &status),
    }
}

impl Refused {
    /// Takes a status apart.
    pub fn new(what: &str, status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let fields = details.bad_request().map_or_else(Vec::new, |bad| {
            bad.field_violations.iter().map(|violation| violation.field.clone()).collect()
        });
        Self {
            what: what.to_owned(),
            code: status.code(),
            message: status.message().to_owned(),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            metadata: info.map(|info| info.metadata.clone()).unwrap_or_default(),
            fields,
            retry: details.retry_info().is_some(),
        }
    }

    /// Asserts code and reason.
    ///
    /// # Panics
    /// If they are others.
    #[track_caller]
    pub fn is(&self, code: Code, reason: &str) -> &Self {
        assert_eq!((self.code, self.reason.as_str()), (code, reason), "{self:?}");
        self
    }

    /// Asserts that it is INVALID_ARGUMENT, with these fields and no others.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn names(&self, fields: &[&str]) {
        self.is(Code::InvalidArgument, "INVALID");
        let mut named: Vec<&str> = self.fields.iter().map(String::as_str).collect();
        let mut wanted = fields.to_vec();
        named.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(named, wanted, "{self:?}");
    }

    /// Asserts a pair of the metadata.
    ///
    /// # Panics
    /// If it is not there, or another.
    #[track_caller]
    pub fn tells(&self, key: &str, value: &str) -> &Self {
        assert_eq!(self.metadata.get(key).map(String::as_str), Some(value), "{key} of {self:?}");
        self
    }

    /// Asserts that the message has a part.
    ///
    /// # Panics
    /// If it has not.
    #[track_caller]
    pub fn says(&self, part: &str) -> &Self {
        assert!(self.message.contains(part), "{part:?} is missing in {self:?}");
        self
    }
}
