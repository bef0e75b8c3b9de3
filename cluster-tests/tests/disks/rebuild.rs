//! A node whose log is damaged, and the way that `docs/operations.md` gives to rebuild it from its peers.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use cluster_tests::{Cluster, eventually, run_to_end};
use sandkeeper_client::v1;

use super::{Load, all_is_well, options};

/// Overwrites a part in the middle of what the log holds.
fn damage(log: &Path) {
    let databases = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path());
    let is_log = |path: &Path| path.file_name().unwrap().to_string_lossy().starts_with("log-");
    let database = databases.filter(|path| is_log(path)).max().unwrap();
    // sled begins with its own records; entries follow.
    File::options()
        .write(true)
        .open(database.join("db"))
        .unwrap()
        .write_all_at(&[0xa5; 4096], 16 << 10)
        .unwrap();
    // What sled knows of its file without reading it.
    for entry in fs::read_dir(&database).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("snap.") {
            fs::remove_file(path).unwrap();
        }
    }
}

async fn all_events(cluster: &Cluster, index: usize) -> Vec<v1::Event> {
    let filter =
        v1::EventFilter { namespace: "default".into(), name: "c0-0".into(), ..v1::EventFilter::default() };
    let request = v1::ListEventsRequest { filter: Some(filter), ..v1::ListEventsRequest::default() };
    let listed = cluster.client_of(&[index]).events(request).await.unwrap();
    assert!(!listed.truncated);
    listed.events
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_damaged_log_refuses_to_start_and_is_rebuilt_from_its_peers() {
    let mut cluster = Cluster::start_with(options()).await;
    let load = Load::start(&cluster.client());
    load.goes_on(200).await;
    let broken = cluster.follower().await;
    let (name, data_dir) = (cluster.nodes[broken].name.clone(), cluster.nodes[broken].data_dir.clone());
    assert_eq!(cluster.nodes[broken].process.take().unwrap().terminate(), Some(0));
    damage(&data_dir.join("log"));

    cluster.start_node(broken);
    let (code, _) = cluster.wait_ended(broken).await;
    assert_eq!(code, Some(1));
    let error = cluster.log_of(broken).lines().rfind(|line| line.starts_with("error: ")).unwrap().to_owned();
    println!("{error}");
    let place = data_dir.join("log").display().to_string();
    for part in ["the log is corrupt", &place, "remove it from the cluster"] {
        assert!(error.contains(part), "{part:?} is missing in {error:?}");
    }

    // docs/operations.md, "Replace a node".
    let other = (broken + 1) % 3;
    let removed = run_to_end(["cluster", "remove", &name, "--servers", &cluster.nodes[other].api]).await;
    assert_eq!(removed.code, Some(0), "{removed:#?}");
    fs::remove_dir_all(&data_dir).unwrap();
    cluster.join_node(broken);
    eventually("it is a voter again, and has all of the history", || async {
        let client = cluster.client_of(&[broken]);
        let status = client.status().await.map_err(|error| error.to_string())?;
        let votes = |member: &v1::Member| member.name == name && member.role() == v1::MemberRole::Voter;
        let done = status.members.iter().any(votes) && status.history_missing_entries == 0;
        if done { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    load.goes_on(20).await;
    all_is_well(&cluster, load).await;
    let events = all_events(&cluster, broken).await;
    assert!(events.len() >= 2, "{events:?}");
    assert_eq!(events, all_events(&cluster, other).await, "also what happened before it was rebuilt");
}
