//! One random step. What it names is chosen when it is taken, from what there is then, or from what there is not.

use proptest::prelude::*;
use proptest::sample::Index;
use uuid::Uuid;

use crate::command::Report;
use crate::tests::world::*;
use crate::*;

#[derive(Clone, Debug)]
pub enum Step {
    Advance(u8),
    Recede(u8),
    Housekeeping,
    /// Of what is down, or of something else.
    Recover {
        sandbox: Index,
        stale: bool,
    },
    /// What an agent is said to run: all of it, or one.
    Adopt {
        which: u8,
        all: bool,
    },
    /// Of the cluster as a whole.
    Cluster(u8),
    Agent {
        which: u8,
        slots: u64,
        small: bool,
        ledger: u8,
        start: u8,
        pool: u8,
    },
    /// Hello again, as it is known.
    Return {
        which: u8,
    },
    Lose {
        which: u8,
        start: Option<u8>,
    },
    Cordon {
        which: u8,
        request: Option<u8>,
    },
    Uncordon {
        which: u8,
        request: Option<u8>,
    },
    Drain {
        which: u8,
        deadline: Option<u8>,
        terminate: bool,
        request: Option<u8>,
    },
    RecoverAgent {
        which: u8,
        request: Option<u8>,
    },
    Remove {
        which: u8,
        fenced: bool,
        request: Option<u8>,
    },
    Create {
        which: u8,
        shape: u8,
        strong: bool,
        wait: Option<u8>,
        ttl: Option<u8>,
        request: Option<u8>,
    },
    Update {
        target: Aim,
        what: u8,
        request: Option<u8>,
    },
    Reset {
        target: Aim,
        request: Option<u8>,
    },
    Terminate {
        target: Aim,
        request: Option<u8>,
    },
    Batch {
        first: u8,
        count: u8,
        pool: u8,
        wait: Option<u8>,
        request: u8,
    },
    OpenStream {
        client: u8,
        resume: bool,
        below: u8,
    },
    KeepStream {
        client: u8,
        stale: bool,
        below: u8,
    },
    /// A create in a stream, so far ahead of what is acknowledged, which then is so much more.
    InStream {
        client: u8,
        stale: bool,
        ahead: u8,
        below: u8,
        create: Box<Step>,
    },
    /// A caller's request once more, the very same.
    Retry(Index),
    /// A create of a stream, or a batch, once more: by a client that has opened its stream again, if it has.
    Resend(Index),
    /// What the holder of a sandbox may say truly.
    Report {
        sandbox: Index,
        held: Index,
        what: u8,
    },
    /// What nobody should say.
    Lie {
        sandbox: Index,
        agent: u8,
        generation: u8,
        what: u8,
    },
}

#[derive(Clone, Debug)]
pub enum Aim {
    Name(u8),
    Id(Index),
    /// By id, if its record is still of a revision: the current one less this.
    Unmoved(Index, u8),
}

fn aim() -> impl Strategy<Value = Aim> {
    prop_oneof![
        2 => (0u8..6).prop_map(Aim::Name),
        4 => any::<Index>().prop_map(Aim::Id),
        1 => (any::<Index>(), 0u8..2).prop_map(|(index, less)| Aim::Unmoved(index, less)),
    ]
}

fn request() -> impl Strategy<Value = Option<u8>> {
    prop::option::of(0u8..12)
}

fn a_create() -> impl Strategy<Value = Step> {
    let create =
        (0u8..6, 0u8..6, any::<bool>(), prop::option::of(0u8..4), prop::option::of(0u8..8), request());
    create.prop_map(|(which, shape, strong, wait, ttl, request)| Step::Create {
        which,
        shape,
        strong,
        wait,
        ttl,
        request,
    })
}

