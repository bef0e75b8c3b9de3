//! How a script shows what came of its commands: events, outcomes and the state, with names instead of ids and times
//! counted from the start.

use std::fmt::Write as _;

use super::super::world::*;
use super::Stage;
use crate::*;

impl Stage {
    /// `web` for the first sandbox of that name, `web.2` for the second.
    pub(super) fn alias(&self, id: &SandboxId) -> String {
        let at = self.made.iter().position(|(made, _)| made == id).unwrap();
        let name = &self.made[at].1;
        let nth = self.made[..=at].iter().filter(|(_, other)| other == name).count();
        let short = name.to_string();
        let short = short.strip_prefix("default/").unwrap_or(&short);
        if nth == 1 { short.to_string() } else { format!("{short}.{nth}") }
    }

    pub(super) fn plain_ids(&self, text: &str) -> String {
        let replace = |text: String, (id, _): &(SandboxId, SandboxName)| {
            text.replace(&id.to_string(), &format!("#{}", self.alias(id)))
        };
        self.made.iter().fold(text.to_string(), replace)
    }

    pub(super) fn event(&self, revision: Revision, event: &Event) -> String {
        let Header { actor, reason, request, subject, previous } = &event.header;
        let mut line = format!("{revision:>2} {}", kind(&event.kind));
        if let Some((id, _)) = &subject.sandbox {
            write!(line, " #{}", self.alias(id)).unwrap();
        }
        if let Some(agent) = &subject.agent {
            write!(line, " on {agent}").unwrap();
        }
        write!(line, " [after {previous}; {actor}").unwrap();
        if let Some(request) = request {
            let remembered = if request.memory.is_some() { ", remembered" } else { "" };
            write!(line, "; request {}{remembered}", request.id).unwrap();
        }
        line.push(']');
        if !reason.is_empty() {
            write!(line, " {:?}", self.plain_ids(reason)).unwrap();
        }
        line
    }

    pub(super) fn outcome(&self, outcome: &Outcome) -> String {
        let again = |duplicate: &bool| if *duplicate { ", the first answer again" } else { "" };
        match outcome {
            Outcome::Sandbox { sandbox, revision, duplicate } => {
                format!("{} (by revision {revision}{})", self.sandbox(sandbox), again(duplicate))
            }
            Outcome::Gone { id, revision, duplicate, .. } => {
                format!("#{} is gone (by revision {revision}{})", self.alias(id), again(duplicate))
            }
            Outcome::Agent(agent) => agent_line(agent),
            Outcome::AgentRemoved { released } => format!("removed, {released} released"),
            Outcome::Done => "done".into(),
            Outcome::Unknown { sandboxes, more, unheard } => {
                let line = |unknown: &UnknownSandbox| {
                    format!("{} on {} {:?}", unknown.id, unknown.agent, unknown.origin)
                };
                let lines: Vec<_> = sandboxes.iter().map(line).collect();
                let more = if *more { " and more" } else { "" };
                format!("unknown: [{}]{more}; {unheard} not heard", lines.join(", "))
            }
            Outcome::Adopted(adoptions) => {
                let line = |adoption: &Adoption| match &adoption.refused {
                    None => format!("\n    {} adopted", adoption.id),
                    Some(why) => format!("\n    {} refused: {}", adoption.id, self.plain_ids(why)),
                };
                let lines: String = adoptions.iter().map(line).collect();
                if lines.is_empty() {
                    "nothing to adopt".into()
                } else {
                    format!("{}:{lines}", adoptions.len())
                }
            }
            Outcome::Batch { sandboxes, revision, at, duplicate } => {
                let one = |one: &BatchSandbox| match self.world.state.sandbox(&one.id) {
                    Some(sandbox) => self.sandbox(sandbox),
                    None => format!("#{} is gone", self.alias(&one.id)),
                };
                let all: Vec<_> = sandboxes.iter().map(one).collect();
                format!("at {at} (by revision {revision}{}): {}", again(duplicate), all.join("; "))
            }
            Outcome::Stream(position) => format!("{position:?}"),
        }
    }

    fn sandbox(&self, sandbox: &Sandbox) -> String {
        let status = &sandbox.status;
        let mut line = format!("#{} {}", self.alias(&sandbox.id), status.phase.as_str());
        if status.generation > 0 {
            write!(line, " generation {}", status.generation).unwrap();
        }
        let held = status.held.iter().map(|held| format!("{}:{}", held.generation, held.agent));
        write!(line, " holds [{}]", held.collect::<Vec<_>>().join(" ")).unwrap();
        if let Some(code) = status.exit_code {
            write!(line, " exit code {code}").unwrap();
        }
        if !status.endpoints.is_empty() {
            write!(line, " at {:?}", status.endpoints).unwrap();
        }
        if let Some(seconds) = status.lease {
            write!(line, " lease {seconds}s").unwrap();
        }
        write!(line, " rev {}", status.revision).unwrap();
        line
    }

