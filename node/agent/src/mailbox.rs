//! The one mailbox: everything that can change what the agent does goes through it, in one order.

use sandkeeper_proto::v1;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::boottime::BootTime;
use crate::plan::Input;
use crate::session::Lease;

/// How many messages wait at most. Sessions that bring more stop reading, and HTTP/2 stops their servers.
pub(crate) const CAPACITY: usize = 1_024;

/// One message to the loop.
#[derive(Debug)]
pub(crate) enum Message {
    /// A session has begun. Its messages follow, then its end.
    Opened {
        /// Its number.
        session: u64,
        /// How to answer in it.
        link: Link,
    },
    /// A session is over.
    Closed {
        /// Its number.
        session: u64,
    },
    /// A control node has said something that is not the session's own affair.
    Server {
        /// In which session.
        session: u64,
        /// What.
        message: Box<v1::ServerMessage>,
        /// When.
        received: BootTime,
        /// When the newest heartbeat was sent that had been acknowledged in this session by then.
        heard: Option<BootTime>,
    },
    /// A control node wants the agent never to come back as it is.
    SentAway {
        /// Its address.
        server: String,
        /// Why.
        reason: String,
    },
    /// A runtime call has ended.
    Runtime(Input),
}

/// The agent's end of a session.
#[derive(Debug)]
pub(crate) struct Link {
    /// The address of the control node.
    pub(crate) server: String,
    /// What goes to it. Full when the node does not read: then the session is closed rather than waited for.
    pub(crate) outbound: mpsc::Sender<v1::AgentMessage>,
    /// Ends the session.
    pub(crate) close: CancellationToken,
    /// The connection, for tunnels.
    pub(crate) lease: Lease,
}
