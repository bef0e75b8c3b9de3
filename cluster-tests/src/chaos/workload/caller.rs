//! A client that has every call of its own recorded, and asks again until it knows what came of it.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sandkeeper_client::{Client, ClientError, Code, v1};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::chaos::oracle::Oracle;
use crate::chaos::record::{Action, Operation, Outcome, Refused};

/// How long a call has, tries at its one node included.
const DEADLINE: Duration = Duration::from_secs(4);
/// Between a call of which nothing is known and the next try, at most.
const PAUSE_MILLIS: u64 = 250;

/// How far the campaign is, for those that work in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Go on.
    #[default]
    Work,
    /// Ask again until all is known, then end.
    Finish,
}

/// One client of all nodes, each asked by itself.
pub struct Caller {
    name: String,
    nodes: Vec<Client>,
    oracle: Arc<Oracle>,
    /// Its choices.
    pub dice: StdRng,
    stage: watch::Receiver<Stage>,
    requests: u64,
}

impl Caller {
    /// A client of these nodes. The name has to be unique in the campaign.
    ///
    /// # Panics
    /// If an address is none.
    pub fn new(
        name: String,
        seed: u64,
        apis: &[String],
        oracle: Arc<Oracle>,
        stage: watch::Receiver<Stage>,
    ) -> Self {
        let client = |api: &String| {
            let client = Client::builder().servers([api.clone()]).deadline(DEADLINE).build();
            client.expect("nodes of a campaign have good addresses")
        };
        let nodes = apis.iter().map(client).collect();
        Self { name, nodes, oracle, dice: StdRng::seed_from_u64(seed), stage, requests: 0 }
    }

    /// Another one, which calls at the same time.
    pub fn twin(&mut self) -> Self {
        Self {
            name: format!("{}'", self.name),
            nodes: self.nodes.clone(),
            oracle: Arc::clone(&self.oracle),
            dice: StdRng::seed_from_u64(self.dice.random()),
            stage: self.stage.clone(),
            requests: 0,
        }
    }

    /// Whether it is to end.
    pub fn is_over(&self) -> bool {
        *self.stage.borrow() != Stage::Work
    }

    /// Sleeps, but not beyond the end of the work.
    pub async fn rest(&mut self, duration: Duration) {
        tokio::select! {
            () = sleep(duration) => {}
            _ = self.stage.wait_for(|stage| *stage != Stage::Work) => {}
        }
    }

    /// A new request id; `kind` is `c-` for one sandbox, `b-` for several.
    pub fn request_id(&mut self, kind: &str) -> String {
        self.requests += 1;
        format!("{kind}{}-{}", self.name, self.requests)
    }

    /// One call to one node; what came of it.
    pub async fn attempt<F>(&mut self, action: &Action, call: impl FnOnce(Client) -> F) -> Outcome
    where
        F: Future<Output = Result<Outcome, ClientError>>,
    {
        let node = self.dice.random_range(0..self.nodes.len());
        let (began, floor) = (self.oracle.now(), self.oracle.floor());
        let outcome = call(self.nodes[node].clone()).await.unwrap_or_else(|error| outcome_of(&error));
        self.oracle.note(Operation {
            client: self.name.clone(),
            node,
            action: action.clone(),
            began,
            ended: self.oracle.now(),
            floor,
            outcome: outcome.clone(),
        });
        outcome
    }

    /// Calls one node after the other, until the outcome is known.
    pub async fn until_known<F>(&mut self, action: Action, call: impl Fn(Client) -> F) -> Outcome
    where
        F: Future<Output = Result<Outcome, ClientError>>,
    {
        loop {
            let outcome = self.attempt(&action, &call).await;
            if !matches!(outcome, Outcome::Unknown(_)) {
                return outcome;
            }
            sleep(Duration::from_millis(self.dice.random_range(0..PAUSE_MILLIS))).await;
        }
    }
}

/// What is known after an error: refusals speak of the state, all else leaves it open.
pub fn outcome_of(error: &ClientError) -> Outcome {
    use Code::{
        Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OutOfRange, ResourceExhausted,
    };
    match error.refusal() {
        Some(refusal)
            if matches!(
                refusal.code,
                Aborted
                    | AlreadyExists
                    | FailedPrecondition
                    | InvalidArgument
                    | NotFound
                    | OutOfRange
                    | ResourceExhausted
            ) =>
        {
            Outcome::Refused(Refused {
                reason: refusal.reason.clone().unwrap_or_default(),
                message: refusal.message.clone(),
                holder: refusal.details.get("sandbox_id").cloned(),
            })
        }
        _ => Outcome::Unknown(error.to_string()),
    }
}

/// The answer to a create.
pub fn created(answer: v1::CreateSandboxResponse) -> Outcome {
    let at = revision(answer.header);
    Outcome::Created { sandbox: Box::new(answer.sandbox.unwrap_or_default()), revision: answer.revision, at }
}

/// The answer to a batch.
pub fn created_all(answer: v1::BatchCreateSandboxesResponse) -> Outcome {
    let at = revision(answer.header);
    Outcome::CreatedAll { sandboxes: answer.sandboxes, revision: answer.revision, at }
}

/// A sandbox that was changed or read.
pub fn sandbox(header: Option<v1::ResponseHeader>, sandbox: Option<v1::Sandbox>) -> Outcome {
    Outcome::Sandbox { sandbox: Box::new(sandbox.unwrap_or_default()), at: revision(header) }
}

/// The revision that an answer is of.
pub fn revision(header: Option<v1::ResponseHeader>) -> u64 {
    header.unwrap_or_default().revision
}
