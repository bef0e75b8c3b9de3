//! `sandkeeper capacity`.

use std::time::Duration;

use clap::Args;
use sandkeeper_client::v1;
use serde::Serialize;
use tokio::time::sleep;

use super::agents;
use super::comparison::{Comparison, Digests, Verdict};
use super::nodes::{self, Answer, ShownAnswer};
use crate::cli::Context;
use crate::error::CliError;
use crate::output::note;
use crate::{human, output};

/// Digests can only be compared at one revision. On a busy cluster the nodes are asked again this often until they
/// answer from the same one.
const ROUNDS: usize = 10;
/// Between two rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// Show what the agents have, what is allocated of it, and what is free
///
/// With --every-node each control node is asked by itself, and the answers stand side by side with their digests, so
/// that anyone can see that the views are identical. The exit code is 1 if they are not, or if no majority answered.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  sandkeeper capacity\n  sandkeeper capacity --every-node\n  \
    sandkeeper capacity -o json | jq .free.slots")]
pub struct CapacityArgs {
    /// Ask every control node by itself, and compare
    #[arg(long)]
    every_node: bool,
}

/// Reads the capacity, from one node or from all.
pub async fn run(args: &CapacityArgs, context: &Context) -> Result<(), CliError> {
    if args.every_node {
        return every_node(context).await;
    }
    let answer = context.client.capacity(context.read()).await?;
    context.output.answer(&answer, summary)
}

/// The capacity for people: totals, agents, digests.
pub fn summary(answer: &v1::GetCapacityResponse) -> String {
    let row = |name: &str, capacity: Option<v1::Capacity>| {
        let capacity = capacity.unwrap_or_default();
        let (cpu, memory) = (human::cpu(capacity.cpu_millis), human::bytes(capacity.memory_bytes));
        vec![name.to_owned(), capacity.slots.to_string(), cpu, memory]
    };
    let totals = output::table(
        &["", "SLOTS", "CPU", "MEMORY"],
        [row("total", answer.total), row("allocated", answer.allocated), row("free", answer.free)],
    );
    let agents =
        if answer.agents.is_empty() { "No agents.".to_owned() } else { agents::rows(&answer.agents) };
    let digests = output::fields([
        ("sandboxes", format!("{} ({} waiting for capacity)", answer.sandboxes, answer.pending)),
        ("revision", answer.revision.to_string()),
        ("history digest", answer.history_digest.clone()),
        ("state digest", answer.state_digest.clone()),
    ]);
    format!("{totals}\n\n{agents}\n\n{digests}")
}

/// What every node said, for programs.
#[derive(Serialize)]
struct SideBySide {
    /// Whether a majority answered, all of them with the same digests at the same revision.
    identical: bool,
    nodes: Vec<ShownAnswer>,
}

type Answers = Vec<Answer<v1::GetCapacityResponse>>;

async fn every_node(context: &Context) -> Result<(), CliError> {
    let nodes = nodes::all(context).await?;
    let read = context.read();
    let question = |client: sandkeeper_client::Client| async move { client.capacity(read).await };
    let mut answers = nodes::ask(&nodes, question).await;
    for _ in 1..ROUNDS {
        if compare(&answers).verdict != Verdict::DifferentRevisions {
            break;
        }
        sleep(ROUND_PAUSE).await;
        answers = nodes::ask(&nodes, question).await;
    }
    let comparison = compare(&answers);
    if context.output.is_table() {
        output::text(&side_by_side(&answers))?;
        output::text(&comparison.sentence())?;
    } else {
        let identical = comparison.verdict == Verdict::Identical;
        context.output.value(&SideBySide { identical, nodes: nodes::shown(&answers)? })?;
        if !identical {
            note(comparison.sentence());
        }
    }
    match (comparison.verdict, answers.into_iter().find_map(|answer| answer.result.err())) {
        (Verdict::NoneAnswered, Some(error)) => Err(error.into()),
        (Verdict::Different | Verdict::Minority, _) => Err(CliError::Shown),
        _ => Ok(()),
    }
}

fn compare(answers: &Answers) -> Comparison {
    Comparison::new(answers.iter().map(|answer| {
        let digests = answer.result.as_ref().ok().map(|capacity| Digests {
            revision: capacity.revision,
            digests: (capacity.history_digest.clone(), capacity.state_digest.clone()),
        });
        (answer.name.clone(), digests)
    }))
}

fn side_by_side(answers: &Answers) -> String {
    let row = |answer: &Answer<v1::GetCapacityResponse>| {
        let mut row = vec![answer.name.clone(), answer.server.clone()];
        match &answer.result {
            Ok(capacity) => {
                let slots = |capacity: Option<v1::Capacity>| capacity.unwrap_or_default().slots.to_string();
                row.extend([slots(capacity.total), slots(capacity.allocated), slots(capacity.free)]);
                row.extend([capacity.revision.to_string()]);
                row.extend([human::short(&capacity.history_digest), human::short(&capacity.state_digest)]);
            }
            Err(error) => {
                row.extend(std::iter::repeat_n(human::NONE.to_owned(), 4));
                row.push(nodes::one_line(error));
            }
        }
        row
    };
    let header =
        ["NODE", "ADDRESS", "SLOTS", "ALLOCATED", "FREE", "REVISION", "HISTORY DIGEST", "STATE DIGEST"];
    output::table(&header, answers.iter().map(row))
}

#[cfg(test)]
mod tests {
    use sandkeeper_client::ClientError;

    use super::*;

    fn answer(name: &str, revision: u64, digest: &str) -> Answer<v1::GetCapacityResponse> {
        let capacity = v1::GetCapacityResponse {
            total: Some(v1::Capacity { slots: 8, ..Default::default() }),
            allocated: Some(v1::Capacity { slots: 3, ..Default::default() }),
            free: Some(v1::Capacity { slots: 5, ..Default::default() }),
            revision,
            history_digest: format!("h{digest}"),
            state_digest: format!("s{digest}"),
            ..Default::default()
        };
        Answer { server: format!("{name}:7600"), name: name.into(), result: Ok(capacity) }
    }

    fn silent(name: &str) -> Answer<v1::GetCapacityResponse> {
        let result = Err(ClientError::Unreachable(Vec::new()));
        Answer { server: format!("{name}:7600"), name: name.into(), result }
    }

    #[test]
    fn the_nodes_stand_side_by_side() {
        let answers = vec![answer("node-1", 7, "1"), answer("node-2", 7, "1"), silent("node-3")];
        let text = format!("{}\n{}", side_by_side(&answers), compare(&answers).sentence());
        insta::assert_snapshot!(text, @r"
        NODE     ADDRESS       SLOTS   ALLOCATED   FREE   REVISION   HISTORY DIGEST                         STATE DIGEST
        node-1   node-1:7600   8       3           5      7          h1                                     s1
        node-2   node-2:7600   8       3           5      7          h1                                     s1
        node-3   node-3:7600   -       -           -      -          no control node could serve the call
        Identical among 2 of 3 nodes, at revision 7; node-3 did not answer.
        ");
    }
}
