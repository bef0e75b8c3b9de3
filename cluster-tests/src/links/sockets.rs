//! Sockets, as the kernel knows them (`sock_diag(7)`): one at a time, which costs microseconds. The table in `/proc/net/tcp` has
//! the sockets of all tests on the machine, and reading it kept a processor busy.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};

/// An answer about one socket is a tenth of this.
const ANSWER_BYTES: usize = 4_096;
/// "Whichever it is": `INET_DIAG_NOCOOKIE`.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// Where the kernel is asked.
pub(super) struct Sockets(Socket);

impl Sockets {
    /// Ready to ask.
    ///
    /// # Errors
    /// If the kernel can't be asked.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddress::new(0, 0))?;
        Ok(Self(socket))
    }

    /// The inode of the TCP socket that is bound to `from` and connected to `to`; None: there is none, or nobody holds it any more.
    ///
    /// # Errors
    /// If the kernel gives no answer that can be read.
    pub(super) fn inode(&self, from: SocketAddr, to: SocketAddr) -> io::Result<Option<u64>> {
        let socket_id = SocketId {
            source_port: from.port(),
            destination_port: to.port(),
            source_address: from.ip(),
            destination_address: to.ip(),
            interface_id: 0,
            cookie: NO_COOKIE,
        };
        let request = InetRequest {
            family: AF_INET,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id,
        };
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let mut answer = Vec::with_capacity(ANSWER_BYTES);
        self.0.recv(&mut answer, 0)?;
        let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer).map_err(io::Error::other)?;
        Ok(match answer.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(socket)) => {
                Some(u64::from(socket.header.inode)).filter(|inode| *inode != 0)
            }
            _ => None,
        })
    }
}

/// The sockets that a process has open; none if it is gone.
pub(super) fn held_by(pid: u32) -> Vec<u64> {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let inode = |link: PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    files.flatten().filter_map(|file| inode(fs::read_link(file.path()).ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_socket_is_found_by_its_two_ends_among_those_of_its_process() {
        let sockets = Sockets::open().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (from, to) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let inode = sockets.inode(from, to).unwrap().expect("it is there");
        assert!(held_by(std::process::id()).contains(&inode));
        let accepted = listener.accept().unwrap().0;
        assert_ne!(sockets.inode(to, from).unwrap(), Some(inode), "the other end is another socket");
        drop((stream, accepted));
        assert_eq!(sockets.inode(from, to).unwrap(), None);
    }
}
