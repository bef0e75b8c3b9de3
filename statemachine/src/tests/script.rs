//! Scripts: one command a line, and under each what came of it. See `scenarios` for how they read.
//!
//! ```text
//! agent A [slots=1 cpu=8000 mem=8000 pool=p labels=k:v ledger=1 start=1]      lose A [ledger= start=]
//! cordon A [reason=text]   uncordon A   remove A [fenced]   recover-agent A    image I A,B
//! drain A [reason=text] [for=5s] [terminate]
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

mod shown;

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
            "drain" => {
                let (agent, reason) = (agent_id(words.at(1)), words.text("reason"));
                let (deadline, terminate) = (words.get("for").map(nanos), words.has("terminate"));
                (Command::DrainAgent { agent, reason, deadline, terminate }, caller)
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
