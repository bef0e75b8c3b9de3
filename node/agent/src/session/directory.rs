//! Where the control nodes are: looked up every 10 s, and at once when a connection is lost.

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

/// The addresses of control nodes, as far as they are known now.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    addresses: watch::Receiver<BTreeSet<SocketAddr>>,
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
        let task = keep(servers, sender, Arc::clone(&hurry), token);
        (Self { addresses, hurry }, task)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<BTreeSet<SocketAddr>> {
        self.addresses.clone()
    }

    pub(crate) fn has(&self, address: SocketAddr) -> bool {
        self.addresses.borrow().contains(&address)
    }

    /// Has the names looked up without waiting for the next turn.
    pub(crate) fn look_up_now(&self) {
        self.hurry.notify_one();
    }
}

async fn keep(
    servers: Vec<String>,
    sender: watch::Sender<BTreeSet<SocketAddr>>,
    hurry: Arc<Notify>,
    token: CancellationToken,
) {
    // What a name stood for stays true until it is known to stand for something else.
    let mut known: BTreeMap<&str, BTreeSet<SocketAddr>> = BTreeMap::new();
    let mut failing = BTreeSet::new();
    loop {
        for server in &servers {
            let answer = timeout(LOOK_UP_TIMEOUT, tokio::net::lookup_host(server.as_str())).await;
            let failure = match answer {
                Ok(Ok(addresses)) => {
                    let addresses: BTreeSet<_> = addresses.collect();
                    if addresses.is_empty() {
                        "it has no address".to_owned()
                    } else {
                        known.insert(server, addresses);
                        failing.remove(server.as_str());
                        continue;
                    }
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {LOOK_UP_TIMEOUT:?}"),
            };
            if failing.insert(server.as_str()) {
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
        assert!(!directory.has("127.0.0.1:1".parse().unwrap()));
        token.cancel();
        task.await.unwrap();
    }
}
