//! `sandkeeper watch`.

use clap::Args;
use sandkeeper_client::v1;

use super::history::reason;
use crate::cli::Context;
use crate::error::CliError;
use crate::{human, output};

/// Show every event as it happens, without gaps, whatever happens to the node that tells them
///
/// With -o json each event is one line.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  sandkeeper watch\n  sandkeeper watch web --from 1\n  \
    sandkeeper watch -n prod --type sandbox-failed,sandbox-lost -o json | jq -r .name")]
pub struct WatchArgs {
    /// Only of sandboxes with this name
    #[arg(value_name = "NAME", default_value = "", hide_default_value = true)]
    name: String,
    /// Begin at this revision [default: now]
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    from: u64,
    /// Only of the sandbox with this id
    #[arg(long = "id", value_name = "SANDBOX_ID", default_value = "", hide_default_value = true)]
    sandbox_id: String,
    /// Only of this agent
    #[arg(long, value_name = "AGENT_ID", default_value = "", hide_default_value = true)]
    agent: String,
    /// Only events of these kinds, such as sandbox-created or agent-lost
    #[arg(long = "type", value_delimiter = ',', value_name = "KIND", value_parser = event_type)]
    types: Vec<v1::EventType>,
}

/// Prints events until it is stopped.
pub async fn run(args: WatchArgs, context: &Context) -> Result<(), CliError> {
    let filter = v1::EventFilter {
        // Agents' events belong to no namespace: they are shown unless one was asked for.
        namespace: match context.chosen_namespace() {
            None if args.name.is_empty() => String::new(),
            _ => context.namespace(),
        },
        name: args.name,
        sandbox_id: args.sandbox_id,
        agent_id: args.agent,
        types: args.types.into_iter().map(Into::into).collect(),
    };
    let mut watch = context.client.watch(args.from, filter);
    if context.output.is_table() {
        output::text(&line(["REVISION", "TIME", "EVENT", "SANDBOX", "AGENT", "GEN", "ACTOR", "REASON"]))?;
    }
    loop {
        for event in watch.next().await?.events {
            context.output.item(&event, event_line)?;
        }
    }
}

fn event_line(event: &v1::Event) -> String {
    let subject =
        if event.name.is_empty() { String::new() } else { format!("{}/{}", event.namespace, event.name) };
    line([
        &event.revision.to_string(),
        &human::moment(event.time),
        &human::event_type(event),
        &human::or_none(&subject),
        &human::or_none(&event.agent_id),
        &human::number_or_none(event.generation),
        &human::or_none(&event.actor),
        &reason(event),
    ])
}

/// Columns of fixed widths: what comes later is not known yet.
fn line([revision, time, event, subject, agent, generation, actor, reason]: [&str; 8]) -> String {
    let line = format!(
        "{revision:<9} {time:<24}  {event:<20}  {subject:<24}  {agent:<14}  {generation:<4} {actor:<18}  {reason}"
    );
    line.trim_end().to_owned()
}

/// `sandbox-created`, `SANDBOX_CREATED`: any kind of event.
fn event_type(text: &str) -> Result<v1::EventType, String> {
    let name = format!("EVENT_TYPE_{}", text.to_uppercase().replace('-', "_"));
    match v1::EventType::from_str_name(&name) {
        Some(kind) if kind != v1::EventType::Unspecified => Ok(kind),
        _ => Err(format!("`{text}` is no kind of event; kinds are: {}", kinds())),
    }
}

fn kinds() -> String {
    let all = (1..=64).filter_map(|number| v1::EventType::try_from(number).ok());
    let name = |kind: v1::EventType| {
        kind.as_str_name().trim_start_matches("EVENT_TYPE_").to_lowercase().replace('_', "-")
    };
    all.map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_events_by_name() {
        assert_eq!(event_type("sandbox-created"), Ok(v1::EventType::SandboxCreated));
        assert_eq!(event_type("AGENT_LOST"), Ok(v1::EventType::AgentLost));
        let error = event_type("nonsense").unwrap_err();
        assert!(
            error.contains("sandbox-created, sandbox-allocated") && error.contains("requests-pruned"),
            "{error}"
        );
        assert!(event_type("unspecified").is_err());
    }

    #[test]
    fn one_line_an_event() {
        let event = v1::Event {
            revision: 7,
            time: 1_700_000_000_000_000_000,
            r#type: v1::EventType::SandboxFailed.into(),
            namespace: "default".into(),
            name: "web".into(),
            agent_id: "agent-1".into(),
            generation: 1,
            actor: "agent agent-1".into(),
            exit_code: Some(1),
            ..Default::default()
        };
        let line = event_line(&event);
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>().join(" "),
            "7 2023-11-14 22:13:20.000Z sandbox failed default/web agent-1 1 agent agent-1 exit code 1"
        );
    }
}
