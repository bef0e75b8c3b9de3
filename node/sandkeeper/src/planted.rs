//! Bugs on purpose: in builds with the feature `planted-bugs` only, which no release build can have.

use anyhow::Context;
use planted_bugs::{Bug, VARIABLE, plant};

use crate::error::CliError;

/// Plants the bug that the environment names, and says so, loudly.
pub fn from_environment() -> Result<(), CliError> {
    let Ok(name) = std::env::var(VARIABLE) else {
        tracing::warn!("this build can be broken on purpose ({VARIABLE}); it is not for use");
        return Ok(());
    };
    let bug = plant(name.parse::<Bug>().with_context(|| format!("{VARIABLE} names no bug"))?);
    tracing::error!(bug = bug.name(), "THIS PROCESS IS BROKEN ON PURPOSE ({VARIABLE}): {}", bug.what());
    Ok(())
}
