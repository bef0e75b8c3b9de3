//! Waiting until a cluster is ready, and saying what is still missing.

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use sandkeeper_client::{Client, v1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// One look at one node takes no longer.
const LOOK_DEADLINE: Duration = Duration::from_secs(1);
/// An answer to a health check is short.
const LONGEST_HEALTH_ANSWER: u64 = 4096;

/// A node that is looked at.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Its name.
    pub name: String,
    /// A client of only it.
    pub client: Client,
    /// Its health checks.
    pub http: SocketAddr,
}

/// What a ready node has to show.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// So many members.
    pub nodes: usize,
    /// So many agents connected to it.
    pub agents: usize,
    /// So many slots in the replicated state.
    pub slots: u64,
}

/// Returns when every node shows what is expected, and tells `progress` what is missing until then.
pub async fn until_ready(nodes: &[Watched], expected: Expected, mut progress: impl FnMut(&str)) {
    loop {
        let looks = join_all(nodes.iter().map(|node| missing(node, expected))).await;
        let missing: Vec<_> = looks.into_iter().flatten().collect();
        if missing.is_empty() {
            return;
        }
        progress(&missing.join("; "));
        sleep(PAUSE).await;
    }
}

/// What a node does not have yet; `None`: it is ready.
async fn missing(node: &Watched, expected: Expected) -> Option<String> {
    let name = &node.name;
    let client = node.client.with_deadline(LOOK_DEADLINE);
    let Ok(status) = client.status().await else { return Some(format!("{name} does not answer yet")) };
    if status.members.len() < expected.nodes {
        return Some(format!("{name} sees {} of {} nodes", status.members.len(), expected.nodes));
    }
    if status.leader.is_empty() {
        return Some(format!("{name} knows no leader yet"));
    }
    if status.agents_connected < expected.agents as u64 {
        return Some(format!("{name} has {} of {} agents", status.agents_connected, expected.agents));
    }
    let read = v1::ReadOptions { consistency: v1::Consistency::Local.into(), min_revision: 0 };
    let slots = match client.capacity(read).await {
        Ok(capacity) => capacity.total.unwrap_or_default().slots,
        Err(error) => return Some(format!("{name}: {error}")),
    };
    if slots < expected.slots {
        return Some(format!("{name} sees {slots} of {} slots", expected.slots));
    }
    match timeout(LOOK_DEADLINE, is_ready(node.http)).await {
        Ok(Ok(true)) => None,
        _ => Some(format!("{name} does not say on /readyz that it is ready")),
    }
}

/// Asks `/readyz`.
async fn is_ready(http: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(http).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST_HEALTH_ANSWER).read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_is_what_answers_200() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        for (status, ready) in [("200 OK", true), ("503 Service Unavailable", false)] {
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                assert!(request[..length].starts_with(b"GET /readyz HTTP/1.1\r\n"));
                stream
                    .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes())
                    .await
                    .unwrap();
            };
            let ((), answer) = tokio::join!(serve, is_ready(address));
            assert_eq!(answer.unwrap(), ready);
        }
    }
}
