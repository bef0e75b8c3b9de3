//! The only writers of records (beside those of streams): each takes the old record's traces out of the indexes and puts
//! the new one's in.

use std::sync::Arc;

use imbl::OrdSet;
use planted_bugs::{Bug, planted};

use crate::ids::{AgentId, Revision, SandboxId, Timestamp};
use crate::spec::{Capacity, SandboxSpec};

use super::{Agent, Held, Phase, RequestKey, RequestRecord, Sandbox, State};

/// What the indexes hold of a sandbox. The default: of none.
#[derive(Default)]
struct Traces {
    phase: Option<Phase>,
    /// Whether the name is taken by it.
    named: bool,
    expiry: Option<Timestamp>,
    queued: Option<Revision>,
    wait_end: Option<Timestamp>,
    recoverable: bool,
    held: Vec<Held>,
    live_on: Option<AgentId>,
}

impl Traces {
    fn of(sandbox: &Sandbox) -> Self {
        let status = &sandbox.status;
        let live = status.phase != Phase::Terminating;
        let waits = status.phase == Phase::Pending;
        Self {
            phase: Some(status.phase),
            named: has_name(status.phase),
            expiry: status.expire_time.filter(|_| live),
            queued: waits.then_some(status.queued),
            wait_end: status.wait_until.filter(|_| waits),
            recoverable: status.is_recoverable(),
            held: status.held.clone(),
            live_on: sandbox.live_on().cloned(),
        }
    }
}

impl State {
    /// Puts a sandbox's record in. There must be none with its id.
    pub(crate) fn put_sandbox(&mut self, sandbox: Sandbox) {
        self.sum.add(|| sandbox.digest());
        let (id, spec, traces) = (sandbox.id.clone(), Arc::clone(&sandbox.spec), Traces::of(&sandbox));
        self.sandboxes.insert(sandbox.id.clone(), sandbox);
        self.retrace(&id, &spec, &Traces::default(), &traces);
    }

    /// Changes a sandbox's record where it stands, so that nothing is copied that nobody else holds. False: there is none.
    pub(crate) fn change_sandbox(&mut self, id: &SandboxId, change: impl FnOnce(&mut Sandbox)) -> bool {
        let Some(record) = self.sandboxes.get_mut(id) else { return false };
        self.sum.remove(|| record.digest());
        let before = Traces::of(record);
        change(record);
        let after = Traces::of(record);
        self.sum.add(|| record.digest());
        let spec = Arc::clone(&record.spec);
        self.retrace(id, &spec, &before, &after);
        true
    }

    /// Takes a sandbox's record out.
    pub(crate) fn remove_sandbox(&mut self, id: &SandboxId) -> Option<Sandbox> {
        let old = self.sandboxes.remove(id)?;
        self.sum.remove(|| old.digest());
        self.retrace(id, &old.spec, &Traces::of(&old), &Traces::default());
        Some(old)
    }

    /// Brings the indexes from what they hold of a sandbox to what they are to hold.
    fn retrace(&mut self, id: &SandboxId, spec: &SandboxSpec, before: &Traces, after: &Traces) {
        if let Some(phase) = before.phase {
            self.phases[phase as usize] -= 1;
        }
        if let Some(phase) = after.phase {
            self.phases[phase as usize] += 1;
        }
        match (before.named, after.named) {
            (false, true) => drop(self.names.insert(spec.name.clone(), id.clone())),
            (true, false) => drop(self.names.remove(&spec.name)),
            _ => {}
        }
        move_in(&mut self.expiries, before.expiry, after.expiry, id);
        move_in(&mut self.wait_ends, before.wait_end, after.wait_end, id);
        if before.queued != after.queued {
            self.requeue(id, spec, before.queued, after.queued);
        }
        match (before.recoverable, after.recoverable) {
            (false, true) => drop(self.recoverable.insert(id.clone())),
            (true, false) => drop(self.recoverable.remove(id)),
            _ => {}
        }
        for held in before.held.iter().filter(|held| !after.held.contains(held)) {
            self.held.remove(&(held.agent.clone(), id.clone(), held.generation));
            if !(planted(Bug::CapacityAtTerminating) && before.phase == Some(Phase::Terminating)) {
                self.charge(&held.agent, spec, false);
            }
            if planted(Bug::ReleasedTwice) && after.phase == Some(Phase::Failed) {
                self.charge(&held.agent, spec, false);
            }
        }
        if planted(Bug::CapacityAtTerminating) && after.phase == Some(Phase::Terminating) {
            before.held.iter().for_each(|held| self.charge(&held.agent, spec, false));
        }
        for held in after.held.iter().filter(|held| !before.held.contains(held)) {
            self.held.insert((held.agent.clone(), id.clone(), held.generation));
            self.charge(&held.agent, spec, true);
        }
        self.count_live(before.live_on.as_ref(), after.live_on.as_ref());
    }

    fn requeue(
        &mut self,
        id: &SandboxId,
        spec: &SandboxSpec,
        before: Option<Revision>,
        after: Option<Revision>,
    ) {
        let shape = spec.shape();
        let mut queue = self.queues.remove(&shape).unwrap_or_default();
        move_in(&mut queue, before, after, id);
        if !queue.is_empty() {
            self.queues.insert(shape, queue);
        }
    }

