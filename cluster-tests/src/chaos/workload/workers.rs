//! Clients that create, end, make anew, change and read, by the dice.

use std::collections::VecDeque;
use std::time::Duration;

use rand::RngExt;
use sandkeeper_client::v1;

use super::caller::{Caller, created, created_all, revision, sandbox};
use crate::by_id;
use crate::chaos::record::{Action, Outcome, Wanted};

/// Names that two clients fight for.
const NAMES: usize = 10;
/// So many sandboxes a client has at most, and then it ends one.
const MOST: usize = 12;
/// Between two calls, at most.
const PAUSE_MILLIS: u64 = 15;
/// So many of its creates a client can ask for again: all of the last minutes.
const REMEMBERED: usize = 30;

struct Worker {
    caller: Caller,
    namespace: String,
    pool: &'static str,
    /// What it has made and not ended.
    mine: VecDeque<String>,
    /// Creates that were answered, which it asks for again.
    asked: VecDeque<v1::CreateSandboxRequest>,
    /// The highest revision that it was told itself.
    told: u64,
}

/// Works until it is told to end.
pub(super) async fn work(caller: Caller, namespace: String, pool: &'static str) {
    let mut worker =
        Worker { caller, namespace, pool, mine: VecDeque::new(), asked: VecDeque::new(), told: 0 };
    while !worker.caller.is_over() {
        worker.step().await;
        let pause = worker.caller.dice.random_range(0..PAUSE_MILLIS);
        worker.caller.rest(Duration::from_millis(pause)).await;
    }
}

impl Worker {
    async fn step(&mut self) {
        if self.mine.len() >= MOST {
            return self.terminate().await;
        }
        match self.caller.dice.random_range(0..100) {
            0..25 => self.create(v1::Mode::Fast).await,
            25..30 => self.create(v1::Mode::Strong).await,
            30..33 => self.batch().await,
            33..50 => self.terminate().await,
            50..56 => self.update().await,
            56..60 if self.pool == super::LIES => self.reset().await,
            56..58 => self.reset().await,
            58..62 => self.ask_again().await,
            62..74 => self.get_mine().await,
            74..85 => self.get_by_name().await,
            85..92 => self.list().await,
            _ => self.capacity().await,
        }
    }

    fn some_name(&mut self) -> String {
        format!("web-{}", self.caller.dice.random_range(0..NAMES))
    }

    fn request(&mut self, name: String) -> v1::CreateSandboxRequest {
        let waits = self.pool == super::TIGHT && self.caller.dice.random_bool(0.4);
        let cpu = self.caller.dice.random_range(1..1_000);
        v1::CreateSandboxRequest {
            request_id: self.caller.request_id("c-"),
            namespace: self.namespace.clone(),
            name,
            pool_ref: self.pool.to_owned(),
            command: vec!["true".to_owned()],
            resources: Some(v1::Resources { cpu_millis: Some(cpu), memory_bytes: Some(1 << 20) }),
            wait_for_capacity: waits,
            capacity_timeout: waits.then_some(prost_types::Duration { seconds: 3, nanos: 0 }),
            ..v1::CreateSandboxRequest::default()
        }
    }

    async fn create(&mut self, mode: v1::Mode) {
        let name = self.some_name();
        self.create_as(name, mode).await;
    }

    async fn create_as(&mut self, name: String, mode: v1::Mode) {
        let request = v1::CreateSandboxRequest { mode: mode.into(), ..self.request(name) };
        // A caller without patience asks at two nodes at once: it must be the same to both.
        let outcome = if self.caller.dice.random_bool(0.1) {
            let mut twin = self.caller.twin();
            let (one, other) = (request.clone(), request.clone());
            tokio::join!(Box::pin(create(&mut self.caller, one)), Box::pin(create(&mut twin, other))).0
        } else {
            create(&mut self.caller, request.clone()).await
        };
        self.learn(&outcome);
        if outcome.is_ok() {
            self.asked.push_back(request);
            if self.asked.len() > REMEMBERED {
                self.asked.pop_front();
            }
        }
    }

    /// A create that was answered is answered again, by whomever, and also when its sandbox is gone.
    async fn ask_again(&mut self) {
        if self.asked.is_empty() {
            return;
        }
        let index = self.caller.dice.random_range(0..self.asked.len());
        let request = self.asked[index].clone();
        create(&mut self.caller, request).await;
    }

    async fn batch(&mut self) {
        let count = self.caller.dice.random_range(2..5);
        let request_id = self.caller.request_id(crate::chaos::invariants::request_ids::BATCH);
        let namespace = self.namespace.clone();
        let one = |index: usize| v1::CreateSandboxRequest {
            name: format!("{request_id}-{index}"),
            request_id: String::new(),
            wait_for_capacity: false,
            capacity_timeout: None,
            ..self.request(String::new())
        };
        let creates: Vec<_> = (0..count).map(one).collect();
        let request = v1::BatchCreateSandboxesRequest {
            request_id: request_id.clone(),
            namespace: namespace.clone(),
            creates,
        };
        let action = Action::Batch { namespace, count, request_id };
        let call = |client: sandkeeper_client::Client| {
            let request = request.clone();
            async move { client.batch_create(request).await.map(created_all) }
        };
        let outcome = self.caller.until_known(action, call).await;
        self.learn(&outcome);
    }

