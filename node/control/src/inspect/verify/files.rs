//! What files a data directory has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{VerifiedFiles, length};
use crate::inspect::InspectError;
use crate::inspect::copy::list;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Identity,
    Log,
    Places,
    Meta,
    End,
    Snapshot,
    Index,
    Lock,
    Other,
}

impl Kind {
    fn of(path: &Path) -> Self {
        let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
        let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
        let ends_with = |end: &str| path.extension().is_some_and(|extension| extension == end);
        match parts[..] {
            ["node.toml"] => Self::Identity,
            ["LOCK"] => Self::Lock,
            ["log", "end"] => Self::End,
            ["log", "meta", ..] => Self::Meta,
            ["log", database, "places"] if database.starts_with("log-") => Self::Places,
            ["log", database, _, ..] if database.starts_with("log-") => Self::Log,
            ["snapshots", name] if name.starts_with("snapshot-") && ends_with("sk") => Self::Snapshot,
            ["index", name] if name.starts_with("section-") && !ends_with("tmp") => Self::Index,
            _ => Self::Other,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Identity => "node.toml",
            Self::Log => "log databases",
            Self::Places => "places",
            Self::Meta => "log/meta",
            Self::End => "log/end",
            Self::Snapshot => "snapshots",
            Self::Index => "index",
            Self::Lock => "LOCK",
            Self::Other => "not read",
        }
    }
}

/// Every file, with its kind and length.
pub(super) struct Listing {
    files: BTreeMap<PathBuf, (Kind, u64)>,
}

impl Listing {
    pub(super) fn of(data_dir: &Path) -> Result<Self, InspectError> {
        let mut files = BTreeMap::new();
        let mut folders = vec![data_dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for path in list(&folder)? {
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let kind = Kind::of(path.strip_prefix(data_dir).unwrap_or(&path));
                    let bytes = length(&path);
                    files.insert(path, (kind, bytes));
                }
            }
        }
        Ok(Self { files })
    }

    /// How much is to be read.
    pub(super) fn bytes(&self) -> u64 {
        let read = |kind| matches!(kind, Kind::Log | Kind::Snapshot | Kind::Index);
        self.files.values().filter(|(kind, _)| read(*kind)).map(|(_, bytes)| bytes).sum()
    }

    pub(super) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Path> {
        self.files.iter().filter(move |(_, (of, _))| *of == kind).map(|(path, _)| path.as_path())
    }

    pub(super) fn length(&self, path: &Path) -> u64 {
        self.files.get(path).map_or(0, |(_, bytes)| *bytes)
    }

    /// How long the files of a database are that hold entries.
    pub(super) fn below(&self, folder: &Path) -> u64 {
        let inside =
            self.files.iter().filter(|(path, (kind, _))| *kind == Kind::Log && path.starts_with(folder));
        inside.map(|(_, (_, bytes))| bytes).sum()
    }

    pub(super) fn summary(&self, entries: &BTreeMap<Kind, u64>) -> Vec<VerifiedFiles> {
        let mut by_kind = BTreeMap::<Kind, VerifiedFiles>::new();
        for (kind, bytes) in self.files.values() {
            let new = || VerifiedFiles {
                what: kind.name(),
                files: 0,
                bytes: 0,
                entries: entries.get(kind).copied(),
            };
            let of_kind = by_kind.entry(*kind).or_insert_with(new);
            of_kind.files += 1;
            of_kind.bytes += bytes;
        }
        by_kind.into_values().collect()
    }
}
