//! Where the control nodes are: those that the agent was told at its start, and those that the cluster names. Names are
//! looked up every 10 s, and at once when a connection is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(10);
/// The least pause between two look-ups, however many connections are lost at once.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(5);
/// The most control nodes that are taken from what the cluster says: far more than any Raft group has.
const MAX_LEARNED: usize = 64;

/// The addresses of control nodes, as far as they are known now.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    addresses: watch::Receiver<BTreeSet<SocketAddr>>,
    learned: Arc<watch::Sender<BTreeSet<String>>>,
    hurry: Arc<Notify>,
}

impl Directory {
    /// The directory, and the task that keeps it, which ends with `token`.
    pub(crate) fn new(
        servers: Vec<String>,
        token: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, addresses) = watch::channel(BTreeSet::new());
        let hurry = Arc::new(Notify::new());
        let (learned, told) = watch::channel(BTreeSet::new());
        let task = keep(servers, told, sender, Arc::clone(&hurry), token);
        (Self { addresses, learned: Arc::new(learned), hurry }, task)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<BTreeSet<SocketAddr>> {
        self.addresses.clone()
    }

    pub(crate) fn has(&self, address: SocketAddr) -> bool {
        self.addresses.borrow().contains(&address)
    }

    /// The cluster says where its control nodes are.
    pub(crate) fn learn(&self, servers: &[String]) {
        let servers: BTreeSet<_> = servers.iter().take(MAX_LEARNED).cloned().collect();
        let news = self.learned.send_if_modified(|known| {
            let changed = *known != servers;
            *known = servers;
            changed
        });
        if news {
            self.look_up_now();
        }
    }

    /// Has the names looked up without waiting for the next turn.
    pub(crate) fn look_up_now(&self) {
        self.hurry.notify_one();
    }
}

async fn keep(
    servers: Vec<String>,
    told: watch::Receiver<BTreeSet<String>>,
    sender: watch::Sender<BTreeSet<SocketAddr>>,
    hurry: Arc<Notify>,
    token: CancellationToken,
) {
    // What a name stood for stays true until it is known to stand for something else.
    let mut known: BTreeMap<String, BTreeSet<SocketAddr>> = BTreeMap::new();
    let mut failing = BTreeSet::new();
    loop {
        let mut names: BTreeSet<String> = told.borrow().clone();
        names.extend(servers.iter().cloned());
        known.retain(|name, _| names.contains(name));
        failing.retain(|name| names.contains(name));
        for server in names {
            let look_up = timeout(LOOK_UP_TIMEOUT, tokio::net::lookup_host(server.as_str())).await;
            let failure = match look_up.map(|found| found.map(Iterator::collect::<BTreeSet<_>>)) {
                Ok(Ok(addresses)) => {
                    if addresses.is_empty() {
                        "it has no address".to_owned()
                    } else {
                        failing.remove(&server);
                        known.insert(server, addresses);
                        continue;
                    }
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {LOOK_UP_TIMEOUT:?}"),
            };
            if failing.insert(server.clone()) {
                tracing::warn!(server, failure, "the name of a control node can't be looked up; trying on");
            }
        }
        let all: BTreeSet<_> = known.values().flatten().copied().collect();
        sender.send_if_modified(|addresses| {
            let changed = *addresses != all;
            *addresses = all;
            changed
        });
        tokio::select! {
            () = token.cancelled() => return,
            () = tokio::time::sleep(LEAST_PAUSE) => {}
        }
        tokio::select! {
            () = token.cancelled() => return,
            () = hurry.notified() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_addresses_are_looked_up_and_bad_ones_do_no_harm() {
        let token = CancellationToken::new();
        let servers = ["127.0.0.1:7600", "localhost:7610", "no-such-name.invalid:1"];
        let (directory, task) = Directory::new(servers.map(str::to_owned).to_vec(), token.clone());
        let task = tokio::spawn(task);
        let mut addresses = directory.subscribe();
        let known = addresses.wait_for(|known| known.len() >= 2).await.unwrap().clone();
        assert!(known.contains(&"127.0.0.1:7600".parse().unwrap()));
        assert!(known.iter().any(|address| address.port() == 7610));
        let learned = "127.0.0.1:7620".parse().unwrap();
        assert!(!directory.has(learned));
        directory.learn(&["127.0.0.1:7620".to_owned()]);
        addresses.wait_for(|known| known.contains(&learned)).await.unwrap();
        directory.learn(&[]);
        addresses.wait_for(|known| !known.contains(&learned)).await.unwrap();
        assert!(directory.has("127.0.0.1:7600".parse().unwrap()), "what it was told at its start stays");
        token.cancel();
        task.await.unwrap();
    }
}
