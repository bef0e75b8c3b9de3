//! `sandkeeper create`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use sandkeeper_client::v1;

use super::create_many::{self, ManyArgs};
use super::target;
use crate::cli::Context;
use crate::error::CliError;
use crate::output::{note, with_progress};
use crate::parse;

/// A STRONG create waits for the start of the workload, which may have to fetch an image first.
pub const STRONG_DEADLINE: Duration = Duration::from_mins(2);
/// How long the server lets a sandbox wait for capacity when nothing else is said (sandbox.proto).
pub const DEFAULT_CAPACITY_TIMEOUT: Duration = Duration::from_hours(1);

/// Make a sandbox, or many
///
/// FAST (the default) answers when the sandbox has its place on an agent and that is durable; STRONG answers when it
/// runs, or has failed and been rolled back.
///
/// Many are described in a file, each with the fields that CreateSandbox has in the API (name, image, command, envs,
/// resources, labels, mode, ttl …). --batch makes all of them or none, in one step; --stream makes each by itself, as fast
/// as the cluster can, and exits with 1 if one was refused.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    sandkeeper create web -- sh -c 'echo hello; sleep 600'\n  \
    sandkeeper create api --image registry/api:1 --port 8080 --cpu 500m --memory 64MiB -e LEVEL=debug\n  \
    sandkeeper create job --mode strong --ttl 10m --label team=a --request-id job-17 -- ./judge 17\n  \
    sandkeeper create late --wait-for-capacity --capacity-timeout 10m -- sleep 60\n  \
    sandkeeper create --batch fleet.yaml --request-id release-17\n  \
    printf '{\"name\": \"job-%d\", \"command\": [\"./judge\"]}\\n' 1 2 3 | sandkeeper create --stream -")]
pub struct CreateArgs {
    #[command(flatten)]
    one: OneArgs,
    #[command(flatten)]
    many: ManyArgs,
    /// The same id and the same request give the same sandbox, however often they are sent [default: a new one]
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    request_id: String,
}

/// What describes one sandbox.
#[derive(Args, Debug)]
#[group(id = "one", multiple = true, conflicts_with = "many")]
struct OneArgs {
    /// Name, unique among the live sandboxes of its namespace: a-z, 0-9 and -, at most 63
    #[arg(required_unless_present_any = ["batch", "stream"], default_value = "", hide_default_value = true)]
    name: String,
    /// Image to run
    #[arg(long, default_value = "", hide_default_value = true)]
    image: String,
    /// When to answer
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Environment variable of the workload; may be repeated
    #[arg(long = "env", short = 'e', value_name = "KEY=VALUE", value_parser = parse::pair)]
    envs: Vec<(String, String)>,
    /// Port that the workload listens on; may be repeated
    #[arg(long = "port", short = 'p', value_name = "PORT", value_parser = parse::port)]
    ports: Vec<i32>,
    /// CPU: 500m, 0.5 or 2
    #[arg(long, value_parser = parse::cpu)]
    cpu: Option<u64>,
    /// Memory: 64MiB, 1GiB
    #[arg(long, value_parser = parse::bytes)]
    memory: Option<u64>,
    /// End it after this time
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    ttl: Option<Duration>,
    /// Label of the sandbox; may be repeated
    #[arg(long = "label", short = 'l', value_name = "KEY=VALUE", value_parser = parse::pair)]
    labels: Vec<(String, String)>,
    /// Pool of agents to choose from [default: default]
    #[arg(long, default_value = "", hide_default_value = true)]
    pool: String,
    /// Only agents that bear this label; may be repeated
    #[arg(long = "agent-label", value_name = "KEY=VALUE", value_parser = parse::pair)]
    agent_labels: Vec<(String, String)>,
    /// Directory in which the workload starts
    #[arg(long, value_name = "DIR", default_value = "", hide_default_value = true)]
    working_dir: String,
    /// What happens when its agent is lost
    #[arg(long, value_enum, default_value_t)]
    failure_policy: FailurePolicy,
    /// With auto-recreate: after which time it is made anew on another agent [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    recovery_timeout: Option<Duration>,
    /// If there is no room, wait for it instead of being refused
    #[arg(long)]
    wait_for_capacity: bool,
    /// Give up waiting for room after this time [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, requires = "wait_for_capacity")]
    capacity_timeout: Option<Duration>,
    /// What to run, and its arguments
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// When a create is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// When it has its place.
    #[default]
    Fast,
    /// When it runs.
    Strong,
}

/// What happens when the agent of a sandbox is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FailurePolicy {
    /// It stays LOST or FAILED until someone acts.
    #[default]
    Manual,
    /// It gets its next generation on another agent.
    AutoRecreate,
}

impl FailurePolicy {
    /// As the wire names it.
    pub fn to_wire(self) -> v1::FailurePolicy {
        match self {
            Self::Manual => v1::FailurePolicy::Manual,
            Self::AutoRecreate => v1::FailurePolicy::AutoRecreate,
        }
    }
}

/// Makes the sandbox and shows it.
pub async fn run(args: CreateArgs, context: &Context) -> Result<(), CliError> {
    let CreateArgs { one, many, request_id } = args;
    match many {
        ManyArgs { batch: Some(file), .. } => return create_many::batch(&file, request_id, context).await,
        ManyArgs { stream: Some(file), .. } => return create_many::stream(&file, context).await,
        ManyArgs { batch: None, stream: None } => {}
    }
    let client = match (one.mode, one.wait_for_capacity) {
        (Mode::Fast, _) => context.client.clone(),
        (Mode::Strong, false) => context.patient(STRONG_DEADLINE),
        (Mode::Strong, true) => {
            context.patient(STRONG_DEADLINE + one.capacity_timeout.unwrap_or(DEFAULT_CAPACITY_TIMEOUT))
        }
    };
    let request = request(one, request_id, context.namespace())?;
    let what = format!("creating {}", request.name);
    let answer = with_progress(&what, client.create(request)).await?;
    if answer.duplicate {
        note("This request id was answered before: here is the first answer again.");
    }
    context.output.answer(&answer, |answer| target::answered(answer.sandbox.as_ref()))
}

