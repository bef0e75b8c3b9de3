//! The steps of the story.

use std::time::Instant;

use anyhow::Context;
use sandkeeper_client::{Client, ClientError, Code, v1};

use super::{CALL_DEADLINE, Demo, STEP_DEADLINE, by_id, by_name, linearizable, terminate, workload};
use crate::cmd::dev::processes::{self, Process};
use crate::cmd::dev::story::{list, say};
use crate::error::CliError;
use crate::{human, output};

impl Demo<'_> {
    pub(super) async fn create_through_each_node(&mut self) -> Result<(), CliError> {
        self.story
            .step("Create a sandbox through each control node. Whichever is asked, the leader decides.")?;
        let nodes = self.node_clients();
        let mut rows = Vec::new();
        let mut names = Vec::new();
        for (number, (node, client)) in nodes.iter().enumerate() {
            let name = format!("hello-{}", number + 1);
            let began = Instant::now();
            let created = client.create(workload(&name)).await?.sandbox.unwrap_or_default();
            let answered = began.elapsed();
            let running = self.until_running(&created.sandbox_id).await?;
            let runs = began.elapsed();
            let pid = self.pid_of(&running).await?;
            rows.push(vec![
                node.clone(),
                name.clone(),
                created.sandbox_id.clone(),
                running.agent_id,
                pid.to_string(),
                human::stopwatch(answered),
                human::stopwatch(runs),
            ]);
            names.push((name, created.sandbox_id));
        }
        say(output::table(&["THROUGH", "SANDBOX", "ID", "AGENT", "PID", "ANSWERED", "RUNNING"], rows))?;
        self.story.check(true, "each runs, as a real process of this machine (look: ps -fp PID)")?;
        let mut same = true;
        for (_, client) in &nodes {
            for (name, id) in &names {
                let seen = client.get(by_name(name), linearizable()).await?.sandbox.unwrap_or_default();
                same &= seen.sandbox_id == *id && seen.phase() == v1::Phase::Running;
            }
        }
        self.story.check(same, "every node shows all of them, with the same ids")?;
        // Created through the first node, read through the last: the bytes come from the agent either way.
        let text = self.first_line(&nodes[nodes.len() - 1].1, &names[0].0).await?;
        let expected = format!("hello from {}", names[0].0);
        self.story.check(
            text == expected,
            format!("{} wrote {text:?}, read through {}", names[0].0, nodes[nodes.len() - 1].0),
        )
    }

    pub(super) async fn one_view_of_capacity(&mut self) -> Result<(), CliError> {
        self.story.step(
            "Ask each node for the capacity. Each agent is connected to all of them, and counts once.",
        )?;
        let answers = self.same_revision().await?;
        say_capacity(&answers)?;
        let total = self.cluster.layout().total_slots();
        let wrong = total * self.cluster.layout().nodes.len() as u64;
        let right = answers.iter().all(|(_, answer)| answer.total.unwrap_or_default().slots == total);
        self.story.check(right, format!("every node says {total} slots, never {wrong}"))?;
        self.check_digests(&answers)
    }

    pub(super) async fn fill_it_up(&mut self) -> Result<(), CliError> {
        let free = self.client.capacity(linearizable()).await?.free.unwrap_or_default().slots;
        self.story.step(&format!(
            "Fill the {free} free slots. The next create is refused, before anything is started."
        ))?;
        let mut ids = Vec::new();
        for number in 1..=free {
            let created = self.client.create(workload(&format!("fill-{number}"))).await?;
            ids.push(created.sandbox.unwrap_or_default().sandbox_id);
        }
        let refused = self.client.create(workload("one-too-many")).await;
        let (code, message) = match refused {
            Err(ClientError::Refused(refusal)) => (Some(refusal.code), refusal.to_string()),
            Err(error) => return Err(error.into()),
            Ok(_) => (None, "it was accepted".to_owned()),
        };
        self.story.check(code == Some(Code::ResourceExhausted), message)?;
        for id in &ids {
            let running = self.until_running(id).await?;
            self.pid_of(&running).await?;
            self.client.terminate(terminate(by_id(id))).await?;
        }
        for id in &ids {
            self.client.wait(by_id(id), [v1::Phase::Gone]).await?;
        }
        let now = self.client.capacity(linearizable()).await?.free.unwrap_or_default().slots;
        self.story.check(now == free, format!("the {free} are terminated, and {now} slots are free again"))
    }

    pub(super) async fn retry_a_create(&mut self) -> Result<(), CliError> {
        self.story.step(
            "Send one create again and again, as a caller does that got no answer. It has one effect.",
        )?;
        let request =
            v1::CreateSandboxRequest { request_id: uuid::Uuid::new_v4().to_string(), ..workload("once") };
        say(format!("request id {}", request.request_id))?;
        let mut rows = Vec::new();
        let mut ids = Vec::new();
        for (node, client) in self.node_clients() {
            let answer = client.create(request.clone()).await?;
            let id = answer.sandbox.unwrap_or_default().sandbox_id;
            let kind = if answer.duplicate { "the first answer again" } else { "created" };
            rows.push(vec![format!("through {node}"), id.clone(), kind.to_owned()]);
            ids.push((id, answer.duplicate));
        }
        say(output::table(&["", "SANDBOX ID", "ANSWER"], rows))?;
        let one =
            ids.iter().all(|(id, _)| *id == ids[0].0) && ids.iter().filter(|(_, again)| !again).count() == 1;
        self.story.check(one, "one sandbox, however often it was asked for")?;
        let running = self.until_running(&ids[0].0).await?;
        self.pid_of(&running).await?;
        let other = v1::CreateSandboxRequest { working_dir: "/".into(), ..request };
        let refused = self.client.create(other).await.err().and_then(|error| error.code());
        self.story.check(refused == Some(Code::AlreadyExists), "the same id with another request is refused")
    }

    /// Gives the name of the node that was killed.
    pub(super) async fn kill_the_leader(&mut self) -> Result<String, CliError> {
        self.story.step("Kill the leader with kill -9, and create on.")?;
        let before = self.client.list_all(v1::ListSandboxesRequest::default()).await?.sandboxes;
        let status = self.client.status().await?;
        let leader = status.leader;
        let pid = self
            .cluster
            .launcher
            .pid(&leader)
            .with_context(|| format!("the leader {leader:?} is no child"))?;
        let survivors = self.node_clients().into_iter().filter(|(name, _)| *name != leader);
        let (names, addresses): (Vec<_>, Vec<_>) = survivors
            .map(|(name, client)| (name, client.servers().next().unwrap_or_default().to_owned()))
            .unzip();
        let client = Client::builder().servers(addresses).deadline(CALL_DEADLINE).build()?;
        // The connections stand already, as a service's would.
        client.status().await?;
        let began = Instant::now();
        self.cluster.launcher.kill(&leader).await;
        let created = client.create(workload("after-the-kill")).await?.sandbox.unwrap_or_default();
        let took = began.elapsed();
        let after = client.status().await?;
        say(format!("kill -9 {pid}: {leader} is gone. {} are left.", names.join(" and ")))?;
        self.story.check(
            !after.leader.is_empty() && after.leader != leader,
            format!(
                "the next create was answered {} after the kill; {} leads, term {}",
                human::stopwatch(took),
                after.leader,
                after.term
            ),
        )?;
        let running = self.until_running(&created.sandbox_id).await?;
        let pid = self.pid_of(&running).await?;
        let listed = client.list_all(v1::ListSandboxesRequest::default()).await?.sandboxes;
        let kept = before.iter().all(|old| listed.iter().any(|new| new.sandbox_id == old.sandbox_id));
        let unharmed = self.pids.iter().filter(|(pid, _)| processes::is_alive(**pid)).count();
        let expected = before.len() + 1;
        self.story.check(
            kept && listed.len() == expected && unharmed == expected,
            format!("the new one runs (pid {pid}), and the {} before it never stopped", before.len()),
        )?;
        Ok(leader)
    }

    pub(super) async fn bring_it_back(&mut self, leader: &str) -> Result<(), CliError> {
        self.story.step(&format!("Start {leader} again. It catches up from the log of the others."))?;
        let began = Instant::now();
        self.cluster.restart_node(leader).await?;
        let answers = self.same_revision().await?;
        let took = human::stopwatch(began.elapsed());
        say_capacity(&answers)?;
        self.check_digests(&answers)?;
        let verified = self.client.verify().await?;
        let compared = verified.nodes.iter().filter(|node| node.error.is_empty()).count();
        self.story.check(
            verified.identical && compared == answers.len(),
            format!("{leader} is back after {took}; `cluster verify` finds {compared} nodes identical"),
        )
    }

    pub(super) async fn same_name_at_once(&mut self) -> Result<(), CliError> {
        self.story.step("Terminate a sandbox and create one of the same name, at the same moment.")?;
        let name = "hello-1";
        let old = self.client.get(by_name(name), linearizable()).await?.sandbox.unwrap_or_default();
        let old_pid = self.pid_of(&old).await?;
        let client = self.client.clone();
        let (terminated, created) =
            tokio::join!(self.client.terminate(terminate(by_name(name))), create_when_free(&client, name));
        terminated?;
        let (new, refusals) = created?;
        let new = self.until_running(&new.sandbox_id).await?;
        let new_pid = self.pid_of(&new).await?;
        let row = |what: &str, sandbox: &v1::Sandbox, pid: i32| {
            vec![what.to_owned(), sandbox.sandbox_id.clone(), sandbox.agent_id.clone(), pid.to_string()]
        };
        let rows = [row("old", &old, old_pid), row("new", &new, new_pid)];
        say(output::table(&[name, "ID", "AGENT", "PID"], rows))?;
        let how = match refusals {
            0 => "at the first try: the terminate came first".to_owned(),
            1 => "after one refusal, while the name was still taken".to_owned(),
            refusals => format!("after {refusals} refusals, while the name was still taken"),
        };
        self.story.check(
            new.sandbox_id != old.sandbox_id,
            format!("the new one has an id of its own; it was created {how}"),
        )?;
        self.client.wait(by_id(&old.sandbox_id), [v1::Phase::Gone]).await?;
        let seen = self.client.get(by_name(name), linearizable()).await?.sandbox.unwrap_or_default();
        self.story.check(
            !processes::is_alive(old_pid)
                && processes::is_alive(new_pid)
                && seen.sandbox_id == new.sandbox_id,
            format!("the old one went away (pid {old_pid} has ended), the new one runs (pid {new_pid})"),
        )
    }

    pub(super) async fn end_everything(&mut self) -> Result<(), CliError> {
        let listed = self.client.list_all(v1::ListSandboxesRequest::default()).await?.sandboxes;
        self.story.step(&format!("Terminate all {} sandboxes.", listed.len()))?;
        let began = Instant::now();
        self.cluster.end_sandboxes().await?;
        self.story.check(true, format!("all are gone after {}", human::stopwatch(began.elapsed())))?;
        let answers = self.same_revision().await?;
        let total = self.cluster.layout().total_slots();
        let free = answers.iter().all(|(_, answer)| answer.free.unwrap_or_default().slots == total);
        self.story.check(free, format!("every node says that all {total} slots are free"))?;
        self.check_digests(&answers)?;
        let alive: Vec<_> = self.pids.iter().filter(|(pid, _)| processes::is_alive(**pid)).collect();
        let text = alive.iter().map(|(pid, name)| format!("{pid} of {name}")).collect::<Vec<_>>().join(", ");
        let claim = if alive.is_empty() {
            format!("none of the {} processes that ran is left", self.pids.len())
        } else {
            format!("none of the processes that ran is left; but there are {text}")
        };
        self.story.check(alive.is_empty(), claim)?;
        let shims: Vec<_> = self.cluster.processes().into_iter().filter(Process::is_shim).collect();
        list(&shims)?;
        self.story.check(shims.is_empty(), "nor is any of the shims that stood beside them")
    }
}

