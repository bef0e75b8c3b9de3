//! `FleetService`: the agents and what they can hold.

use sandkeeper_proto::v1;
use sandkeeper_proto::v1::fleet_service_server::FleetService;
use sandkeeper_statemachine::{Agent, Outcome, Rejection, Request as CoreRequest, State};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::Api;
use super::call::{Call, DEFAULT_DEADLINE};
use super::convert::fleet as convert;
use super::status::{self, fault, rejected};

type Answer<T> = Result<Response<T>, Status>;

impl Api {
    /// Agents as they are in this state, with their sessions with this node.
    fn tell_agents<'a>(&self, state: &State, agents: impl IntoIterator<Item = &'a Agent>) -> Vec<v1::Agent> {
        convert::agents(state, agents, |id| self.parts().sessions.connection_id(id))
    }

    /// An agent as a command left it. What follows from other agents too (whether its recovery is paused) is told by a state
    /// that has the command's effect: this node may get there later than the leader.
    async fn tell_changed(&self, agent: &Agent, deadline: Instant) -> Result<Option<v1::Agent>, Status> {
        let reached = self.parts().raft.replica().wait_revision(agent.revision, deadline);
        let reached = self.unless_stopped(reached).await?;
        let view = reached.map_err(|error| status::wait(error, agent.revision))?;
        Ok(self.tell_agents(&view.state, [agent]).pop())
    }

    async fn change_agent(&self, request: CoreRequest, deadline: Instant) -> Result<Agent, Status> {
        match self.submit(request, deadline).await? {
            Outcome::Agent(agent) => Ok(*agent),
            // The request was carried out once, and the agent was removed since.
            Outcome::AgentRemoved { .. } => {
                let text = "the request was carried out before, and its agent has been removed since";
                Err(rejected(&Rejection::FailedPrecondition(text.to_owned())))
            }
            _ => Err(fault("a command about an agent had the outcome of another")),
        }
    }
}

#[tonic::async_trait]
impl FleetService for Api {
    async fn list_agents(&self, request: Request<v1::ListAgentsRequest>) -> Answer<v1::ListAgentsResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let read = self.read(request.into_inner().read, call.deadline).await?;
        let agents = self.tell_agents(&read.state, read.state.agents());
        Ok(Response::new(v1::ListAgentsResponse { header: Some(self.header(&read)), agents }))
    }

    async fn get_agent(&self, request: Request<v1::GetAgentRequest>) -> Answer<v1::GetAgentResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let request = request.into_inner();
        let id = convert::only_agent_id(&request.agent_id).map_err(|rejection| rejected(&rejection))?;
        let read = self.read(request.read, call.deadline).await?;
        let Some(agent) = read.state.agent(&id) else { return Err(rejected(&Rejection::AgentNotFound(id))) };
        let agent = self.tell_agents(&read.state, [agent]).pop();
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
            agents: self.tell_agents(&read.state, read.state.agents()),
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
        let changed = self.change_agent(command, call.deadline).await?;
        let header = Some(self.header_written(changed.revision));
        let agent = self.tell_changed(&changed, call.deadline).await?;
        Ok(Response::new(v1::CordonAgentResponse { header, agent }))
    }

    async fn uncordon_agent(
        &self,
        request: Request<v1::UncordonAgentRequest>,
    ) -> Answer<v1::UncordonAgentResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let command = convert::uncordon(&request.into_inner(), call.actor, &self.parts().retention);
        let command = command.map_err(|rejection| rejected(&rejection))?;
        let changed = self.change_agent(command, call.deadline).await?;
        let header = Some(self.header_written(changed.revision));
        let agent = self.tell_changed(&changed, call.deadline).await?;
        Ok(Response::new(v1::UncordonAgentResponse { header, agent }))
    }

    async fn drain_agent(&self, request: Request<v1::DrainAgentRequest>) -> Answer<v1::DrainAgentResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let command = convert::drain(request.into_inner(), call.actor, &self.parts().retention);
        let command = command.map_err(|rejection| rejected(&rejection))?;
        let changed = self.change_agent(command, call.deadline).await?;
        let header = Some(self.header_written(changed.revision));
        let agent = self.tell_changed(&changed, call.deadline).await?;
        Ok(Response::new(v1::DrainAgentResponse { header, agent }))
    }

    async fn recover_agent(
        &self,
        request: Request<v1::RecoverAgentRequest>,
    ) -> Answer<v1::RecoverAgentResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        let command = convert::recover(&request.into_inner(), call.actor, &self.parts().retention);
        let command = command.map_err(|rejection| rejected(&rejection))?;
        let changed = self.change_agent(command, call.deadline).await?;
        let header = Some(self.header_written(changed.revision));
        let agent = self.tell_changed(&changed, call.deadline).await?;
        Ok(Response::new(v1::RecoverAgentResponse { header, agent }))
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
                _ => return Err(fault("the removal of an agent had the outcome of another command")),
            }
        };
        // The outcome names no revision, and this replica may not have applied the removal yet.
        let read = self.read(None, call.deadline).await?;
        Ok(Response::new(v1::RemoveAgentResponse { header: Some(self.header(&read)), released }))
    }

    async fn list_unknown(
        &self,
        request: Request<v1::ListUnknownRequest>,
    ) -> Answer<v1::ListUnknownResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        self.tell_unknown(request.into_inner(), call).await.map(Response::new)
    }

    async fn adopt_sandboxes(
        &self,
        request: Request<v1::AdoptSandboxesRequest>,
    ) -> Answer<v1::AdoptSandboxesResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        self.adopt(request.into_inner(), call).await.map(Response::new)
    }

    async fn rehome_agents(
        &self,
        request: Request<v1::RehomeAgentsRequest>,
    ) -> Answer<v1::RehomeAgentsResponse> {
        let call = Call::of(&request, DEFAULT_DEADLINE)?;
        self.rehome(request.into_inner(), call).await.map(Response::new)
    }
}
