//! The history outlives the nodes that wrote it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cluster_tests::{Cluster, ClusterOptions, LONG, by_id, eventually, scrape, shell};
use sandkeeper_client::{Client, v1};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Sandboxes come and go through whichever nodes there are, until it is told to stop.
struct Load {
    client: Arc<Mutex<Client>>,
    lives: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(client: Client) -> Self {
        let load = Self {
            client: Arc::new(Mutex::new(client)),
            lives: Arc::default(),
            stop: Arc::default(),
            callers: Vec::new(),
        };
        let callers = (0..4).map(|caller| {
            let (client, lives, stop) =
                (Arc::clone(&load.client), Arc::clone(&load.lives), Arc::clone(&load.stop));
            tokio::spawn(async move {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let client = client.lock().unwrap().clone();
                    // Each name has many lives.
                    let create = shell(&format!("c{caller}-{}", number % 10), "sleep 600");
                    let id = client.create(create).await.unwrap().sandbox.unwrap().sandbox_id;
                    let target =
                        v1::TerminateSandboxRequest { r#ref: Some(by_id(&id)), ..Default::default() };
                    client.terminate(target).await.unwrap();
                    lives.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let callers = callers.collect();
        Self { callers, ..load }
    }

    /// From now on through these nodes.
    fn turn_to(&self, client: Client) {
        *self.client.lock().unwrap() = client;
    }

    async fn goes_on(&self, lives: u64) {
        let wanted = self.lives.load(Ordering::Relaxed) + lives;
        eventually("callers get on", || async {
            let now = self.lives.load(Ordering::Relaxed);
            if now >= wanted { Ok(()) } else { Err(format!("{now} of {wanted} lives")) }
        })
        .await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
    }
}

/// Every event from the first one up to `last`, as one node tells it.
async fn all_events(cluster: &Cluster, node: usize, last: u64) -> Vec<v1::Event> {
    let mut watch = cluster.client_of(&[node]).watch(1, v1::EventFilter::default());
    let mut events: Vec<v1::Event> = Vec::new();
    while (events.len() as u64) < last {
        events.extend(timeout(LONG, watch.next()).await.expect("events come").unwrap().events);
    }
    events.truncate(usize::try_from(last).unwrap());
    let revisions: Vec<u64> = events.iter().map(|event| event.revision).collect();
    assert_eq!(revisions, (1..=last).collect::<Vec<_>>(), "without a gap, none twice");
    events
}

async fn revision_of(cluster: &Cluster, node: usize) -> u64 {
    let local = v1::ReadOptions { consistency: v1::Consistency::Local.into(), min_revision: 0 };
    cluster.client_of(&[node]).capacity(local).await.unwrap().revision
}

/// Puts a new node with an empty disk in the place of an old one, which is deleted.
async fn replace(cluster: &mut Cluster, load: &Load, old: usize) -> usize {
    let staying: Vec<usize> = cluster.running().into_iter().filter(|index| *index != old).collect();
    // So much that the log which they keep for nodes that are behind does not reach back to the beginning.
    eventually("the log is purged, and kept as history", || async {
        for index in &staying {
            let status = cluster.client_of(&[*index]).status().await.map_err(|error| error.to_string())?;
            if status.purged_index == 0 || status.oldest_revision != 1 {
                return Err(format!(
                    "n{index} keeps {} from {}",
                    status.purged_index, status.oldest_revision
                ));
            }
        }
        Ok(())
    })
    .await;
    let recorded = all_events(cluster, old, revision_of(cluster, old).await).await;

    cluster.add_node().await;
    let new = cluster.nodes.len() - 1;
    let name = cluster.nodes[new].name.clone();
    let client = cluster.client_of(&staying);
    eventually("the new node is a voter", || async {
        let members = client.list_members(v1::ReadOptions::default()).await;
        let members = members.map_err(|error| error.to_string())?.members;
        let voter = |member: &v1::Member| member.name == name && member.role() == v1::MemberRole::Voter;
        if members.iter().any(voter) { Ok(()) } else { Err(format!("{members:?}")) }
    })
    .await;
    load.turn_to(cluster.client_of(&[&staying[..], &[new]].concat()));
    // It may not have it yet; whoever asks does not notice.
    assert!(
        all_events(cluster, new, recorded.len() as u64).await == recorded,
        "n{new} tells another history"
    );
    eventually("the new node has all of the history", || async {
        let status = cluster.client_of(&[new]).status().await.map_err(|error| error.to_string())?;
        let all = status.oldest_revision == 1 && status.history_missing_entries == 0;
        if all { Ok(()) } else { Err(format!("from {}", status.oldest_revision)) }
    })
    .await;
    let fetched = scrape(&cluster.nodes[new].http).await.unwrap()["sandkeeper_history_fetched_entries_total"];
    assert!(fetched > 0.0, "it came by snapshot, and fetched the history: {}", cluster.log_of(new));

    let name = cluster.nodes[old].name.clone();
    client.remove_member(&name).await.unwrap();
    cluster.kill_node(old);
    std::fs::remove_dir_all(&cluster.nodes[old].data_dir).unwrap();
    load.goes_on(20).await;
    new
}

#[tokio::test(flavor = "multi_thread")]
async fn after_every_node_was_replaced_three_times_all_have_all_of_the_history() {
    let flags = ["--catch-up-entries", "64", "--snapshot-log-bytes", "32KiB"];
    let options = ClusterOptions {
        slots: 512,
        agent_flags: ["--runtime", "simulated"].map(str::to_owned).to_vec(),
        server_flags: flags.map(str::to_owned).to_vec(),
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::start_with(options).await;
    let load = Load::start(cluster.client());
    load.goes_on(150).await;
    let mut first = None;
    for _ in 0..3 {
        for old in cluster.running() {
            if first.is_none() {
                first = Some(all_events(&cluster, old, revision_of(&cluster, old).await).await);
            }
            replace(&mut cluster, &load, old).await;
        }
    }
    load.end().await;
    let first = first.unwrap();
    cluster.wait_identical().await;
    let running = cluster.running();
    let last = revision_of(&cluster, running[0]).await;
    let histories: Vec<_> = {
        let mut histories = Vec::new();
        for index in &running {
            histories.push(all_events(&cluster, *index, last).await);
        }
        histories
    };
    assert!(histories.iter().all(|history| *history == histories[0]), "all tell one history");
    assert!(histories[0].starts_with(&first), "the one that the first nodes told");
    // A name's lives, also those that only nodes which are long gone have seen.
    for index in &running {
        let filter = v1::EventFilter {
            namespace: "default".into(),
            name: "c0-0".into(),
            ..v1::EventFilter::default()
        };
        let request = v1::ListEventsRequest { filter: Some(filter), limit: 5000, ..Default::default() };
        let listed = cluster.client_of(&[*index]).events(request).await.unwrap();
        let wanted: Vec<_> = histories[0].iter().filter(|event| event.name == "c0-0").cloned().collect();
        assert!(!listed.truncated && wanted.len() > 20, "{} events", wanted.len());
        assert_eq!(listed.events, wanted);
    }
    cluster.assert_nobody_diverged();
}
