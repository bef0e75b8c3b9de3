//! What stands between an agent and the control nodes, and can be cut: a partition without root.

use std::net::SocketAddr;

use test_ports::Ports;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes that are carried at once.
const BUFFER: usize = 16 * 1024;

/// What does not get through. Nobody is told: connections stay open, and what was said meanwhile arrives when the cut is
/// mended, as TCP has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// All does.
    #[default]
    Nothing,
    /// Nothing does.
    Both,
    /// What the agent says.
    FromAgent,
    /// What the control nodes say.
    ToAgent,
}

/// One agent's way to each control node.
#[derive(Debug)]
pub struct Proxy {
    /// Where the agent finds the nodes, in their order: `host:port`.
    pub addresses: Vec<String>,
    cut: watch::Sender<Cut>,
    _ports: Ports,
    /// Ends with this.
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// A way to each of these nodes.
    ///
    /// # Panics
    /// Outside of a runtime, or if no port is free.
    pub async fn start(nodes: &[String]) -> Self {
        let ports = Ports::take(nodes.len());
        let addresses = ports.addresses();
        let cut = watch::channel(Cut::Nothing).0;
        let mut tasks = JoinSet::new();
        for (address, node) in addresses.iter().zip(nodes) {
            let listener =
                TcpListener::bind(address).await.expect("a port that was taken can be listened on");
            let node = node.parse().expect("nodes of a test have addresses of numbers");
            tasks.spawn(listen(listener, node, cut.subscribe()));
        }
        Self { addresses, cut, _ports: ports, _tasks: tasks }
    }

    /// Cuts, or mends.
    pub fn cut(&self, what: Cut) {
        self.cut.send_replace(what);
    }
}

async fn listen(listener: TcpListener, node: SocketAddr, cut: watch::Receiver<Cut>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((agent, _)) = accepted {
                    connections.spawn(connect(agent, node, cut.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(agent: TcpStream, node: SocketAddr, mut cut: watch::Receiver<Cut>) {
    // The other end does not get to know of the connection before.
    if cut.wait_for(|cut| *cut == Cut::Nothing).await.is_err() {
        return;
    }
    let Ok(node) = TcpStream::connect(node).await else { return };
    let _ = (agent.set_nodelay(true), node.set_nodelay(true));
    let ((from_agent, to_agent), (from_node, to_node)) = (agent.into_split(), node.into_split());
    let up = carry(from_agent, to_node, Cut::FromAgent, cut.clone());
    let down = carry(from_node, to_agent, Cut::ToAgent, cut);
    // When one direction is at its end for good, so is the other.
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// Carries bytes one way, but while that way is cut.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Cut, mut cut: watch::Receiver<Cut>) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if cut.wait_for(|cut| *cut != way && *cut != Cut::Both).await.is_err()
            || to.write_all(&buffer[..read]).await.is_err()
        {
            return;
        }
    }
    // The end of the stream gets through as little as what was said.
    let _ = cut.wait_for(|cut| *cut != way && *cut != Cut::Both).await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn hears(stream: &mut TcpStream, text: &str) -> bool {
        let mut buffer = vec![0; text.len()];
        let read = tokio::time::timeout(Duration::from_millis(200), stream.read_exact(&mut buffer)).await;
        read.is_ok_and(|read| read.is_ok() && buffer == text.as_bytes())
    }

    #[tokio::test]
    async fn what_is_cut_arrives_when_it_is_mended_and_the_other_way_goes_on() {
        let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(&[node.local_addr().unwrap().to_string()]).await;
        let mut agent = TcpStream::connect(&proxy.addresses[0]).await.unwrap();
        let mut node = node.accept().await.unwrap().0;
        agent.write_all(b"one").await.unwrap();
        assert!(hears(&mut node, "one").await);
        proxy.cut(Cut::ToAgent);
        agent.write_all(b"two").await.unwrap();
        node.write_all(b"three").await.unwrap();
        assert!(hears(&mut node, "two").await);
        assert!(!hears(&mut agent, "three").await);
        proxy.cut(Cut::FromAgent);
        assert!(hears(&mut agent, "three").await);
        agent.write_all(b"four").await.unwrap();
        assert!(!hears(&mut node, "four").await);
        proxy.cut(Cut::Both);
        drop(agent);
        assert!(!hears(&mut node, "four").await);
        proxy.cut(Cut::Nothing);
        assert!(hears(&mut node, "four").await);
        assert_eq!(node.read(&mut [0]).await.unwrap(), 0, "and then the end");
    }
}
