//! Which sandbox a command is about, and how a sandbox is shown.

use clap::Args;
use sandkeeper_client::v1;

use crate::human;
use crate::output;

/// A sandbox, by its name (in `--namespace`) or by its id.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct Target {
    /// Name of the sandbox
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// The sandbox with this id, whatever its name and namespace
    #[arg(long = "id", value_name = "SANDBOX_ID")]
    pub sandbox_id: Option<String>,
}

impl Target {
    /// As the wire names it.
    pub fn to_ref(&self, namespace: String) -> v1::SandboxRef {
        match (&self.name, &self.sandbox_id) {
            (Some(name), _) => v1::SandboxRef { namespace, name: name.clone(), ..Default::default() },
            (None, id) => v1::SandboxRef { sandbox_id: id.clone().unwrap_or_default(), ..Default::default() },
        }
    }
}

/// What a change takes besides its target.
#[derive(Args, Clone, Debug)]
pub struct Guard {
    /// Refuse unless the sandbox is still at this revision
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    pub expected_revision: u64,
    /// Repeating a request with the same id has no second effect [default: a new one]
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub request_id: String,
}

/// The row that tells what a sandbox has become.
pub fn row(sandbox: &v1::Sandbox) -> String {
    rows(std::slice::from_ref(sandbox), false)
}

/// A table of sandboxes.
pub fn rows(sandboxes: &[v1::Sandbox], with_namespace: bool) -> String {
    let now = human::now_nanos();
    let mut header = vec!["NAME", "PHASE", "AGENT", "GEN", "ENDPOINTS", "AGE", "SANDBOX ID"];
    if with_namespace {
        header.insert(0, "NAMESPACE");
    }
    let row = |sandbox: &v1::Sandbox| {
        let mut row = vec![
            sandbox.name.clone(),
            human::phase(sandbox).to_owned(),
            human::or_none(&sandbox.agent_id),
            human::number_or_none(sandbox.generation),
            human::or_none(&sandbox.endpoints.join(",")),
            human::age(sandbox.create_timestamp, now),
            sandbox.sandbox_id.clone(),
        ];
        if with_namespace {
            row.insert(0, sandbox.namespace.clone());
        }
        row
    };
    output::table(&header, sandboxes.iter().map(row))
}

/// Of an answer's sandbox: its row, or that there is none.
pub fn answered(sandbox: Option<&v1::Sandbox>) -> String {
    sandbox.map_or_else(|| "The answer names no sandbox.".to_owned(), row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_name_or_an_id() {
        let by_name = Target { name: Some("web".into()), sandbox_id: None }.to_ref("prod".into());
        assert_eq!((by_name.namespace.as_str(), by_name.name.as_str()), ("prod", "web"));
        let by_id = Target { name: None, sandbox_id: Some("abc".into()) }.to_ref("prod".into());
        assert_eq!((by_id.sandbox_id.as_str(), by_id.namespace.as_str()), ("abc", ""));
    }

    #[test]
    fn rows_of_sandboxes() {
        let web = v1::Sandbox {
            sandbox_id: "e4b85f2f7d8fb1918a47168a87c62761".into(),
            namespace: "default".into(),
            name: "web".into(),
            phase: v1::Phase::Running.into(),
            agent_id: "agent-1".into(),
            generation: 1,
            endpoints: vec!["127.0.0.1:8080".into()],
            ..Default::default()
        };
        let waits =
            v1::Sandbox { name: "waits".into(), phase: v1::Phase::Pending.into(), ..Default::default() };
        insta::assert_snapshot!(rows(&[web, waits], true), @r"
        NAMESPACE   NAME    PHASE     AGENT     GEN   ENDPOINTS        AGE   SANDBOX ID
        default     web     RUNNING   agent-1   1     127.0.0.1:8080   -     e4b85f2f7d8fb1918a47168a87c62761
                    waits   PENDING   -         -     -                -
        ");
    }
}
