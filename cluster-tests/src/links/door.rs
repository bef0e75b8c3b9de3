//! What listens in a node's place.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::carry::{Way, carry};
use super::knock::Knock;
use super::{Party, Shared, Tally};

/// Between two looks whether somebody listens behind a closed door.
const LOOK: Duration = Duration::from_millis(10);

/// Lets in everybody who knocks, for as long as it is polled. While nobody listens behind it, it is closed, as the port of a
/// process that has ended is: who knocks then is refused.
pub(super) async fn open(mut listener: TcpListener, behind: SocketAddr, to: Party, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, from)) = accepted {
                    connections.spawn(connect(stream, from, behind, to, Arc::clone(&shared)));
                }
            }
            Some(ended) = connections.join_next() => {
                if matches!(ended, Ok(Err(NobodyThere))) {
                    listener = close(listener, behind).await;
                }
            }
        }
    }
}

/// Until somebody listens there again.
async fn close(listener: TcpListener, behind: SocketAddr) -> TcpListener {
    let address = listener.local_addr().expect("a listener has an address");
    drop(listener);
    while TcpStream::connect(behind).await.is_err() {
        sleep(LOOK).await;
    }
    TcpListener::bind(address).await.expect("nobody else takes a port of a test")
}

/// The node's port refuses.
struct NobodyThere;

async fn connect(
    caller: TcpStream,
    address: SocketAddr,
    behind: SocketAddr,
    to: Party,
    shared: Arc<Shared>,
) -> Result<(), NobodyThere> {
    let Ok(here) = caller.local_addr() else { return Ok(()) };
    // To find out who has dialled costs much, and those whom nobody answers dial again and again.
    let mut early = None;
    if shared.weather.borrow().values().all(|quality| !quality.cut) {
        early = Some(TcpStream::connect(behind).await.map_err(|_| NobodyThere)?);
    }
    let (answer, answered) = oneshot::channel();
    // Nobody looks it up any more when the links end.
    let _ = shared.knocks.send(Knock { caller: address, here, answer }).await;
    let Ok(from) = answered.await else { return Ok(()) };
    let ways = from.map(|from| ((from, to), (to, from)));
    let mut breaks = shared.breaks.subscribe();
    let seen = breaks.borrow_and_update().0;
    if let Some((there, back)) = ways {
        // The other end does not get to know of the connection before.
        let mut weather = shared.weather.subscribe();
        let cut = |way| weather.borrow().get(&way).is_some_and(|quality| quality.cut);
        if cut(there) || cut(back) {
            Tally::count(&shared.tally.held);
        }
        let open = weather.wait_for(|weather| {
            let cut = |way| weather.get(&way).is_some_and(|quality| quality.cut);
            !cut(there) && !cut(back)
        });
        if open.await.is_err() {
            return Ok(());
        }
    }
    let node = match early {
        Some(node) => node,
        None => TcpStream::connect(behind).await.map_err(|_| NobodyThere)?,
    };
    let _ = (caller.set_nodelay(true), node.set_nodelay(true));
    let ((from_caller, to_caller), (from_node, to_node)) = (caller.into_split(), node.into_split());
    let way = |way: Option<(Party, Party)>| Way::new(way, Arc::clone(&shared));
    let broken =
        breaks.wait_for(|(count, whose)| *count != seen && from.is_some_and(|from| whose.contains(&from)));
    // When one direction is at its end for good, so is the other.
    tokio::select! {
        () = carry(from_caller, to_node, way(ways.map(|ways| ways.0))) => {}
        () = carry(from_node, to_caller, way(ways.map(|ways| ways.1))) => {}
        _ = broken => Tally::count(&shared.tally.broken),
    }
    Ok(())
}
