//! `sandkeeper get`.

use clap::Args;
use sandkeeper_client::v1;

use super::target::Target;
use crate::cli::Context;
use crate::error::CliError;
use crate::{human, output};

/// Show one sandbox
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  sandkeeper get web\n  sandkeeper get --id e4b85f2f7d8fb1918a47168a87c62761 -o json\n  \
    sandkeeper get web -o json | jq -r .sandbox.endpoints[0]"
)]
pub struct GetArgs {
    #[command(flatten)]
    target: Target,
}

/// Reads the sandbox and shows it.
pub async fn run(args: &GetArgs, context: &Context) -> Result<(), CliError> {
    let answer = context.client.get(args.target.to_ref(context.namespace()), context.read()).await?;
    context.output.answer(&answer, |answer| answer.sandbox.as_ref().map_or_else(String::new, details))
}

/// All of a sandbox that is set, one line each.
fn details(sandbox: &v1::Sandbox) -> String {
    let now = human::now_nanos();
    let resources = sandbox.resources.unwrap_or_default();
    let ports: Vec<_> = sandbox.exposed_ports.iter().map(ToString::to_string).collect();
    let moment = |nanos: i64| match nanos {
        0 => String::new(),
        nanos => format!("{} ({} ago)", human::moment(nanos), human::age(nanos, now)),
    };
    let expires = match sandbox.expire_time {
        0 => "never".to_owned(),
        nanos => format!("{} ({})", human::moment(nanos), human::until(nanos, now)),
    };
    let enumerated = |name: &str, prefix: &str| name.trim_start_matches(prefix).to_owned();
    let amount = |value: Option<i64>, show: fn(u64) -> String| {
        value.and_then(|value| u64::try_from(value).ok()).map_or_else(String::new, show)
    };
    let rows = [
        ("name", sandbox.name.clone()),
        ("namespace", sandbox.namespace.clone()),
        ("sandbox id", sandbox.sandbox_id.clone()),
        ("phase", human::phase(sandbox).to_owned()),
        ("reason", sandbox.reason.clone()),
        ("exit code", sandbox.exit_code.map_or_else(String::new, |code| code.to_string())),
        ("agent", sandbox.agent_id.clone()),
        ("generation", sandbox.generation.to_string()),
        ("endpoints", sandbox.endpoints.join(", ")),
        ("image", sandbox.image.clone()),
        ("command", command(&sandbox.command, &sandbox.args)),
        ("env", human::pairs(&sandbox.envs)),
        ("working dir", sandbox.working_dir.clone()),
        ("ports", ports.join(", ")),
        ("cpu", amount(resources.cpu_millis, human::cpu)),
        ("memory", amount(resources.memory_bytes, human::bytes)),
        ("pool", sandbox.pool_ref.clone()),
        ("labels", human::pairs(&sandbox.labels)),
        ("agent labels", human::pairs(&sandbox.agent_selector)),
        ("mode", enumerated(sandbox.mode().as_str_name(), "MODE_")),
        ("failure policy", enumerated(sandbox.failure_policy().as_str_name(), "FAILURE_POLICY_")),
        ("created", moment(sandbox.create_timestamp)),
        ("running since", moment(sandbox.running_timestamp)),
        ("expires", expires),
        ("revision", sandbox.revision.to_string()),
        ("request id", sandbox.request_id.clone()),
    ];
    output::fields(rows.into_iter().filter(|(_, value)| !value.is_empty() && value != human::NONE))
}

/// The command as one could type it.
fn command(command: &[String], args: &[String]) -> String {
    let plain = |word: &str| {
        !word.is_empty() && word.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&c))
    };
    let quoted =
        |word: &String| if plain(word) { word.clone() } else { format!("'{}'", word.replace('\'', r"'\''")) };
    command.iter().chain(args).map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_set_is_shown() {
        let sandbox = v1::Sandbox {
            name: "web".into(),
            namespace: "default".into(),
            sandbox_id: "abc".into(),
            phase: v1::Phase::Failed.into(),
            reason: "it exited".into(),
            exit_code: Some(3),
            generation: 1,
            command: vec!["sh".into(), "-c".into(), "echo it's; exit 3".into()],
            resources: Some(v1::Resources { cpu_millis: Some(500), memory_bytes: Some(64 << 20) }),
            mode: v1::Mode::Fast.into(),
            failure_policy: v1::FailurePolicy::Manual.into(),
            revision: 7,
            ..Default::default()
        };
        insta::assert_snapshot!(details(&sandbox), @r"
        name             web
        namespace        default
        sandbox id       abc
        phase            FAILED
        reason           it exited
        exit code        3
        generation       1
        command          sh -c 'echo it'\''s; exit 3'
        cpu              0.5
        memory           64MiB
        mode             FAST
        failure policy   MANUAL
        expires          never
        revision         7
        ");
    }
}
