//! A node loses its disk, and comes back with an empty one, as a new member.

use std::time::Duration;

use anyhow::ensure;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use sandkeeper_client::v1;

use super::Fault;
use crate::chaos::rig::Rig;

/// A member is removed within this time.
const REMOVED: Duration = Duration::from_secs(15);
/// A new node has all data within this time.
const JOINED: Duration = Duration::from_secs(30);

/// A node is killed, taken out, and comes back with nothing.
#[derive(Default)]
pub(super) struct EmptyDisk {
    node: Option<usize>,
    old: String,
    wiped: bool,
}

/// Takes a member out; whether that came to be within the time.
pub(super) async fn remove(rig: &mut Rig, name: &str) -> bool {
    let name = name.to_owned();
    rig.wait(REMOVED, async |rig: &mut Rig| {
        // A removal of which nothing is known may have been done.
        let asked = rig.ask_all(Duration::from_secs(5)).remove_member(&name).await.is_ok();
        let gone = rig.members().await.is_ok_and(|members| members.iter().all(|member| member.name != name));
        asked || gone
    })
    .await
}

/// Waits until a node votes; whether it does within the time.
pub(super) async fn votes(rig: &mut Rig, name: &str, but_not: &str) -> bool {
    let voter = |member: &v1::Member| {
        member.name == name && member.node_id != but_not && member.role() == v1::MemberRole::Voter
    };
    rig.wait(JOINED, async |rig: &mut Rig| rig.members().await.is_ok_and(|members| members.iter().any(voter)))
        .await
}

impl Fault for EmptyDisk {
    fn inject<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            let node = rig.some_node();
            let name = rig.cluster.nodes[node].name.clone();
            let members = rig.members().await?;
            self.old = members.into_iter().find(|member| member.name == name).unwrap_or_default().node_id;
            ensure!(!self.old.is_empty(), "{name} is no member");
            rig.kill(&[node]);
            if !remove(rig, &name).await {
                return Ok(());
            }
            // From here on it must not come back as it was.
            self.node = Some(node);
            rig.wipe(node)?;
            self.wiped = true;
            rig.cluster.join_node(node);
            Ok(())
        }
        .boxed_local()
    }

    fn heal<'a>(&'a mut self, rig: &'a mut Rig) -> LocalBoxFuture<'a, anyhow::Result<bool>> {
        async move {
            let Some(node) = self.node else {
                rig.start_missing();
                return Ok(false);
            };
            let name = rig.cluster.nodes[node].name.clone();
            let voted = votes(rig, &name, &self.old).await;
            ensure!(voted, "{name} did not become a voter with an empty disk within {JOINED:?}");
            Ok(self.wiped)
        }
        .boxed_local()
    }

    fn lasts(&self) -> std::ops::Range<u64> {
        0..500
    }
}
