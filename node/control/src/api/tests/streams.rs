//! `CreateSandboxes` and `BatchCreateSandboxes` over real sockets: the protocol, and what breaks it.

use sandkeeper_proto::v1;
use sandkeeper_proto::v1::create_sandboxes_request::Message as Out;
use sandkeeper_proto::v1::create_sandboxes_response::Message as In;
use sandkeeper_proto::v1::streamed_answer::Result as Answered;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::agent::{FAILS, NEVER_STARTS};
use super::rig::Rig;
use super::{LONG, refused};

/// A client that sends what the test says.
struct Raw {
    out: mpsc::Sender<v1::CreateSandboxesRequest>,
    answers: Streaming<v1::CreateSandboxesResponse>,
}

fn client_id(number: u128) -> String {
    uuid::Uuid::from_u128(number).to_string()
}

fn opening(number: u128, resume: bool) -> Out {
    Out::Open(v1::OpenCreateStream { client_id: client_id(number), resume, ..Default::default() })
}

fn asked(sequence: u64, below: u64, create: v1::CreateSandboxRequest) -> Out {
    Out::Create(v1::StreamedCreate { sequence, acknowledged_below: below, create: Some(create) })
}

fn named(name: &str) -> v1::CreateSandboxRequest {
    v1::CreateSandboxRequest { name: name.into(), ..Default::default() }
}

impl Raw {
    async fn start(rig: &Rig) -> Self {
        let (out, requests) = mpsc::channel(64);
        let answers = rig.sandboxes().create_sandboxes(ReceiverStream::new(requests)).await.unwrap();
        Self { out, answers: answers.into_inner() }
    }

    /// A stream of this client, opened.
    async fn open(rig: &Rig, number: u128, resume: bool) -> Self {
        let mut raw = Self::start(rig).await;
        raw.send(opening(number, resume)).await;
        let In::Opened(opened) = raw.next().await.unwrap() else { panic!("not opened") };
        assert_eq!(opened.window, 4_096);
        raw
    }

    async fn send(&self, message: Out) {
        self.out.send(v1::CreateSandboxesRequest { message: Some(message) }).await.unwrap();
    }

    async fn next(&mut self) -> Result<In, Status> {
        let message = timeout(LONG, self.answers.message()).await.expect("an answer");
        Ok(message?.expect("the stream goes on").message.unwrap())
    }

    /// How the stream ends.
    async fn end(mut self) -> Result<(), Status> {
        loop {
            match timeout(LONG, self.answers.message()).await.expect("an end")? {
                Some(_) => {}
                None => return Ok(()),
            }
        }
    }

    async fn answer(&mut self) -> v1::StreamedAnswer {
        match self.next().await.unwrap() {
            In::Answer(answer) => answer,
            other @ In::Opened(_) => panic!("{other:?}"),
        }
    }

    /// The id of the sandbox that the next answer has, and whether it is the first answer again.
    async fn made(&mut self, sequence: u64) -> (String, bool) {
        let answer = self.answer().await;
        assert_eq!(answer.sequence, sequence);
        let Some(Answered::Created(created)) = answer.result else { panic!("{answer:?}") };
        (created.sandbox.unwrap().sandbox_id, created.duplicate)
    }

