//! How much memory a record takes. Not a check but a measurement: it prints, see `docs/testing.md`.

use uuid::Uuid;

use super::world::*;
use crate::limits::{MAX_SLOTS, STREAM_WINDOW};
use crate::*;

/// What the kernel says that this process has in memory, bytes.
fn resident() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "a test reads")]
    let text = std::fs::read("/proc/self/statm").unwrap();
    let pages = String::from_utf8(text).unwrap().split(' ').nth(1).unwrap().parse::<u64>().unwrap();
    pages * 4096
}

/// A follower: it decodes what it applies, so that nothing is shared by chance.
struct Follower {
    state: State,
    events: Vec<Event>,
}

impl Follower {
    fn new(agents: u64) -> Self {
        let mut follower = Self { state: World::new().state, events: Vec::new() };
        for number in 0..agents {
            let id = agent_id(&format!("worker-{number}"));
            let subject = Subject { sandbox: None, agent: Some(id.clone()) };
            let spec = AgentSpec { agent_id: id, ..agent("a", MAX_SLOTS) };
            follower.push(subject, None, 0, EventKind::AgentRegistered(Box::new(spec)));
        }
        follower.apply();
        follower
    }

    fn push(&mut self, subject: Subject, request: Option<RequestRef>, previous: u64, kind: EventKind) {
        let (actor, reason) = (Actor::Client("10.0.0.1".into()), String::new());
        self.events.push(Event { header: Header { actor, reason, request, subject, previous }, kind });
    }

    fn apply(&mut self) {
        let time = self.state.last_time().plus(1_000);
        let entry = Entry::new(self.state.revision(), TERM, time, std::mem::take(&mut self.events));
        let decoded = Entry::decode(entry.encoded()).unwrap();
        assert!(matches!(self.state.apply(&decoded, TERM), Applied::Done { .. }));
    }

    /// A usual sandbox, made by `request`.
    fn create(&mut self, number: u64, request_id: RequestId, memory: Option<RequestMemory>) -> Subject {
        let mut create = create(&format!("team-a/judge-{number}"));
        create.spec.command = vec!["./judge".into(), number.to_string()];
        create.spec.image = "registry.example.com/judge:17".into();
        create.spec.request_id = request_id.clone();
        let CreateSandbox { spec, labels, failure_policy, recovery_timeout_seconds, .. } = create;
        let time = self.state.last_time().plus(1_000);
        let sandbox = Some((SandboxId::fast(&spec.name, time), spec.name.clone()));
        let agent = Some(agent_id(&format!("worker-{}", number / MAX_SLOTS)));
        let request = memory.map(|memory| RequestRef { id: request_id, memory: Some(memory) });
        let (expire_time, wait_until) = (None, None);
        let created = SandboxCreated {
            spec: spec.into(),
            labels,
            expire_time,
            failure_policy,
            recovery_timeout_seconds,
            wait_until,
        };
        let kind = EventKind::SandboxCreated(Box::new(created));
        self.push(Subject { sandbox: sandbox.clone(), agent: None }, request, 0, kind);
        let subject = Subject { sandbox, agent };
        self.push(subject.clone(), None, 0, EventKind::SandboxAllocated { generation: 1 });
        self.apply();
        subject
    }

    fn end(&mut self, subject: Subject) {
        self.push(subject.clone(), None, 0, EventKind::SandboxTerminating);
        self.push(subject, None, 0, EventKind::SandboxRemoved { released: Some(1) });
        self.apply();
    }
}

fn memory(number: u64, acknowledged_below: u64) -> RequestMemory {
    let digest = u128::from(number).to_be_bytes();
    RequestMemory { namespace: Some(label("team-a")), digest, retention: SECOND, acknowledged_below }
}

#[test]
#[ignore = "prints how much memory records take; some seconds and some hundred megabytes"]
fn memory_per_record() {
    #[expect(clippy::disallowed_methods, reason = "how many is asked for")]
    let count: u64 = std::env::var("SANDKEEPER_RECORDS").map_or(100_000, |text| text.parse().unwrap());
    let uuid = |number: u64| RequestId::Uuid(Uuid::from_u128(u128::from(number) << 64 | 7));
    // All states stay, so that none is made of what another has freed.
    let mut states = Vec::new();
    let mut measure = |what: &str, fill: &dyn Fn(&mut Follower, u64)| {
        let mut follower = Follower::new(count.div_ceil(MAX_SLOTS));
        let before = resident();
        (0..count).for_each(|number| fill(&mut follower, number));
        let each = (resident() - before) / count;
        let (sandboxes, requests) = (follower.state.sandbox_count(), follower.state.request_count());
        println!("{what:<46} {each:>5} bytes   ({sandboxes} sandboxes, {requests} requests)");
        states.push(follower);
        each
    };
    let bare = measure("a sandbox", &|follower, number| {
        follower.create(number, uuid(number), None);
    });
    let unary = measure("a sandbox, and the request that made it", &|follower, number| {
        follower.create(number, uuid(number), Some(memory(number, 0)));
    });
    let alone = measure("a remembered request whose sandbox is gone", &|follower, number| {
        let subject = follower.create(number, uuid(number), Some(memory(number, 0)));
        follower.end(subject);
    });
    let client = |number: u64| Uuid::from_u128(u128::from(number / STREAM_WINDOW));
    let open = |follower: &mut Follower, number: u64| {
        if number.is_multiple_of(STREAM_WINDOW) {
            let stream = StreamKey { namespace: label("team-a"), client: client(number) };
            let (acknowledged_below, ends) = (1, Timestamp(i64::MAX));
            let kind = EventKind::StreamOpened { stream, acknowledged_below, ends };
            follower.push(Subject::default(), None, 0, kind);
            follower.apply();
        }
        RequestId::Stream { client: client(number), sequence: number % STREAM_WINDOW + 1 }
    };
    let streamed = measure("a sandbox of a stream, not acknowledged", &|follower, number| {
        let id = open(follower, number);
        follower.create(number, id, Some(memory(number, 1)));
    });
    let acknowledged = measure("a sandbox of a stream, acknowledged", &|follower, number| {
        let id = open(follower, number);
        follower.create(number, id, Some(memory(number, number % STREAM_WINDOW + 1)));
    });
    println!("so a remembered request takes {} bytes beside its sandbox, {alone} without;", unary - bare);
    println!("an answer in a stream {} while it is not acknowledged,", streamed.saturating_sub(bare));
    println!("and {} after that.", acknowledged.saturating_sub(bare));
    println!("Digests: {} bytes of each sandbox, none of others.", size_of::<Digest>());
}
