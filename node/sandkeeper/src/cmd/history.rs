//! `sandkeeper history`.

use clap::Args;
use sandkeeper_client::v1;

use crate::cli::Context;
use crate::error::CliError;
use crate::output::note;
use crate::{human, output};

/// Tell what happened to a sandbox, an agent or a namespace: when, who, why
///
/// Read from the replicated log, so it also tells of sandboxes that are gone, as far back as the log is kept.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  sandkeeper history web\n  sandkeeper history --id e4b85f2f7d8fb1918a47168a87c62761\n  \
    sandkeeper history --agent agent-1 --limit 20\n  sandkeeper history -n prod -o json"
)]
pub struct HistoryArgs {
    /// All sandboxes that have had this name, one after another [default: the whole namespace]
    #[arg(value_name = "NAME", conflicts_with_all = ["sandbox_id", "agent"])]
    name: Option<String>,
    /// The sandbox with this id
    #[arg(long = "id", value_name = "SANDBOX_ID", conflicts_with = "agent")]
    sandbox_id: Option<String>,
    /// This agent, and all that it ran
    #[arg(long, value_name = "AGENT_ID")]
    agent: Option<String>,
    /// At most this many events, the newest
    #[arg(long, default_value_t = 1000)]
    limit: u32,
}

/// Reads the events and tells them.
pub async fn run(args: HistoryArgs, context: &Context) -> Result<(), CliError> {
    let by_id = args.sandbox_id.is_some() || args.agent.is_some();
    let filter = v1::EventFilter {
        namespace: if by_id { String::new() } else { context.namespace() },
        name: args.name.unwrap_or_default(),
        sandbox_id: args.sandbox_id.unwrap_or_default(),
        agent_id: args.agent.unwrap_or_default(),
        types: Vec::new(),
    };
    let one = !filter.sandbox_id.is_empty() || !filter.name.is_empty();
    let request =
        v1::ListEventsRequest { filter: Some(filter), limit: args.limit, read: Some(context.read()) };
    let answer = context.client.events(request).await?;
    context.output.answer(&answer, |answer| story(&answer.events, !one))?;
    if answer.truncated && context.output.is_table() {
        note("There is more before this: raise --limit, or the log no longer reaches back.");
    }
    Ok(())
}

/// One line for each event, with the time since the one before.
fn story(events: &[v1::Event], with_subject: bool) -> String {
    if events.is_empty() {
        return "No events.".to_owned();
    }
    let mut header = vec!["TIME", "DELTA", "REVISION", "EVENT", "AGENT", "GEN", "ACTOR", "REASON"];
    if with_subject {
        header.insert(4, "SANDBOX");
    }
    let mut before = None;
    let rows = events.iter().map(|event| {
        let mut row = vec![
            human::moment(event.time),
            before.map_or_else(|| human::NONE.to_owned(), |before| human::delta(event.time - before)),
            event.revision.to_string(),
            human::event_type(event),
            human::or_none(&event.agent_id),
            human::number_or_none(event.generation),
            human::or_none(&event.actor),
            reason(event),
        ];
        if with_subject {
            row.insert(4, human::or_none(&event.name));
        }
        before = Some(event.time);
        row
    });
    output::table(&header, rows)
}

/// Why, and with which exit code.
pub fn reason(event: &v1::Event) -> String {
    match (event.exit_code, event.reason.as_str()) {
        (None, reason) => reason.to_owned(),
        (Some(code), "") => format!("exit code {code}"),
        // The agent says "exited with code 3".
        (Some(code), reason) if reason.ends_with(&format!(" code {code}")) => reason.to_owned(),
        (Some(code), reason) => format!("{reason} (exit code {code})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_a_story() {
        let at = |revision, milliseconds: i64, kind: v1::EventType, reason: &str| v1::Event {
            revision,
            time: 1_700_000_000_000_000_000 + milliseconds * 1_000_000,
            r#type: kind.into(),
            actor: "alice".into(),
            reason: reason.into(),
            name: "web".into(),
            generation: 1,
            agent_id: "agent-1".into(),
            ..Default::default()
        };
        let failed =
            v1::Event { exit_code: Some(3), ..at(9, 65_000, v1::EventType::SandboxFailed, "it exited") };
        let events = [
            at(4, 0, v1::EventType::SandboxCreated, ""),
            at(6, 12, v1::EventType::SandboxRunning, "reported by its agent"),
            failed,
        ];
        insta::assert_snapshot!(story(&events, false), @r"
        TIME                       DELTA     REVISION   EVENT             AGENT     GEN   ACTOR   REASON
        2023-11-14 22:13:20.000Z   -         4          sandbox created   agent-1   1     alice
        2023-11-14 22:13:20.012Z   +12.0ms   6          sandbox running   agent-1   1     alice   reported by its agent
        2023-11-14 22:14:25.000Z   +1m4s     9          sandbox failed    agent-1   1     alice   it exited (exit code 3)
        ");
        assert!(story(&events, true).lines().nth(1).unwrap().contains("web"));
        let said = v1::Event { reason: "exited with code 3".into(), ..events[2].clone() };
        assert_eq!(reason(&said), "exited with code 3");
        let other =
            v1::Event { reason: "exited with code 13".into(), exit_code: Some(3), ..Default::default() };
        assert_eq!(reason(&other), "exited with code 13 (exit code 3)");
    }
}
