//! Who has dialled: the kernel says which socket is at the other end, and `/proc` which process holds it. All who knock at a
//! time are looked up together: one look costs as much as many.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::sockets::{Sockets, held_by};
use super::{Party, Shared};

/// A process that was started this moment may not be introduced yet.
const LOOKS: u32 = 5;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);
/// So many are looked up at once at most.
const TOGETHER: usize = 1_024;

/// Somebody knocks.
#[derive(Debug)]
pub(super) struct Knock {
    pub(super) caller: SocketAddr,
    pub(super) here: SocketAddr,
    /// The party at the other end; None: somebody else, such as a client, or nobody any more.
    pub(super) answer: oneshot::Sender<Option<Party>>,
}

/// Looks everybody up who knocks, for as long as there are links.
///
/// # Panics
/// If the kernel does not tell.
pub(super) async fn look_up(mut knocks: mpsc::Receiver<Knock>, shared: Weak<Shared>) {
    let sockets = Arc::new(Sockets::open().expect("the kernel can be asked for sockets (CONFIG_INET_DIAG)"));
    let mut open: Vec<(Knock, u32)> = Vec::new();
    loop {
        if open.is_empty() {
            let Some(knock) = knocks.recv().await else { return };
            open.push((knock, 0));
        }
        while open.len() < TOGETHER
            && let Ok(knock) = knocks.try_recv()
        {
            open.push((knock, 0));
        }
        let Some(parties) = shared.upgrade().map(|shared| shared.parties().clone()) else { return };
        let ends: Vec<_> = open.iter().map(|(knock, _)| (knock.caller, knock.here)).collect();
        let asked = Arc::clone(&sockets);
        let Ok(found) = spawn_blocking(move || holders(&asked, &ends, &parties)).await else { return };
        let found = found.expect("the kernel answers");
        let mut left = Vec::new();
        for ((knock, looks), found) in open.into_iter().zip(found) {
            match found {
                Holder::Stranger if looks + 1 < LOOKS => left.push((knock, looks + 1)),
                // Who does not wait for the answer any more has gone.
                Holder::Party(party) => drop(knock.answer.send(Some(party))),
                Holder::Stranger | Holder::Nobody => drop(knock.answer.send(None)),
            }
        }
        open = left;
        if !open.is_empty() {
            sleep(LOOK).await;
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Holder {
    Party(Party),
    /// Nobody that is known yet.
    Stranger,
    /// A client of this process, or the socket is closed already.
    Nobody,
}

/// Who holds the sockets that are bound to the first address and connected to the second.
fn holders(
    sockets: &Sockets,
    ends: &[(SocketAddr, SocketAddr)],
    parties: &HashMap<u32, Party>,
) -> io::Result<Vec<Holder>> {
    let mine = held_by(std::process::id()).into_iter();
    let mut held: HashMap<_, _> = mine.map(|inode| (inode, Holder::Nobody)).collect();
    for (pid, party) in parties {
        held.extend(held_by(*pid).into_iter().map(|inode| (inode, Holder::Party(*party))));
    }
    let holder = |(from, to): &(SocketAddr, SocketAddr)| {
        Ok(match sockets.inode(*from, *to)? {
            None => Holder::Nobody,
            Some(inode) => held.get(&inode).copied().unwrap_or(Holder::Stranger),
        })
    };
    ends.iter().map(holder).collect()
}