pub fn step() -> impl Strategy<Value = Step> {
    let agent = (0u8..4, 1u64..4, any::<bool>(), 1u8..3, 0u8..3, 0u8..8);
    let in_stream = (0u8..2, prop::bool::weighted(0.05), 0u8..5, 0u8..3, a_create());
    prop_oneof![
        3 => (0u8..4).prop_map(Step::Advance),
        1 => (0u8..4).prop_map(Step::Recede),
        4 => Just(Step::Housekeeping),
        3 => (any::<Index>(), prop::bool::weighted(0.2))
            .prop_map(|(sandbox, stale)| Step::Recover { sandbox, stale }),
        4 => agent.prop_map(|(which, slots, small, ledger, start, pool)| {
            Step::Agent { which, slots, small, ledger, start, pool }
        }),
        3 => (0u8..4).prop_map(|which| Step::Return { which }),
        2 => (0u8..4, prop::option::of(0u8..3)).prop_map(|(which, start)| Step::Lose { which, start }),
        1 => (0u8..4, request()).prop_map(|(which, request)| Step::Cordon { which, request }),
        2 => (0u8..4, request()).prop_map(|(which, request)| Step::Uncordon { which, request }),
        2 => (0u8..4, prop::option::of(0u8..4), any::<bool>(), request()).prop_map(
            |(which, deadline, terminate, request)| Step::Drain { which, deadline, terminate, request }),
        6 => (0u8..4, request()).prop_map(|(which, request)| Step::RecoverAgent { which, request }),
        1 => (0u8..4, any::<bool>(), request())
            .prop_map(|(which, fenced, request)| Step::Remove { which, fenced, request }),
        12 => a_create(),
        4 => (0u8..6, 0u8..4, 0u8..8, prop::option::of(0u8..4), 0u8..12).prop_map(
            |(first, count, pool, wait, request)| Step::Batch { first, count, pool, wait, request }),
        5 => (0u8..2, prop::bool::weighted(0.3), 0u8..3)
            .prop_map(|(client, resume, below)| Step::OpenStream { client, resume, below }),
        2 => (0u8..2, prop::bool::weighted(0.2), 0u8..3)
            .prop_map(|(client, stale, below)| Step::KeepStream { client, stale, below }),
        10 => in_stream.prop_map(|(client, stale, ahead, below, create)| {
            Step::InStream { client, stale, ahead, below, create: Box::new(create) }
        }),
        4 => (aim(), 0u8..8, request()).prop_map(|(target, what, request)| Step::Update { target, what, request }),
        4 => (aim(), request()).prop_map(|(target, request)| Step::Reset { target, request }),
        5 => (aim(), request()).prop_map(|(target, request)| Step::Terminate { target, request }),
        12 => any::<Index>().prop_map(Step::Retry),
        8 => any::<Index>().prop_map(Step::Resend),
        3 => (0u8..4, any::<bool>()).prop_map(|(which, all)| Step::Adopt { which, all }),
        1 => (0u8..4).prop_map(Step::Cluster),
        24 => (any::<Index>(), any::<Index>(), 0u8..8)
            .prop_map(|(sandbox, held, what)| Step::Report { sandbox, held, what }),
        4 => (any::<Index>(), 0u8..5, 0u8..4, 0u8..8)
            .prop_map(|(sandbox, agent, generation, what)| Step::Lie { sandbox, agent, generation, what }),
    ]
}

fn id_of_agent(which: u8) -> AgentId {
    agent_id(&format!("a{which}"))
}

/// Six names: three in each of two namespaces.
fn sandbox_name(which: u8) -> SandboxName {
    name(&format!("ns{}/s{}", which % 2, which / 2))
}

fn said(what: u8) -> ReportedState {
    match what {
        0..=2 => ReportedState::Running { endpoints: vec![format!("h:{what}")], lease_revision: 0 },
        3 => ReportedState::Exited {
            exit_code: Some(1),
            reason: "crashed".into(),
            expired: false,
            lease_over: false,
        },
        4 => {
            ReportedState::Exited { exit_code: None, reason: "over".into(), expired: true, lease_over: false }
        }
        5 => ReportedState::StartFailed { reason: "no such image".into() },
        6 => ReportedState::AdmissionRefused { reason: "full".into() },
        _ => ReportedState::Absent,
    }
}

fn nth(state: &State, index: Index) -> Option<&Sandbox> {
    let count = state.sandbox_count();
    if count == 0 { None } else { state.sandboxes().nth(index.index(count)) }
}

impl Aim {
    fn target(&self, state: &State) -> Target {
        let (index, less) = match self {
            Self::Name(which) => {
                return Target { sandbox: SandboxRef::Name(sandbox_name(*which)), expected_revision: None };
            }
            Self::Id(index) => (index, None),
            Self::Unmoved(index, less) => (index, Some(u64::from(*less))),
        };
        let found = nth(state, *index);
        let mut target = found.map_or_else(|| by_id(&"nobody".parse().unwrap()), |found| by_id(&found.id));
        let revision = found.map_or(0, |found| found.status.revision);
        target.expected_revision = less.map(|less| revision.saturating_sub(less));
        target
    }
}

impl Step {
    pub fn is_command(&self) -> bool {
        !matches!(self, Self::Advance(_) | Self::Recede(_))
    }

