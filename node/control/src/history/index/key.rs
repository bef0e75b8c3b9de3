//! What the index is asked by.

use sandkeeper_statemachine::{AgentId, Event, Label, SandboxId};

/// A subject: 64 bits of a hash. Two may share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key(pub(super) u64);

impl Key {
    pub(crate) fn sandbox(id: &SandboxId) -> Self {
        let bytes: &[u8] = match id {
            SandboxId::Fast(bytes) => bytes,
            SandboxId::Strong(uuid) => uuid.as_bytes(),
            SandboxId::Adopted(name) => name.as_str().as_bytes(),
        };
        Self::of(&[b"sandbox", bytes])
    }

    /// All that ever had this name.
    pub(crate) fn name(namespace: &Label, name: &Label) -> Self {
        Self::of(&[b"name", namespace.as_str().as_bytes(), name.as_str().as_bytes()])
    }

    pub(crate) fn agent(id: &AgentId) -> Self {
        Self::of(&[b"agent", id.as_str().as_bytes()])
    }

    pub(crate) fn namespace(namespace: &Label) -> Self {
        Self::of(&[b"namespace", namespace.as_str().as_bytes()])
    }

    fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        Self(u64::from_le_bytes(first))
    }

    /// Under which keys an event is found.
    pub(crate) fn of_event(event: &Event) -> impl Iterator<Item = Self> {
        let subject = &event.header.subject;
        let sandbox = subject.sandbox.as_ref();
        let of_sandbox = sandbox.map(|(id, name)| {
            [Self::sandbox(id), Self::name(&name.namespace, &name.name), Self::namespace(&name.namespace)]
        });
        of_sandbox.into_iter().flatten().chain(subject.agent.as_ref().map(Self::agent))
    }
}
