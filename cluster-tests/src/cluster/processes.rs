//! The processes of a cluster.

use std::path::{Path, PathBuf};

use crate::{Links, Process, Proxy};

/// A control node's process.
#[derive(Debug)]
pub struct NodeProcess {
    /// Its name.
    pub name: String,
    /// `host:port` for clients and agents.
    pub api: String,
    /// `host:port` for peers.
    pub peer: String,
    /// `host:port` for metrics and health.
    pub http: String,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// None: it was killed or stopped.
    pub process: Option<Process>,
    /// What it advertises in place of `api` and `peer`, if it stands behind [`Links`].
    pub(super) doors: Option<(String, String)>,
}

impl NodeProcess {
    /// Where its peers are told to reach it.
    pub fn advertised_peer(&self) -> &str {
        self.doors.as_ref().map_or(&self.peer, |(_, peer)| peer)
    }

    /// Where agents are told to reach it.
    pub fn advertised_api(&self) -> &str {
        self.doors.as_ref().map_or(&self.api, |(api, _)| api)
    }
}

/// An agent's process.
#[derive(Debug)]
pub struct AgentProcess {
    /// Its name.
    pub name: String,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// None: it was killed or stopped.
    pub process: Option<Process>,
    /// Its way to the control nodes, if the options ask for one.
    pub proxy: Option<Proxy>,
    pub(super) flags: Vec<String>,
}

impl NodeProcess {
    /// One that is not started yet.
    pub(super) async fn new(
        index: usize,
        addresses: [String; 3],
        data_dirs: &Path,
        links: Option<&mut Links>,
    ) -> Self {
        let [api, peer, http] = addresses;
        let doors = match links {
            Some(links) => Some((links.door(index, &api).await, links.door(index, &peer).await)),
            None => None,
        };
        let name = format!("n{index}");
        Self { data_dir: data_dirs.join(&name), name, api, peer, http, process: None, doors }
    }
}
