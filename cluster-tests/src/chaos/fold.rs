//! The truth: what the history says, folded by a model of its own that shares no code with the product.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use sandkeeper_client::v1::{self, EventType, Phase};

use super::versions::{At, Versions};
use super::violation::{Breach, Invariant};

/// Revisions that are kept behind the newest: more than a call can be late.
const KEPT: u64 = 40_000;
/// Between two times of forgetting.
const FORGET_EVERY: u64 = 5_000;

/// What the model knows of a sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// As clients see it, but for what the model does not follow (endpoints, reasons, exit codes).
    pub seen: v1::Sandbox,
    /// Generations that are not released, and whose they are.
    pub held: Vec<(u64, String)>,
}

/// What an agent has given away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Slots.
    pub slots: i64,
    /// Thousandths of a CPU.
    pub cpu_millis: i64,
    /// Bytes.
    pub memory_bytes: i64,
}

/// The state, as far as the model follows it, at every revision that is not long ago.
#[derive(Debug, Default)]
pub struct Fold {
    head: u64,
    sandboxes: HashMap<String, Versions<Option<Arc<Record>>>>,
    /// Their ids, by namespace.
    spaces: HashMap<String, HashSet<String>>,
    /// Of live sandboxes: namespace and name.
    names: HashMap<(String, String), Versions<Option<String>>>,
    agents: BTreeMap<String, Versions<Load>>,
    /// How many sandboxes there are.
    count: Versions<u64>,
    /// Agents to which a sandbox was ever given.
    given: HashMap<String, Vec<String>>,
    /// Gone, and when.
    gone: VecDeque<(u64, String)>,
}

impl Fold {
    /// The newest revision.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// A sandbox at a revision.
    pub fn sandbox(&self, id: &str, revision: u64) -> At<Option<Arc<Record>>> {
        match self.sandboxes.get(id).map(|versions| versions.at(revision)) {
            Some(At::Value(record)) => At::Value(record.clone()),
            // It may have been there, and be forgotten whole.
            None if revision + KEPT < self.head + FORGET_EVERY => At::Forgotten,
            Some(At::Forgotten) => At::Forgotten,
            Some(At::Nothing) | None => At::Value(None),
        }
    }

    /// Whether a sandbox was in the state, at some revision of a range; and whether it was not. None: nobody knows.
    pub fn presence(&self, id: &str, from: u64, to: u64) -> Option<(bool, bool)> {
        let Some(versions) = self.sandboxes.get(id) else { return Some((false, true)) };
        let found = versions.between(from, to)?;
        let count = found.iter().filter(|found| found.is_some_and(Option::is_some)).count();
        Some((count > 0, count < found.len()))
    }

    /// Who had a name at a revision.
    pub fn named(&self, namespace: &str, name: &str, revision: u64) -> At<Option<String>> {
        match self.names.get(&(namespace.to_owned(), name.to_owned())).map(|versions| versions.at(revision)) {
            Some(At::Value(holder)) => At::Value(holder.clone()),
            Some(At::Forgotten) => At::Forgotten,
            Some(At::Nothing) | None => At::Value(None),
        }
    }

    /// Everybody who had a name at some revision of a range; None in the list: nobody had. None: nobody knows.
    pub fn holders(&self, namespace: &str, name: &str, from: u64, to: u64) -> Option<Vec<Option<String>>> {
        let Some(versions) = self.names.get(&(namespace.to_owned(), name.to_owned())) else {
            return Some(vec![None]);
        };
        let found = versions.between(from, to)?;
        Some(found.into_iter().map(|holder| holder.cloned().flatten()).collect())
    }

    /// All sandboxes of a namespace at a revision (those that can still be listed: the model forgets what is long gone).
    pub fn of_namespace(&self, namespace: &str, revision: u64) -> Option<Vec<Arc<Record>>> {
        let mut found = Vec::new();
        let ids = self.spaces.get(namespace).into_iter().flatten();
        for versions in ids.filter_map(|id| self.sandboxes.get(id)) {
            match versions.at(revision) {
                At::Value(Some(record)) => found.push(record.clone()),
                At::Forgotten => return None,
                _ => {}
            }
        }
        Some(found)
    }

    /// All sandboxes that there are now.
    pub fn live(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.sandboxes.values().filter_map(|versions| versions.last()?.as_ref())
    }

