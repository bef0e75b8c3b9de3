//! `sandkeeper agents unknown` and `agents adopt`: what agents run that the state does not know.

use sandkeeper_client::v1;

use crate::cli::Context;
use crate::error::CliError;
use crate::output;

/// Lists it; `agent_id`: empty for all agents.
pub async fn list(agent_id: String, context: &Context) -> Result<(), CliError> {
    let answer = context.client.list_unknown(agent_id).await?;
    context.output.answer(&answer, listed)
}

/// Adopts sandboxes of an agent; none named: all that can be.
pub async fn adopt(agent_id: String, sandbox_ids: Vec<String>, context: &Context) -> Result<(), CliError> {
    let namespace = context.namespace();
    let request = v1::AdoptSandboxesRequest { agent_id, namespace, sandbox_ids };
    let answer = context.client.adopt_sandboxes(request).await?;
    context.output.answer(&answer, adopted)?;
    let all_adopted = answer.adoptions.iter().all(|adoption| adoption.refused.is_empty());
    if all_adopted { Ok(()) } else { Err(CliError::Shown) }
}

fn listed(answer: &v1::ListUnknownResponse) -> String {
    let mut lines = match (answer.sandboxes.is_empty(), answer.unheard_agents) {
        (false, _) => vec![table(answer)],
        (true, 0) => vec!["Agents run nothing that the state does not know.".to_owned()],
        (true, _) => {
            vec!["The agents that have been heard run nothing that the state does not know.".to_owned()]
        }
    };
    if answer.more {
        lines.push("There are more: name an agent, or deal with these first.".to_owned());
    }
    match answer.unheard_agents {
        0 => {}
        unheard => lines.push(format!(
            "Agents that have not said yet what they run: {unheard}. They are lost (`agents list` tells which), or not back \
             since the leader was elected."
        )),
    }
    lines.join("\n")
}

fn table(answer: &v1::ListUnknownResponse) -> String {
    let orphan = if answer.restore_unconfirmed {
        "orphan: removed after `cluster confirm-restore`"
    } else {
        "orphan: removed after the grace period"
    };
    let row = |unknown: &v1::UnknownSandbox| {
        let (label, fate) = match unknown.origin() {
            v1::SandboxOrigin::Unlabelled => ("none", "stays; may be adopted"),
            v1::SandboxOrigin::Other => ("another cluster's", "stays"),
            v1::SandboxOrigin::Unspecified | v1::SandboxOrigin::Ours => ("ours", orphan),
        };
        vec![
            unknown.agent_id.clone(),
            unknown.sandbox_id.clone(),
            unknown.generation.to_string(),
            label.to_owned(),
            fate.to_owned(),
        ]
    };
    let header = ["AGENT", "SANDBOX", "GENERATION", "LABEL", "WHAT BECOMES OF IT"];
    output::table(&header, answer.sandboxes.iter().map(row))
}

fn adopted(answer: &v1::AdoptSandboxesResponse) -> String {
    if answer.adoptions.is_empty() {
        return "Nothing to adopt: see `sandkeeper agents unknown`.".to_owned();
    }
    let row = |adoption: &v1::adopt_sandboxes_response::Adoption| {
        let result = match adoption.refused.as_str() {
            "" => "adopted".to_owned(),
            why => format!("refused: {why}"),
        };
        vec![adoption.sandbox_id.clone(), result]
    };
    output::table(&["SANDBOX", "RESULT"], answer.adoptions.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_says_what_becomes_of_it() {
        let unknown = |sandbox_id: &str, origin: v1::SandboxOrigin| v1::UnknownSandbox {
            agent_id: "agent-1".into(),
            sandbox_id: sandbox_id.into(),
            generation: 1,
            origin: origin.into(),
        };
        let sandboxes = vec![
            unknown("legacy", v1::SandboxOrigin::Unlabelled),
            unknown("e4b85f2f7d8fb1918a47168a87c62761", v1::SandboxOrigin::Ours),
            unknown("theirs", v1::SandboxOrigin::Other),
        ];
        let answer = v1::ListUnknownResponse { sandboxes, more: true, ..v1::ListUnknownResponse::default() };
        insta::assert_snapshot!(listed(&answer), @r"
        AGENT     SANDBOX                            GENERATION   LABEL               WHAT BECOMES OF IT
        agent-1   legacy                             1            none                stays; may be adopted
        agent-1   e4b85f2f7d8fb1918a47168a87c62761   1            ours                orphan: removed after the grace period
        agent-1   theirs                             1            another cluster's   stays
        There are more: name an agent, or deal with these first.
        ");
        let restored = v1::ListUnknownResponse { restore_unconfirmed: true, more: false, ..answer };
        assert!(listed(&restored).contains("orphan: removed after `cluster confirm-restore`"));
        let nothing = |unheard_agents| {
            listed(&v1::ListUnknownResponse { unheard_agents, ..v1::ListUnknownResponse::default() })
        };
        insta::assert_snapshot!(nothing(0), @"Agents run nothing that the state does not know.");
        insta::assert_snapshot!(nothing(2), @r"
        The agents that have been heard run nothing that the state does not know.
        Agents that have not said yet what they run: 2. They are lost (`agents list` tells which), or not back since the leader was elected.
        ");
        let adoption = |refused: &str| v1::adopt_sandboxes_response::Adoption {
            sandbox_id: "legacy".into(),
            refused: refused.into(),
        };
        let adoptions = vec![adoption(""), adoption("agent agent-1 has no free slot")];
        insta::assert_snapshot!(adopted(&v1::AdoptSandboxesResponse { adoptions, header: None }), @r"
        SANDBOX   RESULT
        legacy    adopted
        legacy    refused: agent agent-1 has no free slot
        ");
    }
}
