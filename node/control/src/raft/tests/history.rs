//! History that a snapshot jumped over: read from peers, fetched, verified.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use openraft::EntryPayload;
use sandkeeper_proto::internal::{HistoryEntriesRequest, HistoryStartRequest};
use sandkeeper_statemachine::Entry;
use tonic::{Code, Status};

use super::rig::{Running, Site, all_equal, cluster, eventually, leader, soon, write};
use super::snapshots::snapshot_and_purge;
use crate::history::HistoryError;
use crate::raft::node::RaftNode;
use crate::raft::types::{EntryData, LogEntry};

/// Revisions that a node reads from `from` on, through whatever it reads them from.
async fn revisions(node: &RaftNode, from: u64) -> Result<Vec<u64>, HistoryError> {
    let (mut seen, mut next) = (Vec::new(), from);
    loop {
        let entries = node.history().read(next, 10_000).await?;
        let Some(last) = entries.last() else { return Ok(seen) };
        seen.extend(entries.iter().flat_map(|entry| entry.first_revision..=entry.last_revision()));
        next = last.last_revision() + 1;
    }
}

/// A cluster that keeps all of its history, and little of it for nodes that are behind; one of three was away for so long
/// that it comes back by snapshot.
struct Away {
    sites: Vec<Site>,
    nodes: Vec<Running>,
    absent: usize,
    written: u64,
}

async fn away() -> Away {
    let (sites, mut nodes) = cluster(3, |config| config.catch_up_entries = 20).await;
    write(&nodes, 10).await;
    let away = (leader(&nodes).await + 1) % 3;
    nodes.remove(away).stop().await;
    let written = write(&nodes, 900).await;
    for node in &nodes {
        node.reaches(written).await;
        snapshot_and_purge(node).await;
        assert_eq!(node.node.history().oldest_revision(), 1, "it is purged, and kept as history");
    }
    Away { sites, nodes, absent: away, written }
}