    /// What an agent had given away at a revision.
    pub fn load(&self, agent: &str, revision: u64) -> At<Load> {
        match self.agents.get(agent).map(|versions| versions.at(revision)) {
            Some(At::Value(load)) => At::Value(*load),
            Some(At::Forgotten) => At::Forgotten,
            Some(At::Nothing) | None => At::Value(Load::default()),
        }
    }

    /// How many sandboxes there were at a revision.
    pub fn count(&self, revision: u64) -> At<u64> {
        match self.count.at(revision) {
            At::Value(count) => At::Value(*count),
            At::Nothing => At::Value(0),
            At::Forgotten => At::Forgotten,
        }
    }

    /// Whether a sandbox was ever given to an agent; None: it is forgotten, or never was.
    pub fn was_given(&self, id: &str, agent: &str) -> Option<bool> {
        self.given.get(id).map(|agents| agents.iter().any(|given| given == agent))
    }

    /// Folds the next event.
    ///
    /// # Errors
    /// If it can't happen.
    pub fn apply(&mut self, event: &v1::Event) -> Result<(), Breach> {
        self.head = event.revision;
        let done = match event.r#type() {
            EventType::SandboxCreated => self.create(event),
            _ if !event.sandbox_id.is_empty() => self.change(event),
            _ => Ok(()),
        };
        if self.head.is_multiple_of(FORGET_EVERY) {
            self.forget(self.head.saturating_sub(KEPT));
        }
        done
    }

    fn create(&mut self, event: &v1::Event) -> Result<(), Breach> {
        let seen = event.sandbox.clone().unwrap_or_default();
        let id = event.sandbox_id.clone();
        if self.sandboxes.contains_key(&id) {
            return Err(Breach::new(Invariant::Durable, event, "a sandbox is created twice"));
        }
        let name = (event.namespace.clone(), event.name.clone());
        let names = self.names.entry(name).or_default();
        let before = names.last().cloned().flatten();
        names.push(event.revision, Some(id.clone()));
        let record = Record { seen, held: Vec::new() };
        self.spaces.entry(event.namespace.clone()).or_default().insert(id.clone());
        self.put(event.revision, &id, Some(record));
        self.count.push(event.revision, self.count.last().copied().unwrap_or(0) + 1);
        match before {
            None => Ok(()),
            Some(other) => {
                let what = format!("its name is that of {other}, which is live");
                Err(Breach::new(Invariant::Durable, event, what))
            }
        }
    }

    fn put(&mut self, revision: u64, id: &str, record: Option<Record>) {
        self.sandboxes.entry(id.to_owned()).or_default().push(revision, record.map(Arc::new));
    }

    fn change(&mut self, event: &v1::Event) -> Result<(), Breach> {
        let id = &event.sandbox_id;
        let Some(record) = self.sandboxes.get(id).and_then(|versions| versions.last().cloned().flatten())
        else {
            return Err(Breach::new(Invariant::Durable, event, "it is about a sandbox that is not there"));
        };
        let mut record = (*record).clone();
        record.seen.revision = event.revision;
        let done = self.transition(event, &mut record);
        if event.r#type() == EventType::SandboxRemoved {
            let left = std::mem::take(&mut record.held);
            self.free_name(event, &record);
            self.put(event.revision, id, None);
            self.count.push(event.revision, self.count.last().copied().unwrap_or(0).saturating_sub(1));
            self.gone.push_back((event.revision, id.clone()));
            done?;
            if left.is_empty() {
                return Ok(());
            }
            return Err(Breach::new(
                Invariant::Capacity,
                event,
                format!("it is removed, and holds {left:?}"),
            ));
        }
        self.put(event.revision, id, Some(record));
        done
    }

    fn transition(&mut self, event: &v1::Event, record: &mut Record) -> Result<(), Breach> {
        match event.r#type() {
            EventType::SandboxAllocated => return self.allocate(event, record),
            EventType::SandboxRunning => {
                record.seen.set_phase(Phase::Running);
                return record.is_current(event);
            }
            EventType::SandboxFailed => {
                record.seen.set_phase(Phase::Failed);
                return self.release(event, record);
            }
            EventType::SandboxLost => record.seen.set_phase(Phase::Lost),
            EventType::SandboxReset => record.seen.set_phase(Phase::Pending),
            EventType::SandboxTerminating => {
                self.free_name(event, record);
                record.seen.set_phase(Phase::Terminating);
            }
            EventType::SandboxUpdated => update(&mut record.seen, event),
            EventType::AllocationReleased => {
                self.release(event, record)?;
                let moves = matches!(record.seen.phase(), Phase::Allocated | Phase::Running | Phase::Lost);
                if moves && event.generation == record.seen.generation {
                    record.seen.set_phase(Phase::Pending);
                }
            }
            EventType::SandboxRemoved => return self.release(event, record),
            _ => {}
        }
        Ok(())
    }

    fn allocate(&mut self, event: &v1::Event, record: &mut Record) -> Result<(), Breach> {
        let follows = event.generation == record.seen.generation + 1;
        record.seen.set_phase(Phase::Allocated);
        record.seen.generation = event.generation;
        record.seen.agent_id.clone_from(&event.agent_id);
        record.held.push((event.generation, event.agent_id.clone()));
        self.given.entry(event.sandbox_id.clone()).or_default().push(event.agent_id.clone());
        self.weigh(event.revision, &event.agent_id, &record.seen, 1);
        if follows {
            Ok(())
        } else {
            Err(Breach::new(Invariant::SingleLife, event, "generations count by one"))
        }
    }

    /// Releases the generation that the event names, if it names one.
    fn release(&mut self, event: &v1::Event, record: &mut Record) -> Result<(), Breach> {
        if event.generation == 0 {
            return Ok(());
        }
        let Some(at) = record.held.iter().position(|(generation, _)| *generation == event.generation) else {
            let what = format!("it releases generation {}, and held are {:?}", event.generation, record.held);
            return Err(Breach::new(Invariant::Capacity, event, what));
        };
        let (_, agent) = record.held.remove(at);
        self.weigh(event.revision, &agent, &record.seen, -1);
        Ok(())
    }

    fn weigh(&mut self, revision: u64, agent: &str, sandbox: &v1::Sandbox, sign: i64) {
        let wanted = sandbox.resources.unwrap_or_default();
        let versions = self.agents.entry(agent.to_owned()).or_default();
        let mut load = versions.last().copied().unwrap_or_default();
        load.slots += sign;
        load.cpu_millis += sign * wanted.cpu_millis.unwrap_or(0);
        load.memory_bytes += sign * wanted.memory_bytes.unwrap_or(0);
        versions.push(revision, load);
    }

    fn free_name(&mut self, event: &v1::Event, record: &Record) {
        let name = (record.seen.namespace.clone(), record.seen.name.clone());
        if let Some(names) = self.names.get_mut(&name)
            && names.last().cloned().flatten().as_ref() == Some(&event.sandbox_id)
        {
            names.push(event.revision, None);
        }
    }

    fn forget(&mut self, before: u64) {
        while self.gone.front().is_some_and(|(revision, _)| *revision < before) {
            if let Some((_, id)) = self.gone.pop_front() {
                self.sandboxes.remove(&id);
                self.given.remove(&id);
                for ids in self.spaces.values_mut() {
                    ids.remove(&id);
                }
            }
        }
        self.sandboxes.values_mut().for_each(|versions| versions.forget_before(before));
        self.names.values_mut().for_each(|versions| versions.forget_before(before));
        self.agents.values_mut().for_each(|versions| versions.forget_before(before));
        self.count.forget_before(before);
    }
}

