//! What no agent and no peer of ours would send.

use std::time::Duration;

use cluster_tests::{Cluster, Raw, Refused, eventually, refused};
use sandkeeper_client::v1::agent_message::Body as Up;
use sandkeeper_client::v1::server_message::Body as Down;
use sandkeeper_client::{Code, v1};
use sandkeeper_proto::internal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::Request;

/// Longer than a node keeps silent strangers.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn refused_by(cluster: &Cluster, index: usize) {
    let node = &cluster.nodes[index];
    for address in [&node.api, &node.peer, &node.http] {
        noise(address).await;
    }
    let raw = cluster.raw(index);
    hellos(&raw).await;
    tunnels(&raw).await;
    peers(&Raw::new(&node.peer)).await;
    // What peers speak is not spoken on the port for callers.
    let answer = raw.peers().describe(internal::DescribeRequest {}).await;
    assert_eq!(refused("a peer's call", answer).code, Code::Unimplemented);
}

/// Bytes that are not the protocol: the connection is closed, at the latest when this side closes it.
async fn noise(address: &str) {
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0xff; 4096], vec![0; 64 * 1024]] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The other side may hang up in the middle.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it hangs up");
    }
}

/// A hello like that of a simulated agent, with a ledger of its own.
fn hello(agent_id: &str) -> v1::Hello {
    v1::Hello {
        agent_id: agent_id.into(),
        incarnation: Some(v1::Incarnation { ledger_id: uuid::Uuid::new_v4().to_string(), start: 1 }),
        capacity: Some(v1::Capacity { slots: 100, cpu_millis: 1_000, memory_bytes: 1 << 30 }),
        runtime: "simulated".into(),
        host: "127.0.0.1".into(),
        session: 1,
        ..v1::Hello::default()
    }
}

fn saying(body: Up) -> impl tonic::IntoStreamingRequest<Message = v1::AgentMessage> {
    let first = v1::AgentMessage { body: Some(body) };
    // It says no more, and does not hang up.
    tokio_stream::once(first).chain(tokio_stream::pending())
}

async fn hellos(node: &Raw) {
    let without_incarnation = v1::Hello { incarnation: None, ..hello("ghost") };
    let not_a_uuid = v1::Incarnation { ledger_id: "x".into(), start: 1 };
    let bad = [
        ("hello", Up::Heartbeat(v1::Heartbeat::default())),
        ("incarnation", Up::Hello(without_incarnation)),
        ("ledger_id", Up::Hello(v1::Hello { incarnation: Some(not_a_uuid), ..hello("ghost") })),
        ("agent_id", Up::Hello(hello(""))),
        ("agent_id", Up::Hello(hello("NOT AN AGENT"))),
        ("pool", Up::Hello(v1::Hello { pool: "NO".into(), ..hello("ghost") })),
    ];
    for (what, body) in bad {
        let refusal = refused(what, node.agents().connect(saying(body)).await);
        assert_eq!(refusal.code, Code::InvalidArgument, "{refusal:?}");
        refusal.says(what);
    }
    let other = uuid::Uuid::new_v4().to_string();
    let reason = farewell(node, v1::Hello { cluster_id: other.clone(), ..hello("ghost") }).await;
    assert!(reason.contains(&other), "it names the other cluster: {reason}");
}

/// The reason with which a node sends an agent away for good.
async fn farewell(node: &Raw, hello: v1::Hello) -> String {
    let mut agents = node.agents();
    // Nobody is registered before its heart beats.
    let heartbeat = Up::Heartbeat(v1::Heartbeat { number: 1, ..v1::Heartbeat::default() });
    let messages = [Up::Hello(hello), heartbeat].map(|body| v1::AgentMessage { body: Some(body) });
    let messages = tokio_stream::iter(messages).chain(tokio_stream::pending());
    let mut inbound = agents.connect(messages).await.unwrap().into_inner();
    let reason = async {
        loop {
            let message = inbound.next().await.expect("a goodbye comes first").unwrap();
            if let Some(Down::Goodbye(goodbye)) = message.body {
                assert!(goodbye.fatal, "it must not come back: {goodbye:?}");
                return goodbye.reason;
            }
        }
    };
    timeout(PATIENCE, reason).await.expect("it is sent away")
}