    async fn refusal(&mut self, sequence: u64) -> v1::CallRefusal {
        let answer = self.answer().await;
        assert_eq!(answer.sequence, sequence);
        let Some(Answered::Refusal(refusal)) = answer.result else { panic!("{answer:?}") };
        refusal
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_batches_through_the_api() {
    let rig = Rig::start().await;
    let _agent = rig.agent(200).await;
    creates_are_exactly_once_by_their_sequence(&rig).await;
    a_slow_client_holds_up_nobody(&rig).await;
    strong_creates_answer_out_of_order(&rig).await;
    misuse_ends_a_stream(&rig).await;
    batches_are_all_or_nothing(&rig).await;
    streams_end_when_the_node_stops(rig).await;
}

async fn creates_are_exactly_once_by_their_sequence(rig: &Rig) {
    let mut raw = Raw::open(rig, 1, false).await;
    raw.send(asked(1, 1, named("one"))).await;
    let (one, again) = raw.made(1).await;
    assert!(!again);
    raw.send(asked(1, 1, named("one"))).await;
    assert_eq!(raw.made(1).await, (one.clone(), true));
    raw.send(asked(1, 1, named("other"))).await;
    let refusal = raw.refusal(1).await;
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::AlreadyExists.into(), "REQUEST_ID_REUSED"));
    assert_eq!(refusal.metadata["request_id"], format!("{}#1", client_id(1)));
    let bad = v1::CreateSandboxRequest { request_id: "mine".into(), namespace: "x".into(), ..named("Two") };
    raw.send(asked(2, 2, bad)).await;
    let refusal = raw.refusal(2).await;
    let fields: Vec<_> = refusal.violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["namespace", "request_id", "name"]);
    raw.send(asked(9_000, 2, named("far"))).await;
    assert_eq!(raw.refusal(9_000).await.reason, "STREAM_WINDOW_FULL");

    // It goes on in another stream; the first is void then.
    let mut next = Raw::open(rig, 1, true).await;
    next.send(asked(1, 1, named("one"))).await;
    assert_eq!(next.made(1).await, (one, true));
    next.send(asked(2, 2, named("two"))).await;
    assert!(!next.made(2).await.1, "what was refused is not remembered");
    next.send(asked(1, 2, named("one"))).await;
    assert_eq!(next.refusal(1).await.reason, "ACKNOWLEDGED");
    raw.send(asked(3, 2, named("three"))).await;
    refused(raw.end().await, Code::Aborted, "STREAM_SUPERSEDED");
    drop(next.out);
    let end = timeout(LONG, next.answers.message()).await.unwrap().unwrap();
    assert!(end.is_none(), "it ends when the client has said all, and has all answers");
}

/// It takes no answers, and another client of the same connection gets its own.
async fn a_slow_client_holds_up_nobody(rig: &Rig) {
    let mut slow = Raw::open(rig, 2, false).await;
    let (out, count) = (slow.out.clone(), 4_000);
    let sending = tokio::spawn(async move {
        for sequence in 1..=count {
            let large = v1::CreateSandboxRequest { working_dir: "x".repeat(2_000), ..named("refused") };
            let message = Some(asked(sequence, 1, large));
            out.send(v1::CreateSandboxesRequest { message }).await.unwrap();
        }
    });
    let mut quick = Raw::open(rig, 3, false).await;
    for sequence in 1..=20 {
        quick.send(asked(sequence, sequence, named(&format!("quick-{sequence}")))).await;
        quick.made(sequence).await;
    }
    let mut sequences: Vec<u64> = Vec::new();
    while sequences.len() < count as usize {
        sequences.push(slow.answer().await.sequence);
    }
    sending.await.unwrap();
    sequences.sort_unstable();
    assert!(sequences.into_iter().eq(1..=count), "nothing was lost");
}

async fn strong_creates_answer_out_of_order(rig: &Rig) {
    let strong = |name: &str, image: &str| v1::CreateSandboxRequest {
        image: image.into(),
        mode: v1::Mode::Strong.into(),
        ..named(name)
    };
    let mut raw = Raw::open(rig, 4, false).await;
    raw.send(asked(1, 1, strong("never", NEVER_STARTS))).await;
    raw.send(asked(2, 1, strong("fails", FAILS))).await;
    let refusal = raw.refusal(2).await;
    assert_eq!(refusal.reason, "ROLLED_BACK");
    assert!(refusal.message.contains("no such image"), "{refusal:?}");
    raw.send(asked(2, 1, strong("fails", FAILS))).await;
    assert_eq!(raw.refusal(2).await.reason, "ROLLED_BACK", "what failed later is remembered");
    raw.send(asked(3, 1, named("fast"))).await;
    raw.made(3).await;
}

