//! The power of all control nodes goes at once, again and again, while callers create and terminate sandboxes.
//!
//! Needs root, loop devices, xfsprogs and e2fsprogs (without the fsync also strace), so it is not run by default:
//! `cargo test -p cluster-tests --test power -- --ignored --nocapture`
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
#![allow(clippy::print_stderr, reason = "it says what it did")]

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cluster_tests::{Cluster, ClusterOptions, LONG, Process, by_id, eventually, shell};
use futures::FutureExt as _;
use sandkeeper_client::{Client, ClientError, v1};
use test_disks::{FileSystem, LoopDisk};
use tokio::time::timeout;

const CUTS: &str = "SANDKEEPER_CLUSTER_POWER_CUTS";
const CALLERS: u64 = 8;

fn cuts() -> u64 {
    std::env::var(CUTS).map_or(2, |text| text.parse().unwrap())
}

/// What callers were told.
#[derive(Clone, Debug, Default)]
struct Told {
    /// By its revision, the sandbox whose creation it is.
    created: BTreeMap<u64, String>,
    /// By the sandbox, a revision at which it had been terminated.
    terminated: BTreeMap<String, u64>,
}

/// Sandboxes come and go, power or not, until this is dropped.
struct Load {
    told: Arc<Mutex<Told>>,
    unanswered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let load = Self { told: Arc::default(), unanswered: Arc::default(), stop: Arc::default() };
        for caller in 0..CALLERS {
            let client = cluster.client().with_deadline(Duration::from_secs(5));
            let (told, unanswered, stop) =
                (Arc::clone(&load.told), Arc::clone(&load.unanswered), Arc::clone(&load.stop));
            tokio::spawn(async move {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if live_and_die(&client, format!("c{caller}-{number}"), &told).await.is_err() {
                        // Its fate is unknown. Without power every call ends at once.
                        unanswered.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            });
        }
        load
    }

