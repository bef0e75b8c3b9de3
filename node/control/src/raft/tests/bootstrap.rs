//! Forming a cluster, and what is refused.

use super::rig::{Site, cluster, enter_all, leader, write};
use crate::raft::bootstrap::{BootstrapError, Entered, enter};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_forms_a_cluster_of_one() {
    let (sites, nodes) = cluster(1, |config| config.join.clear()).await;
    assert_eq!(write(&nodes, 3).await, 3);
    let again = enter(&nodes[0].node, &sites[0].config.join).await.unwrap();
    assert_eq!(again, Entered::Restarted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_start_late_are_waited_for() {
    let mut sites = Vec::new();
    for name in ["a", "b", "c"] {
        sites.push(Site::new(name, Some(3)));
    }
    let everybody: Vec<_> = sites.iter().map(|site| site.address().to_string()).collect();
    for site in &mut sites {
        site.config.join.clone_from(&everybody);
    }
    let mut nodes = vec![sites[0].start().await, sites[1].start().await];
    let join = sites[0].config.join.clone();
    let (first, second) = (nodes[0].node.clone(), nodes[1].node.clone());
    let waiting = [
        tokio::spawn({
            let join = join.clone();
            async move { enter(&first, &join).await }
        }),
        tokio::spawn({
            let join = join.clone();
            async move { enter(&second, &join).await }
        }),
    ];
    nodes.push(sites[2].start().await);
    // Two of three are a majority, and still must not have begun without the third.
    assert!(waiting.iter().all(|task| !task.is_finished()));
    assert!(nodes.iter().all(|node| node.node.members().is_empty()));
    enter(&nodes[2].node, &join).await.unwrap();
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    let at = leader(&nodes).await;
    assert_eq!(nodes[at].node.voters().len(), 3);
}

async fn strangers(names: &[&str], expect: usize) -> Vec<Result<Entered, BootstrapError>> {
    let mut sites = Vec::new();
    for name in names {
        sites.push(Site::new(name, Some(expect)));
    }
    let everybody: Vec<_> = sites.iter().map(|site| site.address().to_string()).collect();
    let mut nodes = Vec::new();
    for site in &mut sites {
        site.config.join.clone_from(&everybody);
        nodes.push(site.start().await);
    }
    enter_all(&sites, &nodes).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_of_one_name_are_refused() {
    for refused in strangers(&["a", "a"], 2).await {
        assert!(matches!(&refused, Err(BootstrapError::SameName { name, .. }) if name == "a"), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_nodes_than_expected_are_refused() {
    for refused in strangers(&["a", "b", "c"], 2).await {
        assert!(matches!(refused, Err(BootstrapError::TooMany { found: 3, expected: 2, .. })), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_that_was_told_nothing_is_refused() {
    let site = Site::new("a", None);
    let node = site.start().await;
    assert_eq!(enter(&node.node, &[]).await, Err(BootstrapError::NoWay));
    let site = Site::new("b", Some(3));
    let node = site.start().await;
    assert_eq!(enter(&node.node, &[]).await, Err(BootstrapError::NobodyToAsk(3)));
    let nobody = Site::new("c", None);
    assert_eq!(
        node.node.describe_peer(&nobody.address().to_string()).await.unwrap_err(),
        "connection refused"
    );
}