/// What each node said, side by side.
fn say_capacity(answers: &[(String, v1::GetCapacityResponse)]) -> Result<(), CliError> {
    let slots = |capacity: Option<v1::Capacity>| capacity.unwrap_or_default().slots.to_string();
    let rows = answers.iter().map(|(name, answer)| {
        let mut row = vec![name.clone(), slots(answer.total), slots(answer.allocated), slots(answer.free)];
        row.push(answer.revision.to_string());
        row.extend([human::short(&answer.history_digest), human::short(&answer.state_digest)]);
        row
    });
    let header = ["NODE", "SLOTS", "ALLOCATED", "FREE", "REVISION", "HISTORY DIGEST", "STATE DIGEST"];
    say(output::table(&header, rows))
}

/// Creates a sandbox of a name that is about to become free, and says how often that was refused.
async fn create_when_free(client: &Client, name: &str) -> Result<(v1::Sandbox, usize), CliError> {
    let began = Instant::now();
    for refusals in 0.. {
        match client.create(workload(name)).await {
            Ok(answer) => return Ok((answer.sandbox.unwrap_or_default(), refusals)),
            Err(error) if error.code() == Some(Code::AlreadyExists) && began.elapsed() < STEP_DEADLINE => {}
            Err(error) => return Err(error.into()),
        }
    }
    unreachable!("the deadline comes before the counter ends")
}
