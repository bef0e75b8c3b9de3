//! How a [`Client`] is made, and its limits with their reasons.

use std::time::Duration;

use tonic::transport::Endpoint;

use crate::client::{Client, Server};
use crate::error::ConfigError;

/// How long a call may take, retries included. Long enough for an election (under a second) and a restart.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// A host that does not answer at all (rather than refuse) is given up after this time, so that the next server is
/// tried well within the default deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection is pinged this often, and dropped if a ping is not answered in [`KEEPALIVE_TIMEOUT`]: a hung or
/// vanished server is noticed in four seconds, also by calls that wait long for their answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// See [`KEEPALIVE_INTERVAL`].
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Which server a call goes to first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Selection {
    /// The one that answered last; the first of the list at the start.
    #[default]
    Sticky,
    /// Each call begins with the next one of the list.
    RoundRobin,
}

/// Makes a [`Client`]; see [`Client::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientBuilder {
    servers: Vec<String>,
    deadline: Duration,
    selection: Selection,
    unreachable_after: Option<Duration>,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            deadline: DEFAULT_DEADLINE,
            selection: Selection::default(),
            unreachable_after: None,
        }
    }
}

impl ClientBuilder {
    /// The control nodes' API addresses, `host:port`. Any subset of the cluster will do.
    pub fn servers<S: Into<String>>(mut self, servers: impl IntoIterator<Item = S>) -> Self {
        self.servers = servers.into_iter().map(Into::into).collect();
        self
    }

    /// How long a call may take, retries included ([`DEFAULT_DEADLINE`]).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Which server a call goes to first ([`Selection::Sticky`]).
    pub fn selection(mut self, selection: Selection) -> Self {
        self.selection = selection;
        self
    }

    /// Gives a call up before its deadline when for this long no connection to any server could be made. A person at
    /// a terminal wants that; a service that outlives a restart of the cluster does not. Default: never.
    pub fn unreachable_after(mut self, patience: Duration) -> Self {
        self.unreachable_after = Some(patience);
        self
    }

    /// Makes the client. Nothing is dialled before the first call.
    ///
    /// # Errors
    /// If no server is named, or an address is not `host:port`.
    ///
    /// # Panics
    /// Outside of a tokio runtime: connections are driven by its tasks.
    pub fn build(self) -> Result<Client, ConfigError> {
        if self.servers.is_empty() {
            return Err(ConfigError::NoServers);
        }
        let servers = self.servers.into_iter().map(server).collect::<Result<Vec<_>, _>>()?;
        Ok(Client::new(servers, self.deadline, self.selection, self.unreachable_after))
    }
}

/// A server and its lazy connection.
fn server(address: String) -> Result<Server, ConfigError> {
    let bad = |reason: &str| ConfigError::BadAddress { address: address.clone(), reason: reason.to_owned() };
    let (host, port) = address.rsplit_once(':').ok_or_else(|| bad("the port is missing"))?;
    if host.is_empty() || host.contains('/') {
        return Err(bad("the host is missing, or it is a URL"));
    }
    port.parse::<u16>().map_err(|_| bad("the port is not a number below 65536"))?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| bad(&error.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(Server { channel: endpoint.connect_lazy(), address })
}
