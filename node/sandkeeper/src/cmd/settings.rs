//! Settings: flags, then `SANDKEEPER_*`, then a TOML file, then defaults. Flags and environment come from clap; this is
//! the file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use figment::Figment;
use figment::error::Kind;
use figment::providers::{Format, Toml};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};

use crate::error::CliError;
use crate::parse;

/// Reads a settings file; without a path all is unset.
///
/// # Errors
/// With the file, the key and what was expected.
pub fn read<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<T, CliError> {
    let Some(path) = path else { return Ok(T::default()) };
    // figment takes a file that is not there for an empty one.
    let text = fs::read_to_string(path)
        .with_context(|| format!("the settings file {} can't be read", path.display()))?;
    Figment::new().merge(Toml::string(&text)).extract().map_err(|errors| {
        let lines: Vec<_> = errors.into_iter().map(|error| describe(path, &error)).collect();
        CliError::Failed(anyhow!("{}", lines.join("\n")))
    })
}

fn describe(path: &Path, error: &figment::Error) -> String {
    let file = path.display();
    let inside = error.path.join(".");
    match &error.kind {
        Kind::UnknownField(key, expected) => {
            // The path ends with the key itself.
            let table = inside.strip_suffix(key.as_str()).and_then(|table| table.strip_suffix('.'));
            let table = table.map_or_else(String::new, |table| format!(" in [{table}]"));
            format!("{file}: unknown key `{key}`{table}; expected one of: {}", expected.join(", "))
        }
        kind if inside.is_empty() => format!("{file}: {kind}"),
        kind => format!("{file}: key `{inside}`: {kind}"),
    }
}

/// A setting that has no default and was given nowhere.
pub fn required<T>(value: Option<T>, name: &str) -> Result<T, CliError> {
    value.ok_or_else(|| {
        let (flag, env) = (name.replace('_', "-"), name.to_uppercase());
        CliError::Usage(format!(
            "`{name}` is not set: give --{flag}, or SANDKEEPER_{env}, or `{name}` in the settings file"
        ))
    })
}

/// For `deserialize_with`: an optional duration as people write it.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    human(deserializer, parse::duration)
}

/// For `deserialize_with`: an optional amount of bytes as people write it.
pub fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    human(deserializer, parse::bytes)
}

/// For `deserialize_with`: an optional amount of CPU as people write it.
pub fn cpu<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    human(deserializer, parse::cpu)
}

/// For `deserialize_with`: an optional range of milliseconds.
pub fn range_millis<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<(Duration, Duration)>, D::Error> {
    human(deserializer, parse::range_millis)
}

fn human<'de, T, D: Deserializer<'de>>(
    deserializer: D,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map(Some).map_err(D::Error::custom)
}

/// A path of the file is relative to the folder of the file.
pub fn beside(config: Option<&Path>, path: Option<PathBuf>) -> Option<PathBuf> {
    match (config.and_then(Path::parent), path) {
        (Some(folder), Some(path)) => Some(folder.join(path)),
        (_, path) => path,
    }
}