async fn has_fetched(node: &RaftNode) {
    eventually("the history is fetched", || async { (node.history().oldest_revision() == 1).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_came_by_snapshot_has_all_the_history_at_once_and_by_itself_soon() {
    let Away { sites, mut nodes, absent: away, written } = away().await;
    nodes.insert(away, sites[away].start().await);
    nodes[away].reaches(written).await;
    let all: Vec<_> = (1..=written).collect();
    let back = &nodes[away].node;
    assert_eq!(revisions(back, 1).await.unwrap(), all, "from whoever has it");
    has_fetched(back).await;
    let fetching = back.status().fetching;
    assert!(fetching.fetched_entries > 500, "{fetching:?}");
    assert_eq!((fetching.missing_entries, fetching.thrown_away), (0, 0));
    // Alone, also after a restart.
    let last = write(&nodes, 5).await;
    all_equal(&nodes, last).await;
    for node in nodes {
        node.stop().await;
    }
    let alone = sites[away].start().await;
    // Without a majority nothing tells it that its last entries are committed.
    let reached = alone.revision();
    assert!(reached >= 900, "{reached}");
    assert_eq!(alone.node.history().oldest_revision(), 1);
    assert_eq!(revisions(&alone.node, 1).await.unwrap(), (1..=reached).collect::<Vec<_>>());
    // And it gives it to others.
    let start = alone.node.history_start(HistoryStartRequest { wanted_index: 300 }).unwrap();
    assert_eq!(start.index, 256);
    let request = HistoryEntriesRequest { from_index: 0, before_index: u64::MAX };
    assert!(!alone.node.history_entries(&request).await.unwrap().entries.is_empty());
    let beyond = HistoryEntriesRequest { from_index: u64::MAX - 1, before_index: u64::MAX };
    assert_eq!(alone.node.history_entries(&beyond).await.unwrap_err().code(), Code::OutOfRange);
}

/// Has every node give a few entries at a time, and calls `act` with its number, the count of its answers, and the entries.
fn tamper(
    nodes: &[Running],
    act: impl Fn(usize, u32, &mut Vec<LogEntry>) -> Result<(), Status> + Send + Sync + 'static,
) {
    let act = Arc::new(act);
    for (number, node) in nodes.iter().enumerate() {
        let (act, answers) = (Arc::clone(&act), AtomicU32::new(0));
        let tamper = move |entries: &mut Vec<LogEntry>| {
            entries.truncate(100);
            act(number, answers.fetch_add(1, Ordering::SeqCst), entries)
        };
        *node.node.inner.tamper.lock().unwrap() = Some(Box::new(tamper));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_that_does_not_lead_to_the_own_state_is_thrown_away_and_another_peer_asked() {
    let Away { sites, mut nodes, absent: away, written } = away().await;
    // Whoever is asked first gives one entry with another reason in it, and the other one the truth.
    let liar = Mutex::new(None);
    tamper(&nodes, move |number, _, entries| {
        let lie = entries.iter_mut().find(|entry| entry.log_id.index() == 400);
        if let Some(entry) = lie.filter(|_| *liar.lock().unwrap().get_or_insert(number) == number) {
            let EntryPayload::Normal(data) = &entry.payload else { panic!("{entry:?}") };
            let told = data.entry().unwrap();
            let mut events = told.events.to_vec();
            events[0].header.reason = "a lie".to_owned();
            let forged = Entry::new(told.base_revision, told.decided_term, told.time, events);
            entry.payload = EntryPayload::Normal(EntryData::new(forged));
        }
        Ok(())
    });
    nodes.insert(away, sites[away].start().await);
    nodes[away].reaches(written).await;
    let back = &nodes[away].node;
    eventually("the lie is found", || async { (back.status().fetching.thrown_away > 0).then_some(()) }).await;
    assert!(back.history().oldest_revision() > 1, "none of it is kept");
    has_fetched(back).await;
    assert_eq!(back.status().fetching.thrown_away, 1);
    let honest = &nodes[(away + 1) % 3].node;
    let read = |node: RaftNode| async move { node.history().read_here(1, usize::MAX).await.unwrap() };
    let (ours, theirs) = (read(back.clone()).await, read(honest.clone()).await);
    assert!(ours.iter().zip(&theirs).all(|(ours, theirs)| ours.entry == theirs.entry));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_fails_in_the_middle_is_left_for_another_which_goes_on() {
    let Away { sites, mut nodes, absent: away, written } = away().await;
    let served = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&served);
    // Whoever is asked first fails after two answers, for good.
    let first = Mutex::new(None);
    tamper(&nodes, move |number, answers, entries| {
        if *first.lock().unwrap().get_or_insert(number) == number && answers >= 2 {
            return Err(Status::unavailable("it is gone"));
        }
        noted.lock().unwrap().push((number, entries[0].log_id.index()));
        Ok(())
    });
    nodes.insert(away, sites[away].start().await);
    nodes[away].reaches(written).await;
    let back = &nodes[away].node;
    has_fetched(back).await;
    let served = served.lock().unwrap().clone();
    let indexes: Vec<_> = served.iter().map(|(_, index)| *index).collect();
    assert_eq!(
        indexes,
        (0..indexes.len() as u64).map(|part| part * 100).collect::<Vec<_>>(),
        "nothing twice"
    );
    assert!(served[1].0 == served[0].0 && served[2].0 != served[0].0, "{served:?}");
    assert_eq!(revisions(back, 1).await.unwrap(), (1..=written).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_to_keep_less_fetches_no_more_and_asks_no_more() {
    let Away { mut sites, mut nodes, absent: away, written } = away().await;
    sites[away].config.history_retain_entries = 300;
    nodes.insert(away, sites[away].start().await);
    nodes[away].reaches(written).await;
    let back = &nodes[away].node;
    let oldest = eventually("some of the history is fetched", || async {
        let (status, oldest) = (back.status(), back.history().oldest_revision());
        (status.fetching.fetched_entries > 0 && status.fetching.missing_entries == 0).then_some(oldest)
    })
    .await;
    let snapshot = back.status().snapshot.unwrap().index();
    let fetched = back.status().fetching.fetched_entries;
    assert!(oldest > 1 && oldest <= snapshot - 300, "{oldest}");
    assert!((200..300 + 256).contains(&fetched), "{fetched}");
    // What is older is read from those that keep it.
    assert_eq!(revisions(back, 1).await.unwrap(), (1..=written).collect::<Vec<_>>());
    // The next snapshot ends what is not to be kept.
    let last = write(&nodes, 600).await;
    all_equal(&nodes, last).await;
    let back = &nodes[away].node;
    back.trigger_snapshot().await.unwrap();
    eventually("the oldest part is dropped", || async {
        (back.history().oldest_revision() > oldest + 300).then_some(())
    })
    .await;
    assert_eq!(back.status().fetching.fetched_entries, fetched);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_goes_when_it_takes_too_much_of_the_disk() {
    let (mut sites, mut nodes) = cluster(1, |config| config.history_retain_bytes = 1).await;
    nodes.remove(0).stop().await;
    // So that there are some, of which one at least stays.
    sites[0].log.database_bytes = 20_000;
    nodes.push(sites[0].start().await);
    leader(&nodes).await;
    for _ in 0..4 {
        write(&nodes, 500).await;
    }
    let reader = nodes[0].node.inner.log.reader();
    assert_eq!(reader.first_index(), 0, "before there is a snapshot all of it is needed");
    nodes[0].node.trigger_snapshot().await.unwrap();
    eventually("the oldest part is dropped", || async { (reader.first_index() > 1_000).then_some(()) }).await;
    let written = write(&nodes, 10).await;
    let digests = nodes[0].digests();
    nodes.remove(0).stop().await;
    let back = sites[0].start().await;
    back.reaches(written).await;
    assert_eq!(back.digests(), digests);
    let oldest = back.node.history().oldest_revision();
    assert!(oldest > 1_000, "{oldest}");
    assert_eq!(revisions(&back.node, oldest).await.unwrap(), (oldest..=written).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_nobody_answers_who_may_have_it_the_history_is_not_called_gone() {
    let Away { sites, mut nodes, absent: away, written } = away().await;
    tamper(&nodes, |_, _, _| Err(Status::unavailable("not now")));
    nodes.insert(away, sites[away].start().await);
    nodes[away].reaches(written).await;
    assert_eq!(revisions(&nodes[away].node, 1).await.unwrap().len() as u64, written);
    let back = nodes.remove(away);
    for node in nodes {
        node.stop().await;
    }
    let error = back.node.history().read(1, 1).await.unwrap_err();
    assert!(matches!(error, HistoryError::NotYet { .. }), "{error}");
    eventually("it says how much is missing", || async {
        (back.node.status().fetching.missing_entries > 500).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_every_node_was_replaced_all_have_all_of_the_history() {
    let Away { mut sites, mut nodes, absent: away, .. } = away().await;
    sites.remove(away);
    let recorded = nodes[0].node.history().read(1, usize::MAX).await.unwrap();
    for round in 0..4 {
        let mut site = Site::new(&format!("new-{round}"), None);
        site.config.join = sites.iter().map(|site| site.address().to_string()).collect();
        site.config.catch_up_entries = 20;
        let new = site.start().await;
        crate::raft::bootstrap::enter(&new.node, &site.config.join).await.unwrap();
        nodes.push(new);
        sites.push(site);
        let written = write(&nodes, 50).await;
        let new = &nodes.last().unwrap().node;
        new.replica().wait_revision(written, soon()).await.unwrap();
        assert_eq!(revisions(new, 1).await.unwrap(), (1..=written).collect::<Vec<_>>());
        has_fetched(new).await;
        assert!(new.status().fetching.fetched_entries > 500, "it came by snapshot");
        // The oldest one goes; those that stay have purged what a new one would need.
        let old = nodes.remove(0);
        let removed = old.node.local().member.name.clone();
        nodes[0].node.remove_member(&removed, soon()).await.unwrap();
        old.crash().await;
        sites.remove(0);
        leader(&nodes).await;
        for node in &nodes {
            snapshot_and_purge(node).await;
        }
    }
    let last = write(&nodes, 5).await;
    for node in &nodes {
        node.reaches(last).await;
        assert_eq!(revisions(&node.node, 1).await.unwrap().len() as u64, last);
        let first = node.node.history().read_here(1, usize::MAX).await.unwrap();
        assert!(first.iter().zip(&recorded).all(|(found, recorded)| found.entry == recorded.entry));
    }
}
