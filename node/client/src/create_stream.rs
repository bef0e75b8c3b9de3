//! Many creates over one stream, which outlives the servers that serve it.
//!
//! The client draws an id for itself, and numbers its creates. When a stream breaks it opens the next one, at another
//! server, and sends again what has no answer yet: the cluster knows the id and the number, so each create has one effect.

mod worker;

use sandkeeper_proto::v1;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::error::ClientError;
use worker::Worker;

/// Creates and answers that wait between the caller and the task, each way: enough to keep both busy.
const QUEUE: usize = 256;

/// A stream of creates; see [`Client::create_stream`].
#[derive(Debug)]
pub struct CreateStream {
    sender: CreateSender,
    answers: CreateAnswers,
}

/// The half of a [`CreateStream`] that sends. When it is dropped the stream ends after the last answer.
#[derive(Debug)]
pub struct CreateSender {
    creates: mpsc::Sender<v1::CreateSandboxRequest>,
    sent: u64,
}

/// The half of a [`CreateStream`] that receives. When it is dropped the stream ends at once.
#[derive(Debug)]
pub struct CreateAnswers {
    answers: mpsc::Receiver<Result<CreateAnswer, ClientError>>,
    task: JoinHandle<()>,
}

/// The answer to one create.
#[derive(Debug)]
pub struct CreateAnswer {
    /// Which create: what [`CreateSender::send`] has returned.
    pub sequence: u64,
    /// The sandbox; or why there is none.
    pub result: Result<v1::CreateSandboxResponse, ClientError>,
}

impl Client {
    /// Opens a stream of creates, all in one namespace (empty: "default"). Many thousands a second go through one.
    ///
    /// A create that has no answer after the client's deadline is answered with [`ClientError::Deadline`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn create_stream(&self, namespace: &str) -> CreateStream {
        let (creates, receiver) = mpsc::channel(QUEUE);
        let (sender, answers) = mpsc::channel(QUEUE);
        let worker = Worker::new(self.clone(), namespace.to_owned(), receiver, sender);
        let task = tokio::spawn(worker.run());
        CreateStream { sender: CreateSender { creates, sent: 0 }, answers: CreateAnswers { answers, task } }
    }
}

impl CreateStream {
    /// See [`CreateSender::send`]. Whoever sends many reads answers meanwhile, or waits for ever: see [`Self::split`].
    pub async fn send(&mut self, create: v1::CreateSandboxRequest) -> Option<u64> {
        self.sender.send(create).await
    }

    /// See [`CreateAnswers::next`].
    ///
    /// # Errors
    /// See [`CreateAnswers::next`].
    pub async fn next(&mut self) -> Option<Result<CreateAnswer, ClientError>> {
        self.answers.next().await
    }

    /// Two halves, for two tasks: one sends, one receives.
    pub fn split(self) -> (CreateSender, CreateAnswers) {
        (self.sender, self.answers)
    }
}

impl CreateSender {
    /// Sends a create (without a request id), and answers its sequence: 1, 2, 3, … Waits while so many are on their way
    /// that the cluster takes no more. `None`: the stream has ended; [`CreateAnswers::next`] says why.
    pub async fn send(&mut self, create: v1::CreateSandboxRequest) -> Option<u64> {
        self.creates.send(create).await.ok()?;
        self.sent += 1;
        Some(self.sent)
    }
}

impl CreateAnswers {
    /// The next answer, in whatever order they come; `None` when the sender is gone and all are answered.
    ///
    /// # Errors
    /// The stream can't go on. What has become of creates without an answer is not known.
    pub async fn next(&mut self) -> Option<Result<CreateAnswer, ClientError>> {
        self.answers.recv().await
    }
}

impl Drop for CreateAnswers {
    fn drop(&mut self) {
        self.task.abort();
    }
}
