//! What a new agent finds, and what goes on without any.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_outlive_the_agent_and_are_taken_up_again() {
    let folder = tempfile::tempdir().unwrap();
    let first = agent(folder.path()).await;
    let (runs, ends) = (fresh_id(), fresh_id());
    let mut running = order(&runs, "while ! test -e go; do sleep 0.01; done; exit 5");
    Arc::make_mut(&mut running.spec).generation = 4;
    let expires_at = Some(BootTime::now().after(Duration::from_hours(1)));
    let heard = Some(first.acknowledge().await);
    let lease = Some(LeaseTerms { length: Duration::from_hours(1), revision: 3 });
    first.runtime.create(Order { expires_at, lease, heard, ..running.clone() }).await.unwrap();
    first.runtime.create(order(&ends, "while ! test -e go; do sleep 0.01; done; exit 6")).await.unwrap();
    let work = |id: &str| first.runtime.shared.work(id);
    let (go, go_now) = (work(&runs).join("go"), work(&ends).join("go"));
    let folder_of_ended = first.runtime.shared.folder(&ends);
    first.kill().await;
    // While there is no agent, one of them exits.
    fs::write(go_now, "").unwrap();
    until("the shim wrote how it ended", || folder_of_ended.read_exit().unwrap().is_some()).await;

    let mut second = agent(folder.path()).await;
    let mut recovered = second.runtime.recover().await.unwrap();
    recovered.sort_by_key(|recovered| recovered.order.spec.sandbox_id != runs);
    assert_eq!(recovered[0].order, Order { expires_at, lease, ..running });
    assert_eq!(recovered[0].phase, Phase::Running);
    let exited = Phase::Exited { exit_code: Some(6), reason: "exited with code 6".to_owned() };
    assert_eq!(recovered[1].phase, exited);
    fs::write(go, "").unwrap();
    assert_eq!(second.exit(&runs).await.exit_code, Some(5));
    for id in [runs, ends] {
        second.runtime.remove(&id, Duration::ZERO).await.unwrap();
        second.nothing_is_left(&id);
    }
    assert_eq!(second.runtime.recover().await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_takes_its_sandbox_along() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = agent(folder.path()).await;
    let (seen, unseen) = (fresh_id(), fresh_id());
    for id in [&seen, &unseen] {
        first.runtime.create(order(id, "setsid sleep 600 & sleep 600")).await.unwrap();
        until("all of it runs", || processes(id).len() >= 3).await;
    }
    let pid = |agent: &Agent, id: &str| {
        nix::unistd::Pid::from_raw(agent.runtime.shared.folder(id).read_process().unwrap().unwrap().pid)
    };
    nix::sys::signal::kill(pid(&first, &seen), Signal::SIGKILL).unwrap();
    let exit = first.exit(&seen).await;
    assert!(exit.exit_code.is_none() && exit.reason.starts_with("vanished"), "{exit:?}");
    assert_eq!(processes(&seen), BTreeSet::new());

    let lost = pid(&first, &unseen);
    first.kill().await;
    nix::sys::signal::kill(lost, Signal::SIGKILL).unwrap();
    let second = agent(folder.path()).await;
    // The kernel closes the shim's end of the FIFO a moment after the signal.
    until("the shim is gone", || {
        fs::read_to_string(format!("/proc/{lost}/stat")).map_or(true, |stat| stat.contains(") Z "))
    })
    .await;
    let recovered = second.runtime.recover().await.unwrap();
    let found = recovered.iter().find(|recovered| recovered.order.spec.sandbox_id == unseen).unwrap();
    assert!(
        matches!(&found.phase, Phase::Exited { exit_code: None, reason } if reason.starts_with("vanished"))
    );
    assert_eq!(processes(&unseen), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shim_alone_ends_what_has_expired() {
    let folder = tempfile::tempdir().unwrap();
    let first = agent(folder.path()).await;
    let id = fresh_id();
    let deadline = BootTime::now().after(Duration::from_millis(400));
    first.runtime.create(Order { expires_at: Some(deadline), ..order(&id, "sleep 600") }).await.unwrap();
    let records = first.runtime.shared.folder(&id);
    first.kill().await;
    until("it is ended", || records.read_exit().unwrap().is_some()).await;
    assert!(BootTime::now() >= deadline, "not before its time");
    let second = agent(folder.path()).await;
    let recovered = second.runtime.recover().await.unwrap();
    assert!(recovered[0].expired, "{recovered:?}");
    assert!(matches!(&recovered[0].phase, Phase::Exited { exit_code: Some(143), .. }), "{recovered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_half_made_or_half_removed_is_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let sandboxes = agent.runtime.shared.data_dir.join("sandboxes");
    fs::create_dir(sandboxes.join("half-made")).unwrap();
    fs::create_dir(sandboxes.join(".gone-x")).unwrap();
    fs::create_dir(sandboxes.join("power-cut")).unwrap();
    fs::write(sandboxes.join("power-cut/spec.json"), "").unwrap();
    assert_eq!(agent.runtime.recover().await.unwrap().len(), 0);
    assert_eq!(fs::read_dir(&sandboxes).unwrap().count(), 0);
    fs::create_dir(sandboxes.join("garbage")).unwrap();
    fs::write(sandboxes.join("garbage/spec.json"), "{").unwrap();
    let fault = agent.runtime.recover().await.unwrap_err();
    assert!(fault.to_string().contains("garbage/spec.json"), "{fault}");
}

/// As what ran before any cluster knew it.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_label_is_found_and_keeps_the_one_that_it_gets() {
    let folder = tempfile::tempdir().unwrap();
    let id = fresh_id();
    let first = agent(folder.path()).await;
    let mut unlabelled = order(&id, "while :; do sleep 0.1; done");
    let spec = Arc::make_mut(&mut unlabelled.spec);
    (spec.cluster_id, spec.generation) = (String::new(), 0);
    first.runtime.create(unlabelled).await.unwrap();
    first.kill().await;

    let second = agent(folder.path()).await;
    let found = second.runtime.recover().await.unwrap();
    let spec = &found[0].order.spec;
    assert_eq!((spec.cluster_id.as_str(), spec.generation), ("", 1));
    second.runtime.adopt(&id, "blue").await.unwrap();
    second.kill().await;

    let third = agent(folder.path()).await;
    let found = third.runtime.recover().await.unwrap();
    let spec = &found[0].order.spec;
    assert_eq!((spec.cluster_id.as_str(), spec.generation), ("blue", 1));
    assert_eq!(found[0].phase, Phase::Running);
    third.runtime.remove(&id, Duration::ZERO).await.unwrap();
    third.nothing_is_left(&id);
    // It is gone by the time that somebody wants to label it.
    third.runtime.adopt(&id, "blue").await.unwrap();
    assert_eq!(third.runtime.recover().await.unwrap().len(), 0);
}
