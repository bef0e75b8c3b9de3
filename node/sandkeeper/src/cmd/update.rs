//! `sandkeeper update`.

use std::time::Duration;

use clap::{ArgGroup, Args};
use jiff::Timestamp;
use sandkeeper_client::v1;

use super::create::{FailurePolicy, whole_seconds};
use super::target::{self, Guard, Target};
use crate::cli::Context;
use crate::error::CliError;
use crate::{human, parse};

/// Change a sandbox: when it expires, its labels, what happens when its agent is lost
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  sandkeeper update web --ttl 1h\n  sandkeeper update web --no-expiry\n  \
    sandkeeper update web --label team=b --label tier=1\n  \
    sandkeeper update web --failure-policy auto-recreate --recovery-timeout 30s --expected-revision 17"
)]
#[command(group = ArgGroup::new("change").required(true).multiple(true)
    .args(["ttl", "expire_time", "no_expiry", "labels", "no_labels", "failure_policy", "recovery_timeout"]))]
#[command(group = ArgGroup::new("expiry").args(["ttl", "expire_time", "no_expiry"]))]
pub struct UpdateArgs {
    #[command(flatten)]
    target: Target,
    /// Let it end after this time, from now on by this machine's clock
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    ttl: Option<Duration>,
    /// Let it end at this moment, as 2027-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    expire_time: Option<Timestamp>,
    /// Let it live until it is terminated
    #[arg(long)]
    no_expiry: bool,
    /// Its labels from now on, in place of those that it has; may be repeated
    #[arg(long = "label", short = 'l', value_name = "KEY=VALUE", value_parser = parse::pair)]
    labels: Vec<(String, String)>,
    /// Take all its labels away
    #[arg(long, conflicts_with = "labels")]
    no_labels: bool,
    /// What happens when its agent is lost
    #[arg(long, value_enum)]
    failure_policy: Option<FailurePolicy>,
    /// With auto-recreate: after which time it is made anew on another agent
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    recovery_timeout: Option<Duration>,
    #[command(flatten)]
    guard: Guard,
}

/// Changes the sandbox and shows it.
pub async fn run(args: UpdateArgs, context: &Context) -> Result<(), CliError> {
    let request = request(args, context.namespace(), human::now_nanos())?;
    let answer = context.client.update(request).await?;
    context.output.answer(&answer, |answer| target::answered(answer.sandbox.as_ref()))
}

fn request(args: UpdateArgs, namespace: String, now: i64) -> Result<v1::UpdateSandboxRequest, CliError> {
    let mut paths = Vec::new();
    let mut changes = |path: &str, changed: bool| {
        if changed {
            paths.push(path.to_owned());
        }
    };
    changes("expire_time", args.ttl.is_some() || args.expire_time.is_some() || args.no_expiry);
    changes("labels", args.no_labels || !args.labels.is_empty());
    changes("failure_policy", args.failure_policy.is_some());
    changes("recovery_timeout_seconds", args.recovery_timeout.is_some());
    let too_late = || CliError::Usage("the sandbox would expire later than a timestamp can say".to_owned());
    let expire_time = match (args.ttl, args.expire_time) {
        (Some(ttl), _) => {
            i64::try_from(ttl.as_nanos()).ok().and_then(|ttl| now.checked_add(ttl)).ok_or_else(too_late)?
        }
        (None, Some(time)) => i64::try_from(time.as_nanosecond()).map_err(|_| too_late())?,
        (None, None) => 0,
    };
    Ok(v1::UpdateSandboxRequest {
        request_id: args.guard.request_id,
        r#ref: Some(args.target.to_ref(namespace)),
        expected_revision: args.guard.expected_revision,
        update_mask: Some(prost_types::FieldMask { paths }),
        expire_time,
        labels: args.labels.into_iter().collect(),
        failure_policy: args.failure_policy.map_or(0, |policy| policy.to_wire().into()),
        recovery_timeout_seconds: whole_seconds("--recovery-timeout", args.recovery_timeout)?,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(line: &[&str]) -> Result<v1::UpdateSandboxRequest, clap::Error> {
        let cli = Cli::try_parse_from([&["sandkeeper", "update", "web"], line].concat())?;
        let Command::Update(args) = cli.command else { panic!("not an update") };
        Ok(request(args, "default".into(), 1_000).unwrap())
    }

    #[test]
    fn the_mask_names_what_was_given() {
        let paths = |line: &[&str]| parsed(line).unwrap().update_mask.unwrap().paths;
        assert_eq!(paths(&["--ttl", "1s"]), ["expire_time"]);
        assert_eq!(
            paths(&["--no-labels", "--recovery-timeout", "5s"]),
            ["labels", "recovery_timeout_seconds"]
        );
        assert_eq!(paths(&["--failure-policy", "manual"]), ["failure_policy"]);
    }

    #[test]
    fn the_three_ways_to_say_when_it_ends() {
        assert_eq!(parsed(&["--ttl", "1us"]).unwrap().expire_time, 2_000);
        assert_eq!(parsed(&["--expire-time", "1970-01-01T00:00:01Z"]).unwrap().expire_time, 1_000_000_000);
        assert_eq!(parsed(&["--no-expiry"]).unwrap().expire_time, 0);
        assert!(parsed(&["--no-expiry", "--ttl", "1s"]).is_err());
    }

    #[test]
    fn nothing_to_change_is_wrong_usage() {
        assert!(parsed(&[]).is_err());
        assert!(parsed(&["--expected-revision", "7"]).is_err());
    }
}
