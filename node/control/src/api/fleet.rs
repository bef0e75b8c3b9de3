//! `FleetService`: the agents and what they can hold.

use sandkeeper_proto::v1;
use sandkeeper_proto::v1::fleet_service_server::FleetService;
use sandkeeper_statemachine::{Agent, Outcome, Rejection, Request as CoreRequest, State};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::Api;
use super::call::{Call, DEFAULT_DEADLINE};
use super::convert::fleet as convert;
use super::status::{fault, rejected};

type Answer<T> = Result<Response<T>, Status>;

impl Api {
    /// An agent as the wire tells it, with its session with this node.
    fn tell_agent(&self, agent: &Agent) -> v1::Agent {
        convert::agent(agent, self.parts().sessions.connection_id(&agent.spec.agent_id))
    }

    fn tell_agents(&self, state: &State) -> Vec<v1::Agent> {
        state.agents().map(|agent| self.tell_agent(agent)).collect()
    }

    async fn change_agent(&self, request: CoreRequest, deadline: Instant) -> Result<Agent, Status> {
        match self.submit(request, deadline).await? {
            Outcome::Agent(agent) => Ok(*agent),
            // The request was carried out once, and the agent was removed since.
            Outcome::AgentRemoved { .. } => {
                let text = "the request was carried out before, and its agent has been removed since";
                Err(rejected(&Rejection::FailedPrecondition(text.to_owned())))
            }
            Outcome::Sandbox { .. }
            | Outcome::Gone { .. }
            | Outcome::Done
            | Outcome::Batch { .. }
            | Outcome::Stream(_) => Err(fault("a command about an agent had the outcome of another")),
        }
    }
}

#[tonic::async_trait]
impl FleetService for Api {
    async fn list_agents(&self, request: Request<v1::ListAgentsRequest>) -> Answer<v1::ListAgentsResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let read = self.read(request.into_inner().read, call.deadline).await?;
        let agents = self.tell_agents(&read.state);
        Ok(Response::new(v1::ListAgentsResponse { header: Some(self.header(&read)), agents }))
    }

    async fn get_agent(&self, request: Request<v1::GetAgentRequest>) -> Answer<v1::GetAgentResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let request = request.into_inner();
        let id = convert::only_agent_id(&request.agent_id).map_err(|rejection| rejected(&rejection))?;
        let read = self.read(request.read, call.deadline).await?;
        let Some(agent) = read.state.agent(&id) else { return Err(rejected(&Rejection::AgentNotFound(id))) };
        let agent = Some(self.tell_agent(agent));
        Ok(Response::new(v1::GetAgentResponse { header: Some(self.header(&read)), agent }))
    }

    async fn get_capacity(
        &self,
        request: Request<v1::GetCapacityRequest>,
    ) -> Answer<v1::GetCapacityResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let read = self.read(request.into_inner().read, call.deadline).await?;
        Ok(Response::new(v1::GetCapacityResponse {
            header: Some(self.header(&read)),
            agents: self.tell_agents(&read.state),
            ..convert::fleet(&read.state)
        }))
    }

    async fn cordon_agent(
        &self,
        request: Request<v1::CordonAgentRequest>,
    ) -> Answer<v1::CordonAgentResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let command = convert::cordon(request.into_inner(), call.actor, &self.parts().retention);
        let command = command.map_err(|rejection| rejected(&rejection))?;
        let agent = self.change_agent(command, call.deadline).await?;
        let header = Some(self.header_written(agent.revision));
        Ok(Response::new(v1::CordonAgentResponse { header, agent: Some(self.tell_agent(&agent)) }))
    }

    async fn uncordon_agent(
        &self,
        request: Request<v1::UncordonAgentRequest>,
    ) -> Answer<v1::UncordonAgentResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let command = convert::uncordon(&request.into_inner(), call.actor, &self.parts().retention);
        let command = command.map_err(|rejection| rejected(&rejection))?;
        let agent = self.change_agent(command, call.deadline).await?;
        let header = Some(self.header_written(agent.revision));
        Ok(Response::new(v1::UncordonAgentResponse { header, agent: Some(self.tell_agent(&agent)) }))
    }

    async fn remove_agent(
        &self,
        request: Request<v1::RemoveAgentRequest>,
    ) -> Answer<v1::RemoveAgentResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let command = convert::remove(&request.into_inner(), call.actor, &self.parts().retention);
        let command = command.map_err(|rejection| rejected(&rejection))?;
        let released = loop {
            match self.submit(command.clone(), call.deadline).await? {
                Outcome::AgentRemoved { released } => break released,
                // What it holds is more than one entry takes: a part is released, and the same command goes on.
                Outcome::Agent(_) => {}
                Outcome::Sandbox { .. }
                | Outcome::Gone { .. }
                | Outcome::Done
                | Outcome::Batch { .. }
                | Outcome::Stream(_) => {
                    return Err(fault("the removal of an agent had the outcome of another command"));
                }
            }
        };
        // The outcome names no revision, and this replica may not have applied the removal yet.
        let read = self.read(None, call.deadline).await?;
        Ok(Response::new(v1::RemoveAgentResponse { header: Some(self.header(&read)), released }))
    }
}
