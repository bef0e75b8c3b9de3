//! A disk that is nearly full, and one that is full.

use cluster_tests::{Cluster, by_name, eventually, run_to_end, scrape, shell};
use sandkeeper_client::{Client, ClientError, Code, v1};
use test_disks::{FileSystem, LoopDisk};

use super::{Load, all_is_well, on_own_disk, with_on_disk};

const MIB: u64 = 1 << 20;

/// With a mark, and patience: these tests say who leads, and the disk that they fill is this machine's.
const FLAGS: [&str; 6] = ["--disk-low-water", "60MiB", "--heartbeat-ms", "200", "--election-ms", "2000-4000"];

async fn terminate(client: &Client, name: &str) -> Result<(), ClientError> {
    let request =
        v1::TerminateSandboxRequest { r#ref: Some(by_name(name)), ..v1::TerminateSandboxRequest::default() };
    client.terminate(request).await.map(drop)
}

async fn status_table(cluster: &Cluster) -> String {
    let servers = &cluster.nodes[1].api;
    run_to_end(["cluster", "status", "--servers", servers]).await.stdout
}

/// Waits until a create is refused, or until it is not.
async fn creates_are_refused(client: &Client, refused: bool) {
    eventually(&format!("creates are refused: {refused}"), || async {
        // Different ones: what is made once is answered again.
        let name = format!("t{}", rand::random::<u32>());
        let reason = match client.create(shell(&name, "true")).await {
            Ok(_) => None,
            Err(error) => {
                Some(error.refusal().and_then(|refusal| refusal.reason.clone()).unwrap_or_default())
            }
        };
        match (refused, reason.as_deref()) {
            (true, Some("DISK_LOW")) | (false, None) => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn on_a_nearly_full_disk_creates_are_refused_and_all_else_goes_on() {
    let disk = LoopDisk::new(FileSystem::Ext4, 300 * MIB);
    let (cluster, _data_dirs) = on_own_disk(&disk, &FLAGS).await;
    let client = cluster.client();
    let first = v1::CreateSandboxRequest { request_id: "first".into(), ..shell("first", "true") };
    let made = client.create(first.clone()).await.unwrap().sandbox.unwrap();
    client.create(shell("second", "true")).await.unwrap();
    assert!(!status_table(&cluster).await.contains("nearly full"));

    disk.fill(50 * MIB);
    assert!((45 * MIB..=50 * MIB).contains(&disk.free()), "{} bytes are free", disk.free());
    creates_are_refused(&client, true).await;
    let refused = client.create(shell("third", "true")).await.unwrap_err();
    println!("{refused}");
    let refusal = refused.refusal().unwrap();
    assert_eq!((refusal.code, refusal.details["node"].as_str()), (Code::ResourceExhausted, "n0"));
    assert!(refusal.message.contains("MiB free, and its mark is 60 MiB"), "{refused}");
    assert!(refusal.retry_after.is_some());
    // Also by way of another node, and in a batch.
    creates_are_refused(&cluster.client_of(&[1]), true).await;
    let creates = vec![shell("fourth", "true")];
    let batch = v1::BatchCreateSandboxesRequest { creates, ..v1::BatchCreateSandboxesRequest::default() };
    let refused = client.batch_create(batch).await.unwrap_err();
    assert_eq!(refused.refusal().unwrap().reason.as_deref(), Some("DISK_LOW"), "{refused}");
    let again = client.create(first).await.unwrap().sandbox.unwrap();
    assert_eq!(again.sandbox_id, made.sandbox_id, "what is made is answered again");
    terminate(&client, "second").await.unwrap();
    let cordon = v1::CordonAgentRequest { agent_id: "a0".into(), ..v1::CordonAgentRequest::default() };
    client.cordon_agent(cordon).await.unwrap();
    let table = status_table(&cluster).await;
    println!("{table}");
    assert!(table.contains("n0: the disk is nearly full") && table.contains("It leads"), "{table}");
    let is_low =
        async |index: usize| scrape(&cluster.nodes[index].http).await.unwrap()["sandkeeper_disk_low"] > 0.0;
    assert!(is_low(0).await && !is_low(1).await);

    // One follower's alone stops nobody.
    client.transfer_leadership("n1").await.unwrap();
    creates_are_refused(&client, false).await;
    client.transfer_leadership("n0").await.unwrap();
    creates_are_refused(&client, true).await;
    disk.empty();
    creates_are_refused(&client, false).await;
    cluster.wait_identical().await;
    cluster.assert_nobody_diverged();
}

/// The leader's own disk has room; it asks the others.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn creates_are_refused_while_a_majority_of_the_disks_has_no_room() {
    let disk = LoopDisk::new(FileSystem::Ext4, 300 * MIB);
    let (cluster, _data_dirs) = with_on_disk(&disk, &["n0", "n2"], &FLAGS).await;
    let client = cluster.client();
    client.transfer_leadership("n1").await.unwrap();
    client.create(shell("first", "true")).await.unwrap();
    disk.fill(50 * MIB);
    creates_are_refused(&client, true).await;
    let refused = client.create(shell("second", "true")).await.unwrap_err().to_string();
    println!("{refused}");
    assert!(refused.contains("node n0 has") && refused.contains("node n2 has"), "{refused}");
    assert!(!refused.contains("node n1"), "{refused}");
    terminate(&client, "first").await.unwrap();
    disk.empty();
    creates_are_refused(&client, false).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and loop devices"]
async fn a_node_whose_disk_is_full_stops_and_starts_again_when_there_is_room() {
    let disk = LoopDisk::new(FileSystem::Ext4, 150 * MIB);
    // No mark: everything is written until the end.
    let (mut cluster, _data_dirs) = on_own_disk(&disk, &["--disk-low-water", "0"]).await;
    let load = Load::start(&cluster.client());
    load.goes_on(50).await;
    disk.fill(0);
    let (code, said) = cluster.wait_ended(0).await;
    assert_eq!(code, Some(1), "{said}");
    let error = said.lines().find(|line| line.starts_with("error: ")).unwrap();
    println!("{error}");
    for part in ["stopped because of a fault", "/log/", "No space left on device", "make room there"] {
        assert!(error.contains(part), "{part:?} is missing in {error:?}");
    }
    load.goes_on(50).await;
    // While there is none it says so, and harms nothing.
    cluster.start_node(0);
    let (code, _) = cluster.wait_ended(0).await;
    assert_eq!(code, Some(1));
    let error = cluster.log_of(0).lines().rfind(|line| line.starts_with("error: ")).unwrap().to_owned();
    println!("{error}");
    assert!(error.contains("No space left on device") && error.contains("make room there"), "{error}");
    disk.empty();
    cluster.start_node(0);
    load.goes_on(50).await;
    all_is_well(&cluster, load).await;
}
