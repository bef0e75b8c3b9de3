//! `sandkeeper agents`.

use clap::{Args, Subcommand};
use sandkeeper_client::v1;

use crate::cli::Context;
use crate::error::CliError;
use crate::{human, output};

/// Look at the agents, and say which may take new sandboxes
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  sandkeeper agents list\n  sandkeeper agents cordon agent-1 --reason 'new disk'\n  \
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
    /// New sandboxes for this agent again
    #[command(after_help = "Examples:\n  sandkeeper agents uncordon agent-1")]
    Uncordon {
        /// The agent
        agent_id: String,
        /// Repeating a request with the same id has no second effect [default: a new one]
        #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
        request_id: String,
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
        AgentsCommand::Remove { agent_id, fenced, request_id } => {
            let removed = format!("{agent_id} is removed");
            let answer = client.remove_agent(v1::RemoveAgentRequest { request_id, agent_id, fenced }).await?;
            output.answer(&answer, |answer| format!("{removed}; allocations released: {}", answer.released))
        }
    }
}

/// READY, LOST, and whether it is cordoned.
fn status(agent: &v1::Agent) -> String {
    let status = agent.status().as_str_name().trim_start_matches("AGENT_STATUS_");
    if agent.cordoned { format!("{status},CORDONED") } else { status.to_owned() }
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
    }
}