async fn misuse_ends_a_stream(rig: &Rig) {
    let named_so = |id: &str| Out::Open(v1::OpenCreateStream { client_id: id.into(), ..Default::default() });
    for (message, code, why) in [
        (asked(1, 1, named("x")), Code::InvalidArgument, "INVALID"),
        (named_so(""), Code::InvalidArgument, "INVALID"),
        (named_so("me"), Code::InvalidArgument, "INVALID"),
        (named_so("67E55044-10B1-426F-9247-BB680E5FE0C8"), Code::InvalidArgument, "INVALID"),
        (named_so("67e5504410b1426f9247bb680e5fe0c8"), Code::InvalidArgument, "INVALID"),
        (opening(5, true), Code::FailedPrecondition, "STREAM_FORGOTTEN"),
        (opening(1, false), Code::AlreadyExists, "STREAM_CLIENT_EXISTS"),
    ] {
        let raw = Raw::start(rig).await;
        raw.send(message).await;
        refused(raw.end().await, code, why);
    }
    let waits = v1::CreateSandboxRequest {
        image: NEVER_STARTS.into(),
        mode: v1::Mode::Strong.into(),
        ..named("waits")
    };
    let misuses: [(u128, &[Out]); 3] = [
        (10, &[opening(10, false)]),
        (11, &[asked(0, 1, named("zero"))]),
        (12, &[asked(1, 1, waits.clone()), asked(1, 1, waits)]),
    ];
    for (number, messages) in misuses {
        let raw = Raw::open(rig, number, false).await;
        for message in messages {
            raw.send(message.clone()).await;
        }
        refused(raw.end().await, Code::InvalidArgument, "INVALID");
    }
}

async fn batches_are_all_or_nothing(rig: &Rig) {
    let batch = |names: &[&str]| v1::BatchCreateSandboxesRequest {
        request_id: "batch-1".into(),
        namespace: "many".into(),
        creates: names.iter().map(|name| named(name)).collect(),
    };
    let bad = v1::BatchCreateSandboxesRequest {
        creates: vec![
            named("good"),
            v1::CreateSandboxRequest { exposed_ports: vec![0], request_id: "mine".into(), ..named("Bad") },
        ],
        ..batch(&[])
    };
    let status = refused(rig.sandboxes().batch_create_sandboxes(bad).await, Code::InvalidArgument, "INVALID");
    assert!(status.message().contains("creates[1].exposed_ports"), "{status}");
    let strong = v1::BatchCreateSandboxesRequest {
        creates: vec![v1::CreateSandboxRequest { mode: v1::Mode::Strong.into(), ..named("strong") }],
        ..batch(&[])
    };
    let status =
        refused(rig.sandboxes().batch_create_sandboxes(strong).await, Code::InvalidArgument, "INVALID");
    assert!(status.message().contains("creates[0].mode"), "{status}");
    refused(rig.sandboxes().batch_create_sandboxes(batch(&[])).await, Code::InvalidArgument, "INVALID");

    let first = rig.sandboxes().batch_create_sandboxes(batch(&["a", "b"])).await.unwrap().into_inner();
    let names: Vec<_> = first.sandboxes.iter().map(|sandbox| (&*sandbox.namespace, &*sandbox.name)).collect();
    assert_eq!(names, [("many", "a"), ("many", "b")]);
    let taken = v1::BatchCreateSandboxesRequest { request_id: "batch-2".into(), ..batch(&["c", "b"]) };
    refused(rig.sandboxes().batch_create_sandboxes(taken).await, Code::AlreadyExists, "NAME_TAKEN");
    let again = rig.sandboxes().batch_create_sandboxes(batch(&["a", "b"])).await.unwrap().into_inner();
    assert!(again.duplicate && again.sandboxes[0].sandbox_id == first.sandboxes[0].sandbox_id);
}

async fn streams_end_when_the_node_stops(rig: Rig) {
    let raw = Raw::open(&rig, 20, false).await;
    let end = tokio::spawn(raw.end());
    timeout(LONG, rig.stop()).await.expect("a stream does not hold the node");
    let status = refused(end.await.unwrap(), Code::Unavailable, "SHUTTING_DOWN");
    assert!(status.message().contains("shutting down"));
}