    pub(super) fn show(&mut self) {
        let state = &self.world.state;
        let mut lines: Vec<String> = state.cluster().and_then(restored_line).into_iter().collect();
        lines.extend(state.agents().map(agent_line));
        lines.extend(self.made.iter().filter_map(|(id, _)| state.sandbox(id)).map(|found| {
            let reason = self.plain_ids(&found.status.reason);
            format!("{}{}{reason}", self.sandbox(found), if reason.is_empty() { "" } else { ": " })
        }));
        lines.extend(state.requests.iter().map(|(key, record)| {
            let namespace = key.namespace.as_ref().map_or("-", Label::as_str);
            let ends = record.ends.map_or("with its sandbox".into(), |ends| seconds(Some(ends)));
            format!("request {namespace}/{} ends {ends}", key.id)
        }));
        for (agent, drain) in state.drains() {
            let (since, until) = (seconds(Some(drain.since)), seconds(drain.deadline));
            lines.push(format!("drain {agent} since {since}, until {until}, terminate {}", drain.terminate));
        }
        for (key, stream) in &state.streams {
            let StreamClient { opened, acknowledged_below, ends } = stream.client;
            let known: Vec<_> = stream.answers.keys().collect();
            let (client, ends) = (key.client.as_u128(), seconds(Some(ends)));
            lines.push(format!(
                "stream {}/{client} opened {opened}, acknowledged below {acknowledged_below}, ends {ends}, knows {known:?}",
                key.namespace
            ));
        }
        for line in lines {
            writeln!(self.out, "  {line}").unwrap();
        }
    }
}

fn restored_line(cluster: Cluster) -> Option<String> {
    let Restored { from, revision, confirmed, .. } = cluster.restored?;
    let (from, id) = (from.as_u128(), cluster.id.as_u128());
    let predecessor = cluster.predecessor.map_or("nobody's".into(), |of| format!("{:x}'s", of.as_u128()));
    let held_back = if confirmed { "confirmed" } else { "not confirmed" };
    Some(format!("cluster {id:x}, from {from:x} at {revision}, {held_back}, takes {predecessor} agents"))
}

fn agent_line(agent: &Agent) -> String {
    let Agent { spec, status, cordoned, reason, revision, allocated, ports, lost_since, .. } = agent;
    let mut marks = if *cordoned { ", cordoned".to_owned() } else { String::new() };
    if lost_since.is_some() {
        write!(marks, " since {}", seconds(*lost_since)).unwrap();
    }
    if agent.recovery_resumed {
        marks.push_str(", recovery resumed");
    }
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let ports: Vec<_> = ports.iter().collect();
    format!(
        "agent {} {status:?}{marks}, start {}, {} of {} slots, cpu {}, memory {}, ports {ports:?}, rev {revision}{reason}",
        spec.agent_id,
        spec.incarnation.start,
        allocated.slots,
        spec.capacity.slots,
        allocated.cpu_millis,
        allocated.memory_bytes,
    )
}

fn seconds(time: Option<Timestamp>) -> String {
    let Some(time) = time else { return "never".into() };
    let nanos = time.0 - START.0;
    format!("{}s+{}ns", nanos.div_euclid(SECOND), nanos.rem_euclid(SECOND))
}

fn kind(kind: &EventKind) -> String {
    match kind {
        EventKind::AgentRegistered(spec) => {
            format!("AgentRegistered {{ {:?}, {} }}", spec.capacity, spec.incarnation.start)
        }
        EventKind::SandboxCreated(created) => {
            let (expires, waits) = (seconds(created.expire_time), seconds(created.wait_until));
            format!("SandboxCreated {{ expires {expires}, waits until {waits} }}")
        }
        EventKind::RequestsPruned { until, limit } => {
            format!("RequestsPruned {{ until {}, limit {limit} }}", seconds(Some(*until)))
        }
        EventKind::SandboxUpdated(update) => {
            let expires = update.expire_time.map_or("as it does".into(), seconds);
            let SandboxUpdate { labels, failure_policy, recovery_timeout_seconds, .. } = update;
            format!(
                "SandboxUpdated {{ expires {expires}, {labels:?}, {failure_policy:?}, {recovery_timeout_seconds:?} }}"
            )
        }
        EventKind::BatchCreated { sandboxes } => format!("BatchCreated {{ {} }}", sandboxes.len()),
        EventKind::StreamOpened { stream, acknowledged_below, ends }
        | EventKind::StreamKept { stream, acknowledged_below, ends } => {
            let what =
                if matches!(kind, EventKind::StreamKept { .. }) { "StreamKept" } else { "StreamOpened" };
            let (client, ends) = (stream.client.as_u128(), seconds(Some(*ends)));
            format!("{what} {{ {client}, acknowledged below {acknowledged_below}, ends {ends} }}")
        }
        EventKind::AgentDraining { deadline, terminate } => {
            format!("AgentDraining {{ until {}, terminate {terminate} }}", seconds(*deadline))
        }
        other => format!("{other:?}"),
    }
}
