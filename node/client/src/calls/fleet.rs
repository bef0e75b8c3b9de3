//! `FleetService`.

use sandkeeper_proto::v1;

use super::{unary, with_request_id};
use crate::client::{Client, Kind};
use crate::error::ClientError;

impl Client {
    /// All agents.
    pub async fn list_agents(&self, read: v1::ReadOptions) -> Result<v1::ListAgentsResponse, ClientError> {
        let request = v1::ListAgentsRequest { read: Some(read) };
        unary!(self, fleet, list_agents, Kind::SHORT, request)
    }

    /// One agent.
    pub async fn get_agent(
        &self,
        agent_id: impl Into<String>,
        read: v1::ReadOptions,
    ) -> Result<v1::GetAgentResponse, ClientError> {
        let request = v1::GetAgentRequest { agent_id: agent_id.into(), read: Some(read) };
        unary!(self, fleet, get_agent, Kind::SHORT, request)
    }

    /// What the fleet has, has given away, and has left.
    pub async fn capacity(&self, read: v1::ReadOptions) -> Result<v1::GetCapacityResponse, ClientError> {
        let request = v1::GetCapacityRequest { read: Some(read) };
        unary!(self, fleet, get_capacity, Kind::SHORT, request)
    }

    /// No new sandboxes for this agent.
    pub async fn cordon_agent(
        &self,
        mut request: v1::CordonAgentRequest,
    ) -> Result<v1::CordonAgentResponse, ClientError> {
        with_request_id(&mut request.request_id);
        unary!(self, fleet, cordon_agent, Kind::SHORT, request)
    }

    /// New sandboxes for this agent again.
    pub async fn uncordon_agent(
        &self,
        mut request: v1::UncordonAgentRequest,
    ) -> Result<v1::UncordonAgentResponse, ClientError> {
        with_request_id(&mut request.request_id);
        unary!(self, fleet, uncordon_agent, Kind::SHORT, request)
    }

    /// What this agent runs leaves it, and nothing new comes. Answered at once; [`Self::get_agent`] tells how far it is.
    pub async fn drain_agent(
        &self,
        mut request: v1::DrainAgentRequest,
    ) -> Result<v1::DrainAgentResponse, ClientError> {
        with_request_id(&mut request.request_id);
        unary!(self, fleet, drain_agent, Kind::SHORT, request)
    }

    /// Recovers what a LOST agent ran although many agents were lost together with it.
    pub async fn recover_agent(
        &self,
        mut request: v1::RecoverAgentRequest,
    ) -> Result<v1::RecoverAgentResponse, ClientError> {
        with_request_id(&mut request.request_id);
        unary!(self, fleet, recover_agent, Kind::SHORT, request)
    }

    /// Takes an agent out of the state.
    pub async fn remove_agent(
        &self,
        mut request: v1::RemoveAgentRequest,
    ) -> Result<v1::RemoveAgentResponse, ClientError> {
        with_request_id(&mut request.request_id);
        unary!(self, fleet, remove_agent, Kind::SHORT, request)
    }

    /// What agents run and the state does not know: of one agent, or of all, if `agent_id` is empty.
    pub async fn list_unknown(
        &self,
        agent_id: impl Into<String>,
    ) -> Result<v1::ListUnknownResponse, ClientError> {
        let request = v1::ListUnknownRequest { agent_id: agent_id.into() };
        unary!(self, fleet, list_unknown, Kind::SHORT, request)
    }

    /// Takes sandboxes that bear no label into the state, as they run.
    pub async fn adopt_sandboxes(
        &self,
        request: v1::AdoptSandboxesRequest,
    ) -> Result<v1::AdoptSandboxesResponse, ClientError> {
        unary!(self, fleet, adopt_sandboxes, Kind::SHORT, request)
    }

    /// Says that the agents of another cluster are this one's (empty: of the one that it was restored from).
    pub async fn rehome_agents(
        &self,
        from_cluster_id: impl Into<String>,
    ) -> Result<v1::RehomeAgentsResponse, ClientError> {
        let request = v1::RehomeAgentsRequest { from_cluster_id: from_cluster_id.into() };
        unary!(self, fleet, rehome_agents, Kind::SHORT, request)
    }
}