    fn told(&self) -> Told {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many creates callers were told of.
    fn creates(&self) -> usize {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).created.len()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn live_and_die(client: &Client, name: String, told: &Mutex<Told>) -> Result<(), ClientError> {
    let created = client.create(shell(&name, "sleep 600")).await?;
    let id = created.sandbox.unwrap_or_default().sandbox_id;
    told.lock().unwrap().created.insert(created.revision, id.clone());
    let target = v1::TerminateSandboxRequest { r#ref: Some(by_id(&id)), ..Default::default() };
    let terminated = client.terminate(target).await?;
    let revision = terminated.header.unwrap_or_default().revision;
    told.lock().unwrap().terminated.insert(id, revision);
    Ok(())
}

/// All nodes tell one history, which goes on from what they told before, and what callers were told is in it.
async fn check(cluster: &Cluster, load: &Load, history: &mut Vec<v1::Event>) {
    cluster.wait_leader().await;
    // Before it is read, so that the history reaches behind it.
    let told = load.told();
    let mut revision = told.created.keys().chain(told.terminated.values()).max().copied().unwrap_or(0);
    let first = history.len() as u64 + 1;
    for node in cluster.running() {
        let local = v1::ReadOptions::default();
        let client = cluster.client_of(&[node]);
        let now = client.capacity(local).await.unwrap().revision;
        assert!(now >= revision, "revision {revision} was acknowledged, n{node} ends with {now}");
        revision = revision.max(now);
    }
    let mut longest = Vec::new();
    for node in cluster.running() {
        let events = events(cluster, node, first, revision).await;
        if node == 0 {
            longest = events;
        } else {
            assert!(longest == events, "n0 and n{node} tell other histories from {first} to {revision}");
        }
    }
    history.extend(longest);
    for (revision, id) in told.created {
        let event = &history[usize::try_from(revision).unwrap() - 1];
        let is_there = event.sandbox_id == id && event.r#type() == v1::EventType::SandboxCreated;
        assert!(is_there, "the creation of {id} was acknowledged at {revision}, and there is {event:?}");
    }
    let ends = history.iter().filter(|event| event.r#type() == v1::EventType::SandboxTerminating);
    let ends: BTreeMap<&str, u64> = ends.map(|event| (event.sandbox_id.as_str(), event.revision)).collect();
    for (id, revision) in told.terminated {
        let end = ends.get(id.as_str());
        assert!(
            end.is_some_and(|end| *end <= revision),
            "the end of {id} was acknowledged at {revision}: {end:?}"
        );
    }
    one_leader_a_term(cluster);
}

/// The events of these revisions, as one node tells them.
async fn events(cluster: &Cluster, node: usize, first: u64, last: u64) -> Vec<v1::Event> {
    let mut watch = cluster.client_of(&[node]).watch(first, v1::EventFilter::default());
    let mut events: Vec<v1::Event> = Vec::new();
    while events.last().map_or(first - 1, |event| event.revision) < last {
        events.extend(timeout(LONG, watch.next()).await.expect("events come").unwrap().events);
    }
    events.retain(|event| event.revision <= last);
    let revisions: Vec<u64> = events.iter().map(|event| event.revision).collect();
    assert_eq!(revisions, (first..=last).collect::<Vec<_>>(), "without a gap, none twice");
    events
}

/// A node that voted twice in a term would make two leaders of it, sooner or later. How many terms had one.
fn one_leader_a_term(cluster: &Cluster) -> usize {
    let mut leaders: BTreeMap<u64, usize> = BTreeMap::new();
    for node in 0..cluster.nodes.len() {
        let log = cluster.log_of(node);
        for line in log.lines().filter(|line| line.contains("this node leads")) {
            let term = line.split_once("term=").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
            let term = term.unwrap_or_else(|| panic!("it leads in a term: {line}"));
            let leader = *leaders.entry(term).or_insert(node);
            assert_eq!(leader, node, "both nodes led in term {term}");
        }
    }
    assert!(!leaders.is_empty(), "somebody leads, or this test checks nothing");
    leaders.len()
}

struct Rig {
    // In this order: nothing uses the disk when it goes.
    load: Load,
    cluster: Cluster,
    disk: LoopDisk,
    history: Vec<v1::Event>,
}

impl Rig {
    async fn start(kind: FileSystem) -> Self {
        let disk = LoopDisk::new(kind, 2 << 30);
        let options = ClusterOptions {
            agents: 1,
            slots: 1000,
            agent_flags: ["--runtime", "simulated"].map(str::to_owned).to_vec(),
            data_dirs: Some(disk.path().to_owned()),
            ..ClusterOptions::default()
        };
        let cluster = Cluster::start_with(options).await;
        Self { load: Load::start(&cluster), cluster, disk, history: Vec::new() }
    }

    /// Once callers get on, and a moment later: the only wait here that is not for a condition.
    async fn cut(&mut self) {
        let wanted = self.load.creates() + 40;
        eventually("callers get on", || async {
            let told = self.load.creates();
            if told >= wanted { Ok(()) } else { Err(format!("{told} of {wanted}")) }
        })
        .await;
        tokio::time::sleep(Duration::from_micros(rand::random_range(0..300_000))).await;
        self.disk.cut_power();
        for node in 0..3 {
            self.cluster.kill_node(node);
        }
        self.disk.remount();
        for node in 0..3 {
            self.cluster.start_node(node);
        }
    }
}

async fn all_nodes_lose_nothing(kind: FileSystem) {
    let (cuts, began) = (cuts(), Instant::now());
    let mut rig = Rig::start(kind).await;
    for _ in 0..cuts {
        rig.cut().await;
        check(&rig.cluster, &rig.load, &mut rig.history).await;
    }
    let (told, unanswered) = (rig.load.creates(), rig.load.unanswered.load(Ordering::Relaxed));
    drop(rig.load);
    // What the nodes keep is also one state, and what they told all the while.
    rig.cluster.wait_identical().await;
    for node in rig.cluster.running() {
        let all = events(&rig.cluster, node, 1, rig.history.len() as u64).await;
        assert!(all == rig.history, "n{node} tells another history than it told before");
    }
    rig.cluster.assert_nobody_diverged();
    let terms = one_leader_a_term(&rig.cluster);
    let (events, took) = (rig.history.len(), began.elapsed().as_secs_f64());
    eprintln!(
        "{cuts} power cuts of three nodes on {kind:?}: all of {told} acknowledged creates found in {events} events, which \
         are the same on all; {unanswered} calls without an answer; one leader in each of {terms} terms; {took:.0} s"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, loop devices and xfsprogs"]
async fn power_cuts_of_all_nodes_on_xfs_lose_nothing_that_was_acknowledged() {
    all_nodes_lose_nothing(FileSystem::Xfs).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, loop devices, xfsprogs and e2fsprogs"]
async fn power_cuts_of_all_nodes_on_ext4_lose_nothing_that_was_acknowledged() {
    all_nodes_lose_nothing(FileSystem::Ext4).await;
}

/// The nodes' fdatasync does nothing, and says that it did.
fn take_the_fsync_out(cluster: &Cluster) -> Vec<Process> {
    let attach = |node: &cluster_tests::NodeProcess| {
        let pid = node.process.as_ref().unwrap().pid().to_string();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-e", "trace=fdatasync", "-e", "inject=fdatasync:retval=0"]);
        Process::start(
            {
                strace.args(["-o", "/dev/null", "-p", &pid]);
                strace
            },
            &cluster.folder().join("strace.log"),
        )
    };
    cluster.nodes.iter().map(attach).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, loop devices, xfsprogs and strace"]
async fn power_cuts_of_all_nodes_without_the_fsync_lose_acknowledged_sandboxes() {
    let cuts = cuts();
    let mut losses = Vec::new();
    for _ in 0..cuts {
        // A new one each time: what a cut has left may not start again.
        let mut rig = Rig::start(FileSystem::Xfs).await;
        let tracers = take_the_fsync_out(&rig.cluster);
        rig.cut().await;
        let checked = AssertUnwindSafe(check(&rig.cluster, &rig.load, &mut rig.history)).catch_unwind().await;
        drop(tracers);
        if let Err(panic) = checked {
            losses.push(panic.downcast_ref::<String>().cloned().unwrap_or_default());
        }
    }
    eprintln!("{cuts} power cuts of three nodes without fsync: {} lost something", losses.len());
    let lost = losses.iter().filter(|loss| loss.contains("acknowledged")).count();
    assert!(lost > 0, "{losses:#?}");
}
