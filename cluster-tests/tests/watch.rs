//! Watches and the history: on every replica the same, without gaps, whatever happens to the leader.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cluster_tests::{Cluster, ClusterOptions, LONG, by_id, eventually, shell};
use futures::future::join_all;
use sandkeeper_client::{Client, Watch, v1};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use v1::EventType as Type;

fn simulated() -> ClusterOptions {
    ClusterOptions {
        slots: 512,
        agent_flags: ["--runtime", "simulated"].map(str::to_owned).to_vec(),
        ..ClusterOptions::default()
    }
}

fn all() -> v1::EventFilter {
    v1::EventFilter::default()
}

/// Callers that create and terminate until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    /// Creates that were acknowledged so far.
    created: Arc<AtomicUsize>,
    workers: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(cluster: &Cluster, workers: usize) -> Self {
        let (stop, created) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let worker = |worker: usize| {
            let client = cluster.client_of(&[worker % 3, (worker + 1) % 3, (worker + 2) % 3]);
            let (stop, created) = (Arc::clone(&stop), Arc::clone(&created));
            tokio::spawn(async move {
                let mut ids = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let name = format!("w{worker}-{}", ids.len());
                    let sandbox = client.create(shell(&name, "sleep 600")).await.unwrap().sandbox.unwrap();
                    created.fetch_add(1, Ordering::Relaxed);
                    terminate(&client, &sandbox.sandbox_id).await;
                    ids.push(sandbox.sandbox_id);
                }
                ids
            })
        };
        let workers = (0..workers).map(worker).collect();
        Self { stop, created, workers }
    }

    /// Waits until this many more creates were acknowledged.
    async fn goes_on(&self, more: usize) {
        let wanted = self.created.load(Ordering::Relaxed) + more;
        eventually("callers get on", || async {
            let created = self.created.load(Ordering::Relaxed);
            if created >= wanted { Ok(()) } else { Err(format!("{created} of {wanted} creates")) }
        })
        .await;
    }

    /// Ends it; the ids of all that was created.
    async fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        join_all(self.workers).await.into_iter().flat_map(Result::unwrap).collect()
    }
}

