//! Scripts: one command a line, and under each what came of it. See `scenarios` for how they read.
//!
//! ```text
//! agent A [slots=1 cpu=8000 mem=8000 pool=p labels=k:v ledger=1 start=1]      lose A [ledger= start=]
//! cordon A [reason=text]   uncordon A   remove A [fenced]   recover-agent A    image I A,B
//! create NAME [strong] [wait=5s] [ttl=5s] [at=5s] [cpu= mem= ports=1,2 select=k:v pool= image= labels= policy=auto]
//! update S [expire=5s|never] [labels=k:v] [policy=auto|manual] [timeout=5]     reset S   terminate S
//! report A S GENERATION running|exited|start-failed|absent|refused [code=1] [reason=text] [endpoints=a:1] [expired]
//! batch NAME,NAME [as create]           open CLIENT [resume] [below=1]           keep CLIENT [opened= below=1]
//! in CLIENT SEQUENCE NAME [opened= below=1 and as create]
//! housekeeping   advance 5s   cluster   restore   confirm   rehome [from=N]   show
//! there A ID [label=ours|other] [mem=] [ports=1]   unknown [A]   adopt A [ID ...] [in=namespace]
//! ```
//! A CLIENT is a number. Its stream is the newest, unless `opened=` says another revision.
//! Callers' commands take `id=` (request id), `keep=` (its retention, default 60s), and `rev=` (expected revision). `S`
//! is a name (`ns/name`, `name`), or `#name` (`#name.2`): the (second) sandbox that was ever made with this name, by id.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use uuid::Uuid;

use super::world::*;
use crate::*;

#[derive(Default)]
struct Words<'a> {
    plain: Vec<&'a str>,
    pairs: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Self {
        let mut words = Self::default();
        for word in line.split_whitespace() {
            match word.split_once('=') {
                Some((key, value)) => assert!(words.pairs.insert(key, value).is_none(), "{line}"),
                None => words.plain.push(word),
            }
        }
        words
    }

    fn at(&self, index: usize) -> &'a str {
        self.plain[index]
    }

    fn has(&self, word: &str) -> bool {
        self.plain.contains(&word)
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.pairs.get(key).copied()
    }

    fn number(&self, key: &str, otherwise: u64) -> u64 {
        self.get(key).map_or(otherwise, |text| text.parse().unwrap())
    }

    fn labels(&self, key: &str) -> Labels {
        let pairs = self.get(key).into_iter().flat_map(|text| text.split(','));
        pairs.map(|pair| pair.split_once(':').unwrap()).map(|(k, v)| (k.into(), v.into())).collect()
    }

    fn list(&self, key: &str) -> impl Iterator<Item = &'a str> {
        self.get(key).into_iter().flat_map(|text| text.split(','))
    }

    fn text(&self, key: &str) -> String {
        self.get(key).unwrap_or_default().replace('_', " ")
    }

    fn retention(&self) -> i64 {
        self.get("keep").map_or(60 * SECOND, nanos)
    }

    fn request_id(&self) -> Option<RequestId> {
        if self.at(0) == "in" {
            let sequence = self.at(2).parse().unwrap();
            return Some(RequestId::Stream { client: self.client().client, sequence });
        }
        self.get("id").map(|id| id.parse().unwrap())
    }

    fn client(&self) -> StreamKey {
        StreamKey { namespace: label("default"), client: Uuid::from_u128(self.at(1).parse().unwrap()) }
    }

    fn incarnation(&self) -> Incarnation {
        incarnation(self.number("ledger", 1).into(), self.number("start", 1))
    }
}

fn nanos(text: &str) -> i64 {
    text.strip_suffix('s').unwrap().parse::<i64>().unwrap() * SECOND
}

/// Runs a script, and answers it with what came of each line.
pub fn run(script: &str) -> String {
    let mut stage = Stage { world: World::new(), made: Vec::new(), out: String::new() };
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (out, comment) = (&mut stage.out, line.starts_with('#'));
        writeln!(out, "{}{line}", if comment { "\n" } else { "> " }).unwrap();
        if !comment {
            stage.line(&Words::of(line));
        }
    }
    stage.out.trim_start().to_string()
}

