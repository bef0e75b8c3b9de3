//! An agent that the test plays: it does what it is told, and then says again what was true once. Reports of generations that
//! are over, reports of sandboxes that are gone, and inventories of before: the state must not be fooled by any of them.
//!
//! It never says anything of a generation that it has not had, and never that it has processed what it has not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use sandkeeper_client::v1::agent_message::Body as Up;
use sandkeeper_client::v1::server_message::Body as Down;
use sandkeeper_client::v1::{self, SandboxState};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::LIES;
use super::caller::Stage;
use crate::Raw;
use crate::chaos::oracle::Oracle;

/// Its name.
pub const LIAR: &str = "liar";
const SLOTS: u64 = 24;
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Between two lies.
const LIE: Duration = Duration::from_millis(150);
/// Before a node is dialled again.
const PAUSE: Duration = Duration::from_millis(200);
/// A session is opened within this time.
const OPENING: Duration = Duration::from_secs(3);
/// What it remembers to say again.
const REMEMBERED: usize = 64;
/// Messages that wait for a node.
const OUTBOX: usize = 1_024;

/// What it really has.
#[derive(Debug, Default)]
struct Table {
    /// The highest term that it was told anything in.
    term: u64,
    live: BTreeMap<String, u64>,
    /// Generations that it had, and ended.
    ended: VecDeque<(String, u64)>,
    /// What it has said to be there, and was not.
    lied: BTreeSet<(String, u64)>,
}

/// The agent.
struct Liar {
    ledger_id: String,
    table: Mutex<Table>,
    oracle: Arc<Oracle>,
}

/// Plays the agent until it is dropped. It lies until the work is to end.
pub(super) async fn play(apis: Vec<String>, seed: u64, oracle: Arc<Oracle>, stage: watch::Receiver<Stage>) {
    let ledger_id = uuid::Uuid::new_v4().to_string();
    let liar = Arc::new(Liar { ledger_id, table: Mutex::default(), oracle });
    let mut sessions = JoinSet::new();
    for (node, api) in apis.into_iter().enumerate() {
        let (liar, stage) = (Arc::clone(&liar), stage.clone());
        sessions.spawn(async move {
            let mut dice = StdRng::seed_from_u64(seed.wrapping_add(node as u64));
            for number in 1.. {
                Session::run(&liar, &api, number, &mut dice, &stage).await;
                sleep(PAUSE).await;
            }
        });
    }
    while sessions.join_next().await.is_some() {}
}

impl Liar {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hello(&self, session: u64) -> v1::Hello {
        v1::Hello {
            agent_id: LIAR.to_owned(),
            incarnation: Some(v1::Incarnation { ledger_id: self.ledger_id.clone(), start: 1 }),
            capacity: Some(v1::Capacity { slots: SLOTS, cpu_millis: 64_000, memory_bytes: 64 << 30 }),
            pool: LIES.to_owned(),
            runtime: "simulated".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            session,
            host: "127.0.0.1".to_owned(),
            term: self.table().term,
            ..v1::Hello::default()
        }
    }

    /// Does what it is told; what it says of it. None: nobody whom it obeys has told it.
    fn obey(&self, message: &v1::ServerMessage) -> Option<Vec<v1::SandboxReport>> {
        let mut table = self.table();
        if message.term < table.term || message.sequence == 0 {
            return None;
        }
        table.term = message.term;
        match message.body.as_ref()? {
            Down::Create(create) => {
                let known = table.live.get(&create.sandbox_id).copied().unwrap_or(0);
                if create.generation > known {
                    if known > 0 {
                        self.end(&mut table, &create.sandbox_id, known);
                    }
                    self.oracle.lives(&create.sandbox_id, create.generation, true);
                    table.live.insert(create.sandbox_id.clone(), create.generation);
                }
                Some(vec![table.report(&create.sandbox_id, create.generation)])
            }
            Down::Terminate(end) => {
                if let Some(known) =
                    table.live.get(&end.sandbox_id).copied().filter(|known| *known <= end.generation)
                {
                    self.end(&mut table, &end.sandbox_id, known);
                }
                Some(vec![table.report(&end.sandbox_id, end.generation)])
            }
            Down::Update(update) => Some(vec![table.report(&update.sandbox_id, update.generation)]),
            _ => None,
        }
    }

    fn end(&self, table: &mut Table, id: &str, generation: u64) {
        table.live.remove(id);
        // Before anybody is told.
        self.oracle.lives(id, generation, false);
        table.ended.push_back((id.to_owned(), generation));
        if table.ended.len() > REMEMBERED {
            table.ended.pop_front();
        }
    }
}

impl Table {
    fn report(&self, id: &str, generation: u64) -> v1::SandboxReport {
        let here = self.live.get(id) == Some(&generation);
        report(id, generation, if here { SandboxState::Running } else { SandboxState::Absent })
    }

    fn all(&self) -> Vec<v1::SandboxReport> {
        self.live.iter().map(|(id, generation)| report(id, *generation, SandboxState::Running)).collect()
    }
}

