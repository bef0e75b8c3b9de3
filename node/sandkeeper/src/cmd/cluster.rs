//! `sandkeeper cluster`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use sandkeeper_client::{Client, v1};
use serde::Serialize;

use super::backup;
use super::comparison::{Comparison, Digests, Verdict};
use super::nodes::{self, Answer, ShownAnswer};
use crate::cli::Context;
use crate::error::CliError;
use crate::output::with_progress;
use crate::{human, output};

/// A node that is added has to catch up before it may vote.
const MEMBERSHIP_DEADLINE: Duration = Duration::from_mins(2);
/// A snapshot of a large state takes a while to write.
const SNAPSHOT_DEADLINE: Duration = Duration::from_mins(1);

/// Look at the control nodes, and change which they are
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  sandkeeper cluster status\n  sandkeeper cluster add 10.0.0.4:7601\n  \
    sandkeeper cluster transfer-leader node-2\n  sandkeeper cluster verify")]
pub struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Ask every control node how it is
    ///
    /// CLOCK is how far the node's clock is ahead of the time that the voters agree on.
    #[command(
        after_help = "Examples:\n  sandkeeper cluster status\n  sandkeeper cluster status -o json | jq -r .nodes[].answer.state"
    )]
    Status,
    /// List the control nodes
    #[command(after_help = "Examples:\n  sandkeeper cluster members --consistency local")]
    Members,
    /// Take a control node in: it becomes a learner, catches up, and becomes a voter
    #[command(after_help = "Examples:\n  sandkeeper cluster add 10.0.0.4:7601")]
    Add {
        /// Where its peers reach the new node; it must be running already
        #[arg(value_name = "HOST:PORT")]
        peer_address: String,
    },
    /// Take a control node out
    #[command(after_help = "Examples:\n  sandkeeper cluster remove node-4")]
    Remove {
        /// Its name or node id
        member: String,
    },
    /// Hand the leadership over
    #[command(
        after_help = "Examples:\n  sandkeeper cluster transfer-leader\n  sandkeeper cluster transfer-leader node-2"
    )]
    TransferLeader {
        /// Name or node id of the next leader [default: the voter that is furthest]
        #[arg(value_name = "MEMBER", default_value = "", hide_default_value = true)]
        to: String,
    },
    /// Compare the digests of all control nodes at one revision
    ///
    /// Exit code 1 if two of them differ, or if no majority answered: then nothing is proved.
    #[command(after_help = "Examples:\n  sandkeeper cluster verify")]
    Verify,
    /// Have a control node write a snapshot of its state
    #[command(after_help = "Examples:\n  sandkeeper cluster snapshot --servers 10.0.0.4:7600")]
    Snapshot,
    /// Write the cluster's whole state into a file
    ///
    /// Everything that was acknowledged before, from any control node, while writes go on. The file is verified when it
    /// is there. The history before it is not in it.
    #[command(after_help = "Examples:\n  sandkeeper cluster backup sandkeeper-$(date +%F).sk")]
    Backup {
        /// The file; it must not be there yet
        file: PathBuf,
    },
    /// Make a new cluster's first data directory from a backup
    ///
    /// Asks no cluster, and changes none. The new cluster has an id of its own, so that the old one's nodes and agents
    /// can't be confused with its own. Until `cluster confirm-restore`, nothing that agents run is ended because the
    /// backup does not know it, and nothing from the backup is started or recovered.
    #[command(
        after_help = "Examples:\n  sandkeeper cluster restore backup.sk --data-dir /var/lib/sandkeeper --name node-1\n  \
        sandkeeper server --name node-1 --data-dir /var/lib/sandkeeper"
    )]
    Restore {
        /// The file that `cluster backup` wrote
        file: PathBuf,
        /// Must be empty, or not there yet
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// Name of the node that will have it [default: the host's name]
        #[arg(long)]
        name: Option<String>,
    },
    /// Say that a restored state holds
    ///
    /// What agents run and it does not know is ended after the grace period; what it knows is started and recovered again.
    /// Do it when the agents are here (`agents list`) and you have looked at `agents unknown`.
    #[command(after_help = "Examples:\n  sandkeeper cluster confirm-restore")]
    ConfirmRestore,
}