struct Stage {
    world: World,
    /// Every sandbox that was ever made, by name.
    made: Vec<(SandboxId, SandboxName)>,
    out: String,
}

impl Stage {
    fn line(&mut self, words: &Words) {
        match words.at(0) {
            "advance" => self.world.now = self.world.now.plus(nanos(words.at(1))),
            "image" => {
                let agents = words.at(2).split(',').map(agent_id).collect();
                self.world.around.images.insert(words.at(1).into(), agents);
            }
            "there" => self.there(words),
            "show" => self.show(),
            _ => self.give(words),
        }
    }

    fn give(&mut self, words: &Words) {
        let (command, actor) = self.command(words);
        let id = words.request_id().map(|id| CallerId { id, retention: words.retention() });
        let (outcome, entry) = self.world.run(&Request { actor, id, command });
        for (index, event) in entry.events.iter().enumerate() {
            if let (EventKind::SandboxCreated(_), Some(subject)) =
                (&event.kind, &event.header.subject.sandbox)
            {
                self.made.push(subject.clone());
            }
            let line = self.event(entry.base_revision + 1 + index as u64, event);
            writeln!(self.out, "  {line}").unwrap();
        }
        let line = match outcome {
            Ok(outcome) => self.outcome(&outcome),
            Err(rejection) => self.plain_ids(&format!("refused {}: {rejection}", rejection.code())),
        };
        writeln!(self.out, "  = {line}").unwrap();
    }

    fn command(&self, words: &Words) -> (Command, Actor) {
        let caller = Actor::Client(words.get("by").unwrap_or("ann").into());
        let target = || self.target(words.at(1), words.get("rev"));
        match words.at(0) {
            "cluster" => {
                let cluster_id = Uuid::from_u128(0xc2);
                (Command::CreateCluster { cluster_id, cluster_version: 2 }, Actor::Leader)
            }
            "agent" => {
                let mut spec = agent(words.at(1), words.number("slots", 1));
                spec.capacity.cpu_millis = words.number("cpu", 8_000);
                spec.capacity.memory_bytes = words.number("mem", 8_000);
                spec.pool = label(words.get("pool").unwrap_or("default"));
                spec.labels = words.labels("labels");
                spec.incarnation = words.incarnation();
                let actor = Actor::Agent(spec.agent_id.clone());
                (Command::RegisterAgent(Box::new(spec)), actor)
            }
            "lose" => {
                let (agent, incarnation) = (agent_id(words.at(1)), words.incarnation());
                (Command::LoseAgent { agent, incarnation }, Actor::Leader)
            }
            "cordon" => {
                let (agent, reason) = (agent_id(words.at(1)), words.text("reason"));
                (Command::CordonAgent { agent, reason }, caller)
            }
            "recover-agent" => (Command::RecoverAgent(agent_id(words.at(1))), caller),
            "uncordon" => (Command::UncordonAgent(agent_id(words.at(1))), caller),
            "remove" => {
                let (agent, fenced) = (agent_id(words.at(1)), words.has("fenced"));
                (Command::RemoveAgent { agent, fenced }, caller)
            }
            "create" => (Command::CreateSandbox(Box::new(sandbox_to_create(words, words.at(1)))), caller),
            "batch" => {
                let creates = words.at(1).split(',').map(|name| sandbox_to_create(words, name));
                (Command::CreateSandboxes(creates.collect()), caller)
            }
            "open" | "keep" | "in" => (self.stream(words), caller),
            "update" => {
                let update = update(words);
                (Command::UpdateSandbox { target: target(), update }, caller)
            }
            "reset" => (Command::ResetSandbox(target()), caller),
            "terminate" => (Command::TerminateSandbox(target()), caller),
            "recover" => {
                let sandbox_id = self.named(words.at(1));
                let generation = words.at(2).parse().unwrap();
                (Command::RecoverSandbox { sandbox_id, generation }, Actor::Leader)
            }
            "report" => self.report(words),
            "restore" => (Command::RestoreCluster { cluster_id: Uuid::from_u128(0xc2) }, caller),
            "confirm" => (Command::ConfirmRestore, caller),
            "rehome" => {
                let from = words.get("from").map(|from| Uuid::from_u128(from.parse().unwrap()));
                (Command::RehomeAgents { from }, caller)
            }
            "unknown" => {
                (Command::ListUnknown { agent: words.plain.get(1).map(|text| agent_id(text)) }, caller)
            }
            "adopt" => {
                let (agent, namespace) = (agent_id(words.at(1)), label(words.get("in").unwrap_or("default")));
                let ids = words.plain[2..].iter().map(|id| id.parse().unwrap()).collect();
                (Command::AdoptSandboxes { agent, namespace, ids }, caller)
            }
            "housekeeping" => (Command::Housekeeping, Actor::Leader),
            other => panic!("no command is called {other}"),
        }
    }

