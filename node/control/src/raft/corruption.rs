//! A hook for tests: corrupts this replica's memory, not its log, when it has applied a revision. Debug builds only; a
//! release build does not know the variable.

use std::env::{VarError, var};
use std::io;

use sandkeeper_statemachine::{Revision, State};

/// Names the revision.
const VARIABLE: &str = "SANDKEEPER_TEST_CORRUPT_STATE_AT_REVISION";

/// What is still to be done.
pub(super) struct Corruption {
    at: Option<Revision>,
}

impl Corruption {
    /// As the environment says.
    ///
    /// # Errors
    /// If it names something that is no revision.
    pub(super) fn from_environment() -> io::Result<Self> {
        let at = match var(VARIABLE) {
            Ok(text) => text.parse().map_err(|_| format!("{text:?} is no revision")).map(Some),
            Err(VarError::NotPresent) => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        let at =
            at.map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, format!("{VARIABLE}: {why}")))?;
        Ok(Self { at })
    }

    /// Once, at the revision or after it, as soon as there is something to corrupt.
    pub(super) fn strike(&mut self, state: &mut State) {
        if self.at.is_some_and(|at| state.revision() >= at)
            && let Some(sandbox) = state.corrupt_one_record()
        {
            self.at = None;
            let revision = state.revision();
            tracing::warn!(revision, %sandbox, "{VARIABLE}: a record was corrupted in memory");
        }
    }
}