async fn terminate(client: &Client, sandbox_id: &str) {
    let request = v1::TerminateSandboxRequest { r#ref: Some(by_id(sandbox_id)), ..Default::default() };
    client.terminate(request).await.unwrap();
}

/// What a watch brings from revision `from` up to `last`, without a gap.
async fn read(mut watch: Watch, from: u64, last: u64) -> Vec<v1::Event> {
    let mut events: Vec<v1::Event> = Vec::new();
    while from + (events.len() as u64) <= last {
        let message = timeout(LONG, watch.next()).await.expect("events come").unwrap();
        events.extend(message.events);
    }
    without_gap(&events, from);
    events.retain(|event| event.revision <= last);
    events
}

fn without_gap(events: &[v1::Event], from: u64) {
    for (expected, event) in (from..).zip(events) {
        assert_eq!(event.revision, expected, "a gap, or one event twice");
    }
}

/// The same from one node itself, as it comes over the wire.
async fn read_raw(cluster: &Cluster, index: usize, from: u64, last: u64) -> Vec<v1::Event> {
    let request = v1::WatchEventsRequest { from_revision: from, filter: None };
    let mut stream = cluster.raw(index).events().watch_events(request).await.unwrap().into_inner();
    let mut events: Vec<v1::Event> = Vec::new();
    while from + (events.len() as u64) <= last {
        let message = timeout(LONG, stream.next()).await.expect("events come").unwrap().unwrap();
        assert_eq!(message.node, cluster.nodes[index].name);
        events.extend(message.events);
    }
    without_gap(&events, from);
    events.truncate(usize::try_from(last + 1 - from).unwrap());
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_through_each_node_are_equal_and_without_gap_while_leaders_are_killed() {
    let mut cluster = Cluster::start_with(simulated()).await;
    // Each begins at another node, and goes on at another replica when that one dies.
    let watches: Vec<_> = (0..3)
        .map(|index| cluster.client_of(&[index, (index + 1) % 3, (index + 2) % 3]).watch(1, all()))
        .map(|mut watch| {
            let (last, until) = tokio::sync::watch::channel(u64::MAX);
            let task = tokio::spawn(async move {
                let mut events: Vec<v1::Event> = Vec::new();
                let mut nodes = Vec::new();
                while (events.len() as u64) < *until.borrow() {
                    let message =
                        timeout(LONG, watch.next()).await.expect("events or bookmarks come").unwrap();
                    if nodes.last() != Some(&message.node) {
                        nodes.push(message.node);
                    }
                    events.extend(message.events);
                }
                (events, nodes)
            });
            (last, task)
        })
        .collect();
    let load = Load::start(&cluster, 6);
    load.goes_on(50).await;
    let mut killed = Vec::new();
    for _ in 0..3 {
        let leader = cluster.wait_leader().await;
        cluster.kill_node(leader);
        killed.push(cluster.nodes[leader].name.clone());
        load.goes_on(50).await;
        cluster.start_node(leader);
        cluster.wait_ready().await;
        load.goes_on(20).await;
    }
    let ids = load.end().await;
    cluster.terminate_all().await;
    let last = cluster.wait_identical().await.revision;

    let mut told = Vec::new();
    for (until, task) in watches {
        until.send_replace(last);
        told.push(task.await.unwrap());
    }
    for (events, _) in &told {
        without_gap(events, 1);
        // What has happened since is housekeeping, and not for all watches the same.
        assert_eq!(events[..usize::try_from(last).unwrap()], told[0].0[..usize::try_from(last).unwrap()]);
    }
    for (index, (_, nodes)) in told.iter().enumerate() {
        let resumed = nodes.len() > 1 || !killed.contains(&cluster.nodes[index].name);
        assert!(resumed, "the node of watch {index} was killed, and it was read from {nodes:?} only");
    }
    assert!(told.iter().any(|(_, nodes)| nodes.len() > 1), "some watch resumed at another replica");

    let events = &told[0].0[..usize::try_from(last).unwrap()];
    let times = events.windows(2).all(|pair| pair[0].time < pair[1].time);
    assert!(times, "each event has a time of its own, later than the one before");
    for id in &ids {
        let types: Vec<_> =
            events.iter().filter(|event| event.sandbox_id == *id).map(v1::Event::r#type).collect();
        let count = |kind| types.iter().filter(|found| **found == kind).count();
        let once =
            [Type::SandboxCreated, Type::SandboxAllocated, Type::SandboxTerminating, Type::SandboxRemoved];
        assert!(once.into_iter().all(|kind| count(kind) == 1), "{id} was acknowledged once: {types:?}");
    }
    let made = events.iter().filter(|event| event.r#type() == Type::SandboxCreated).count();
    assert_eq!(made, ids.len(), "nothing was made that nobody was told of");
    for index in 0..3 {
        assert_eq!(
            read_raw(&cluster, index, 1, last).await,
            events,
            "the whole history, from n{index} alone"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_watches_get_bookmarks_from_which_they_can_resume() {
    let cluster = Cluster::start_with(simulated()).await;
    let now = cluster.wait_identical().await.revision;
    let mut watches = Vec::new();
    for index in cluster.running() {
        // One of all that comes, and one of what never comes.
        let nothing = v1::EventFilter { name: "no-such-name".into(), ..all() };
        for filter in [None, Some(nothing)] {
            let request = v1::WatchEventsRequest { from_revision: 0, filter };
            let stream = cluster.raw(index).events().watch_events(request).await.unwrap();
            watches.push(stream.into_inner());
        }
    }
    for watch in &mut watches {
        let bookmark = timeout(LONG, watch.next()).await.expect("a bookmark comes").unwrap().unwrap();
        assert_eq!((bookmark.revision, bookmark.events.len()), (now, 0));
    }
    let client = cluster.client();
    let created = client.create(shell("web", "sleep 600")).await.unwrap().sandbox.unwrap();
    cluster.wait_phase(&created.sandbox_id, v1::Phase::Running).await;
    let last = cluster.wait_identical().await.revision;
    for (index, watch) in watches.iter_mut().enumerate() {
        let mut revisions = Vec::new();
        let mut at = now;
        while at < last || revisions.is_empty() {
            let message = timeout(LONG, watch.next()).await.expect("a bookmark comes").unwrap().unwrap();
            assert!(message.revision >= at, "never back: {} after {at}", message.revision);
            at = message.revision;
            revisions.extend(message.events.into_iter().map(|event| event.revision));
            if index % 2 == 1 && at >= last {
                break;
            }
        }
        let wanted: Vec<u64> = if index % 2 == 0 { (now + 1..=last).collect() } else { Vec::new() };
        assert_eq!(revisions, wanted, "the bookmarks of what is filtered out move too");
    }
}

/// Sandboxes and their phases.
type Phases = BTreeMap<String, v1::Phase>;

/// All pages of a list, of one revision.
async fn list(client: &Client) -> (u64, Phases) {
    let mut request = v1::ListSandboxesRequest { page_size: 5, ..v1::ListSandboxesRequest::default() };
    let mut found = Phases::new();
    let mut revision = None;
    loop {
        let page = client.list(request.clone()).await.unwrap();
        let header = page.header.unwrap();
        assert_eq!(
            *revision.get_or_insert(header.revision),
            header.revision,
            "all pages are of one revision"
        );
        for sandbox in page.sandboxes {
            let phase = sandbox.phase();
            assert!(sandbox.revision <= header.revision);
            assert!(found.insert(sandbox.sandbox_id, phase).is_none(), "no sandbox is on two pages");
        }
        if page.next_page_token.is_empty() {
            return (header.revision, found);
        }
        request.page_token = page.next_page_token;
    }
}

/// What an event does to a list.
fn fold(phases: &mut Phases, event: &v1::Event) {
    let phase = match event.r#type() {
        Type::SandboxCreated | Type::SandboxReset => v1::Phase::Pending,
        Type::SandboxAllocated => v1::Phase::Allocated,
        Type::SandboxRunning => v1::Phase::Running,
        Type::SandboxTerminating => v1::Phase::Terminating,
        Type::SandboxFailed => v1::Phase::Failed,
        Type::SandboxLost => v1::Phase::Lost,
        Type::SandboxRemoved => {
            phases.remove(&event.sandbox_id);
            return;
        }
        _ => return,
    };
    phases.insert(event.sandbox_id.clone(), phase);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_and_a_watch_from_the_next_revision_miss_nothing() {
    let cluster = Cluster::start_with(simulated()).await;
    let client = cluster.client();
    for index in 0..12 {
        client.create(shell(&format!("stays-{index}"), "sleep 600")).await.unwrap();
    }
    let load = Load::start(&cluster, 6);
    for round in 0..9 {
        load.goes_on(20).await;
        // Listed at one node, watched at another, compared with a list of the third.
        let [first, second, third] = [round % 3, (round + 1) % 3, (round + 2) % 3];
        let (revision, mut phases) = list(&cluster.client_of(&[first])).await;
        let watch = cluster.client_of(&[second]).watch(revision + 1, all());
        load.goes_on(20).await;
        let (last, wanted) = list(&cluster.client_of(&[third])).await;
        assert!(last > revision, "it is linearizable, and much has happened since");
        for event in read(watch, revision + 1, last).await {
            fold(&mut phases, &event);
        }
        assert_eq!(phases, wanted, "revision {revision} and the events up to {last}");
    }
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_of_a_sandbox_is_a_chain_on_every_node() {
    let cluster = Cluster::start_with(simulated()).await;
    let client = cluster.client();
    let created = client.create(shell("web", "sleep 600")).await.unwrap().sandbox.unwrap();
    let id = created.sandbox_id.clone();
    let other = client.create(shell("other", "sleep 600")).await.unwrap().sandbox.unwrap();
    cluster.wait_phase(&id, v1::Phase::Running).await;
    let update = v1::UpdateSandboxRequest {
        r#ref: Some(by_id(&id)),
        update_mask: Some(prost_types::FieldMask { paths: vec!["labels".into()] }),
        labels: BTreeMap::from([("tier".into(), "front".into())]),
        ..v1::UpdateSandboxRequest::default()
    };
    client.update(update).await.unwrap();
    terminate(&client, &other.sandbox_id).await;
    let reset = v1::ResetSandboxRequest { r#ref: Some(by_id(&id)), ..v1::ResetSandboxRequest::default() };
    client.reset(reset).await.unwrap();
    eventually("generation 2 runs, and generation 1 is known to be gone", || async {
        let types: Vec<_> = history(&client, &by_sandbox(&id)).await.iter().map(v1::Event::r#type).collect();
        let runs = types.iter().filter(|found| **found == Type::SandboxRunning).count();
        let released = types.contains(&Type::AllocationReleased);
        if runs == 2 && released { Ok(()) } else { Err(format!("{types:?}")) }
    })
    .await;
    let alive = on_every_node(&cluster, &by_sandbox(&id)).await;
    is_a_chain(&alive);
    let begin = [Type::SandboxCreated, Type::SandboxAllocated, Type::SandboxRunning, Type::SandboxUpdated];
    let types: Vec<_> = alive.iter().map(v1::Event::r#type).collect();
    assert_eq!(types[..4], begin);
    assert_eq!(types[4], Type::SandboxReset);
    assert_eq!(alive[0].time, created.create_timestamp, "the time of the event that creates is the create's");
    assert_eq!(alive[0].sandbox.as_ref().unwrap().sandbox_id, id);

    terminate(&client, &id).await;
    let again = client.create(shell("web", "sleep 600")).await.unwrap().sandbox.unwrap();
    cluster.wait_phase(&id, v1::Phase::Gone).await;
    cluster.wait_phase(&again.sandbox_id, v1::Phase::Running).await;
    cluster.wait_identical().await;
    let gone = on_every_node(&cluster, &by_sandbox(&id)).await;
    is_a_chain(&gone);
    assert_eq!(gone[..alive.len()], alive, "the past does not change");
    assert_eq!(gone.last().map(v1::Event::r#type), Some(Type::SandboxRemoved));
    assert_ne!(again.sandbox_id, id);

    // By name: both that had it, in the order in which it happened.
    let named = v1::EventFilter { namespace: "default".into(), name: "web".into(), ..all() };
    let both = on_every_node(&cluster, &named).await;
    assert!(both.windows(2).all(|pair| pair[0].revision < pair[1].revision));
    let of =
        |wanted: &str| both.iter().filter(|event| event.sandbox_id == wanted).cloned().collect::<Vec<_>>();
    assert_eq!(of(&id), gone);
    is_a_chain(&of(&again.sandbox_id));
    assert_eq!(of(&id).len() + of(&again.sandbox_id).len(), both.len());

    // A watch with the same filter, from the beginning, brings the same.
    for index in cluster.running() {
        let watch = cluster.client_of(&[index]).watch(1, by_sandbox(&id));
        let stream = watch.into_events().take(gone.len());
        let seen: Result<Vec<_>, _> = timeout(LONG, stream.collect()).await.expect("all events come");
        assert_eq!(seen.unwrap(), gone);
    }
    let last_two = v1::ListEventsRequest { filter: Some(by_sandbox(&id)), limit: 2, read: None };
    let page = client.events(last_two).await.unwrap();
    assert!(page.truncated);
    assert_eq!(page.events, gone[gone.len() - 2..], "a limit leaves the newest");
}

fn by_sandbox(sandbox_id: &str) -> v1::EventFilter {
    v1::EventFilter { sandbox_id: sandbox_id.to_owned(), ..all() }
}

async fn history(client: &Client, filter: &v1::EventFilter) -> Vec<v1::Event> {
    let request = v1::ListEventsRequest { filter: Some(filter.clone()), ..v1::ListEventsRequest::default() };
    let found = client.events(request).await.unwrap();
    assert!(!found.truncated);
    found.events
}

async fn on_every_node(cluster: &Cluster, filter: &v1::EventFilter) -> Vec<v1::Event> {
    let mut found = Vec::new();
    for index in cluster.running() {
        let client = cluster.client_of(&[index]).with_deadline(Duration::from_secs(30));
        found.push(history(&client, filter).await);
    }
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "all nodes tell the same: {found:#?}");
    found.swap_remove(0)
}

fn is_a_chain(events: &[v1::Event]) {
    assert_eq!(events[0].previous_revision, 0, "it begins where the sandbox begins");
    for pair in events.windows(2) {
        assert_eq!(pair[1].previous_revision, pair[0].revision, "{pair:#?}");
    }
}