/// Does what the subcommand says.
pub async fn run(args: ClusterArgs, context: &Context) -> Result<(), CliError> {
    let output = context.output;
    match args.command {
        ClusterCommand::Status => status(context).await,
        ClusterCommand::Verify => verify(context).await,
        ClusterCommand::Members => {
            let answer = context.client.list_members(context.read()).await?;
            output.answer(&answer, |answer| rows(&answer.members))
        }
        ClusterCommand::Add { peer_address } => {
            let client = context.patient(MEMBERSHIP_DEADLINE);
            let what = format!("waiting until {peer_address} has caught up");
            let answer = with_progress(&what, client.add_member(peer_address)).await?;
            output.answer(&answer, |answer| rows(&answer.members))
        }
        ClusterCommand::Remove { member } => {
            let client = context.patient(MEMBERSHIP_DEADLINE);
            let answer = with_progress("changing the membership", client.remove_member(member)).await?;
            output.answer(&answer, |answer| rows(&answer.members))
        }
        ClusterCommand::TransferLeader { to } => {
            let answer = context.client.transfer_leadership(to).await?;
            output.answer(&answer, |answer| format!("{} is the leader", answer.leader))
        }
        ClusterCommand::Snapshot => {
            let client = context.patient(SNAPSHOT_DEADLINE);
            let answer = with_progress("waiting for the snapshot", client.trigger_snapshot()).await?;
            output.answer(&answer, |answer| format!("snapshot up to log index {}", answer.snapshot_index))
        }
        ClusterCommand::Backup { file } => {
            backup::back_up(file, context.patient(SNAPSHOT_DEADLINE), output).await
        }
        ClusterCommand::Restore { file, data_dir, name } => {
            backup::restore(file, data_dir, name, output).await
        }
        ClusterCommand::ConfirmRestore => backup::confirm(context).await,
    }
}

/// What every node said, for programs.
#[derive(Serialize)]
struct Nodes {
    nodes: Vec<ShownAnswer>,
}

async fn status(context: &Context) -> Result<(), CliError> {
    let nodes = nodes::all(context).await?;
    let answers = nodes::ask(&nodes, |client: Client| async move { client.status().await }).await;
    if context.output.is_table() {
        let mut text = status_rows(&answers);
        let known = answers.iter().find_map(|answer| answer.result.as_ref().ok());
        text.extend(known.and_then(restore_note));
        return output::text(&text);
    }
    context.output.value(&Nodes { nodes: nodes::shown(&answers)? })
}

async fn verify(context: &Context) -> Result<(), CliError> {
    let client = context.patient(SNAPSHOT_DEADLINE);
    let answer = with_progress("comparing the digests", client.verify()).await?;
    context.output.answer(&answer, verdict)?;
    match comparison(&answer).verdict {
        Verdict::Identical => Ok(()),
        _ => Err(CliError::Shown),
    }
}

fn comparison(answer: &v1::VerifyResponse) -> Comparison {
    Comparison::new(answer.nodes.iter().map(|node| {
        let digests = (node.history_digest.clone(), node.state_digest.clone());
        let digests = Digests { revision: node.revision, digests };
        (node.name.clone(), node.error.is_empty().then_some(digests))
    }))
}

fn verdict(answer: &v1::VerifyResponse) -> String {
    let mut nodes: Vec<_> = answer.nodes.iter().collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let row = |node: &v1::verify_response::Node| {
        let (history, state) = (human::short(&node.history_digest), human::short(&node.state_digest));
        vec![node.name.clone(), human::number_or_none(node.revision), history, state, node.error.clone()]
    };
    let table = output::table(
        &["NODE", "REVISION", "HISTORY DIGEST", "STATE DIGEST", "ERROR"],
        nodes.into_iter().map(row),
    );
    format!("{table}\n{}", comparison(answer).sentence())
}

fn rows(members: &[v1::Member]) -> String {
    let mut members: Vec<_> = members.iter().collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    let row = |member: &v1::Member| {
        vec![
            member.name.clone(),
            member.role().as_str_name().trim_start_matches("MEMBER_ROLE_").to_owned(),
            if member.leader { "yes" } else { human::NONE }.to_owned(),
            member.api_address.clone(),
            member.peer_address.clone(),
            member.node_id.clone(),
        ]
    };
    output::table(
        &["NODE", "ROLE", "LEADER", "API ADDRESS", "PEER ADDRESS", "NODE ID"],
        members.into_iter().map(row),
    )
}

/// How far each node's clock is ahead, as the leader has found.
fn skews(answers: &[Answer<v1::GetStatusResponse>]) -> BTreeMap<&str, f64> {
    let statuses = answers.iter().filter_map(|answer| answer.result.as_ref().ok());
    // One that was deposed a moment ago may still believe that it leads: the highest term knows best.
    let newest = statuses.filter(|status| status.state == "leader").max_by_key(|status| status.term);
    let members = newest.into_iter().flat_map(|status| &status.members);
    members.filter_map(|member| Some((member.name.as_str(), member.clock_skew_seconds?))).collect()
}