    /// The request that this step is, in this state.
    pub fn request(&self, state: &State) -> Request {
        let caller = Actor::Client("ann".into());
        let with_id = |command, request: &Option<u8>| {
            let id = request
                .map(|id| CallerId { id: request_id(Some(id)), retention: i64::from(id % 4) * SECOND });
            Request { actor: caller.clone(), id, command }
        };
        match self {
            Self::Cordon { which, request } => {
                let agent = id_of_agent(*which);
                with_id(Command::CordonAgent { agent, reason: "disk".into() }, request)
            }
            Self::Uncordon { which, request } => {
                with_id(Command::UncordonAgent(id_of_agent(*which)), request)
            }
            Self::Drain { which, deadline, terminate, request } => {
                let agent = id_of_agent(*which);
                let deadline = deadline.map(|seconds| i64::from(seconds) * SECOND);
                let (reason, terminate) = ("disk".into(), *terminate);
                with_id(Command::DrainAgent { agent, reason, deadline, terminate }, request)
            }
            Self::RecoverAgent { which, request } => {
                with_id(Command::RecoverAgent(id_of_agent(*which)), request)
            }
            Self::Remove { which, fenced, request } => {
                with_id(Command::RemoveAgent { agent: id_of_agent(*which), fenced: *fenced }, request)
            }
            Self::Create { request, .. } => with_id(self.create(), request),
            Self::Batch { first, count, pool, wait, request } => {
                let one = |which: u8| Self::Create {
                    which: which % 6,
                    shape: if *pool == 0 { 4 } else { 0 },
                    strong: false,
                    wait: *wait,
                    ttl: None,
                    request: Some(*request),
                };
                // Every second name is of the same namespace.
                let creates = (0..*count).map(|nth| match one(first + 2 * nth).create() {
                    Command::CreateSandbox(create) => *create,
                    other => panic!("{other:?}"),
                });
                with_id(Command::CreateSandboxes(creates.collect()), &Some(*request))
            }
            Self::InStream { .. } => self.in_stream(state),
            Self::Update { target, what, request } => {
                let (target, update) = (target.target(state), update(*what, state));
                with_id(Command::UpdateSandbox { target, update }, request)
            }
            Self::Reset { target, request } => with_id(Command::ResetSandbox(target.target(state)), request),
            Self::Terminate { target, request } => {
                with_id(Command::TerminateSandbox(target.target(state)), request)
            }
            other => Request { actor: Actor::Leader, id: None, command: other.others_command(state) },
        }
    }

    fn create(&self) -> Command {
        let Self::Create { which, shape, strong, wait, ttl, request } = self else {
            return Command::Housekeeping;
        };
        let mut create = create("x");
        create.spec.name = sandbox_name(*which);
        create.spec.mode = if *strong { Mode::Strong } else { Mode::Fast };
        create.spec.request_id = request_id(*request);
        if which % 2 == 0 {
            create.failure_policy = FailurePolicy::AutoRecreate;
        }
        create.wait = wait.map(|seconds| i64::from(seconds) * SECOND); // 0 is invalid
        create.expiry = ttl.map(|seconds| Expiry::After(i64::from(seconds) * SECOND));
        match shape {
            0 | 1 => {}
            2 => create.spec.resources.cpu_millis = 3_000,
            3 => create.spec.ports = vec![80],
            4 => create.spec.pool = label("other"),
            _ => drop(create.spec.agent_selector.insert("small".into(), "true".into())),
        }
        Command::CreateSandbox(Box::new(create))
    }

    fn in_stream(&self, state: &State) -> Request {
        let Self::InStream { client, stale, ahead, below, create } = self else { panic!("{self:?}") };
        let Command::CreateSandbox(mut create) = create.create() else { panic!("{create:?}") };
        let stream = stream(*client);
        create.spec.name.namespace = stream.namespace.clone();
        let (mut position, _) = position(state, *client, *stale, 0);
        let sequence = position.acknowledged_below + u64::from(*ahead);
        position.acknowledged_below += u64::from(*below);
        let id = RequestId::Stream { client: stream.client, sequence };
        create.spec.request_id = id.clone();
        let id = Some(CallerId { id, retention: SECOND });
        let command = Command::CreateInStream { position, create };
        Request { actor: Actor::Client("ann".into()), id, command }
    }

