//! Asking every control node by itself, also those that the user did not name.

use sandkeeper_client::{Client, ClientError, v1};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::cli::Context;
use crate::error::CliError;
use crate::json::{Named, Shown};
use crate::output::note;

/// One control node, and what it answered.
pub struct Answer<T> {
    /// Its API address.
    pub server: String,
    /// Its name, as the membership has it; its address if that is not known.
    pub name: String,
    /// What it said.
    pub result: Result<T, ClientError>,
}

/// A control node that can be asked by itself.
#[derive(Clone)]
pub struct Node {
    /// Its API address.
    pub server: String,
    /// Its name; its address if the membership is not known.
    pub name: String,
    /// A client that asks only it.
    pub client: Client,
}

/// Every member of the cluster, as the first node that answers knows them.
pub async fn all(context: &Context) -> Result<Vec<Node>, CliError> {
    let status = context.client.status().await?;
    if status.state == "removed" {
        let node = status.header.unwrap_or_default().node;
        note(format!("{node} was removed from the cluster: here are the others, as it last knew them"));
    }
    let mut members = status.members;
    members.sort_by(|a, b| a.name.cmp(&b.name));
    if members.is_empty() {
        // A node that has no cluster yet: those that were named are all there is to ask.
        let each = context.client.on_each_server().into_iter();
        return Ok(each.map(|(server, client)| Node { name: server.clone(), server, client }).collect());
    }
    let node = |member: v1::Member| {
        let client = context.client_of(vec![member.api_address.clone()])?;
        Ok(Node { server: member.api_address, name: member.name, client })
    };
    members.into_iter().map(node).collect()
}

/// Asks all nodes the same at once; the answers are in the order of the nodes.
pub async fn ask<T, F, Fut>(nodes: &[Node], question: F) -> Vec<Answer<T>>
where
    T: Send + 'static,
    F: Fn(Client) -> Fut,
    Fut: Future<Output = Result<T, ClientError>> + Send + 'static,
{
    let mut asked = JoinSet::new();
    for (index, node) in nodes.iter().enumerate() {
        let answer = question(node.client.clone());
        asked.spawn(async move { (index, answer.await) });
    }
    let mut results = asked.join_all().await;
    results.sort_by_key(|(index, _)| *index);
    let answer = |(node, (_, result)): (&Node, (usize, Result<T, ClientError>))| Answer {
        server: node.server.clone(),
        name: node.name.clone(),
        result,
    };
    nodes.iter().zip(results).map(answer).collect()
}

/// An answer as it is shown to programs.
#[derive(Debug, Serialize)]
pub struct ShownAnswer {
    node: String,
    server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<Shown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The answers as they are shown to programs: each has either an `answer` or an `error`.
pub fn shown<M: Named>(answers: &[Answer<M>]) -> Result<Vec<ShownAnswer>, CliError> {
    let one = |answer: &Answer<M>| {
        let shown = answer.result.as_ref().ok().map(Shown::new).transpose()?;
        let error = answer.result.as_ref().err().map(ToString::to_string);
        Ok(ShownAnswer { node: answer.name.clone(), server: answer.server.clone(), answer: shown, error })
    };
    answers.iter().map(one).collect()
}

/// An error in one line, for a table.
pub fn one_line(error: &ClientError) -> String {
    match error {
        ClientError::Unreachable(failures) | ClientError::Deadline { failures, .. }
            if !failures.is_empty() =>
        {
            failures.iter().map(|failure| failure.message.clone()).collect::<Vec<_>>().join("; ")
        }
        error => error.to_string().lines().next().unwrap_or_default().to_owned(),
    }
}
