//! Changing who belongs to the Raft group. The leader does it; every other node passes the request on to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::ClientWriteResponse;
use sandkeeper_proto::internal::change_membership_request::Change;
use sandkeeper_proto::internal::{ChangeMembershipRequest, DescribeRequest, DescribeResponse};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use super::leadership::metrics;
use super::node::RaftNode;
use super::peers::reason;
use super::types::{Member, NodeId, TypeConfig};

/// A learner that lacks at most this many entries gets a vote: it catches up with them in an instant.
const MAX_LAG: u64 = 1000;
/// How long a node may take to say who it is.
pub(super) const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before another attempt while leadership changes hands.
const FLUX_PAUSE: Duration = Duration::from_millis(50);
/// After this long without a leader the caller is told, whatever its deadline.
const FLUX_TIMEOUT: Duration = Duration::from_secs(30);
/// Marks a request that was passed on, so that two nodes that don't know the leader don't pass it to and fro.
pub(super) const PASSED_ON: &str = "sandkeeper-passed-on";

/// Marks a status that speaks of the node that is to join, not of the one that answers.
const UNREACHABLE: &str = "sandkeeper-unreachable";

/// Why a membership was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The caller asked for what can't be done.
    #[error("{0}")]
    Refused(String),
    /// The disk has no room for it.
    #[error("{0}")]
    NoRoom(String),
    /// There is no such member.
    #[error("{0}")]
    NotFound(String),
    /// The node that is to join can't be reached. Its own request to join is tried again; a person is told.
    #[error("{0}")]
    Unreachable(String),
    /// No leader did it in time; asking again continues where this ended.
    #[error("{0}")]
    Unavailable(String),
}

impl From<MembershipError> for Status {
    fn from(error: MembershipError) -> Self {
        let text = error.to_string();
        match error {
            MembershipError::Refused(_) => Self::failed_precondition(text),
            MembershipError::NoRoom(_) => Self::resource_exhausted(text),
            MembershipError::NotFound(_) => Self::not_found(text),
            MembershipError::Unavailable(_) => Self::unavailable(text),
            MembershipError::Unreachable(_) => {
                let mut status = Self::unavailable(text);
                status.metadata_mut().insert(UNREACHABLE, MetadataValue::from_static("1"));
                status
            }
        }
    }
}

/// How one attempt at a change failed.
#[derive(Debug)]
pub(super) enum AttemptError {
    /// For a reason that another attempt would meet again.
    Failed(MembershipError),
    /// Leadership is on its way from one node to another, or another change is under way. It passes.
    InFlux(String),
}

impl From<MembershipError> for AttemptError {
    fn from(error: MembershipError) -> Self {
        Self::Failed(error)
    }
}

impl From<AttemptError> for Status {
    fn from(error: AttemptError) -> Self {
        match error {
            AttemptError::Failed(error) => error.into(),
            AttemptError::InFlux(text) => Self::aborted(text),
        }
    }
}

type Changed = Result<(), MembershipError>;
type Attempted = Result<(), AttemptError>;

fn unavailable(text: impl Into<String>) -> MembershipError {
    MembershipError::Unavailable(text.into())
}

fn in_flux(text: impl Into<String>) -> AttemptError {
    AttemptError::InFlux(text.into())
}

fn late() -> MembershipError {
    unavailable("the change did not complete in time; ask again, it goes on where it stopped")
}

impl RaftNode {
    /// Makes the node that serves peers at `address` a member: first a learner, and once it has caught up, a voter.
    /// Again for a member: takes over its new addresses, if they changed, and completes what was left undone.
    ///
    /// # Errors
    /// If that node does not answer, belongs elsewhere, or its name is taken; or the deadline passes.
    pub async fn add_member(&self, address: &str, deadline: Instant) -> Changed {
        self.change(Change::Add(address.to_owned()), deadline).await
    }

