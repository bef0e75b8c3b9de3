//! Sandboxes that have to be dead when no leader is heard of.

use std::time::SystemTime;

use super::*;

const SHORT: LeaseTerms = LeaseTerms { length: Duration::from_secs(3), revision: 7 };

/// A create that comes in a session in which the heartbeat that was sent at `heard` has been acknowledged.
fn leased(id: &str, lease: LeaseTerms, heard: BootTime) -> Order {
    let script = "trap '' TERM; while :; do sleep 0.1; done";
    Order { lease: Some(lease), heard: Some(heard), ..order(id, script) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_ends_its_sandbox_by_itself_before_the_lease_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let id = fresh_id();
    let heard = agent.acknowledge().await;
    let acknowledged = SystemTime::now();
    agent.runtime.create(leased(&id, SHORT, heard)).await.unwrap();
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
    let heard = agent.acknowledge().await;
    let begun = BootTime::now();
    for id in [&runs, &freed] {
        agent.runtime.create(leased(id, SHORT, heard)).await.unwrap();
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
    // Another session is acknowledged now; the create waited in an older one for longer than its lease.
    let now = agent.acknowledge().await;
    let long_ago = BootTime(now.0.saturating_sub(SHORT.length.as_nanos() as u64));
    for heard in [Some(long_ago), None] {
        let id = fresh_id();
        let create = Order { heard, ..leased(&id, SHORT, now) };
        let refused = agent.runtime.create(create).await.unwrap_err();
        assert!(matches!(refused, CreateError::Start(reason) if reason.contains("has not acknowledged")));
        agent.nothing_is_left(&id);
    }
}

/// Until the lease that began with `heard` is over, and some more.
async fn outlast(heard: BootTime) {
    let over = heard.after(SHORT.length);
    tokio::time::sleep(BootTime::now().until(over)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_is_late_ends_what_another_agent_may_run_by_now() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let (short, long) = (fresh_id(), fresh_id());
    let heard = agent.acknowledge().await;
    agent.runtime.create(leased(&short, SHORT, heard)).await.unwrap();
    let hour = LeaseTerms { length: Duration::from_hours(1), ..SHORT };
    agent.runtime.create(leased(&long, hour, heard)).await.unwrap();
    let folders = [&short, &long].map(|id| agent.runtime.shared.folder(id));
    let pid = folders[0].read_process().unwrap().unwrap().pid;
    let pid = nix::unistd::Pid::from_raw(pid);
    // As a machine that is suspended: nobody sees the lease's end.
    nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    outlast(heard).await;
    agent.kill().await;
    // When all wake the agent is the first, and is acknowledged again before the shim looks.
    let second = super::agent(folder.path()).await;
    second.runtime.recover().await.unwrap();
    let heard = second.acknowledge().await;
    nix::sys::signal::kill(pid, Signal::SIGCONT).unwrap();
    until("the shim has ended it", || folders[0].read_exit().unwrap().is_some()).await;
    assert!(folders[0].read_exit().unwrap().unwrap().lease_over);
    assert_eq!(folders[1].read_exit().unwrap(), None, "its lease was never over");
    // What begins after the gap is not touched by it.
    let next = fresh_id();
    second.runtime.create(leased(&next, SHORT, heard)).await.unwrap();
    for id in [&short, &long, &next] {
        second.runtime.remove(id, Duration::ZERO).await.unwrap();
        second.nothing_is_left(id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_terms_begin_when_they_are_given() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let id = fresh_id();
    let heard = agent.acknowledge().await;
    // Without a lease it outlives its agent's silence.
    agent.runtime.create(order(&id, "sleep 600")).await.unwrap();
    outlast(heard).await;
    agent.acknowledge().await;
    agent.runtime.instruct(&id, None, Some(SHORT));
    let lease_began = BootTime::now();
    agent.runtime.deliver(&id).await.unwrap();
    let ended = agent.runtime.shared.folder(&id);
    until("it is ended by its shim", || ended.read_exit().unwrap().is_some()).await;
    assert!(ended.read_exit().unwrap().unwrap().lease_over);
    let lived = lease_began.until(BootTime::now());
    assert!(lived > SHORT.patience() / 2, "the gap before did not count: {lived:?}");
    agent.runtime.remove(&id, Duration::ZERO).await.unwrap();
}
