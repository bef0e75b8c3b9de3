//! `sandkeeper cluster backup`, `restore` and `confirm-restore`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, anyhow};
use sandkeeper_client::{BackupStream, Client};
use sandkeeper_control::backup::{self, BackupInfo, RestoredInfo};
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;

use super::server::host_name;
use crate::cli::Context;
use crate::error::CliError;
use crate::output::{Output, with_progress};
use crate::{human, output};

/// What a backup holds, for programs and people.
#[derive(Serialize)]
struct ShownBackup {
    file: PathBuf,
    bytes: u64,
    cluster_id: String,
    revision: u64,
    last_event_time: String,
    history_digest: String,
    state_digest: String,
    sandboxes: usize,
    agents: usize,
}

impl ShownBackup {
    fn of(file: &Path, info: &BackupInfo) -> Self {
        Self {
            file: file.to_owned(),
            bytes: info.bytes,
            cluster_id: info.cluster_id.clone(),
            revision: info.digests.revision,
            last_event_time: human::moment(info.last_event_nanos),
            history_digest: info.digests.history.to_string(),
            state_digest: info.digests.state.to_string(),
            sandboxes: info.sandboxes,
            agents: info.agents,
        }
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        vec![
            ("file", self.file.display().to_string()),
            ("size", human::bytes(self.bytes)),
            ("cluster", self.cluster_id.clone()),
            ("revision", self.revision.to_string()),
            ("last event", self.last_event_time.clone()),
            ("history digest", human::short(&self.history_digest)),
            ("state digest", human::short(&self.state_digest)),
            ("sandboxes", self.sandboxes.to_string()),
            ("agents", self.agents.to_string()),
        ]
    }
}

/// Fetches a backup into `file`, and reads it once more from the disk to see that it is whole.
pub async fn back_up(file: PathBuf, client: Client, output: Output) -> Result<(), CliError> {
    if file.exists() {
        return Err(CliError::Usage(format!("{} is there already: name another file", file.display())));
    }
    let stream = with_progress("waiting for a node to make a snapshot", client.backup()).await?;
    let what = format!("fetching {} from {}", human::bytes(stream.header().bytes), stream.server());
    let part = file.with_added_extension("part");
    let fetched = with_progress(&what, fetch(stream, &part)).await;
    if let Err(error) = fetched {
        // It may not be there at all.
        let _ = tokio::fs::remove_file(&part).await;
        return Err(error);
    }
    let name = file.clone();
    let verified = with_progress("verifying the file", blocking(move || verify_and_name(&part, &name)));
    let shown = ShownBackup::of(&file, &verified.await?);
    if output.is_table() { output::text(&output::fields(shown.rows())) } else { output.value(&shown) }
}

/// Blocks.
fn verify_and_name(part: &Path, file: &Path) -> Result<BackupInfo, Error> {
    let info = backup::verify(part)?;
    fs::rename(part, file).with_context(|| format!("can't rename {}", part.display()))?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).context("can't make the file durable")?;
    Ok(info)
}

async fn fetch(mut stream: BackupStream, part: &Path) -> Result<(), CliError> {
    let failed = || format!("can't write {}", part.display());
    let mut file = tokio::fs::File::create_new(part).await.with_context(failed)?;
    while let Some(piece) = stream.next().await? {
        file.write_all(&piece).await.with_context(failed)?;
    }
    file.flush().await.with_context(failed)?;
    let (received, expected) = (stream.received(), stream.header().bytes);
    if received != expected {
        return Err(anyhow!("the node sent {received} bytes of {expected}: try again").into());
    }
    file.sync_all().await.with_context(failed)?;
    Ok(())
}

#[derive(Serialize)]
struct ShownRestore {
    backup: ShownBackup,
    data_dir: PathBuf,
    name: String,
    cluster_id: String,
    node_id: String,
}

/// Makes the data directory of the first node of a new cluster.
pub async fn restore(
    file: PathBuf,
    data_dir: PathBuf,
    name: Option<String>,
    output: Output,
) -> Result<(), CliError> {
    let name = match name {
        Some(name) => name,
        None => host_name()?,
    };
    let (from, to, called) = (file.clone(), data_dir.clone(), name.clone());
    let now = human::now_nanos();
    let restored = blocking(move || backup::restore(&from, &to, &called, now).map_err(Error::new));
    let RestoredInfo { backup, cluster_id, node_id } = with_progress("restoring", restored).await?;
    let backup = ShownBackup::of(&file, &backup);
    let shown = ShownRestore { backup, data_dir, name, cluster_id, node_id: node_id.to_string() };
    if output.is_table() { output::text(&restored_text(&shown)) } else { output.value(&shown) }
}

fn restored_text(restored: &ShownRestore) -> String {
    let ShownRestore { backup, data_dir, name, cluster_id, .. } = restored;
    let mut rows = backup.rows();
    rows.push(("new cluster", cluster_id.clone()));
    rows.push(("data directory", data_dir.display().to_string()));
    let data_dir = data_dir.display();
    let next = format!(
        "Next:\n  \
         1. Make sure that the old cluster's control nodes are off.\n  \
         2. Start this node, alone at first: sandkeeper server --name {name} --data-dir {data_dir} …\n  \
         3. Start further nodes with empty data directories: sandkeeper server --join THIS-NODE:7601 …\n  \
         4. Let the agents come over, with what they run: sandkeeper agents rehome\n     \
            (Those whose --servers do not lead to the new nodes have to be started with others.)\n  \
         5. Look at what they run that the backup has never heard of: sandkeeper agents unknown\n  \
         6. Have that ended, and what the backup knows started again: sandkeeper cluster confirm-restore"
    );
    format!("{}\n\n{next}", output::fields(rows))
}

/// Says that a restored state holds.
pub async fn confirm(context: &Context) -> Result<(), CliError> {
    let answer = context.client.confirm_restore().await?;
    context.output.answer(&answer, |_| {
        "Confirmed: what agents run and the state does not know is ended after the grace period; what it knows is started \
         and recovered again."
            .to_owned()
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, CliError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(Error::new(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_says_what_comes_next() {
        let backup = ShownBackup {
            file: "backup.sk".into(),
            bytes: 4096,
            cluster_id: "5f0c".into(),
            revision: 17,
            last_event_time: "2026-11-22 12:00:00.000Z".into(),
            history_digest: "ab".repeat(32),
            state_digest: "cd".repeat(32),
            sandboxes: 3,
            agents: 2,
        };
        let (data_dir, name) = ("/var/lib/sandkeeper".into(), "node-1".into());
        let restored =
            ShownRestore { backup, data_dir, name, cluster_id: "9a11".into(), node_id: "1".into() };
        insta::assert_snapshot!(restored_text(&restored), @r"
        file             backup.sk
        size             4KiB
        cluster          5f0c
        revision         17
        last event       2026-11-22 12:00:00.000Z
        history digest   abababababababab
        state digest     cdcdcdcdcdcdcdcd
        sandboxes        3
        agents           2
        new cluster      9a11
        data directory   /var/lib/sandkeeper

        Next:
          1. Make sure that the old cluster's control nodes are off.
          2. Start this node, alone at first: sandkeeper server --name node-1 --data-dir /var/lib/sandkeeper …
          3. Start further nodes with empty data directories: sandkeeper server --join THIS-NODE:7601 …
          4. Let the agents come over, with what they run: sandkeeper agents rehome
             (Those whose --servers do not lead to the new nodes have to be started with others.)
          5. Look at what they run that the backup has never heard of: sandkeeper agents unknown
          6. Have that ended, and what the backup knows started again: sandkeeper cluster confirm-restore
        ");
    }
}