fn request(
    args: OneArgs,
    request_id: String,
    namespace: String,
) -> Result<v1::CreateSandboxRequest, CliError> {
    let resources = v1::Resources {
        cpu_millis: args.cpu.map(|millis| amount("--cpu", millis)).transpose()?,
        memory_bytes: args.memory.map(|bytes| amount("--memory", bytes)).transpose()?,
    };
    Ok(v1::CreateSandboxRequest {
        request_id,
        namespace,
        name: args.name,
        image: args.image,
        command: args.command,
        args: Vec::new(),
        envs: args.envs.into_iter().collect(),
        working_dir: args.working_dir,
        exposed_ports: args.ports,
        resources: Some(resources),
        pool_ref: args.pool,
        labels: args.labels.into_iter().collect(),
        mode: match args.mode {
            Mode::Fast => v1::Mode::Fast,
            Mode::Strong => v1::Mode::Strong,
        }
        .into(),
        failure_policy: args.failure_policy.to_wire().into(),
        recovery_timeout_seconds: whole_seconds("--recovery-timeout", args.recovery_timeout)?,
        wait_for_capacity: args.wait_for_capacity,
        agent_selector: args.agent_labels.into_iter().collect(),
        capacity_timeout: args
            .capacity_timeout
            .map(|time| proto_duration("--capacity-timeout", time))
            .transpose()?,
        expiry: args
            .ttl
            .map(|ttl| proto_duration("--ttl", ttl).map(v1::create_sandbox_request::Expiry::Ttl))
            .transpose()?,
    })
}

fn amount(flag: &str, value: u64) -> Result<i64, CliError> {
    i64::try_from(value).map_err(|_| CliError::Usage(format!("{flag} is too large")))
}

/// A duration, as the wire tells it.
pub fn proto_duration(flag: &str, duration: Duration) -> Result<prost_types::Duration, CliError> {
    prost_types::Duration::try_from(duration).map_err(|_| CliError::Usage(format!("{flag} is too long")))
}

/// The wire has whole seconds here; a part of a second is refused rather than rounded.
pub fn whole_seconds(flag: &str, duration: Option<Duration>) -> Result<u32, CliError> {
    let Some(duration) = duration else { return Ok(0) };
    match u32::try_from(duration.as_secs()) {
        Ok(seconds) if seconds > 0 && duration.subsec_nanos() == 0 => Ok(seconds),
        _ => Err(CliError::Usage(format!("{flag} takes whole seconds, at least one"))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(line: &[&str]) -> v1::CreateSandboxRequest {
        let cli = Cli::try_parse_from([&["sandkeeper", "create"], line].concat()).unwrap();
        let Command::Create(args) = cli.command else { panic!("not a create") };
        request(args.one, args.request_id, "default".into()).unwrap()
    }

    #[test]
    fn everything_reaches_the_request() {
        let request = parsed(&[
            "web",
            "--image",
            "i:1",
            "--mode",
            "strong",
            "--env",
            "A=1",
            "-e",
            "B=x=y",
            "--port",
            "80",
            "--port",
            "81",
            "--cpu",
            "500m",
            "--memory",
            "64MiB",
            "--ttl",
            "10m",
            "--label",
            "team=a",
            "--pool",
            "gpu",
            "--agent-label",
            "zone=b",
            "--failure-policy",
            "auto-recreate",
            "--recovery-timeout",
            "5s",
            "--wait-for-capacity",
            "--capacity-timeout",
            "1500ms",
            "--request-id",
            "r1",
            "--",
            "sh",
            "-c",
            "sleep 600",
        ]);
        insta::assert_debug_snapshot!(request);
    }

    #[test]
    fn one_sandbox_or_many_but_not_both() {
        let create = |line: &[&str]| Cli::try_parse_from([&["sandkeeper", "create"], line].concat());
        for good in [&["web"][..], &["--batch", "f", "--request-id", "r1"], &["--stream", "-"]] {
            assert!(create(good).is_ok(), "{good:?}");
        }
        let both: [&[&str]; 7] = [
            &[],
            &["web", "--batch", "f"],
            &["--batch", "f", "--image", "i"],
            &["--stream", "f", "--", "sleep"],
            &["--stream", "f", "--mode", "strong"],
            &["--batch", "f", "--stream", "f"],
            &["--stream", "f", "--request-id", "r1"],
        ];
        for wrong in both {
            assert!(create(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_least_is_a_name() {
        let request = parsed(&["web"]);
        assert_eq!((request.mode(), request.failure_policy()), (v1::Mode::Fast, v1::FailurePolicy::Manual));
        assert!(request.command.is_empty() && request.expiry.is_none() && request.capacity_timeout.is_none());
    }

    #[test]
    fn flags_after_the_dashes_belong_to_the_workload() {
        assert_eq!(parsed(&["web", "--", "ls", "--image", "-n"]).command, ["ls", "--image", "-n"]);
    }

    #[test]
    fn parts_of_a_second_are_refused_where_the_wire_has_none() {
        assert!(whole_seconds("--x", Some(Duration::from_millis(1500))).is_err());
        assert!(whole_seconds("--x", Some(Duration::ZERO)).is_err());
        assert_eq!(whole_seconds("--x", Some(Duration::from_secs(5))).unwrap(), 5);
        assert_eq!(whole_seconds("--x", None).unwrap(), 0);
    }
}
