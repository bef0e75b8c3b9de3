//! What is looked at beside the calls and the history: diaries, processes, and whether all is well in the end.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use sandkeeper_client::Code;
use sandkeeper_client::v1::{self, Phase};
use tokio::time::{Instant, sleep};

use super::invariants::convergence::{ByAgent, compare};
use super::invariants::{progress, single_life};
use super::oracle::Oracle;
use super::rig::Rig;
use super::violation::{Breach, Invariant};
use super::workload::{LIVES, QUIET, REAL};
use crate::{alive, by_id, diary};

/// How long a create after a fault is waited for: longer than it may take, to say how long it took.
const PATIENCE: Duration = Duration::from_secs(15);
/// After a fault a sandbox runs within this time.
const RUNS: Duration = Duration::from_secs(10);
/// All replicas have the same digests within this time after the last fault and call.
const EQUAL: Duration = Duration::from_secs(5);
/// Agents run what the state says within this time after the last fault and call.
const CONVERGED: Duration = Duration::from_secs(10);
/// The history is read to its end within this time.
const READ: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(100);

/// Looks whether the cluster makes progress again: a create is answered within a time, and then a sandbox runs.
pub async fn progress(rig: &Rig, fault: &str, number: u64, within: Duration) {
    let client = rig.ask_all(PATIENCE.max(within * 2));
    let request = |mode: v1::Mode| v1::CreateSandboxRequest {
        namespace: "progress".to_owned(),
        name: format!("after-{number}-{}", mode.as_str_name().to_lowercase().replace('_', "-")),
        pool_ref: QUIET.to_owned(),
        command: vec!["true".to_owned()],
        mode: mode.into(),
        ..v1::CreateSandboxRequest::default()
    };
    let mut made = Vec::new();
    let began = Instant::now();
    let fast = loop {
        match client.create(request(v1::Mode::Fast)).await {
            // That there is room again on a disk is not known at once.
            Err(error) if error.code() == Some(Code::ResourceExhausted) && began.elapsed() < PATIENCE => {
                sleep(LOOK).await;
            }
            done => break done,
        }
    };
    let (took, why) = match fast {
        Ok(answer) => {
            made.extend(answer.sandbox);
            (Some(began.elapsed()), String::new())
        }
        Err(error) => (None, error.to_string()),
    };
    rig.oracle.checked(Invariant::Progress, progress::after(fault, took, within, &why));
    let strong = client.with_deadline(RUNS).create(request(v1::Mode::Strong)).await;
    let runs = match strong {
        Ok(answer) => {
            made.extend(answer.sandbox);
            Ok(())
        }
        // Some starts fail, as the runtime is told to.
        Err(error)
            if error.refusal().is_some_and(|refusal| refusal.reason.as_deref() == Some("ROLLED_BACK")) =>
        {
            Ok(())
        }
        Err(error) => {
            let what = format!("no sandbox ran within {RUNS:?} after {fault}: {error}");
            Err(Breach::of(Invariant::Convergence, what))
        }
    };
    rig.oracle.checked(Invariant::Convergence, runs);
    for sandbox in made {
        let end = v1::TerminateSandboxRequest {
            r#ref: Some(by_id(&sandbox.sandbox_id)),
            ..v1::TerminateSandboxRequest::default()
        };
        // If not it stays: the next look has another name.
        let _ = client.terminate(end).await;
    }
}

/// Reads what sandboxes have written of their lives.
#[derive(Debug, Default)]
pub struct Lives {
    /// Those that are over, and were looked at after that.
    done: HashSet<String>,
    /// How many lives there were.
    pub count: usize,
}

impl Lives {
    /// Looks at all diaries that may have changed.
    pub fn look(&mut self, oracle: &Oracle, folder: &Path) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for entry in entries.flatten() {
            let request_id = entry.file_name().to_string_lossy().into_owned();
            if self.done.contains(&request_id) {
                continue;
            }
            // Asked first: what is gone by now writes no more.
            let Some((sandbox_id, gone)) = oracle.made_by(LIVES, &request_id) else { continue };
            let lives = diary::lives(&fs::read_to_string(entry.path()).unwrap_or_default());
            for breach in single_life::lives(&sandbox_id, &lives) {
                oracle.checked(Invariant::SingleLife, Err(breach));
            }
            oracle.checked(Invariant::SingleLife, single_life::ended(&sandbox_id, &lives, gone));
            for life in &lives {
                let Some(agent) = agent_of(&life.place) else { continue };
                let given = oracle.with_fold(|fold| fold.was_given(&sandbox_id, &agent));
                oracle.checked(Invariant::SingleLife, single_life::place(&sandbox_id, &agent, given));
            }
            let long_gone = gone.is_some_and(|gone| diary::now() > gone + 3_000);
            if long_gone && !lives.is_empty() {
                self.count += lives.len();
                self.done.insert(request_id);
            }
        }
    }
}