fn status_rows(answers: &[Answer<v1::GetStatusResponse>]) -> String {
    let skews = skews(answers);
    let row = |answer: &Answer<v1::GetStatusResponse>| {
        let mut row = vec![answer.name.clone(), answer.server.clone()];
        match &answer.result {
            Ok(status) => row.extend([
                status.state.clone(),
                human::or_none(&status.leader),
                status.term.to_string(),
                status.header.as_ref().map_or(0, |header| header.revision).to_string(),
                status.applied_index.to_string(),
                status.snapshot_index.to_string(),
                status.agents_connected.to_string(),
                skews
                    .get(answer.name.as_str())
                    .map_or_else(|| human::NONE.to_owned(), |skew| human::skew(*skew)),
                human::duration(Duration::from_secs(status.uptime_seconds)),
                status.version.clone(),
            ]),
            Err(error) => row.push(format!("unreachable: {}", nodes::one_line(error))),
        }
        row
    };
    let header = [
        "NODE", "ADDRESS", "STATE", "LEADER", "TERM", "REVISION", "APPLIED", "SNAPSHOT", "AGENTS", "CLOCK",
        "UPTIME", "VERSION",
    ];
    let table = output::table(&header, answers.iter().map(row));
    let fetching = answers.iter().filter_map(|answer| {
        let missing = answer.result.as_ref().ok()?.history_missing_entries;
        (missing > 0).then(|| {
            format!(
                "{} fetches older history from the others: {missing} log entries are missing.",
                answer.name
            )
        })
    });
    let low = answers.iter().filter_map(|answer| low_disk(&answer.name, answer.result.as_ref().ok()?));
    std::iter::once(table).chain(fetching).chain(low).collect::<Vec<_>>().join("\n")
}

/// What an operator has to know of a disk that is nearly full.
fn low_disk(name: &str, status: &v1::GetStatusResponse) -> Option<String> {
    let follows = if status.state == "leader" {
        "It leads, so creates, resets and adoptions are refused."
    } else {
        "If it led, or if another one's were low too, creates would be refused."
    };
    status.disk_low.then(|| {
        format!(
            "{name}: the disk is nearly full: {} are free, and the mark is {}. {follows} Make room.",
            human::bytes(status.disk_free_bytes),
            human::bytes(status.disk_low_water_bytes)
        )
    })
}

/// What an operator has to know of a restore that is not confirmed.
fn restore_note(status: &v1::GetStatusResponse) -> Option<String> {
    let restored = status.restored.as_ref().filter(|restored| !restored.confirmed)?;
    let agents = if status.predecessor_id == restored.from_cluster_id {
        "its agents come over by themselves"
    } else {
        "its agents come over after `sandkeeper agents rehome`"
    };
    Some(format!(
        "\nRestored at {} from a backup of cluster {} at revision {}; {agents}. Nothing unknown is ended, and nothing \
         from the backup is started or recovered, until `sandkeeper cluster confirm-restore`.",
        human::moment(restored.time),
        restored.from_cluster_id,
        restored.revision
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_has_the_clocks_that_the_newest_leader_found() {
        let member = |name: &str, skew| v1::Member {
            name: name.into(),
            clock_skew_seconds: skew,
            ..v1::Member::default()
        };
        let answer = |name: &str, state: &str, term, members| Answer {
            server: format!("{name}:7600"),
            name: name.to_owned(),
            result: Ok(v1::GetStatusResponse {
                state: state.into(),
                term,
                leader: "n2".into(),
                disk_free_bytes: 3 << 20,
                disk_low_water_bytes: 512 << 20,
                disk_low: name != "n3" && term == 4,
                members,
                version: "0.1.0".into(),
                ..v1::GetStatusResponse::default()
            }),
        };
        let answers = [
            answer("n1", "leader", 3, vec![member("n1", Some(7.0)), member("n2", Some(8.0))]),
            answer(
                "n2",
                "leader",
                4,
                vec![member("n1", Some(-3_600.0)), member("n2", Some(0.0002)), member("n3", None)],
            ),
            answer("n3", "follower", 4, Vec::new()),
        ];
        insta::assert_snapshot!(status_rows(&answers), @r"
        NODE   ADDRESS   STATE      LEADER   TERM   REVISION   APPLIED   SNAPSHOT   AGENTS   CLOCK    UPTIME   VERSION
        n1     n1:7600   leader     n2       3      0          0         0          0        -1h      0ms      0.1.0
        n2     n2:7600   leader     n2       4      0          0         0          0        +200µs   0ms      0.1.0
        n3     n3:7600   follower   n2       4      0          0         0          0        -        0ms      0.1.0
        n2: the disk is nearly full: 3MiB are free, and the mark is 512MiB. It leads, so creates, resets and adoptions are refused. Make room.
        ");
    }

    #[test]
    fn the_verdict_names_those_that_did_not_answer() {
        let node = |name: &str, digest: &str, error: &str| v1::verify_response::Node {
            name: name.into(),
            revision: if error.is_empty() { 7 } else { 0 },
            history_digest: digest.into(),
            state_digest: digest.into(),
            error: error.into(),
        };
        let answer = v1::VerifyResponse {
            revision: 7,
            identical: false,
            nodes: vec![
                node("node-1", "aa", ""),
                node("node-2", "", "connection refused"),
                node("node-3", "aa", ""),
            ],
        };
        assert_eq!(comparison(&answer).verdict, Verdict::Identical);
        insta::assert_snapshot!(verdict(&answer), @r"
        NODE     REVISION   HISTORY DIGEST   STATE DIGEST   ERROR
        node-1   7          aa               aa
        node-2   -          -                -              connection refused
        node-3   7          aa               aa
        Identical among 2 of 3 nodes, at revision 7; node-2 did not answer.
        ");
    }
}
