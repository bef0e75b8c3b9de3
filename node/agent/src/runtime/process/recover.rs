//! What is really there when the agent starts.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::unix::pipe;

use super::remove::{self, GONE};
use super::{Life, Recovered, RuntimeFault, Shared, blocking, life};
use crate::files::{self, FileFault};
use crate::shim::{Folder, ShimProcess, ShimSpec};
use crate::table::{Order, Phase};

/// How often a live shim's `shim.json` is looked for: it is the first thing that a shim writes.
const LOOKS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(10);

pub(super) async fn recover(shared: &Arc<Shared>) -> Result<Vec<Recovered>, RuntimeFault> {
    let parent = shared.data_dir.join("sandboxes");
    let names = blocking(move || names(&parent)).await?;
    let mut recovered = Vec::with_capacity(names.len());
    for id in names {
        recovered.extend(recover_one(shared, &id).await?);
    }
    Ok(recovered)
}

/// Writes a cluster's label into the record of a sandbox that has none.
pub(super) async fn label(shared: &Arc<Shared>, id: &str, cluster_id: &str) -> Result<(), RuntimeFault> {
    let (folder, cluster_id) = (shared.folder(id), cluster_id.to_owned());
    blocking(move || {
        let Some(mut spec) = folder.read_spec().map_err(FileFault::of("read", &folder.spec()))? else {
            return Ok(()); // it is gone meanwhile, and will be reported so
        };
        spec.sandbox.generation = 1;
        spec.sandbox.cluster_id = cluster_id;
        Ok(folder.write_spec(&spec)?)
    })
    .await
}

/// The folders of sandboxes. Those that an earlier agent was about to delete are deleted.
fn names(parent: &Path) -> Result<Vec<String>, RuntimeFault> {
    let mut names = Vec::new();
    for entry in fs::read_dir(parent).map_err(FileFault::of("list", parent))? {
        let entry = entry.map_err(FileFault::of("list", parent))?;
        match entry.file_name().into_string() {
            Ok(name) if name.starts_with(GONE) => files::remove(&entry.path())?,
            Ok(name) => names.push(name),
            Err(name) => tracing::warn!(?name, "this folder is no sandbox's and is left alone"),
        }
    }
    names.sort();
    Ok(names)
}

async fn recover_one(shared: &Arc<Shared>, id: &str) -> Result<Option<Recovered>, RuntimeFault> {
    let folder = shared.folder(id);
    let looked_at = folder.clone();
    let Some((spec, alive)) = blocking(move || look(&looked_at)).await? else {
        // The agent died before it started anything, or the power went before its record was on disk.
        remove::clear(shared, id).await?;
        return Ok(None);
    };
    let instructions = blocking(move || life::instructions(&folder)).await;
    let order = |expires_at, lease| Order { spec: Arc::new(spec.sandbox), expires_at, lease, heard: None };
    let Some((file, process)) = alive else {
        let exit = life::how_it_ended(shared, id).await?;
        // A power cut may have taken the instructions, and of what has ended they mean nothing any more.
        let (expires_at, lease) = instructions.map_or((None, None), |read| (read.expires_at, read.lease));
        return Ok(Some(Recovered {
            order: order(expires_at, lease),
            phase: Phase::Exited { exit_code: exit.exit_code, reason: exit.reason },
            expired: exit.expired,
            lease_over: exit.lease_over,
        }));
    };
    let instructions = instructions?;
    let order = order(instructions.expires_at, instructions.lease);
    let path = shared.folder(id).alive();
    let receiver = pipe::Receiver::from_file(file).map_err(FileFault::of("listen to", &path))?;
    life::watch(shared, Arc::new(Life::new(id.to_owned(), process, instructions)), receiver, None);
    Ok(Some(Recovered { order, phase: Phase::Running, expired: false, lease_over: false }))
}

type Alive = (File, ShimProcess);

/// The spec, and the shim if it lives.
fn look(folder: &Folder) -> Result<Option<(ShimSpec, Option<Alive>)>, RuntimeFault> {
    let path = folder.spec();
    let Some(mut spec) = folder.read_spec().map_err(FileFault::of("read", &path))? else { return Ok(None) };
    if spec.sandbox.cluster_id.is_empty() {
        // Nobody has assigned it to this agent: if it is adopted, this is its first assignment.
        spec.sandbox.generation = 1;
    }
    let path = folder.alive();
    let mut alive = match life::open_alive(folder) {
        Ok(alive) => alive,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some((spec, None))),
        Err(error) => return Err(FileFault::of("open", &path)(error).into()),
    };
    for _ in 0..LOOKS {
        if !life::has_writer(&mut alive).map_err(FileFault::of("read", &path))? {
            return Ok(Some((spec, None)));
        }
        let path = folder.path().join("shim.json");
        if let Some(process) = folder.read_process().map_err(FileFault::of("read", &path))? {
            return Ok(Some((spec, Some((alive, process)))));
        }
        std::thread::sleep(PAUSE);
    }
    let what = "its shim lives and does not say which process it is".to_owned();
    Err(RuntimeFault::Processes { sandbox_id: spec.sandbox.sandbox_id, what })
}
