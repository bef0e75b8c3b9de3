//! The queue in front of the decider: bounded by commands and by bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sandkeeper_statemachine::{Command, CreateSandbox, Request, Term};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Answer, Undecided};

/// The most commands that wait: a third of a second of work at full speed. Beyond it, waiting only makes late answers.
pub const MAX_QUEUED_COMMANDS: usize = 8_192;

/// The most bytes that wait, whatever the size of each command.
pub const MAX_QUEUED_BYTES: usize = 16 * 1024 * 1024;

/// The queue is full: try again in a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the leader's queue is full ({MAX_QUEUED_COMMANDS} commands or {MAX_QUEUED_BYTES} bytes): try again in a moment"
)]
pub struct Full;

/// A command that waits to be decided.
#[derive(Debug)]
pub struct Queued {
    /// The command.
    pub request: Arc<Request>,
    /// It is dropped undecided after this.
    pub deadline: Instant,
    /// If it rests on what the leader of this term has observed, it is nobody else's to decide.
    pub term: Option<Term>,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Answer>,
    bytes: usize,
}

impl Queued {
    /// Answers that it was not decided, and why.
    pub(super) fn give_up(self, why: &str) {
        // If the caller is gone there is nobody to tell.
        let _ = self.reply.send(Err(Undecided(why.into())));
    }
}

/// The sending half; cheap to clone.
#[derive(Clone, Debug)]
pub struct QueueSender {
    sender: mpsc::Sender<Queued>,
    bytes: Arc<AtomicUsize>,
}

/// The decider's half.
#[derive(Debug)]
pub struct CommandQueue {
    receiver: mpsc::Receiver<Queued>,
    bytes: Arc<AtomicUsize>,
}

/// A new queue.
pub fn queue() -> (QueueSender, CommandQueue) {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED_COMMANDS);
    let bytes = Arc::new(AtomicUsize::new(0));
    (QueueSender { sender, bytes: Arc::clone(&bytes) }, CommandQueue { receiver, bytes })
}

impl QueueSender {
    /// Puts a command in line; the receiver gets its answer. With a `term`, only the decider of that term decides it.
    ///
    /// # Errors
    /// [`Full`], at once.
    pub fn push(
        &self,
        request: impl Into<Arc<Request>>,
        deadline: Instant,
        term: Option<Term>,
    ) -> Result<oneshot::Receiver<Answer>, Full> {
        let request = request.into();
        let bytes = size_of(&request);
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_QUEUED_BYTES {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Full);
        }
        let (reply, answer) = oneshot::channel();
        self.sender.try_send(Queued { request, deadline, term, reply, bytes }).map_err(|_| {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            Full
        })?;
        Ok(answer)
    }

    /// How many commands wait.
    pub fn len(&self) -> usize {
        self.sender.max_capacity() - self.sender.capacity()
    }

    /// Whether no command waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl CommandQueue {
    /// Waits for a command, and takes all that wait, up to the limits. None: all senders are gone.
    pub(super) async fn take(&mut self, most: usize, most_bytes: usize) -> Option<Vec<Queued>> {
        let first = self.receiver.recv().await?;
        let mut bytes = first.bytes;
        let mut taken = vec![first];
        while taken.len() < most
            && bytes < most_bytes
            && let Ok(next) = self.receiver.try_recv()
        {
            bytes += next.bytes;
            taken.push(next);
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Some(taken)
    }

    /// While this node does not lead: answers every command that comes with `why`, until cancelled from outside.
    pub async fn refuse_all(&mut self, why: &str) {
        while let Some(commands) = self.take(MAX_QUEUED_COMMANDS, MAX_QUEUED_BYTES).await {
            for command in commands {
                command.give_up(why);
            }
        }
    }
}

/// About how many bytes a command takes: what is large in one is text.
fn size_of(request: &Request) -> usize {
    let text = match &request.command {
        Command::CreateSandbox(create) | Command::CreateInStream { create, .. } => size_of_create(create),
        Command::CreateSandboxes(creates) => creates.iter().map(|create| size_of_create(create) + 256).sum(),
        Command::UpdateSandbox { update, .. } => {
            update.labels.iter().flatten().map(|(key, value)| key.len() + value.len()).sum()
        }
        Command::RegisterAgent(spec) => spec.labels.iter().map(|(key, value)| key.len() + value.len()).sum(),
        _ => 0,
    };
    text + 256
}

fn size_of_create(create: &CreateSandbox) -> usize {
    let spec = &create.spec;
    let pairs = spec.envs.iter().chain(&create.labels).chain(&spec.agent_selector);
    let pairs: usize = pairs.map(|(key, value)| key.len() + value.len()).sum();
    let args: usize = spec.command.iter().chain(&spec.args).map(String::len).sum();
    pairs + args + spec.image.len() + spec.working_dir.len()
}
