//! `sandkeeper agents`.

use clap::{Args, Subcommand};
use sandkeeper_client::{Client, v1};

use super::{drain, unknown};
use crate::cli::Context;
use crate::error::CliError;
use crate::{human, output};

/// Look at the agents, and say which may take new sandboxes
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  sandkeeper agents list\n  sandkeeper agents drain agent-1 --deadline 10m\n  \
    sandkeeper agents remove agent-2 --fenced"
)]
pub struct AgentsArgs {
    #[command(subcommand)]
    command: AgentsCommand,
}

#[derive(Debug, Subcommand)]
enum AgentsCommand {
    /// List the agents
    #[command(
        after_help = "Examples:\n  sandkeeper agents list\n  sandkeeper agents list -o json | jq -r .agents[].agent_id"
    )]
    List,
    /// Show one agent
    #[command(after_help = "Examples:\n  sandkeeper agents get agent-1")]
    Get {
        /// The agent
        agent_id: String,
    },
    /// No new sandboxes for this agent
    #[command(after_help = "Examples:\n  sandkeeper agents cordon agent-1 --reason 'new disk'")]
    Cordon {
        /// The agent
        agent_id: String,
        /// Why, for those who look at it later
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
        /// Repeating a request with the same id has no second effect [default: a new one]
        #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
        request_id: String,
    },
    /// New sandboxes for this agent again: ends a cordon or a drain
    #[command(after_help = "Examples:\n  sandkeeper agents uncordon agent-1")]
    Uncordon {
        /// The agent
        agent_id: String,
        /// Repeating a request with the same id has no second effect [default: a new one]
        #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
        request_id: String,
    },
    /// Empty an agent: nothing new comes, what may move moves, the rest is waited for
    ///
    /// Sandboxes with the failure policy auto-recreate move as soon as other agents have room: each is ended, and started anew
    /// elsewhere when it is surely gone. All others are waited for. --deadline says for how long this command waits (without
    /// it: as long as it takes); with --terminate, what is left then is ended: what can move waits for room elsewhere, all
    /// else is terminated. What is left is told on standard error while it waits.
    ///
    /// The cluster drains the agent, not this command: it goes on if this command ends before, also under a new leader, until
    /// `agents uncordon` or `agents remove`. Exit code 0: nothing is left on the agent; 1: something is.
    #[command(
        after_help = "Examples:\n  sandkeeper agents drain agent-1\n  sandkeeper agents drain agent-1 --deadline 10m --terminate\n  \
        sandkeeper agents drain agent-1 --no-wait --reason 'new disk'"
    )]
    Drain(drain::DrainArgs),
    /// List what agents run and the state does not know
    ///
    /// Orphans bear this cluster's label and are removed after a grace period. What bears no label ran before
    /// Sandkeeper knew it: it is left alone, and may be adopted. What bears another cluster's label is left alone.
    #[command(after_help = "Examples:\n  sandkeeper agents unknown\n  sandkeeper agents unknown agent-1")]
    Unknown {
        /// Only this agent [default: all]
        #[arg(default_value = "", hide_default_value = true)]
        agent_id: String,
    },
    /// Take sandboxes into the state that bear no label, as they run
    ///
    /// Each keeps its name as its id; nothing is restarted. Refused: duplicates, what has another label, and what does
    /// not fit beside what the agent holds. Exit code 1 if one was refused.
    #[command(
        after_help = "Examples:\n  sandkeeper agents adopt agent-1 legacy-web\n  sandkeeper agents adopt agent-1 --all -n prod"
    )]
    Adopt {
        /// The agent that runs them
        agent_id: String,
        /// Which
        #[arg(value_name = "SANDBOX", required_unless_present = "all", conflicts_with = "all")]
        sandbox_ids: Vec<String>,
        /// All of the agent's that bear no label
        #[arg(long)]
        all: bool,
    },
    /// Let the agents of another cluster come over, with what they run
    ///
    /// After a restore: the agents of the cluster that the backup was made of. Those that reach this cluster's nodes
    /// change over by themselves, and obey the old cluster no more. Make sure that it is off.
    #[command(
        after_help = "Examples:\n  sandkeeper agents rehome\n  sandkeeper agents rehome --from 6f1c9a52-0b1e-4ad5-9d7e-5b3d8a1c2e4f"
    )]
    Rehome {
        /// The cluster whose agents they are [default: the one that this cluster was restored from]
        #[arg(long, value_name = "CLUSTER_ID", default_value = "", hide_default_value = true)]
        from: String,
    },
    /// Recover what LOST agents ran although many were lost together
    ///
    /// When most agents are lost within a minute, they are more likely cut off than dead. Then their AUTO_RECREATE sandboxes
    /// are not started elsewhere until enough of them are back. This says of one, of some, or of all of them that they need
    /// not be waited for. Each sandbox still waits until its lease is over, so that none runs twice. It counts until the
    /// agent is back.
    #[command(
        after_help = "Examples:\n  sandkeeper agents recover agent-2 agent-3\n  sandkeeper agents recover --all"
    )]
    Recover {
        /// The agents
        #[arg(value_name = "AGENT_ID", required_unless_present = "all", conflicts_with = "all")]
        agent_ids: Vec<String>,
        /// All agents whose recovery is paused
        #[arg(long)]
        all: bool,
    },
    /// Take an agent out of the state
    ///
    /// Refused while it holds sandboxes, unless you vouch with --fenced that it and they are off.
    #[command(
        after_help = "Examples:\n  sandkeeper agents remove agent-2\n  sandkeeper agents remove agent-2 --fenced"
    )]
    Remove {
        /// The agent
        agent_id: String,
        /// It is off, and so is all that it ran: release what it holds
        #[arg(long)]
        fenced: bool,
        /// Repeating a request with the same id has no second effect [default: a new one]
        #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
        request_id: String,
    },
}

