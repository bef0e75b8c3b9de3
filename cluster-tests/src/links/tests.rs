use std::process::id;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::*;

const THERE: (Party, Party) = (Party::Agent(0), Party::Node(0));
const BACK: (Party, Party) = (Party::Node(0), Party::Agent(0));

/// Whether a text comes, on however busy a machine.
async fn hears(stream: &mut TcpStream, text: &str) -> bool {
    let mut buffer = vec![0; text.len()];
    let read = timeout(Duration::from_secs(30), stream.read_exact(&mut buffer)).await;
    read.is_ok_and(|read| read.is_ok() && buffer == text.as_bytes())
}

/// Whether nothing comes for a moment.
async fn is_silent(stream: &TcpStream) -> bool {
    timeout(Duration::from_millis(300), stream.readable()).await.is_err()
}

/// This process is the agent; the node is a listener in it.
async fn pair(links: &mut Links) -> (TcpStream, TcpStream) {
    links.introduce(id(), Party::Agent(0));
    let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = links.door(0, &node.local_addr().unwrap().to_string()).await;
    let agent = TcpStream::connect(door).await.unwrap();
    let node = timeout(Duration::from_secs(30), node.accept()).await.unwrap().unwrap().0;
    (agent, node)
}

#[tokio::test]
async fn one_way_is_cut_and_the_other_goes_on() {
    let mut links = Links::new();
    let (mut agent, mut node) = pair(&mut links).await;
    agent.write_all(b"one").await.unwrap();
    assert!(hears(&mut node, "one").await);
    links.set([(BACK, Quality { cut: true, ..Quality::default() })].into());
    agent.write_all(b"two").await.unwrap();
    node.write_all(b"three").await.unwrap();
    assert!(hears(&mut node, "two").await);
    assert!(is_silent(&agent).await);
    assert_eq!(links.tally().held.load(Ordering::Relaxed), 1);
    links.set(Weather::new());
    assert!(hears(&mut agent, "three").await);
    drop(agent);
    assert_eq!(node.read(&mut [0]).await.unwrap(), 0, "and then the end");
}

#[tokio::test]
async fn a_cut_link_takes_no_new_connection_and_strangers_pass() {
    let mut links = Links::new();
    links.set([(THERE, Quality { cut: true, ..Quality::default() })].into());
    let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = links.door(0, &node.local_addr().unwrap().to_string()).await;
    let _stranger = TcpStream::connect(&door).await.unwrap();
    let accepted = timeout(Duration::from_secs(30), node.accept()).await;
    assert!(accepted.is_ok(), "a stranger is let in");
    links.introduce(id(), Party::Agent(0));
    let _agent = TcpStream::connect(&door).await.unwrap();
    assert!(timeout(Duration::from_millis(300), node.accept()).await.is_err());
    links.set(Weather::new());
    assert!(timeout(Duration::from_secs(30), node.accept()).await.is_ok());
}

#[tokio::test]
async fn links_are_slow_narrow_lossy_and_break() {
    let mut links = Links::new();
    let (mut agent, mut node) = pair(&mut links).await;
    let slow = Quality { delay: Duration::from_millis(100), ..Quality::default() };
    let narrow = Quality { rate: Some(30), ..Quality::default() };
    let lossy = Quality { loss: 1.0, ..Quality::default() };
    for quality in [slow, narrow, lossy] {
        links.set([(THERE, quality)].into());
        let began = Instant::now();
        agent.write_all(b"one").await.unwrap();
        assert!(hears(&mut node, "one").await);
        assert!(began.elapsed() >= Duration::from_millis(90), "{quality:?}: {:?}", began.elapsed());
    }
    let tally = links.tally();
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    assert_eq!((count(&tally.delayed), count(&tally.throttled), count(&tally.lost)), (1, 1, 1));
    links.break_connections(vec![Party::Agent(1)]);
    links.break_connections(vec![Party::Agent(0)]);
    assert_eq!(agent.read(&mut [0]).await.unwrap_or(0), 0, "it is broken");
}

#[tokio::test]
async fn behind_a_node_that_has_ended_the_door_is_closed() {
    let mut links = Links::new();
    let ports = Ports::take(1);
    let node = TcpListener::bind(ports.socket(0)).await.unwrap();
    let door = links.door(0, &ports.socket(0).to_string()).await;
    drop(node);
    let refused = async {
        while TcpStream::connect(&door).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), refused).await.expect("the door closes");
    let node = TcpListener::bind(ports.socket(0)).await.unwrap();
    let open = async {
        while TcpStream::connect(&door).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), open).await.expect("the door opens");
    assert!(timeout(Duration::from_secs(30), node.accept()).await.is_ok());
}
