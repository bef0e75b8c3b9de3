//! What stands between control nodes, agents and each other, and can be cut, slowed down or broken, link by link and way by
//! way: partitions without root.
//!
//! Every port of a node has a door of its own, which is what the node advertises. Who knocks there is found out from the
//! kernel (`sock_diag`, `/proc`): which process has the other end of the connection. So the parties need to know nothing of this.

mod carry;
mod door;
mod knock;
mod sockets;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use test_ports::Ports;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot, watch};

use knock::Knock;

/// Of the doors and connections.
const THREADS: usize = 2;
/// So many wait to be let in.
const KNOCKS: usize = 256;

/// Who is at an end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// A control node, by its index.
    Node(usize),
    /// An agent's process, by its index.
    Agent(usize),
}

/// What a link does to what is sent over it, one way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quality {
    /// Nothing gets through. Nobody is told; what was sent arrives when the cut is mended, as TCP has it.
    pub cut: bool,
    /// How long everything takes.
    pub delay: Duration,
    /// At most so many bytes a second.
    pub rate: Option<u64>,
    /// The share of packets that are lost, each of which holds up what is behind it for a retransmission timeout.
    pub loss: f64,
}

/// How often links did what their quality asks of them.
#[derive(Debug, Default)]
pub struct Tally {
    /// Bytes were held back by a cut.
    pub held: AtomicU64,
    /// Bytes were delayed.
    pub delayed: AtomicU64,
    /// Bytes had to wait for their turn on a narrow link.
    pub throttled: AtomicU64,
    /// A packet was lost.
    pub lost: AtomicU64,
    /// A connection was broken.
    pub broken: AtomicU64,
}

/// The qualities of all links that have one.
pub type Weather = BTreeMap<(Party, Party), Quality>;

/// What doors and connections share.
#[derive(Debug)]
struct Shared {
    weather: watch::Sender<Weather>,
    /// Counts up when connections are to be broken; and whose.
    breaks: watch::Sender<(u64, Vec<Party>)>,
    /// Which process is who.
    parties: Mutex<HashMap<u32, Party>>,
    /// Who wants to be let in.
    knocks: mpsc::Sender<Knock>,
    tally: Tally,
}

impl Shared {
    fn parties(&self) -> MutexGuard<'_, HashMap<u32, Party>> {
        self.parties.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All links of a cluster. They end with this.
#[derive(Debug)]
pub struct Links {
    shared: Arc<Shared>,
    /// The doors, and who looks up who knocks. Threads of their own, or whatever keeps the tester's busy would delay heartbeats.
    /// None only when it is dropped.
    runtime: Option<Runtime>,
    ports: Vec<Ports>,
}

impl Default for Links {
    fn default() -> Self {
        Self::new()
    }
}

impl Links {
    /// No links yet.
    ///
    /// # Panics
    /// If no thread can be started.
    pub fn new() -> Self {
        let (knocks, receiver) = mpsc::channel(KNOCKS);
        let shared = Shared {
            weather: watch::channel(Weather::new()).0,
            breaks: watch::channel((0, Vec::new())).0,
            parties: Mutex::default(),
            knocks,
            tally: Tally::default(),
        };
        let shared = Arc::new(shared);
        let runtime =
            Builder::new_multi_thread().worker_threads(THREADS).thread_name("links").enable_all().build();
        let runtime = runtime.expect("threads can be started");
        runtime.spawn(knock::look_up(receiver, Arc::downgrade(&shared)));
        Self { shared, runtime: Some(runtime), ports: Vec::new() }
    }

    /// Opens a door before a port of a node; the address that the node is to advertise.
    ///
    /// # Panics
    /// If no port is free.
    pub async fn door(&mut self, node: usize, port: &str) -> String {
        let ports = Ports::take(1);
        let address = ports.addresses().remove(0);
        let behind = port.parse().expect("nodes of a test have addresses of numbers");
        let shared = Arc::clone(&self.shared);
        let (open, opened) = oneshot::channel();
        let listens = address.clone();
        self.runtime.as_ref().expect("it is there until the links are dropped").spawn(async move {
            let listener =
                TcpListener::bind(listens).await.expect("a port that was taken can be listened on");
            // Whoever asked for it waits.
            let _ = open.send(());
            door::open(listener, behind, Party::Node(node), shared).await;
        });
        opened.await.expect("the door is open");
        self.ports.push(ports);
        address
    }

    /// Says whose a process is.
    pub fn introduce(&self, pid: u32, party: Party) {
        let mut parties = self.shared.parties();
        parties.retain(|_, known| *known != party);
        parties.insert(pid, party);
    }

    /// Gives links a quality, in place of what all of them had.
    pub fn set(&self, weather: Weather) {
        self.shared.weather.send_replace(weather);
    }

    /// Changes what links have.
    pub fn change(&self, change: impl FnOnce(&mut Weather)) {
        self.shared.weather.send_modify(change);
    }

    /// Breaks all connections that these parties have dialled, as a firewall does that forgets them.
    pub fn break_connections(&self, of: Vec<Party>) {
        self.shared.breaks.send_modify(|(count, whose)| {
            *count += 1;
            *whose = of;
        });
    }

    /// What links did so far.
    pub fn tally(&self) -> &Tally {
        &self.shared.tally
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Without waiting, which the threads of another runtime may not.
            runtime.shutdown_background();
        }
    }
}

impl Tally {
    fn count(of: &AtomicU64) {
        of.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