    /// An agent has something that the state does not know.
    fn there(&mut self, words: &Words) {
        let agent = agent_id(words.at(1));
        let known = self.world.around.unknown.remove(&agent);
        let mut there = known.map_or_else(Vec::new, |known| known.to_vec());
        let origin = match words.get("label") {
            None => Origin::Unlabelled,
            Some("ours") => Origin::Ours,
            Some(_) => Origin::Other,
        };
        let mut adoptable = adoptable(words.at(2));
        adoptable.spec.resources.memory_bytes = words.number("mem", 0);
        adoptable.spec.ports = words.list("ports").map(|port| port.parse().unwrap()).collect();
        there.push(UnknownSandbox {
            agent: agent.clone(),
            id: words.at(2).parse().unwrap(),
            generation: 1,
            origin,
            adoptable: (origin == Origin::Unlabelled).then(|| Box::new(adoptable)),
        });
        self.world.around.unknown.insert(agent, there.into());
    }

    fn stream(&self, words: &Words) -> Command {
        let (stream, retention) = (words.client(), words.retention());
        let opened = self.world.state.stream_client(&stream).map_or(0, |client| client.opened);
        let acknowledged_below = words.number("below", 1);
        let position = StreamPosition { opened: words.number("opened", opened), acknowledged_below };
        match words.at(0) {
            "open" => {
                let resume = words.has("resume");
                Command::OpenStream { stream, resume, acknowledged_below, retention }
            }
            "keep" => Command::KeepStream { stream, position, retention },
            _ => {
                let create = Box::new(sandbox_to_create(words, words.at(3)));
                Command::CreateInStream { position, create }
            }
        }
    }

    fn report(&self, words: &Words) -> (Command, Actor) {
        let reason = words.text("reason");
        let state = match words.at(4) {
            "running" => ReportedState::Running {
                endpoints: words.list("endpoints").map(Into::into).collect(),
                lease_revision: words.number("lease", 0),
            },
            "exited" => {
                let exit_code = words.get("code").map(|code| code.parse().unwrap());
                ReportedState::Exited {
                    exit_code,
                    reason,
                    expired: words.has("expired"),
                    lease_over: words.has("lease-ended"),
                }
            }
            "start-failed" => ReportedState::StartFailed { reason },
            "absent" => ReportedState::Absent,
            "refused" => ReportedState::AdmissionRefused { reason },
            other => panic!("agents don't report {other}"),
        };
        let agent = agent_id(words.at(1));
        let sandbox_id = self.named(words.at(2));
        let generation = words.at(3).parse().unwrap();
        let incarnation = words.incarnation();
        let actor = Actor::Agent(agent.clone());
        (Command::Report(Report { agent, incarnation, sandbox_id, generation, state }), actor)
    }

    fn named(&self, text: &str) -> SandboxId {
        match self.target(text, None).sandbox {
            SandboxRef::Id { id, .. } => id,
            SandboxRef::Name(name) => self.world.state.sandbox_named(&name).unwrap().id.clone(),
        }
    }