    /// Ends the oldest, and often takes its name again at once.
    async fn terminate(&mut self) {
        let Some(id) = self.mine.pop_front() else { return };
        let request_id = self.caller.request_id("c-");
        let action = Action::Change { call: "terminate", sandbox_id: id.clone() };
        let call = |client: sandkeeper_client::Client| {
            let request = v1::TerminateSandboxRequest {
                request_id: request_id.clone(),
                r#ref: Some(by_id(&id)),
                expected_revision: 0,
            };
            async move { client.terminate(request).await.map(|answer| sandbox(answer.header, answer.sandbox)) }
        };
        let outcome = self.caller.until_known(action, call).await;
        self.learn(&outcome);
        if let Outcome::Sandbox { sandbox, .. } = outcome
            && sandbox.name.starts_with("web-")
            && self.caller.dice.random_bool(0.5)
        {
            self.create_as(sandbox.name, v1::Mode::Fast).await;
        }
    }

    fn some_of_mine(&mut self) -> Option<String> {
        if self.mine.is_empty() {
            return None;
        }
        let index = self.caller.dice.random_range(0..self.mine.len());
        self.mine.get(index).cloned()
    }

    async fn update(&mut self) {
        let Some(id) = self.some_of_mine() else { return };
        let request = v1::UpdateSandboxRequest {
            request_id: self.caller.request_id("c-"),
            r#ref: Some(by_id(&id)),
            update_mask: Some(prost_types::FieldMask { paths: vec!["labels".to_owned()] }),
            labels: [("round".to_owned(), self.caller.dice.random_range(0..1_000_000).to_string())].into(),
            ..v1::UpdateSandboxRequest::default()
        };
        let action = Action::Change { call: "update", sandbox_id: id };
        let call = |client: sandkeeper_client::Client| {
            let request = request.clone();
            async move { client.update(request).await.map(|answer| sandbox(answer.header, answer.sandbox)) }
        };
        let outcome = self.caller.until_known(action, call).await;
        self.learn(&outcome);
    }

    async fn reset(&mut self) {
        let Some(id) = self.some_of_mine() else { return };
        let request_id = self.caller.request_id("c-");
        let action = Action::Change { call: "reset", sandbox_id: id.clone() };
        let call = |client: sandkeeper_client::Client| {
            let request = v1::ResetSandboxRequest {
                request_id: request_id.clone(),
                r#ref: Some(by_id(&id)),
                expected_revision: 0,
            };
            async move { client.reset(request).await.map(|answer| sandbox(answer.header, answer.sandbox)) }
        };
        let outcome = self.caller.until_known(action, call).await;
        self.learn(&outcome);
    }

    /// Mostly linearizable; else local, and then mostly not before what this client was told itself.
    fn read_options(&mut self) -> v1::ReadOptions {
        if self.caller.dice.random_bool(0.6) {
            return v1::ReadOptions { consistency: v1::Consistency::Linearizable.into(), min_revision: 0 };
        }
        let min_revision = if self.caller.dice.random_bool(0.7) { self.told } else { 0 };
        v1::ReadOptions { consistency: v1::Consistency::Local.into(), min_revision }
    }

    async fn get_mine(&mut self) {
        if let Some(id) = self.some_of_mine() {
            self.get(Wanted::Id(id)).await;
        }
    }

    async fn get_by_name(&mut self) {
        let name = self.some_name();
        self.get(Wanted::Name(self.namespace.clone(), name)).await;
    }

    async fn get(&mut self, wanted: Wanted) {
        let read = self.read_options();
        let reference = match &wanted {
            Wanted::Id(id) => by_id(id),
            Wanted::Name(namespace, name) => v1::SandboxRef {
                namespace: namespace.clone(),
                name: name.clone(),
                ..v1::SandboxRef::default()
            },
        };
        let call = |client: sandkeeper_client::Client| async move {
            client.get(reference, read).await.map(|answer| sandbox(answer.header, answer.sandbox))
        };
        let outcome = self.caller.attempt(&Action::Get { wanted, read }, call).await;
        self.learn(&outcome);
    }

    async fn list(&mut self) {
        let read = self.read_options();
        let namespace = self.namespace.clone();
        let request = v1::ListSandboxesRequest {
            namespace: namespace.clone(),
            page_size: 16,
            read: Some(read),
            ..v1::ListSandboxesRequest::default()
        };
        let call = |client: sandkeeper_client::Client| async move {
            let answer = client.list_all(request).await?;
            Ok(Outcome::Listed { sandboxes: answer.sandboxes, at: revision(answer.header) })
        };
        let outcome = self.caller.attempt(&Action::List { namespace, read }, call).await;
        self.learn(&outcome);
    }

    async fn capacity(&mut self) {
        let read = self.read_options();
        let call = |client: sandkeeper_client::Client| async move {
            client.capacity(read).await.map(|answer| Outcome::Capacity(Box::new(answer)))
        };
        let outcome = self.caller.attempt(&Action::Capacity { read }, call).await;
        self.learn(&outcome);
    }

    fn learn(&mut self, outcome: &Outcome) {
        self.told = self.told.max(outcome.revision().unwrap_or(0));
        match outcome {
            Outcome::Created { sandbox, .. } => self.mine.push_back(sandbox.sandbox_id.clone()),
            Outcome::CreatedAll { sandboxes, .. } => {
                self.mine.extend(sandboxes.iter().map(|sandbox| sandbox.sandbox_id.clone()));
            }
            _ => {}
        }
    }
}

async fn create(caller: &mut Caller, request: v1::CreateSandboxRequest) -> Outcome {
    let action = Action::Create {
        namespace: request.namespace.clone(),
        name: request.name.clone(),
        request_id: request.request_id.clone(),
    };
    let call = |client: sandkeeper_client::Client| {
        let request = request.clone();
        async move { client.create(request).await.map(created) }
    };
    caller.until_known(action, call).await
}
