//! An agent that starts nothing: it says what one would say.

use std::collections::BTreeMap;

use sandkeeper_proto::v1;
use sandkeeper_proto::v1::agent_message::Body as Up;
use sandkeeper_proto::v1::agent_service_client::AgentServiceClient;
use sandkeeper_proto::v1::server_message::Body as Down;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// A sandbox of this image stays in creation.
pub(super) const NEVER_STARTS: &str = "never-starts";
/// A sandbox of this image can't be started.
pub(super) const FAILS: &str = "fails";
/// What every sandbox has written.
pub(super) const LOG: &[u8] = b"hello\n";

/// The state of each sandbox that it has.
type Table = BTreeMap<String, v1::SandboxReport>;

fn hello(slots: u64) -> Up {
    Up::Hello(v1::Hello {
        agent_id: "a1".into(),
        incarnation: Some(v1::Incarnation { ledger_id: uuid::Uuid::from_u128(7).to_string(), start: 1 }),
        capacity: Some(v1::Capacity { slots, cpu_millis: 1000, memory_bytes: 1 << 30 }),
        session: 1,
        host: "127.0.0.1".into(),
        ..Default::default()
    })
}

fn started(create: &v1::CreateCommand) -> v1::SandboxReport {
    let (state, reason) = match create.image.as_str() {
        NEVER_STARTS => (v1::SandboxState::Creating, ""),
        FAILS => (v1::SandboxState::Failed, "no such image"),
        _ => (v1::SandboxState::Running, ""),
    };
    v1::SandboxReport {
        sandbox_id: create.sandbox_id.clone(),
        generation: create.generation,
        state: state.into(),
        reason: reason.into(),
        ..Default::default()
    }
}

/// Obeys until the session ends.
pub(super) async fn run(mut client: AgentServiceClient<Channel>, slots: u64) {
    let (up, messages) = mpsc::channel(64);
    let send = async |body| up.send(v1::AgentMessage { body: Some(body) }).await.unwrap();
    send(hello(slots)).await;
    let mut down = client.connect(ReceiverStream::new(messages)).await.unwrap().into_inner();
    let mut table = Table::new();
    let mut processed = 0;
    while let Ok(Some(message)) = down.message().await {
        processed = processed.max(message.sequence);
        let reports = |reports| {
            Up::Reports(v1::SandboxReports { term: message.term, processed_sequence: processed, reports })
        };
        match message.body {
            Some(Down::Welcome(_)) => {
                send(Up::Heartbeat(v1::Heartbeat { number: 1, ..v1::Heartbeat::default() })).await;
            }
            Some(Down::Create(create)) => {
                let report = started(&create);
                if report.state() != v1::SandboxState::Failed {
                    table.insert(create.sandbox_id, report.clone());
                }
                send(reports(vec![report])).await;
            }
            Some(Down::Terminate(terminate)) => {
                table.remove(&terminate.sandbox_id);
                let absent = v1::SandboxReport {
                    sandbox_id: terminate.sandbox_id,
                    generation: terminate.generation,
                    state: v1::SandboxState::Absent.into(),
                    ..Default::default()
                };
                send(reports(vec![absent])).await;
            }
            Some(Down::InventoryRequest(_)) => {
                let inventory = v1::Inventory {
                    term: message.term,
                    processed_sequence: processed,
                    sandboxes: table.values().cloned().collect(),
                    last: true,
                    part: 0,
                };
                send(Up::Inventory(inventory)).await;
            }
            Some(Down::OpenTunnel(open)) => {
                let up = v1::TunnelUp { tunnel_id: open.tunnel_id, data: LOG.to_vec(), error: String::new() };
                let mut client = client.clone();
                tokio::spawn(async move { client.tunnel(tokio_stream::once(up)).await });
            }
            Some(Down::Goodbye(_)) => return,
            _ => {}
        }
    }
}
