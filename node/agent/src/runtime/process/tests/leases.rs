//! Sandboxes that have to be dead when no leader is heard of.

use std::time::SystemTime;

use super::*;

const SHORT: LeaseTerms = LeaseTerms { length: Duration::from_secs(3), revision: 7 };

fn leased(id: &str, lease: LeaseTerms) -> Order {
    Order { lease: Some(lease), ..order(id, "trap '' TERM; while :; do sleep 0.1; done") }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_ends_its_sandbox_by_itself_before_the_lease_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let id = fresh_id();
    agent.acknowledge().await;
    let acknowledged = SystemTime::now();
    agent.runtime.create(leased(&id, SHORT)).await.unwrap();
    let ended = agent.runtime.shared.folder(&id);
    // Nobody is there to end it but its shim.
    agent.kill().await;
    until("the shim has ended it", || ended.read_exit().unwrap().is_some()).await;
    let record = ended.read_exit().unwrap().unwrap();
    assert!(record.lease_over);
    let ended_at = SystemTime::UNIX_EPOCH + Duration::from_nanos(record.unix_nanos);
    let lived = ended_at.duration_since(acknowledged).unwrap();
    assert!(lived < SHORT.length, "another agent may start it after that: {lived:?}");

    let second = super::agent(folder.path()).await;
    let recovered = second.runtime.recover().await.unwrap();
    assert!(recovered[0].lease_over);
    let reason = "no leader was heard of, and its lease was over: killed by SIGKILL (9)".to_owned();
    assert_eq!(recovered[0].phase, Phase::Exited { exit_code: Some(137), reason });
    second.runtime.remove(&id, Duration::ZERO).await.unwrap();
    second.nothing_is_left(&id);
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_prolong_a_lease_and_new_terms_replace_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = agent(folder.path()).await;
    let (runs, freed) = (fresh_id(), fresh_id());
    agent.acknowledge().await;
    let begun = BootTime::now();
    for id in [&runs, &freed] {
        agent.runtime.create(leased(id, SHORT)).await.unwrap();
    }
    agent.runtime.instruct(&freed, None, None);
    agent.runtime.deliver(&freed).await.unwrap();
    // For longer than the lease: a leader is heard of.
    let folders = [&runs, &freed].map(|id| agent.runtime.shared.folder(id));
    while begun.until(BootTime::now()) < SHORT.length + Duration::from_secs(1) {
        agent.acknowledge().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        for folder in &folders {
            assert_eq!(folder.read_exit().unwrap(), None, "it lives");
        }
    }
    // And then no more.
    let exit = agent.exit(&runs).await;
    assert!(exit.lease_over, "{exit:?}");
    assert_eq!(folders[1].read_exit().unwrap(), None, "it has no lease any more");
    for id in [&runs, &freed] {
        agent.runtime.remove(id, Duration::ZERO).await.unwrap();
        agent.nothing_is_left(id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_started_whose_lease_would_be_over() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let id = fresh_id();
    let refused = agent.runtime.create(leased(&id, SHORT)).await.unwrap_err();
    assert!(matches!(refused, CreateError::Start(reason) if reason.contains("no leader has acknowledged")));
    agent.nothing_is_left(&id);
}