    /// Removes a member by its name or id. A leader hands over before it goes.
    ///
    /// # Errors
    /// If there is no such member, it is the last voter, or the deadline passes.
    pub async fn remove_member(&self, name_or_id: &str, deadline: Instant) -> Changed {
        self.change(Change::Remove(name_or_id.to_owned()), deadline).await
    }

    /// Makes a member the leader, by its name or id; `None`: the one whose log is furthest.
    ///
    /// # Errors
    /// If it is no voter, or does not take over by the deadline.
    pub async fn transfer_leader(&self, to: Option<&str>, deadline: Instant) -> Changed {
        self.change(Change::Transfer(to.unwrap_or_default().to_owned()), deadline).await
    }

    /// Attempts it until it is done, or fails for good.
    pub(super) async fn change(&self, change: Change, deadline: Instant) -> Changed {
        let settled = deadline.min(Instant::now() + FLUX_TIMEOUT);
        loop {
            match self.attempt(&change, deadline, false).await {
                Ok(()) => return Ok(()),
                Err(AttemptError::Failed(error)) => return Err(error),
                Err(AttemptError::InFlux(why)) => {
                    if timeout_at(settled, sleep(FLUX_PAUSE)).await.is_err() {
                        return Err(unavailable(why));
                    }
                }
            }
        }
    }

    /// Does it as the leader, or passes it on to the leader, once.
    pub(super) async fn attempt(&self, change: &Change, deadline: Instant, passed_on: bool) -> Attempted {
        if self.leads() {
            let work = async {
                match change {
                    Change::Add(address) => self.add_as_leader(address, deadline).await,
                    Change::Remove(target) => self.remove_as_leader(target, deadline).await,
                    Change::Transfer(target) => self.transfer_as_leader(target, deadline).await,
                }
            };
            return timeout_at(deadline, work).await.unwrap_or_else(|_| Err(late().into()));
        }
        if passed_on {
            return Err(in_flux("the node that was taken for the leader does not lead"));
        }
        self.pass_on(change.clone(), deadline).await
    }

    /// Makes a snapshot now, and returns when openraft has taken note of the wish.
    ///
    /// # Errors
    /// If nothing is applied yet, there is no room for it, or Raft has stopped.
    pub async fn trigger_snapshot(&self) -> Changed {
        if self.replica().view().applied.is_none() {
            return Err(MembershipError::Refused("there is nothing yet to make a snapshot of".to_owned()));
        }
        self.inner.snapshots.has_room(&self.inner.space).map_err(MembershipError::NoRoom)?;
        self.inner.raft.trigger().snapshot().await.map_err(|fatal| unavailable(fatal.to_string()))
    }

    /// Whether openraft says that this node leads.
    pub(super) fn leads(&self) -> bool {
        self.inner.raft.server_metrics().borrow_watched().state.is_leader()
    }

