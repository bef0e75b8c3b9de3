//! `DATA/node.toml`: who this node is. Written when the data directory is made, and once more when the node has
//! learned its cluster's id.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::StorageError;
use super::files::{create_folder, failed, write_atomically};
use crate::raft::types::NodeId;

const FILE: &str = "node.toml";
/// 2: there is a checksum. Version 1 is read.
const FORMAT_VERSION: u64 = 2;
const WITHOUT_CHECKSUM: u64 = 1;
const NOTE: &str = "# Written by sandkeeper. It belongs to this data directory: don't edit it, don't copy it to another node.\n";

/// The identity of a control node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Its number in the Raft group, drawn once.
    pub node_id: NodeId,
    /// The cluster that it belongs to, from when it knows it.
    pub cluster_id: Option<String>,
    /// The name that the operator gave it.
    pub name: String,
}

/// The file's form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format_version: u64,
    name: String,
    /// In quotes, as TOML's integers end at 2^63 - 1.
    node_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
}

impl Stored {
    /// CRC-32 of the values, as 8 hexadecimal digits: a flipped bit would make it another node.
    fn checksum(&self) -> String {
        let cluster_id = self.cluster_id.as_deref().unwrap_or_default();
        let text = format!("{}\n{}\n{cluster_id}", self.name, self.node_id);
        format!("{:08x}", crc32fast::hash(text.as_bytes()))
    }
}

impl NodeIdentity {
    /// Reads the identity of `data_dir`; `None` if it has none yet.
    ///
    /// # Errors
    /// If the file can't be read, has an unknown key, or is of a newer format.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, StorageError> {
        let path = data_dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let invalid = |what: String| StorageError::Identity { path: path.clone(), what };
        // The version is looked at first: what a newer version added is not a typing error.
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| invalid(e.to_string()))?;
        let version = table.get("format_version").and_then(toml::Value::as_integer);
        let version = version.and_then(|version| u64::try_from(version).ok());
        match version {
            Some(WITHOUT_CHECKSUM | FORMAT_VERSION) => {}
            Some(found) if found > FORMAT_VERSION => {
                return Err(StorageError::NewerFormat { path, found, supported: FORMAT_VERSION });
            }
            _ => return Err(invalid("format_version is missing or not a version".to_owned())),
        }
        let stored: Stored = toml::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        if version == Some(FORMAT_VERSION) && stored.checksum != Some(stored.checksum()) {
            let what =
                "its checksum is wrong: it was edited, or the disk has changed it (docs/operations.md)";
            return Err(invalid(what.to_owned()));
        }
        let node_id = stored
            .node_id
            .parse()
            .map_err(|_| invalid(format!("node_id {:?} is not a number", stored.node_id)))?;
        Ok(Some(Self { node_id, cluster_id: stored.cluster_id, name: stored.name }))
    }

    /// Writes the identity into `data_dir`, durably and in one step.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn save(&self, data_dir: &Path) -> Result<(), StorageError> {
        create_folder(data_dir)?;
        let path = data_dir.join(FILE);
        let mut stored = Stored {
            format_version: FORMAT_VERSION,
            name: self.name.clone(),
            node_id: self.node_id.to_string(),
            cluster_id: self.cluster_id.clone(),
            checksum: None,
        };
        stored.checksum = Some(stored.checksum());
        let text = toml::to_string(&stored)
            .map_err(|e| StorageError::Identity { path: path.clone(), what: e.to_string() })?;
        write_atomically(&path, format!("{NOTE}{text}").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), text).unwrap();
        let error = NodeIdentity::load(dir.path()).unwrap_err().to_string();
        error.replace(&dir.path().display().to_string(), "DATA")
    }

    #[test]
    fn it_comes_back_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(NodeIdentity::load(dir.path()).unwrap(), None);
        let mut identity = NodeIdentity { node_id: u64::MAX, cluster_id: None, name: "cn-1".to_owned() };
        identity.save(dir.path()).unwrap();
        assert_eq!(NodeIdentity::load(dir.path()).unwrap().as_ref(), Some(&identity));
        identity.cluster_id = Some("5f0c".to_owned());
        identity.save(dir.path()).unwrap();
        assert_eq!(NodeIdentity::load(dir.path()).unwrap(), Some(identity));
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [FILE], "no temporary file is left");
    }

    #[test]
    fn a_file_of_format_version_1_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = "format_version = 1\nname = \"a\"\nnode_id = \"7\"\ncluster_id = \"c\"\n";
        fs::write(dir.path().join(FILE), text).unwrap();
        let expected = NodeIdentity { node_id: 7, cluster_id: Some("c".to_owned()), name: "a".to_owned() };
        assert_eq!(NodeIdentity::load(dir.path()).unwrap(), Some(expected));
    }

    #[test]
    fn what_it_does_not_know_is_refused() {
        let newer = refusal("format_version = 3\nname = \"a\"\nnode_id = \"7\"\nshoe_size = 44\n");
        assert!(newer.starts_with("DATA/node.toml has format version 3, but"), "{newer}");
        let sum =
            |sum: &str| format!("format_version = 2\nname = \"a\"\nnode_id = \"7\"\nchecksum = \"{sum}\"\n");
        assert!(refusal(&sum("00000000")).contains("its checksum is wrong"));
        assert!(
            refusal("format_version = 2\nname = \"a\"\nnode_id = \"7\"\n").contains("its checksum is wrong")
        );
        let unknown = refusal("format_version = 1\nname = \"a\"\nnode_id = \"7\"\nshoe_size = 44\n");
        assert!(unknown.contains("unknown field `shoe_size`"), "{unknown}");
        assert!(refusal("name = \"a\"\n").contains("format_version is missing"));
        assert!(refusal("format_version = 1\nname = \"a\"\nnode_id = \"x\"\n").contains("is not a number"));
        assert!(refusal("{").contains("cannot be read"));
    }
}