/// The leader registers nobody who can't be, and nobody in the place of an agent that lives.
pub async fn imposters_are_sent_away(cluster: &Cluster) {
    let leader = cluster.raw(cluster.wait_leader().await);
    let nothing = v1::Capacity::default();
    let reason = farewell(&leader, v1::Hello { capacity: Some(nothing), ..hello("ghost") }).await;
    assert!(reason.contains("capacity.slots"), "{reason}");
    let endless = v1::Capacity { slots: u64::MAX, cpu_millis: u64::MAX, memory_bytes: u64::MAX };
    let reason = farewell(&leader, v1::Hello { capacity: Some(endless), ..hello("ghost") }).await;
    for field in ["capacity.slots", "capacity.cpu_millis", "capacity.memory_bytes"] {
        assert!(reason.contains(field), "{reason}");
    }
    let reason = farewell(&leader, hello("a0")).await;
    assert!(reason.contains("another ledger"), "{reason}");
    eventually("the true agent has its place again", || async {
        let agent = cluster.client().get_agent("a0", v1::ReadOptions::default()).await;
        let agent = agent.map_err(|error| error.to_string())?.agent.unwrap_or_default();
        if agent.connected { Ok(()) } else { Err(format!("{agent:?}")) }
    })
    .await;
}

async fn tunnels(node: &Raw) {
    let unknown = v1::TunnelUp { tunnel_id: "no such tunnel".into(), ..v1::TunnelUp::default() };
    let answer = node.agents().tunnel(tokio_stream::once(unknown)).await;
    assert_eq!(refused("a tunnel that nobody waits for", answer).code, Code::NotFound);
    let answer = node.agents().tunnel(tokio_stream::empty::<v1::TunnelUp>()).await;
    assert_eq!(refused("a tunnel without a name", answer).code, Code::InvalidArgument);
}

/// A request that says that a peer sends it.
fn of_peer<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("sandkeeper-from-node", 1.into());
    request
}

/// Messages that are not what this version's Raft sends.
async fn peers(node: &Raw) {
    let garbage = || internal::RaftMessage { payload: vec![0xff; 300].into() };
    let meta = internal::SnapshotOffsetRequest { meta: vec![0xff; 300].into() };
    let chunk = internal::SnapshotChunk {
        head: vec![0xff; 300].into(),
        data: vec![1].into(),
        last: true,
        ..internal::SnapshotChunk::default()
    };
    let answers: Vec<Refused> = vec![
        refused("a vote", node.peers().vote(garbage()).await),
        refused("a pre-vote", node.peers().pre_vote(garbage()).await),
        refused("a transfer", node.peers().transfer_leader(garbage()).await),
        refused("a snapshot's offset", node.peers().snapshot_offset(meta).await),
        refused("a snapshot", node.peers().install_snapshot(tokio_stream::once(chunk)).await),
    ];
    for answer in answers {
        assert_eq!(answer.code, Code::InvalidArgument, "{answer:?}");
    }
    let mut peers = node.peers();
    let answer = peers.append(tokio_stream::once(garbage())).await;
    assert_eq!(refused("appends of nobody", answer).code, Code::InvalidArgument);
    let mut appended = peers.append(of_peer(tokio_stream::once(garbage()))).await.unwrap().into_inner();
    let status = timeout(PATIENCE, appended.next()).await.unwrap().expect("it is refused").unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");

    // A command that the leader can't read is undecided: the sender asks its caller's next node.
    let command = internal::ForwardRequest { id: 7, command: vec![0xff; 300].into(), deadline_millis: 1_000 };
    let commands = tokio_stream::once(command).chain(tokio_stream::pending());
    let mut forwarded = peers.forward(of_peer(commands)).await.unwrap().into_inner();
    let answer = timeout(PATIENCE, forwarded.next()).await.unwrap().expect("it is answered").unwrap();
    assert_eq!(answer.id, 7);
    assert!(String::from_utf8_lossy(&answer.outcome).contains("can't read the command"), "{answer:?}");

    for (key, value) in [("sandkeeper-cluster-id", "another-cluster"), ("sandkeeper-to-node", "1")] {
        let mut request = Request::new(garbage());
        request.metadata_mut().insert(key, value.parse().unwrap());
        let answer = refused(key, peers.vote(request).await);
        assert_eq!(answer.code, Code::FailedPrecondition, "{answer:?}");
    }
}