fn report(id: &str, generation: u64, state: SandboxState) -> v1::SandboxReport {
    v1::SandboxReport {
        sandbox_id: id.to_owned(),
        generation,
        state: state.into(),
        origin: v1::SandboxOrigin::Ours.into(),
        ..v1::SandboxReport::default()
    }
}

/// One session with one node.
struct Session<'a> {
    liar: &'a Liar,
    dice: &'a mut StdRng,
    outbox: mpsc::Sender<v1::AgentMessage>,
    processed: u64,
    /// Inventories that it gave in this session.
    given: VecDeque<v1::Inventory>,
}

impl Session<'_> {
    async fn run(liar: &Liar, api: &str, number: u64, dice: &mut StdRng, stage: &watch::Receiver<Stage>) {
        let (outbox, queue) = mpsc::channel(OUTBOX);
        let mut session = Session { liar, dice, outbox, processed: 0, given: VecDeque::new() };
        session.say(Up::Hello(liar.hello(number))).await;
        let raw = Raw::new(api);
        let mut agents = raw.agents();
        let Ok(Ok(answer)) = timeout(OPENING, agents.connect(ReceiverStream::new(queue))).await else {
            return;
        };
        session.go_on(answer.into_inner(), stage).await;
    }

    /// A node that does not read any more will end the session.
    async fn say(&self, body: Up) {
        let _ = self.outbox.send(v1::AgentMessage { body: Some(body) }).await;
    }

    async fn go_on(&mut self, mut inbound: Streaming<v1::ServerMessage>, stage: &watch::Receiver<Stage>) {
        let (mut pulse, mut lie) = (interval(HEARTBEAT), interval(LIE));
        let (mut beats, mut honest) = (0, false);
        loop {
            tokio::select! {
                message = inbound.message() => {
                    let Ok(Some(message)) = message else { return };
                    if matches!(message.body, Some(Down::Goodbye(_))) {
                        return;
                    }
                    self.hear(&message).await;
                }
                _ = pulse.tick() => {
                    beats += 1;
                    self.say(Up::Heartbeat(v1::Heartbeat { number: beats, ..v1::Heartbeat::default() })).await;
                }
                _ = lie.tick(), if !honest => {
                    if *stage.borrow() == Stage::Work {
                        self.lie().await;
                    } else {
                        honest = true;
                        self.take_back().await;
                    }
                }
            }
        }
    }

    async fn hear(&mut self, message: &v1::ServerMessage) {
        if let Some(Down::InventoryRequest(_)) = message.body {
            let (term, sandboxes) = {
                let mut table = self.liar.table();
                if message.term < table.term {
                    return;
                }
                table.term = message.term;
                (table.term, table.all())
            };
            self.processed = message.sequence;
            let inventory =
                v1::Inventory { term, processed_sequence: self.processed, sandboxes, last: true, part: 0 };
            self.given.push_back(inventory.clone());
            if self.given.len() > REMEMBERED {
                self.given.pop_front();
            }
            return self.say(Up::Inventory(inventory)).await;
        }
        let Some(reports) = self.liar.obey(message) else { return };
        self.processed = message.sequence;
        self.report(reports, self.processed).await;
    }

    async fn report(&self, reports: Vec<v1::SandboxReport>, processed_sequence: u64) {
        let term = self.liar.table().term;
        self.say(Up::Reports(v1::SandboxReports { term, processed_sequence, reports })).await;
    }

    /// Says again what was true once.
    async fn lie(&mut self) {
        if self.dice.random_bool(0.2)
            && let Some(old) = self.given.iter().collect::<Vec<_>>().choose(self.dice)
        {
            let old = (**old).clone();
            self.will_lie(&old.sandboxes);
            return self.say(Up::Inventory(old)).await;
        }
        let ended: Vec<_> = self.liar.table().ended.iter().cloned().collect();
        let Some((id, generation)) = ended.choose(self.dice) else { return };
        let states =
            [SandboxState::Running, SandboxState::Exited, SandboxState::Failed, SandboxState::Absent];
        let Some(state) = states.choose(self.dice) else { return };
        let late = v1::SandboxReport { reason: "a lie".to_owned(), ..report(id, *generation, *state) };
        let late = vec![late];
        self.will_lie(&late);
        self.report(late, 0).await;
    }

    /// Takes note of what is said to be there and is not.
    fn will_lie(&self, reports: &[v1::SandboxReport]) {
        let mut table = self.liar.table();
        for report in reports {
            if table.live.get(&report.sandbox_id) != Some(&report.generation) {
                table.lied.insert((report.sandbox_id.clone(), report.generation));
            }
        }
    }

    /// What it has lied about is not there.
    async fn take_back(&mut self) {
        let lied: Vec<_> = self.liar.table().lied.iter().cloned().collect();
        let truth =
            lied.iter().map(|(id, generation)| report(id, *generation, SandboxState::Absent)).collect();
        self.report(truth, self.processed).await;
    }
}