/// Does what the subcommand says.
pub async fn run(args: AgentsArgs, context: &Context) -> Result<(), CliError> {
    let (client, output) = (&context.client, context.output);
    match args.command {
        AgentsCommand::List => {
            let answer = client.list_agents(context.read()).await?;
            output.answer(&answer, |answer| match answer.agents.as_slice() {
                [] => "No agents.".to_owned(),
                agents => rows(agents),
            })
        }
        AgentsCommand::Get { agent_id } => {
            let answer = client.get_agent(agent_id, context.read()).await?;
            output.answer(&answer, |answer| answer.agent.as_ref().map_or_else(String::new, details))
        }
        AgentsCommand::Cordon { agent_id, reason, request_id } => {
            let answer = client.cordon_agent(v1::CordonAgentRequest { request_id, agent_id, reason }).await?;
            output.answer(&answer, |answer| rows(answer.agent.as_slice()))
        }
        AgentsCommand::Uncordon { agent_id, request_id } => {
            let answer = client.uncordon_agent(v1::UncordonAgentRequest { request_id, agent_id }).await?;
            output.answer(&answer, |answer| rows(answer.agent.as_slice()))
        }
        AgentsCommand::Drain(args) => drain::run(args, context).await,
        AgentsCommand::Unknown { agent_id } => unknown::list(agent_id, context).await,
        AgentsCommand::Adopt { agent_id, sandbox_ids, .. } => {
            unknown::adopt(agent_id, sandbox_ids, context).await
        }
        AgentsCommand::Rehome { from } => {
            let answer = client.rehome_agents(from).await?;
            output.answer(&answer, |answer| {
                let from = &answer.from_cluster_id;
                format!("The agents of cluster {from} that reach this cluster's nodes come over, with what they run.")
            })
        }
        AgentsCommand::Recover { agent_ids, all } => {
            let answer = recover(client, agent_ids, all).await?;
            output.answer(&answer, |answer| match answer.agents.as_slice() {
                [] => "No agent's recovery is paused.".to_owned(),
                agents => rows(agents),
            })
        }
        AgentsCommand::Remove { agent_id, fenced, request_id } => {
            let removed = format!("{agent_id} is removed");
            let answer = client.remove_agent(v1::RemoveAgentRequest { request_id, agent_id, fenced }).await?;
            output.answer(&answer, |answer| format!("{removed}; allocations released: {}", answer.released))
        }
    }
}

/// Has what these agents ran recovered: all whose recovery is paused, or those that are named. The agents as they are then.
async fn recover(
    client: &Client,
    agent_ids: Vec<String>,
    all: bool,
) -> Result<v1::ListAgentsResponse, CliError> {
    let mut agent_ids = agent_ids;
    if all {
        let found = client.list_agents(v1::ReadOptions::default()).await?.agents;
        let paused = found.into_iter().filter(|agent| agent.recovery_paused);
        agent_ids = paused.map(|agent| agent.agent_id).collect();
    }
    let mut recovered = v1::ListAgentsResponse::default();
    for agent_id in agent_ids {
        let request = v1::RecoverAgentRequest { agent_id, ..v1::RecoverAgentRequest::default() };
        let answer = client.recover_agent(request).await?;
        recovered.header = answer.header;
        recovered.agents.extend(answer.agent);
    }
    Ok(recovered)
}