/// The agent in whose folder a path is: `…/sandkeeper-test-xyz/a0/…`.
fn agent_of(place: &str) -> Option<String> {
    let mut parts = place.split('/').skip_while(|part| !part.starts_with("sandkeeper-test-"));
    parts.nth(1).map(str::to_owned)
}

/// When all faults are over and nobody calls any more: the history is known to its end, digests are equal, agents run what the
/// state says.
pub async fn all_is_well(rig: &mut Rig) {
    let end = Instant::now();
    read_to_the_end(rig).await;
    let digests = until(end + EQUAL, async || equal_digests(rig).await).await;
    rig.oracle.checked(Invariant::Digests, digests.map_err(|why| Breach::of(Invariant::Digests, why)));
    let converged = until(end + CONVERGED, async || converged(rig).await).await;
    let breach = |why: String| Breach::of(Invariant::Convergence, format!("{CONVERGED:?} after all: {why}"));
    rig.oracle.checked(Invariant::Convergence, converged.map_err(breach));
    read_to_the_end(rig).await;
}

async fn until(deadline: Instant, look: impl AsyncFn() -> Result<(), String>) -> Result<(), String> {
    loop {
        match look().await {
            Err(why) if Instant::now() > deadline => return Err(why),
            Err(_) => sleep(LOOK).await,
            Ok(()) => return Ok(()),
        }
    }
}

async fn read_to_the_end(rig: &Rig) {
    let read = v1::ReadOptions { consistency: v1::Consistency::Linearizable.into(), min_revision: 0 };
    let last = rig.ask_all(PATIENCE).capacity(read).await.map(|answer| answer.revision);
    let result = match last {
        Err(error) => Err(Breach::of(Invariant::Progress, format!("nobody answers in the end: {error}"))),
        Ok(last) => {
            let known = until(Instant::now() + READ, async || {
                let head = rig.oracle.head();
                if head >= last {
                    Ok(())
                } else {
                    Err(format!("the history is known to {head}, and goes to {last}"))
                }
            });
            known.await.map_err(|why| Breach::of(Invariant::Watches, why).at(last))
        }
    };
    rig.oracle.checked(Invariant::Watches, result);
}

async fn equal_digests(rig: &Rig) -> Result<(), String> {
    let read = v1::ReadOptions { consistency: v1::Consistency::Local.into(), min_revision: 0 };
    let asked = rig.running().into_iter().map(|node| async move {
        let answer = rig.ask(node).capacity(read).await.map_err(|error| format!("n{node}: {error}"))?;
        Ok::<_, String>((answer.revision, answer.history_digest, answer.state_digest))
    });
    let told = join_all(asked).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let same = told.windows(2).all(|pair| pair[0] == pair[1]);
    if same && told.len() == rig.nodes { Ok(()) } else { Err(format!("revisions and digests are {told:?}")) }
}

async fn converged(rig: &Rig) -> Result<(), String> {
    let (mut said, mut open) = (ByAgent::new(), Vec::new());
    rig.oracle.with_fold(|fold| {
        for record in fold.live() {
            let seen = &record.seen;
            match seen.phase() {
                Phase::Running if seen.pool_ref == REAL => {
                    said.entry(seen.agent_id.clone()).or_default().insert(seen.sandbox_id.clone());
                }
                Phase::Allocated | Phase::Terminating | Phase::Lost => {
                    open.push((seen.sandbox_id.clone(), seen.phase().as_str_name(), seen.agent_id.clone()));
                }
                _ => {}
            }
        }
    });
    if !open.is_empty() {
        return Err(format!("{} sandboxes are on their way: {open:?}", open.len()));
    }
    compare(&said, &running(rig.cluster.folder())).map_err(|breach| breach.what)?;
    let unknown = rig.ask_all(RUNS).list_unknown("").await;
    let unknown = unknown.map_err(|error| error.to_string())?;
    if unknown.sandboxes.is_empty() && unknown.unheard_agents == 0 {
        return Ok(());
    }
    let (sandboxes, unheard) = (&unknown.sandboxes, unknown.unheard_agents);
    Err(format!("agents run what the state does not know: {sandboxes:?}; {unheard} have said nothing"))
}

/// What really runs, by the environment and the working directories of all processes.
fn running(folder: &Path) -> ByAgent {
    let mut found: ByAgent = BTreeMap::new();
    let Ok(processes) = fs::read_dir("/proc") else { return found };
    for entry in processes.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(place) = fs::read_link(entry.path().join("cwd")) else { continue };
        if !place.starts_with(folder) || !alive(pid) {
            continue;
        }
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let id = environment
            .split(|byte| *byte == 0)
            .find_map(|variable| std::str::from_utf8(variable).ok()?.strip_prefix("SANDKEEPER_SANDBOX_ID="));
        if let (Some(id), Some(agent)) = (id, agent_of(&place.to_string_lossy())) {
            found.entry(agent).or_default().insert(id.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_seen_from_the_place() {
        assert_eq!(agent_of("/tmp/sandkeeper-test-x1/a0/work/y").as_deref(), Some("a0"));
        assert_eq!(agent_of("/tmp/elsewhere/a0"), None);
    }
}