    async fn pass_on(&self, change: Change, deadline: Instant) -> Attempted {
        let (leader, member) = self.leader().ok_or_else(|| in_flux("no leader is known"))?;
        if leader == self.inner.local.node_id {
            return Err(in_flux("this node is about to lead, or to cease"));
        }
        let mut client = self
            .inner
            .peers
            .client(&member.peer_address, Some(leader))
            .map_err(|error| unavailable(error.to_string()))?;
        let mut request = Request::new(ChangeMembershipRequest { change: Some(change) });
        request.metadata_mut().insert(PASSED_ON, 1.into());
        let left = deadline.saturating_duration_since(Instant::now());
        request.set_timeout(left);
        match timeout(left, client.change_membership(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(match status.code() {
                Code::FailedPrecondition => MembershipError::Refused(status.message().to_owned()).into(),
                Code::NotFound => MembershipError::NotFound(status.message().to_owned()).into(),
                Code::Aborted => in_flux(status.message()),
                Code::Unavailable if status.metadata().contains_key(UNREACHABLE) => {
                    MembershipError::Unreachable(status.message().to_owned()).into()
                }
                _ => unavailable(format!("the leader, {member}: {}", reason(&status))).into(),
            }),
            Err(_) => Err(late().into()),
        }
    }

    async fn add_as_leader(&self, address: &str, deadline: Instant) -> Attempted {
        let described = self.describe_peer(address).await.map_err(|why| {
            let leader = &self.inner.local.member.name;
            MembershipError::Unreachable(format!(
                "the new node at {address} can't be reached from the leader, {leader}: {why}; it must run, and this must \
                 be its peer address"
            ))
        })?;
        let _one_at_a_time = self.inner.membership.lock().await;
        let (id, member) = self.admissible(address, described)?;
        let known = self.members().get(&id).cloned();
        if known.as_ref().is_some_and(|known| *known != member) {
            tracing::info!(node = %member, "a member has new addresses");
            let set = ChangeMembers::SetNodes(BTreeMap::from([(id, member.clone())]));
            self.inner.peers.note_address(id, &member.peer_address);
            outcome(self.inner.raft.change_membership(set, true).await)?;
        }
        if self.voters().contains(&id) {
            return Ok(());
        }
        if known.is_none() {
            tracing::info!(node = %member, "a node joins as a learner");
            outcome(self.inner.raft.add_learner(id, member.clone(), false).await)?;
        }
        self.wait_caught_up(id, deadline).await?;
        let promote = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
        outcome(self.inner.raft.change_membership(promote, true).await)?;
        tracing::info!(node = %member, "the node has a vote");
        Ok(())
    }

    /// Asks a node who it is.
    pub(super) async fn describe_peer(&self, address: &str) -> Result<DescribeResponse, String> {
        let mut client = self.inner.peers.client(address, None).map_err(|error| error.to_string())?;
        match timeout(DESCRIBE_TIMEOUT, client.describe(DescribeRequest {})).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(reason(&status)),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    /// Who that is, if it may join.
    fn admissible(
        &self,
        address: &str,
        described: DescribeResponse,
    ) -> Result<(NodeId, Member), MembershipError> {
        let DescribeResponse { node_id, name, peer_address, api_address, cluster_id, .. } = described;
        if !cluster_id.is_empty() {
            self.inner.local.check_cluster_id(&cluster_id).map_err(|_| {
                MembershipError::Refused(format!("{address} belongs to another cluster, {cluster_id}"))
            })?;
        }
        let members = self.members();
        if let Some((other, _)) = members.iter().find(|(id, member)| **id != node_id && member.name == name) {
            return Err(MembershipError::Refused(format!(
                "the name {name:?} belongs to member {other}; if that node is gone for good, remove it first"
            )));
        }
        Ok((node_id, Member { name, peer_address, api_address }))
    }

    async fn wait_caught_up(&self, id: NodeId, deadline: Instant) -> Attempted {
        let mut changes = self.inner.raft.metrics();
        loop {
            let (leads, lag) = {
                let now = changes.borrow_and_update();
                let matched = now.replication.as_ref().and_then(|all| *all.get(&id)?);
                let last = now.last_log_index.unwrap_or(0);
                (now.replication.is_some(), matched.map(|log_id| last.saturating_sub(log_id.index())))
            };
            if !leads {
                return Err(in_flux("leadership changed while the node caught up"));
            }
            if lag.is_some_and(|lag| lag <= MAX_LAG) {
                return Ok(());
            }
            tokio::select! {
                changed = changes.changed() => changed.map_err(|_| unavailable("this node is stopping"))?,
                () = sleep_until(deadline) => return Err(unavailable(match lag {
                    Some(lag) => format!("the node is a learner, and lacks {lag} entries; ask again"),
                    None => "the node is a learner, and has not answered yet; ask again".to_owned(),
                }).into()),
            }
        }
    }

    async fn remove_as_leader(&self, target: &str, deadline: Instant) -> Attempted {
        let (id, member) = self.find_member(target)?;
        let voters = self.voters();
        if voters.contains(&id) && voters.len() == 1 {
            return Err(MembershipError::Refused("the last voter can't be removed".to_owned()).into());
        }
        if id == self.inner.local.node_id {
            // A leader that removes itself can leave the group without one (openraft #2091).
            self.hand_over(deadline).await.map_err(MembershipError::Unavailable)?;
            return Err(in_flux("the leader that is to be removed has handed over"));
        }
        let _one_at_a_time = self.inner.membership.lock().await;
        let ids = BTreeSet::from([id]);
        let remove = if voters.contains(&id) {
            ChangeMembers::RemoveVoters(ids)
        } else {
            ChangeMembers::RemoveNodes(ids)
        };
        outcome(self.inner.raft.change_membership(remove, false).await)?;
        tracing::info!(node = %member, "a member was removed");
        Ok(())
    }

    async fn transfer_as_leader(&self, target: &str, deadline: Instant) -> Attempted {
        if target.is_empty() {
            return Ok(self.hand_over(deadline).await.map_err(MembershipError::Unavailable)?);
        }
        let (id, member) = self.find_member(target)?;
        if !self.voters().contains(&id) {
            return Err(MembershipError::Refused(format!("{member} has no vote, so it can't lead")).into());
        }
        if id == self.inner.local.node_id {
            return Ok(());
        }
        Ok(self.hand_over_to(id, deadline).await.map_err(MembershipError::Unavailable)?)
    }

    /// Hands leadership to the voter whose log is furthest. Nothing to do if this node does not lead.
    ///
    /// # Errors
    /// Why no other node took over by `deadline`.
    pub async fn hand_over(&self, deadline: Instant) -> Result<(), String> {
        let metrics = metrics(&self.inner.raft);
        let Some(replication) = metrics.replication.filter(|_| metrics.state.is_leader()) else {
            return Ok(());
        };
        let voters = self.voters();
        let others = replication.iter().filter(|(id, _)| **id != metrics.id && voters.contains(id));
        match others.max_by_key(|(_, matched)| **matched) {
            Some((id, _)) => self.hand_over_to(*id, deadline).await,
            None => Err("there is no other voter".to_owned()),
        }
    }

    async fn hand_over_to(&self, to: NodeId, deadline: Instant) -> Result<(), String> {
        self.inner.raft.trigger().transfer_leader(to).await.map_err(|fatal| fatal.to_string())?;
        let mut server = self.inner.raft.server_metrics();
        let me = self.inner.local.node_id;
        loop {
            if server.borrow_and_update().current_leader.is_some_and(|leader| leader != me) {
                return Ok(());
            }
            match timeout_at(deadline, server.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err("this node is stopping".to_owned()),
                Err(_) => return Err("no other node took over in time".to_owned()),
            }
        }
    }

    fn find_member(&self, name_or_id: &str) -> Result<(NodeId, Member), MembershipError> {
        let members = self.members();
        let found = members
            .into_iter()
            .find(|(id, member)| member.name == name_or_id || id.to_string() == name_or_id);
        found.ok_or_else(|| MembershipError::NotFound(format!("no member has the name or id {name_or_id:?}")))
    }

    /// All members, voters and learners, in the newest membership that this node's log has.
    pub fn members(&self) -> BTreeMap<NodeId, Member> {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.nodes().map(|(id, member)| (*id, member.clone())).collect()
    }

    /// The members with a vote.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.inner.raft.server_metrics().borrow_watched().membership_config.voter_ids().collect()
    }
}

type Written = Result<ClientWriteResponse<TypeConfig>, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>;

fn outcome(written: Written) -> Attempted {
    match written {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => Err(match error {
            ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_) => {
                in_flux(error.to_string())
            }
            _ => MembershipError::Refused(error.to_string()).into(),
        }),
        // Each change is idempotent, so another attempt finds what this one did.
        Err(RaftError::APIError(error)) => Err(in_flux(error.to_string())),
        Err(RaftError::Fatal(fatal)) => Err(unavailable(fatal.to_string()).into()),
    }
}
