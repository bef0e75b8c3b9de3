//! Making all of several sandboxes, or none.

use std::collections::BTreeSet;

use super::Surroundings;
use crate::command::CreateSandbox;
use crate::decide::Outcome;
use crate::draft::{Cause, Draft};
use crate::event::{EventKind, Subject};
use crate::ids::SandboxId;
use crate::limits::{MAX_BATCH_CREATES, MAX_DECISION_BYTES, Violation};
use crate::rejection::Rejection;
use crate::spec::Mode;
use crate::state::BatchSandbox;

/// What the last event, which names all of them, may add to a batch: an id has 17 bytes.
const CLOSING_BYTES: usize = 32 * MAX_BATCH_CREATES;

impl Draft {
    pub(super) fn create_batch(
        &mut self,
        cause: &mut Cause,
        creates: &[CreateSandbox],
        around: &mut dyn Surroundings,
    ) -> Result<Outcome, Rejection> {
        check_batch(creates)?;
        let revision = self.state().revision() + 1;
        self.attempt(|draft| draft.create_all(cause, creates, around)).map(|sandboxes| {
            let at = self.state().revision();
            Outcome::Batch { sandboxes: sandboxes.into(), revision, at, duplicate: false }
        })
    }

    fn create_all(
        &mut self,
        cause: &mut Cause,
        creates: &[CreateSandbox],
        around: &mut dyn Surroundings,
    ) -> Result<Vec<BatchSandbox>, Rejection> {
        let most = MAX_DECISION_BYTES - CLOSING_BYTES;
        let before = self.encoded_bytes();
        let mut made = Vec::with_capacity(creates.len());
        for (index, create) in creates.iter().enumerate() {
            let name = &create.spec.name;
            let refused = |why| match why {
                Rejection::Invalid(violations) => Rejection::Invalid(within(index, violations)),
                why => Rejection::InBatch { index, name: name.clone(), why: Box::new(why) },
            };
            // The batch is remembered by its last event, which knows all of them.
            self.create_sandbox(&mut cause.consequence(), create, around).map_err(refused)?;
            let sandbox = self.state().sandbox_named(name).expect("it was made a line above");
            let (id, name) = (sandbox.id.clone(), name.name.clone());
            made.push(BatchSandbox { id, name, created: sandbox.created });
            let bytes = self.encoded_bytes() - before;
            if bytes > most {
                let text = format!(
                    "the first {} take {bytes} bytes of the log already, at most {most} in all: make several smaller \
                     batches",
                    made.len()
                );
                return Err(Rejection::invalid("creates", text));
            }
        }
        let sandboxes: Vec<SandboxId> = made.iter().map(|one| one.id.clone()).collect();
        self.push(cause, Subject::default(), 0, EventKind::BatchCreated { sandboxes }, String::new());
        Ok(made)
    }
}

/// Violations of one create, as those of the batch.
fn within(index: usize, violations: Vec<Violation>) -> Vec<Violation> {
    let name =
        |found: Violation| Violation::new(format!("creates[{index}].{}", found.field), found.description);
    violations.into_iter().map(name).collect()
}

/// What makes a batch a batch; each create is checked by itself later.
fn check_batch(creates: &[CreateSandbox]) -> Result<(), Rejection> {
    let mut violations = Vec::new();
    let mut violated = |field: String, text: &str| violations.push(Violation::new(field, text));
    if creates.is_empty() || creates.len() > MAX_BATCH_CREATES {
        let text = format!("1 to {MAX_BATCH_CREATES} creates, has {}", creates.len());
        return Err(Rejection::invalid("creates", text));
    }
    let mut names = BTreeSet::new();
    let namespace = &creates[0].spec.name.namespace;
    for (index, create) in creates.iter().enumerate() {
        let name = &create.spec.name;
        if name.namespace != *namespace {
            violated(format!("creates[{index}].namespace"), "must be the same for all of a batch");
        }
        if !names.insert(name) {
            violated(format!("creates[{index}].name"), "stands in the batch before");
        }
        if create.spec.mode == Mode::Strong {
            let text = "STRONG can't be all or nothing: make the batch FAST and wait for its sandboxes, or create \
                        them one by one";
            violated(format!("creates[{index}].mode"), text);
        }
    }
    if violations.is_empty() { Ok(()) } else { Err(Rejection::Invalid(violations)) }
}
