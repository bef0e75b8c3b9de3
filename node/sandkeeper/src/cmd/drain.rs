//! `sandkeeper agents drain`.

use std::time::Duration;

use clap::Args;
use sandkeeper_client::{Client, v1};
use tokio::time::{Instant, sleep};

use super::agents;
use super::create::proto_duration;
use crate::cli::Context;
use crate::error::CliError;
use crate::human;
use crate::output::note;

/// How often the agent is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long what is ended at the deadline may take until it is gone.
const END_TIME: Duration = Duration::from_mins(1);
/// How many sandboxes are named of those that are left.
const NAMED: usize = 5;

/// Which agent, and how.
#[derive(Args, Debug)]
pub struct DrainArgs {
    /// The agent
    agent_id: String,
    /// At the deadline, end what is left; without --deadline: at once
    #[arg(long)]
    terminate: bool,
    /// Do not wait: `agents list` shows DRAINED when nothing is left
    #[arg(long)]
    no_wait: bool,
    /// Why, for those who look at it later
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Repeating a request with the same id has no second effect [default: a new one]
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    request_id: String,
}

/// Drains the agent, and waits until nothing is left on it.
pub async fn run(args: DrainArgs, context: &Context) -> Result<(), CliError> {
    let DrainArgs { agent_id, terminate, no_wait, reason, request_id } = args;
    let deadline = context.chosen_deadline().or(terminate.then_some(Duration::ZERO));
    let began = Instant::now();
    let client = context.prompt();
    let wire = deadline.map(|deadline| proto_duration("--deadline", deadline)).transpose()?;
    let request = v1::DrainAgentRequest { request_id, agent_id, reason, deadline: wire, terminate };
    let mut answer = client.drain_agent(request).await?;
    let left = match answer.agent.take() {
        Some(agent) if !no_wait => {
            let patience = deadline.map(|deadline| if terminate { deadline + END_TIME } else { deadline });
            let (agent, left) = wait(&client, agent, patience.map(|patience| began + patience)).await?;
            answer.agent = Some(agent);
            left
        }
        agent => {
            answer.agent = agent;
            0
        }
    };
    context.output.answer(&answer, |answer| agents::rows(answer.agent.as_slice()))?;
    if left == 0 {
        return Ok(());
    }
    let id = answer.agent.map(|agent| agent.agent_id).unwrap_or_default();
    note(format!(
        "error: {} left on {id} at the deadline. The drain goes on: wait with `agents drain {id}`, end what is left with \
         --terminate, or end the drain with `agents uncordon {id}`.",
        sandboxes_are(left)
    ));
    Err(CliError::Shown)
}

/// Looks at the agent until nothing is left on it, or it is too late. The agent as it is then, and how much is left.
async fn wait(
    client: &Client,
    mut agent: v1::Agent,
    until: Option<Instant>,
) -> Result<(v1::Agent, u64), CliError> {
    let mut told = String::new();
    loop {
        let left = agent.allocated.unwrap_or_default().slots;
        if left == 0 {
            return Ok((agent, 0));
        }
        if agent.drain.is_none() {
            return Err(CliError::Failed(anyhow::anyhow!(
                "somebody has ended the drain of {} meanwhile; {} still there",
                agent.agent_id,
                sandboxes_are(left)
            )));
        }
        let progress = progress(&agent, left, &on_agent(client, &agent.agent_id).await?);
        if progress != told {
            note(&progress);
            told = progress;
        }
        if until.is_some_and(|until| until <= Instant::now()) {
            return Ok((agent, left));
        }
        sleep(LOOK_EVERY).await;
        let found = client.get_agent(agent.agent_id.clone(), v1::ReadOptions::default()).await?;
        agent = found.agent.unwrap_or_default();
    }
}

/// The first sandboxes whose current generation is the agent's.
async fn on_agent(client: &Client, agent_id: &str) -> Result<Vec<v1::Sandbox>, CliError> {
    use v1::Phase::{Allocated, Lost, Running, Terminating};
    let request = v1::ListSandboxesRequest {
        agent_id: agent_id.to_owned(),
        phases: [Allocated, Running, Terminating, Lost].map(Into::into).to_vec(),
        ..v1::ListSandboxesRequest::default()
    };
    Ok(client.list(request).await?.sandboxes)
}

/// What is left: `agent-1: 5 sandboxes are left, 2 on their way: web (RUNNING), db (RUNNING), …`
fn progress(agent: &v1::Agent, left: u64, here: &[v1::Sandbox]) -> String {
    let stays = |sandbox: &&v1::Sandbox| sandbox.phase() != v1::Phase::Terminating;
    let staying: Vec<_> = here.iter().filter(stays).collect();
    let one = |sandbox: &&v1::Sandbox| {
        let waits = sandbox.failure_policy() == v1::FailurePolicy::AutoRecreate;
        let waits = if waits { ", waits for room elsewhere" } else { "" };
        format!("{}/{} ({}{waits})", sandbox.namespace, sandbox.name, human::phase(sandbox))
    };
    let mut names: Vec<_> = staying.iter().take(NAMED).map(one).collect();
    if staying.len() > NAMED {
        names.push("…".to_owned());
    }
    // What has its next generation elsewhere, or is being terminated, holds its place until it is surely gone.
    let leaving = left.saturating_sub(staying.len() as u64);
    let leaving = if leaving > 0 { format!(", {leaving} on the way out") } else { String::new() };
    let names = if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) };
    format!("{}: {} left{leaving}{names}", agent.agent_id, sandboxes_are(left))
}

fn sandboxes_are(count: u64) -> String {
    if count == 1 { "1 sandbox is".to_owned() } else { format!("{count} sandboxes are") }
}

/// A drain for those who look at an agent.
pub fn in_words(drain: &v1::Drain) -> String {
    let since = human::moment(drain.since);
    let deadline = match (drain.deadline, drain.terminate) {
        (0, _) => "as long as it takes".to_owned(),
        (at, true) => format!("what is left is ended at {}", human::moment(at)),
        (at, false) => format!("is waited for until {}", human::moment(at)),
    };
    format!("since {since}, {deadline}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_is_left() {
        let sandbox = |name: &str, phase: v1::Phase, policy: v1::FailurePolicy| v1::Sandbox {
            namespace: "default".into(),
            name: name.into(),
            phase: phase.into(),
            failure_policy: policy.into(),
            ..Default::default()
        };
        let agent = v1::Agent { agent_id: "agent-1".into(), ..Default::default() };
        let manual = v1::FailurePolicy::Manual;
        let ends = sandbox("ends", v1::Phase::Terminating, manual);
        let web = sandbox("web", v1::Phase::Running, manual);
        let moves = sandbox("db", v1::Phase::Running, v1::FailurePolicy::AutoRecreate);
        assert_eq!(
            progress(&agent, 4, &[ends.clone(), web.clone(), moves]),
            "agent-1: 4 sandboxes are left, 2 on the way out: default/web (RUNNING), default/db (RUNNING, waits for room \
             elsewhere)"
        );
        assert_eq!(progress(&agent, 1, &[ends]), "agent-1: 1 sandbox is left, 1 on the way out");
        assert!(progress(&agent, 6, &vec![web; 6]).ends_with(", …"));
    }

    #[test]
    fn a_drain_in_words() {
        let drain = |deadline, terminate| v1::Drain { since: 1, deadline, terminate };
        assert!(in_words(&drain(0, false)).ends_with("as long as it takes"));
        assert!(in_words(&drain(2, true)).contains("what is left is ended at 1970"));
        assert!(in_words(&drain(2, false)).contains("is waited for until 1970"));
    }
}
