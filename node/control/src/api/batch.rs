//! `BatchCreateSandboxes`: all or nothing.

use sandkeeper_proto::v1;
use sandkeeper_statemachine::{BatchSandbox, Outcome, SandboxName};
use tonic::Status;

use super::Api;
use super::call::Call;
use super::convert::{many, sandbox as convert};
use super::status::{fault, rejected, wait};

impl Api {
    /// Makes all sandboxes of a batch, or none.
    pub(super) async fn batch(
        &self,
        wire: v1::BatchCreateSandboxesRequest,
        call: Call,
    ) -> Result<v1::BatchCreateSandboxesResponse, Status> {
        let request = many::batch(wire, call.actor, &self.parts().retention)
            .map_err(|rejection| rejected(&rejection))?;
        let namespace = request.command.namespace().ok_or_else(|| fault("a batch has a namespace"))?;
        let Outcome::Batch { sandboxes, revision, at, duplicate } =
            self.submit(request, call.deadline).await?
        else {
            return Err(fault("a batch had the outcome of another command"));
        };
        // The leader says which they are; what has become of them is in this replica's state.
        let replica = self.parts().raft.replica();
        let reached = self.unless_stopped(replica.wait_revision(at, call.deadline)).await?;
        let view = reached.map_err(|error| wait(error, at))?;
        let tell = |one: &BatchSandbox| {
            if let Some(sandbox) = view.state.sandbox(&one.id) {
                return convert::sandbox(sandbox, &view.state);
            }
            let name = SandboxName { namespace: namespace.clone(), name: one.name.clone() };
            convert::gone_named(&one.id, &name, one.created)
        };
        Ok(v1::BatchCreateSandboxesResponse {
            header: Some(self.header_written(view.revision())),
            sandboxes: sandboxes.iter().map(tell).collect(),
            revision,
            duplicate,
        })
    }
}
