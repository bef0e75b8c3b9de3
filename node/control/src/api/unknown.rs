//! What agents run and the state does not know, adoption, and the agents of another cluster.

use sandkeeper_proto::v1;
use sandkeeper_statemachine::{
    Adoption, Command, Label, Origin, Outcome, Request as CoreRequest, UnknownSandbox,
};
use tonic::Status;
use uuid::Uuid;

use super::Api;
use super::call::Call;
use super::convert::{Fields, fleet};
use super::status::{fault, rejected};

impl Api {
    /// Gives a command that has no request id: told twice it changes nothing.
    async fn order(&self, command: Command, call: &Call) -> Result<Outcome, Status> {
        let request = CoreRequest { actor: call.actor.clone(), id: None, command };
        self.submit(request, call.deadline).await
    }

    pub(super) async fn tell_unknown(
        &self,
        request: v1::ListUnknownRequest,
        call: Call,
    ) -> Result<v1::ListUnknownResponse, Status> {
        let agent = match request.agent_id.as_str() {
            "" => None,
            id => Some(fleet::only_agent_id(id).map_err(|rejection| rejected(&rejection))?),
        };
        let command = Command::ListUnknown { agent };
        let Outcome::Unknown { sandboxes, more, unheard } = self.order(command, &call).await? else {
            return Err(fault("a list of what is unknown had the outcome of another command"));
        };
        let read = self.read(None, call.deadline).await?;
        let sandboxes = sandboxes.iter().map(unknown).collect();
        Ok(v1::ListUnknownResponse {
            header: Some(self.header(&read)),
            sandboxes,
            more,
            unheard_agents: unheard as u64,
            restore_unconfirmed: read.state.unconfirmed_restore().is_some(),
        })
    }

    pub(super) async fn adopt(
        &self,
        request: v1::AdoptSandboxesRequest,
        call: Call,
    ) -> Result<v1::AdoptSandboxesResponse, Status> {
        let command = adopt_command(&request).map_err(|rejection| rejected(&rejection))?;
        let Outcome::Adopted(adoptions) = self.order(command, &call).await? else {
            return Err(fault("an adoption had the outcome of another command"));
        };
        let read = self.read(None, call.deadline).await?;
        let adoption = |Adoption { id, refused }: Adoption| v1::adopt_sandboxes_response::Adoption {
            sandbox_id: id.to_string(),
            refused: refused.unwrap_or_default(),
        };
        let adoptions = adoptions.into_iter().map(adoption).collect();
        Ok(v1::AdoptSandboxesResponse { header: Some(self.header(&read)), adoptions })
    }

    pub(super) async fn rehome(
        &self,
        request: v1::RehomeAgentsRequest,
        call: Call,
    ) -> Result<v1::RehomeAgentsResponse, Status> {
        let mut fields = Fields::default();
        let from: Option<Uuid> = match request.from_cluster_id.as_str() {
            "" => None,
            id => fields.parsed("from_cluster_id", id),
        };
        fields.done().map_err(|rejection| rejected(&rejection))?;
        self.order(Command::RehomeAgents { from }, &call).await?;
        let read = self.read(None, call.deadline).await?;
        let predecessor = read.state.cluster().and_then(|cluster| cluster.predecessor);
        Ok(v1::RehomeAgentsResponse {
            header: Some(self.header(&read)),
            from_cluster_id: predecessor.map(|id| id.to_string()).unwrap_or_default(),
        })
    }

    pub(super) async fn confirm(&self, call: Call) -> Result<v1::ConfirmRestoreResponse, Status> {
        self.order(Command::ConfirmRestore, &call).await?;
        let read = self.read(None, call.deadline).await?;
        Ok(v1::ConfirmRestoreResponse { header: Some(self.header(&read)) })
    }
}

fn adopt_command(request: &v1::AdoptSandboxesRequest) -> Result<Command, sandkeeper_statemachine::Rejection> {
    let agent = fleet::only_agent_id(&request.agent_id)?;
    let mut fields = Fields::default();
    let namespace = match request.namespace.as_str() {
        "" => Some(Label::default_name()),
        text => fields.parsed("namespace", text),
    };
    let ids = request.sandbox_ids.iter().filter_map(|id| fields.parsed("sandbox_ids", id)).collect();
    fields.done()?;
    let namespace = namespace.unwrap_or_else(Label::default_name);
    Ok(Command::AdoptSandboxes { agent, namespace, ids })
}

fn unknown(unknown: &UnknownSandbox) -> v1::UnknownSandbox {
    let origin = match unknown.origin {
        Origin::Ours => v1::SandboxOrigin::Ours,
        Origin::Unlabelled => v1::SandboxOrigin::Unlabelled,
        Origin::Other => v1::SandboxOrigin::Other,
    };
    v1::UnknownSandbox {
        agent_id: unknown.agent.to_string(),
        sandbox_id: unknown.id.to_string(),
        generation: unknown.generation,
        origin: origin.into(),
    }
}