    /// The commands of agents and of the leader.
    fn others_command(&self, state: &State) -> Command {
        match self {
            Self::Agent { which, slots, small, ledger, start, pool } => {
                let mut spec = agent(&format!("a{which}"), *slots);
                spec.incarnation = incarnation((*ledger).into(), (*start).into());
                spec.capacity.cpu_millis = if *small { 3_000 } else { 8_000 };
                spec.labels.insert("small".into(), small.to_string());
                spec.pool = label(if *pool == 0 { "other" } else { "default" });
                Command::RegisterAgent(Box::new(spec))
            }
            Self::Return { which } => {
                let known = state.agent(&id_of_agent(*which)).map(|agent| (*agent.spec).clone());
                Command::RegisterAgent(Box::new(known.unwrap_or_else(|| agent(&format!("a{which}"), 2))))
            }
            Self::Lose { which, start } => {
                let agent = id_of_agent(*which);
                let known =
                    state.agent(&agent).map_or_else(Incarnation::default, |agent| agent.spec.incarnation);
                let incarnation = start.map_or(known, |start| incarnation(1, start.into()));
                Command::LoseAgent { agent, incarnation }
            }
            Self::Report { sandbox, held, what } => {
                let Some(found) = nth(state, *sandbox).filter(|found| !found.status.held.is_empty()) else {
                    return Command::Housekeeping;
                };
                let Held { generation, agent } = held.get(&found.status.held).clone();
                let incarnation = state.agent(&agent).unwrap().spec.incarnation;
                let sandbox_id = found.id.clone();
                let mut state = said(*what);
                // Two of three know the newest lease.
                if let ReportedState::Running { lease_revision, .. } = &mut state
                    && *what < 2
                {
                    *lease_revision = found.status.lease_revision;
                }
                Command::Report(Report { agent, incarnation, sandbox_id, generation, state })
            }
            Self::Lie { sandbox, agent, generation, what } => {
                let agent = id_of_agent(*agent);
                let sandbox_id =
                    nth(state, *sandbox).map_or_else(|| "nobody".parse().unwrap(), |found| found.id.clone());
                let incarnation = incarnation(1, u64::from(*what % 3));
                let generation = (*generation).into();
                Command::Report(Report { agent, incarnation, sandbox_id, generation, state: said(*what) })
            }
            Self::Adopt { which, all } => {
                let ids = if *all { Vec::new() } else { vec!["s0".parse().unwrap()] };
                Command::AdoptSandboxes { agent: id_of_agent(*which), namespace: label("ns0"), ids }
            }
            Self::Cluster(0) => {
                Command::RestoreCluster { cluster_id: Uuid::from_u128(state.revision().into()) }
            }
            Self::Cluster(1) => Command::ConfirmRestore,
            Self::Cluster(2) => Command::RehomeAgents { from: None },
            Self::Cluster(_) => Command::ListUnknown { agent: None },
            Self::Recover { sandbox, stale } => {
                let down: Vec<_> = state.recoverable().collect();
                let found = if down.is_empty() { nth(state, *sandbox) } else { Some(*sandbox.get(&down)) };
                let Some(found) = found else { return Command::Housekeeping };
                let generation = found.status.generation - u64::from(*stale && found.status.generation > 0);
                Command::RecoverSandbox { sandbox_id: found.id.clone(), generation }
            }
            Self::OpenStream { client, resume, below } => {
                let (position, stream) = position(state, *client, false, *below);
                let acknowledged_below = if *resume { position.acknowledged_below } else { 1 };
                Command::OpenStream { stream, resume: *resume, acknowledged_below, retention: 12 * SECOND }
            }
            Self::KeepStream { client, stale, below } => {
                let (position, stream) = position(state, *client, *stale, *below);
                Command::KeepStream { stream, position, retention: 9 * SECOND }
            }
            _ => Command::Housekeeping,
        }
    }
}

fn stream(client: u8) -> StreamKey {
    StreamKey { namespace: label("ns0"), client: Uuid::from_u128(client.into()) }
}

/// Where a client's stream stands, if so many more answers are acknowledged.
fn position(state: &State, client: u8, stale: bool, below: u8) -> (StreamPosition, StreamKey) {
    let stream = stream(client);
    let known = state.stream_client(&stream);
    let opened = known.map_or(7, |known| known.opened) - u64::from(stale);
    let acknowledged_below = known.map_or(1, |known| known.acknowledged_below) + u64::from(below);
    (StreamPosition { opened, acknowledged_below }, stream)
}

fn request_id(which: Option<u8>) -> RequestId {
    which.map_or("none".into(), |which| format!("r{which}")).parse().unwrap()
}

fn update(what: u8, state: &State) -> SandboxUpdate {
    let mut update = SandboxUpdate::default();
    match what {
        0 => update.expire_time = Some(None),
        1 => update.expire_time = Some(Some(state.last_time().plus(3 * SECOND))),
        2 => update.labels = Some(Labels::from([("k".to_string(), "v".to_string())])),
        3 => update.failure_policy = Some(FailurePolicy::AutoRecreate),
        _ => update.recovery_timeout_seconds = Some(5 + u32::from(what)),
    }
    update
}