/// READY, LOST, whether it is cordoned, drained or about to be, and whether the recovery of what it ran is paused.
fn status(agent: &v1::Agent) -> String {
    let status = agent.status().as_str_name().trim_start_matches("AGENT_STATUS_");
    let holds = agent.allocated.is_some_and(|allocated| allocated.slots > 0);
    let cordoned = match (&agent.drain, holds) {
        (Some(_), true) => ",DRAINING",
        (Some(_), false) => ",DRAINED",
        (None, _) if agent.cordoned => ",CORDONED",
        (None, _) => "",
    };
    let paused = if agent.recovery_paused { ",RECOVERY-PAUSED" } else { "" };
    format!("{status}{cordoned}{paused}")
}

/// A table of agents, with what is allocated of what each has.
pub fn rows(agents: &[v1::Agent]) -> String {
    let row = |agent: &v1::Agent| {
        let (total, used) = (agent.total.unwrap_or_default(), agent.allocated.unwrap_or_default());
        vec![
            agent.agent_id.clone(),
            status(agent),
            agent.pool.clone(),
            agent.runtime.clone(),
            format!("{}/{}", used.slots, total.slots),
            format!("{}/{}", human::cpu(used.cpu_millis), human::cpu(total.cpu_millis)),
            format!("{}/{}", human::bytes(used.memory_bytes), human::bytes(total.memory_bytes)),
            human::pairs(&agent.labels),
            agent.version.clone(),
        ]
    };
    let header = ["AGENT", "STATUS", "POOL", "RUNTIME", "SLOTS", "CPU", "MEMORY", "LABELS", "VERSION"];
    output::table(&header, agents.iter().map(row))
}

fn details(agent: &v1::Agent) -> String {
    let capacity = |capacity: Option<v1::Capacity>| {
        let capacity = capacity.unwrap_or_default();
        let (cpu, memory) = (human::cpu(capacity.cpu_millis), human::bytes(capacity.memory_bytes));
        format!("{} slots, {cpu} CPU, {memory}", capacity.slots)
    };
    let incarnation = agent.incarnation.clone().unwrap_or_default();
    let session = if agent.connected { agent.connection_id.clone() } else { "none".to_owned() };
    let rows = [
        ("agent", agent.agent_id.clone()),
        ("status", status(agent)),
        ("reason", agent.reason.clone()),
        ("lost since", if agent.lost_since == 0 { String::new() } else { human::moment(agent.lost_since) }),
        ("drain", agent.drain.as_ref().map_or_else(String::new, drain::in_words)),
        ("pool", agent.pool.clone()),
        ("labels", human::pairs(&agent.labels)),
        ("runtime", agent.runtime.clone()),
        ("host", agent.host.clone()),
        ("total", capacity(agent.total)),
        ("allocated", capacity(agent.allocated)),
        ("free", capacity(agent.free)),
        ("version", agent.version.clone()),
        ("ledger", incarnation.ledger_id),
        ("start", incarnation.start.to_string()),
        ("session here", session),
        ("revision", agent.revision.to_string()),
    ];
    output::fields(rows.into_iter().filter(|(_, value)| !value.is_empty() && value != human::NONE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_show_what_is_allocated_of_what_they_have() {
        let agent = v1::Agent {
            agent_id: "agent-1".into(),
            status: v1::AgentStatus::Ready.into(),
            cordoned: true,
            total: Some(v1::Capacity { slots: 4, cpu_millis: 2000, memory_bytes: 1 << 30 }),
            allocated: Some(v1::Capacity { slots: 1, cpu_millis: 500, memory_bytes: 64 << 20 }),
            pool: "default".into(),
            runtime: "process".into(),
            version: "0.1.0".into(),
            ..Default::default()
        };
        insta::assert_snapshot!(rows(std::slice::from_ref(&agent)), @r"
        AGENT     STATUS           POOL      RUNTIME   SLOTS   CPU     MEMORY       LABELS   VERSION
        agent-1   READY,CORDONED   default   process   1/4     0.5/2   64MiB/1GiB   -        0.1.0
        ");
        assert!(details(&agent).contains("session here   none"));
        let drain = v1::Drain { since: 1_700_000_000_000_000_000, deadline: 0, terminate: false };
        let draining = v1::Agent { drain: Some(drain), ..agent.clone() };
        assert!(rows(std::slice::from_ref(&draining)).contains("READY,DRAINING "));
        assert!(details(&draining).contains("since 2023-11-14 22:13:20.000Z, as long as it takes"));
        let drained = v1::Agent { allocated: None, ..draining };
        assert!(rows(std::slice::from_ref(&drained)).contains("READY,DRAINED "));
        assert!(!details(&agent).contains("lost since"));
        let lost = v1::Agent {
            status: v1::AgentStatus::Lost.into(),
            cordoned: false,
            lost_since: 1_700_000_000_000_000_000,
            recovery_paused: true,
            ..agent
        };
        let told = details(&lost);
        assert!(told.contains("LOST,RECOVERY-PAUSED") && told.contains("2023-11-14 22:13:20"), "{told}");
    }
}