    /// Counts what an agent is to run, so that what a lost one still has to lose is found without a search.
    fn count_live(&mut self, before: Option<&AgentId>, after: Option<&AgentId>) {
        if before == after {
            return;
        }
        for (id, change) in [(before, -1), (after, 1)] {
            let Some(id) = id else { continue };
            // The agent may be out of the state already: it held nothing any more.
            if let Some(agent) = self.agents.get_mut(id) {
                let was = agent.is_unsettled();
                agent.live = agent.live.saturating_add_signed(change);
                let is = agent.is_unsettled();
                if was != is {
                    self.index_unsettled(id, is);
                }
            }
        }
    }

    fn index_unsettled(&mut self, id: &AgentId, unsettled: bool) {
        if unsettled {
            self.unsettled.insert(id.clone());
        } else {
            self.unsettled.remove(id);
        }
    }

    /// Adds one allocation to an agent's sum, or takes it off.
    fn charge(&mut self, id: &AgentId, spec: &SandboxSpec, taken: bool) {
        let amount = Capacity::of(spec.resources);
        let agent = self.agents.get_mut(id).expect("an agent stays in the state while it holds allocations");
        let before = ready_load(agent);
        if taken {
            agent.allocated = agent.allocated.plus(amount);
            agent.ports.extend(spec.ports.iter().copied());
        } else {
            agent.allocated = agent.allocated.minus(amount);
            for port in &spec.ports {
                agent.ports.remove(port);
            }
        }
        let after = ready_load(agent);
        let pool = agent.spec.pool.clone();
        self.index_ready(&pool, id, before, after);
    }

    fn index_ready(
        &mut self,
        pool: &crate::ids::Label,
        agent: &AgentId,
        before: Option<u32>,
        after: Option<u32>,
    ) {
        if before == after {
            return;
        }
        if let Some(load) = before
            && let Some(ready) = self.ready.get_mut(pool)
        {
            ready.remove(&(load, agent.clone()));
            if ready.is_empty() {
                self.ready.remove(pool);
            }
        }
        if let Some(load) = after {
            self.ready.entry(pool.clone()).or_default().insert((load, agent.clone()));
        }
    }

    /// Puts an agent's record in place of the one with its name, if there is one.
    pub(crate) fn put_agent(&mut self, agent: Agent) {
        self.remove_agent(&agent.spec.agent_id);
        self.sum.add(|| agent.digest());
        let id = agent.spec.agent_id.clone();
        let pool = self.pools.entry(agent.spec.pool.clone()).or_default();
        pool.agents += 1;
        pool.unavailable += usize::from(!agent.schedulable());
        self.index_unsettled(&id, agent.is_unsettled());
        self.index_ready(&agent.spec.pool, &id, None, ready_load(&agent));
        self.agents.insert(id, agent);
    }

    /// Takes an agent's record out.
    pub(crate) fn remove_agent(&mut self, id: &AgentId) {
        if let Some(old) = self.agents.remove(id) {
            self.sum.remove(|| old.digest());
            self.index_ready(&old.spec.pool, id, ready_load(&old), None);
            self.index_unsettled(id, false);
            if let Some(pool) = self.pools.get_mut(&old.spec.pool) {
                pool.agents -= 1;
                pool.unavailable -= usize::from(!old.schedulable());
                if pool.agents == 0 {
                    self.pools.remove(&old.spec.pool);
                }
            }
        }
    }

    /// Puts a remembered request in place of the one with its key, if there is one.
    pub(crate) fn put_request(&mut self, key: RequestKey, record: RequestRecord) {
        self.remove_request(&key);
        self.sum.add(|| record.digest(&key));
        self.remembered_more += record.result.weight() - 1;
        if let Some(ends) = record.ends {
            self.request_ends.insert((ends, key.clone()));
        }
        self.requests.insert(key, Arc::new(record));
    }

    /// Forgets a request.
    pub(crate) fn remove_request(&mut self, key: &RequestKey) {
        if let Some(old) = self.requests.remove(key) {
            self.sum.remove(|| old.digest(key));
            self.remembered_more -= old.result.weight() - 1;
            if let Some(ends) = old.ends {
                self.request_ends.remove(&(ends, key.clone()));
            }
        }
    }
}

/// Whether a sandbox in this phase has its name: another one can have it as soon as the terminate has committed.
fn has_name(phase: Phase) -> bool {
    match phase {
        Phase::Terminating => planted(Bug::NameFreedTooLate),
        Phase::Failed | Phase::Lost => !planted(Bug::NameFreedTooEarly),
        Phase::Pending | Phase::Allocated | Phase::Running => true,
    }
}

/// Moves a sandbox from one place in an index to another.
fn move_in<K: Ord + Clone>(
    index: &mut OrdSet<(K, SandboxId)>,
    before: Option<K>,
    after: Option<K>,
    id: &SandboxId,
) {
    if before == after {
        return;
    }
    if let Some(place) = before {
        index.remove(&(place, id.clone()));
    }
    if let Some(place) = after {
        index.insert((place, id.clone()));
    }
}

/// Its place among the agents that can get new sandboxes; None: it can't.
fn ready_load(agent: &Agent) -> Option<u32> {
    (agent.schedulable() && agent.free().slots > 0).then(|| agent.load())
}
