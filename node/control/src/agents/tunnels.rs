//! Tunnels: bytes of a sandbox on their way from its agent to a caller.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use sandkeeper_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::{Session, lock};

/// The most tunnels of one node that wait for their agent to dial in.
pub const MAX_TUNNELS: usize = 4_096;

/// Chunks in one tunnel that wait for the caller: beyond it the agent waits.
const CHUNKS: usize = 16;

type Chunk = Result<Vec<u8>, String>;

/// The caller's end of a tunnel that waits for its agent to dial in.
#[derive(Debug)]
struct Expected {
    chunks: mpsc::Sender<Chunk>,
    dialled: oneshot::Sender<()>,
}

/// The tunnels that were asked for and not dialled yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Tunnels {
    expected: Arc<Mutex<BTreeMap<String, Expected>>>,
}

impl Tunnels {
    pub(super) async fn open(
        &self,
        session: &Session,
        sandbox_id: String,
        kind: Option<v1::open_tunnel::Kind>,
        deadline: Instant,
    ) -> Result<mpsc::Receiver<Chunk>, String> {
        let agent = &session.spec.agent_id;
        let tunnel_id = Uuid::new_v4().to_string();
        let (chunks, receiver) = mpsc::channel(CHUNKS);
        let (dialled, dial) = oneshot::channel();
        {
            let mut expected = lock(&self.expected);
            if expected.len() >= MAX_TUNNELS {
                return Err(format!("{MAX_TUNNELS} tunnels are being opened on this node: try another one"));
            }
            expected.insert(tunnel_id.clone(), Expected { chunks, dialled });
        }
        let open = v1::OpenTunnel { tunnel_id: tunnel_id.clone(), sandbox_id, kind };
        let message = v1::ServerMessage {
            body: Some(v1::server_message::Body::OpenTunnel(open)),
            ..v1::ServerMessage::default()
        };
        // The caller may go away while it waits.
        let _forget = Forget { tunnels: self, tunnel_id: &tunnel_id };
        let asked = async {
            session.outbox.send(Ok(message)).await.map_err(|_| format!("agent {agent} has gone away"))?;
            dial.await.map_err(|_| format!("agent {agent} has gone away"))
        };
        match timeout_at(deadline, asked).await {
            Ok(Ok(())) => Ok(receiver),
            Ok(Err(why)) => Err(why),
            Err(_) => Err(format!("agent {agent} did not open the tunnel in time")),
        }
    }

    /// An agent dials in: the caller's end. None: nobody waits for this tunnel.
    pub(super) fn dialled(&self, tunnel_id: &str) -> Option<mpsc::Sender<Chunk>> {
        let expected = lock(&self.expected).remove(tunnel_id)?;
        // If the caller has given up, the receiver is gone, and the first chunk will find out.
        let _ = expected.dialled.send(());
        Some(expected.chunks)
    }
}

/// Takes a tunnel that nobody waits for any more out of those that are expected.
struct Forget<'a> {
    tunnels: &'a Tunnels,
    tunnel_id: &'a str,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.tunnels.expected).remove(self.tunnel_id);
    }
}
