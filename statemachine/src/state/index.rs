//! The only writers of records (beside those of streams): each takes the old record's traces out of the indexes and puts
//! the new one's in.

use std::sync::Arc;

use planted_bugs::{Bug, planted};

use crate::ids::{AgentId, Revision, SandboxId, SandboxName, Timestamp};
use crate::spec::{Capacity, Shape};

use super::{Agent, Phase, RequestKey, RequestRecord, Sandbox, State};

/// What the indexes hold of a sandbox, beside its allocations.
struct Traces {
    name: Option<SandboxName>,
    expiry: Option<Timestamp>,
    queue: Option<(Shape, Revision)>,
    wait_end: Option<Timestamp>,
}

impl Traces {
    fn of(sandbox: &Sandbox) -> Self {
        let status = &sandbox.status;
        let live = status.phase != Phase::Terminating;
        let waits = status.phase == Phase::Pending;
        Self {
            name: has_name(sandbox).then(|| sandbox.spec.name.clone()),
            expiry: status.expire_time.filter(|_| live),
            queue: waits.then(|| (sandbox.spec.shape(), status.queued)),
            wait_end: status.wait_until.filter(|_| waits),
        }
    }
}

impl State {
    /// Puts a sandbox's record in place of the one with its id, if there is one.
    pub(crate) fn put_sandbox(&mut self, sandbox: Sandbox) {
        self.sum.add(sandbox.digest());
        self.phases[sandbox.status.phase as usize] += 1;
        let old = self.sandboxes.get(&sandbox.id).cloned();
        if let Some(old) = &old {
            self.forget_sandbox(old, Some(&sandbox));
        }
        self.index_sandbox(&sandbox, old.as_ref());
        if planted(Bug::CapacityAtTerminating) && sandbox.status.phase == Phase::Terminating {
            for (old, held) in old.iter().flat_map(|old| old.status.held.iter().map(move |held| (old, held)))
            {
                self.charge(&held.agent, old, false);
            }
        }
        self.count_live(old.as_ref().and_then(Sandbox::live_on), sandbox.live_on());
        self.sandboxes.insert(sandbox.id.clone(), sandbox);
    }

    /// Takes a sandbox's record out.
    pub(crate) fn remove_sandbox(&mut self, id: &SandboxId) {
        if let Some(old) = self.sandboxes.remove(id) {
            self.forget_sandbox(&old, None);
            self.count_live(old.live_on(), None);
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
                agent.live = agent.live.saturating_add_signed(change);
                let unsettled = agent.is_unsettled();
                self.index_unsettled(id, unsettled);
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

    fn index_sandbox(&mut self, new: &Sandbox, old: Option<&Sandbox>) {
        let traces = Traces::of(new);
        let before = old.map(Traces::of);
        let before = before.as_ref();
        if let Some(name) = traces.name
            && before.is_none_or(|before| before.name.is_none())
        {
            self.names.insert(name, new.id.clone());
        }
        if let Some(time) = traces.expiry {
            self.expiries.insert((time, new.id.clone()));
        }
        if let Some((shape, place)) = traces.queue {
            self.queues.entry(shape).or_default().insert((place, new.id.clone()));
        }
        if let Some(time) = traces.wait_end {
            self.wait_ends.insert((time, new.id.clone()));
        }
        if new.status.is_recoverable() {
            self.recoverable.insert(new.id.clone());
        }
        for held in &new.status.held {
            if !old.is_some_and(|old| old.status.held.contains(held)) {
                self.held.insert((held.agent.clone(), new.id.clone(), held.generation));
                self.charge(&held.agent, new, true);
            }
        }
    }

    fn forget_sandbox(&mut self, old: &Sandbox, new: Option<&Sandbox>) {
        self.sum.remove(old.digest());
        self.phases[old.status.phase as usize] -= 1;
        let traces = Traces::of(old);
        let stays = new.is_some_and(has_name);
        if let Some(name) = traces.name
            && !stays
        {
            self.names.remove(&name);
        }
        if let Some(time) = traces.expiry {
            self.expiries.remove(&(time, old.id.clone()));
        }
        if let Some((shape, place)) = traces.queue
            && let Some(queue) = self.queues.get_mut(&shape)
        {
            queue.remove(&(place, old.id.clone()));
            if queue.is_empty() {
                self.queues.remove(&shape);
            }
        }
        if let Some(time) = traces.wait_end {
            self.wait_ends.remove(&(time, old.id.clone()));
        }
        if old.status.is_recoverable() {
            self.recoverable.remove(&old.id);
        }
        for held in &old.status.held {
            if !new.is_some_and(|new| new.status.held.contains(held)) {
                self.held.remove(&(held.agent.clone(), old.id.clone(), held.generation));
                self.charge(&held.agent, old, false);
                if planted(Bug::ReleasedTwice) && new.is_some_and(|new| new.status.phase == Phase::Failed) {
                    self.charge(&held.agent, old, false);
                }
            }
        }
    }

    /// Adds one allocation to an agent's sum, or takes it off.
    fn charge(&mut self, agent: &AgentId, sandbox: &Sandbox, taken: bool) {
        if planted(Bug::CapacityAtTerminating) && sandbox.status.phase == Phase::Terminating {
            return;
        }
        let amount = Capacity::of(sandbox.spec.resources);
        let record = self.agents.get(agent).expect("an agent stays in the state while it holds allocations");
        let key = record.spec.pool.clone();
        let before = ready_load(record);
        let record = self.agents.get_mut(agent).expect("it was there a line above");
        if taken {
            record.allocated = record.allocated.plus(amount);
            record.ports.extend(sandbox.spec.ports.iter().copied());
        } else {
            record.allocated = record.allocated.minus(amount);
            for port in &sandbox.spec.ports {
                record.ports.remove(port);
            }
        }
        let after = ready_load(record);
        self.index_ready(&key, agent, before, after);
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
        self.sum.add(agent.digest());
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
            self.sum.remove(old.digest());
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
        self.sum.add(record.digest(&key));
        self.remembered_more += record.result.weight() - 1;
        if let Some(ends) = record.ends {
            self.request_ends.insert((ends, key.clone()));
        }
        self.requests.insert(key, Arc::new(record));
    }

    /// Forgets a request.
    pub(crate) fn remove_request(&mut self, key: &RequestKey) {
        if let Some(old) = self.requests.remove(key) {
            self.sum.remove(old.digest(key));
            self.remembered_more -= old.result.weight() - 1;
            if let Some(ends) = old.ends {
                self.request_ends.remove(&(ends, key.clone()));
            }
        }
    }
}

/// Whether it has its name: another one can have it as soon as the terminate has committed.
fn has_name(sandbox: &Sandbox) -> bool {
    match sandbox.status.phase {
        Phase::Terminating => planted(Bug::NameFreedTooLate),
        Phase::Failed | Phase::Lost => !planted(Bug::NameFreedTooEarly),
        Phase::Pending | Phase::Allocated | Phase::Running => true,
    }
}

/// Its place among the agents that can get new sandboxes; None: it can't.
fn ready_load(agent: &Agent) -> Option<u32> {
    (agent.schedulable() && agent.free().slots > 0).then(|| agent.load())
}
