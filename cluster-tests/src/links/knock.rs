//! Who has dialled: the kernel says which socket is at the other end, and `/proc` which process holds it.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::{Party, Shared};

/// A process that was started this moment may not be introduced yet.
const LOOKS: u32 = 5;
const LOOK: Duration = Duration::from_millis(10);

/// The kernel goes through all connections for each look, and `/proc` through all files: not more of them at a time.
static LOOKING: Semaphore = Semaphore::const_new(2);

/// Who holds the other end of a connection.
enum Caller {
    Party(Party),
    /// This process itself: one of its clients.
    Client,
    /// Nobody that is known yet.
    Unknown,
}

/// The party at the other end of a connection; None: somebody else, such as a client.
pub(super) async fn who(caller: SocketAddr, here: SocketAddr, shared: &Arc<Shared>) -> Option<Party> {
    for _ in 0..LOOKS {
        let parties = shared.parties().clone();
        let turn = LOOKING.acquire().await.ok()?;
        let found = spawn_blocking(move || {
            let Some(inode) = inode_of(caller, here) else { return Caller::Unknown };
            if holds(std::process::id(), inode) && !parties.contains_key(&std::process::id()) {
                return Caller::Client;
            }
            let party = parties.iter().find(|(pid, _)| holds(**pid, inode));
            party.map_or(Caller::Unknown, |(_, party)| Caller::Party(*party))
        });
        match found.await {
            Ok(Caller::Party(party)) => return Some(party),
            Ok(Caller::Client) => return None,
            Ok(Caller::Unknown) | Err(_) => {}
        }
        drop(turn);
        sleep(LOOK).await;
    }
    None
}

/// The socket that is bound to `from` and connected to `to`.
fn inode_of(from: SocketAddr, to: SocketAddr) -> Option<u64> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let (from, to) = (hexadecimal(from)?, hexadecimal(to)?);
    table.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let found = fields.get(1) == Some(&from.as_str()) && fields.get(2) == Some(&to.as_str());
        if found { fields.get(9)?.parse().ok() } else { None }
    })
}

/// As `/proc/net/tcp` has it: the address as a number in the machine's byte order.
fn hexadecimal(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    let number = u32::from_ne_bytes(address.ip().octets());
    Some(format!("{number:08X}:{:04X}", address.port()))
}

fn holds(pid: u32, inode: u64) -> bool {
    let name = format!("socket:[{inode}]");
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == name.as_str()))
}