impl Record {
    fn is_current(&self, event: &v1::Event) -> Result<(), Breach> {
        if event.generation == self.seen.generation {
            return Ok(());
        }
        let what =
            format!("generation {} is announced, and {} is current", event.generation, self.seen.generation);
        Err(Breach::new(Invariant::SingleLife, event, what))
    }

    /// Whether an answer tells the same of a sandbox; if not, what differs.
    pub fn differs(&self, told: &v1::Sandbox) -> Option<String> {
        let mut expected = self.seen.clone();
        if expected.phase() == Phase::Pending {
            expected.agent_id.clear();
        }
        // What the model does not follow.
        expected.endpoints.clone_from(&told.endpoints);
        expected.reason.clone_from(&told.reason);
        expected.exit_code = told.exit_code;
        expected.running_timestamp = told.running_timestamp;
        (expected != *told).then(|| format!("told {told:?}, expected {expected:?}"))
    }
}

fn update(seen: &mut v1::Sandbox, event: &v1::Event) {
    let Some(values) = &event.sandbox else { return };
    for field in &event.changed {
        match field.as_str() {
            "expire_time" => seen.expire_time = values.expire_time,
            "labels" => seen.labels.clone_from(&values.labels),
            "failure_policy" => seen.failure_policy = values.failure_policy,
            "recovery_timeout_seconds" => seen.recovery_timeout_seconds = values.recovery_timeout_seconds,
            _ => {}
        }
    }
}
