//! The output of a sandbox, through a tunnel that its agent dials.

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use sandkeeper_proto::v1;
use sandkeeper_statemachine::{AgentId, AgentStatus, State};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::Api;
use super::call::DEFAULT_DEADLINE;
use super::convert::target::{find, only_sandbox_ref};
use super::status::{Problem, rejected, shutting_down, unavailable};

/// Another node may have the session that the one which was asked has not.
pub const AGENT_NOT_CONNECTED: &str = "AGENT_NOT_CONNECTED";

type Chunks = mpsc::Receiver<Result<Vec<u8>, String>>;
type Logs = BoxStream<'static, Result<v1::StreamLogsResponse, Status>>;

impl Api {
    /// Asks the agent of a sandbox for its output.
    pub(super) async fn logs(&self, wire: v1::StreamLogsRequest, deadline: Instant) -> Result<Logs, Status> {
        let wanted = only_sandbox_ref(wire.r#ref.as_ref()).map_err(|rejection| rejected(&rejection))?;
        let read = self.read(None, deadline).await?;
        let sandbox = find(&read.state, &wanted).map_err(|rejection| rejected(&rejection))?;
        let Some(agent) = sandbox.status.agent.clone() else {
            let text = format!("sandbox {} has had no agent yet, so there is no output", sandbox.id);
            return Err(Problem::new(Code::FailedPrecondition, "NOT_ALLOCATED", text).status());
        };
        let id = sandbox.id.to_string();
        // A caller that follows may stay for hours; its agent has to answer sooner.
        let deadline = deadline.min(Instant::now() + DEFAULT_DEADLINE);
        let opened = self.parts().sessions.open_logs(&agent, id, wire.follow, wire.tail_lines, deadline);
        let chunks =
            self.unless_stopped(opened).await?.map_err(|why| self.no_logs(&read.state, &agent, &why))?;
        Ok(relay(chunks, self.parts().stop.clone()))
    }

    /// Why an agent was not reached: it is gone, or something passing.
    fn no_logs(&self, state: &State, agent: &AgentId, why: &str) -> Status {
        if self.parts().sessions.get(agent).is_some() {
            return unavailable(why);
        }
        // The output stays where it was written: nobody else has it.
        let (reason, what) = match state.agent(agent).map(|agent| agent.status) {
            None => ("AGENT_REMOVED", "was removed"),
            Some(AgentStatus::Lost) => ("AGENT_LOST", "is lost"),
            Some(AgentStatus::Ready) => (AGENT_NOT_CONNECTED, "is not connected"),
        };
        let text = format!("agent {agent} {what}, and the sandbox's log is on its machine");
        Problem::new(Code::FailedPrecondition, reason, text).with("agent_id", agent).status()
    }
}

/// Passes chunks on until the agent ends the tunnel, the caller goes away (which drops the receiver, and so ends the
/// tunnel), or the node stops.
fn relay(chunks: Chunks, stop: CancellationToken) -> Logs {
    let next = |state: Option<(Chunks, CancellationToken)>| async {
        let (mut chunks, stop) = state?;
        match stop.run_until_cancelled(chunks.recv()).await {
            None => Some((Err(shutting_down()), None)),
            Some(None) => None,
            Some(Some(Ok(data))) => Some((Ok(v1::StreamLogsResponse { data }), Some((chunks, stop)))),
            Some(Some(Err(why))) => {
                Some((Err(Problem::new(Code::Aborted, "LOGS_FAILED", why).status()), None))
            }
        }
    };
    stream::unfold(Some((chunks, stop)), next).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunks_are_passed_on_and_the_end_has_a_reason() {
        let (sender, receiver) = mpsc::channel(4);
        let mut logs = relay(receiver, CancellationToken::new());
        sender.send(Ok(b"hello".to_vec())).await.unwrap();
        assert_eq!(logs.next().await.unwrap().unwrap().data, b"hello");
        sender.send(Err("the file is gone".into())).await.unwrap();
        let error = logs.next().await.unwrap().unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Aborted, "the file is gone"));
        assert!(logs.next().await.is_none());
        assert!(sender.is_closed(), "the tunnel ends with the stream");
    }

    #[tokio::test]
    async fn a_stopping_node_says_so() {
        let (_sender, receiver) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let mut logs = relay(receiver, stop.clone());
        stop.cancel();
        assert_eq!(logs.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    }
}