    fn target(&self, text: &str, revision: Option<&str>) -> Target {
        let mut target = match text.strip_prefix('#') {
            None => by_name(text),
            Some(alias) => {
                let found = self.made.iter().find(|(id, _)| self.alias(id) == alias);
                by_id(&found.map_or_else(|| alias.parse().unwrap(), |(id, _)| id.clone()))
            }
        };
        target.expected_revision = revision.map(|text| text.parse().unwrap());
        target
    }

    /// `web` for the first sandbox of that name, `web.2` for the second.
    fn alias(&self, id: &SandboxId) -> String {
        let at = self.made.iter().position(|(made, _)| made == id).unwrap();
        let name = &self.made[at].1;
        let nth = self.made[..=at].iter().filter(|(_, other)| other == name).count();
        let short = name.to_string();
        let short = short.strip_prefix("default/").unwrap_or(&short);
        if nth == 1 { short.to_string() } else { format!("{short}.{nth}") }
    }

    fn plain_ids(&self, text: &str) -> String {
        let replace = |text: String, (id, _): &(SandboxId, SandboxName)| {
            text.replace(&id.to_string(), &format!("#{}", self.alias(id)))
        };
        self.made.iter().fold(text.to_string(), replace)
    }

    fn event(&self, revision: Revision, event: &Event) -> String {
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

    fn outcome(&self, outcome: &Outcome) -> String {
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
            Outcome::Unknown { sandboxes, more } => {
                let line = |unknown: &UnknownSandbox| {
                    format!("{} on {} {:?}", unknown.id, unknown.agent, unknown.origin)
                };
                let lines: Vec<_> = sandboxes.iter().map(line).collect();
                format!("unknown: [{}]{}", lines.join(", "), if *more { " and more" } else { "" })
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

    fn show(&mut self) {
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

fn sandbox_to_create(words: &Words, name: &str) -> CreateSandbox {
    let mut create = create(name);
    let spec = &mut create.spec;
    spec.mode = if words.has("strong") { Mode::Strong } else { Mode::Fast };
    spec.image = words.text("image");
    spec.ports = words.list("ports").map(|port| port.parse().unwrap()).collect();
    let (cpu_millis, memory_bytes) = (words.number("cpu", 0), words.number("mem", 0));
    spec.resources = Resources { cpu_millis, memory_bytes };
    spec.agent_selector = words.labels("select");
    spec.pool = label(words.get("pool").unwrap_or("default"));
    spec.request_id = words.request_id().unwrap_or_else(|| "none".parse().unwrap());
    create.labels = words.labels("labels");
    create.wait = words.get("wait").map(nanos);
    create.expiry = match (words.get("ttl"), words.get("at")) {
        (Some(ttl), _) => Some(Expiry::After(nanos(ttl))),
        (None, Some(at)) => Some(Expiry::At(START.plus(nanos(at)))),
        (None, None) => None,
    };
    if words.get("policy") == Some("auto") {
        create.failure_policy = FailurePolicy::AutoRecreate;
    }
    create
}

fn update(words: &Words) -> SandboxUpdate {
    SandboxUpdate {
        expire_time: words.get("expire").map(|at| (at != "never").then(|| START.plus(nanos(at)))),
        labels: words.get("labels").map(|_| words.labels("labels")),
        failure_policy: words.get("policy").map(|policy| match policy {
            "auto" => FailurePolicy::AutoRecreate,
            _ => FailurePolicy::Manual,
        }),
        recovery_timeout_seconds: words.get("timeout").map(|text| text.parse().unwrap()),
    }
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
        other => format!("{other:?}"),
    }
}

/// Makes a test of each script: what comes of it is kept in `snapshots/`, under its name.
macro_rules! scenarios {
    ($($name:ident: $script:expr;)*) => {$(
        #[test]
        fn $name() {
            insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
                insta::assert_snapshot!(stringify!($name), $crate::tests::script::run($script));
            });
        }
    )*};
}
pub(super) use scenarios;
