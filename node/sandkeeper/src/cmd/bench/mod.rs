//! `sandkeeper bench`: how much a cluster does, and how quickly it answers.

mod report;
mod work;

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use sandkeeper_client::Client;
use sandkeeper_load::{Load, Row, Summary, connections};
use uuid::Uuid;

use self::report::table;
use self::work::{Target, Work};
use super::dev;
use crate::cli::{Context, Globals};
use crate::error::CliError;
use crate::output::{Output, note, text};
use crate::parse;

/// Measure a cluster: what it does a second, and how quickly it answers
///
/// Each kind of work is done at each concurrency, in turns, and the median of the rounds is told, with the slowest and the quickest
/// round. Without --rate each caller asks again as soon as it is answered (closed loop). With it requests begin at fixed
/// times whether or not the cluster keeps up, and each is measured from the time at which it was to begin (open loop). What
/// it makes it terminates. It needs slots for what lives at the end of a round: for a whole cluster that only simulates
/// its sandboxes, and has many, there is --dev.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  sandkeeper bench --dev\n  sandkeeper bench --dev --work batch,stream --concurrency 4 --rounds 5\n  \
    sandkeeper bench --servers cn-1:7600,cn-2:7600 --work get --concurrency 64 --rate 5000 -o json"
)]
pub struct BenchArgs {
    /// What is done
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Work::Create, Work::Get])]
    work: Vec<Work>,
    /// How many callers there are at a time
    #[arg(long, value_delimiter = ',', value_name = "N", default_values_t = [1, 16, 64, 256], value_parser = clap::value_parser!(u16).range(1..=4096))]
    concurrency: Vec<u16>,
    /// How long each is measured
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse::duration)]
    duration: Duration,
    /// How often each is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Requests a second that are begun, whatever comes of them [default: as many as are answered]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Sandboxes in a batch
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
    /// Start a cluster on this machine, measure it, and remove it
    #[arg(long)]
    dev: bool,
}

/// Measures, and shows what was found.
pub async fn run(args: BenchArgs, globals: Globals) -> Result<(), CliError> {
    if !args.dev {
        let context = Context::new(globals)?;
        return measure(&args, &context).await;
    }
    let mut cluster = dev::simulated().await?;
    let servers: Vec<String> = cluster.layout().nodes.iter().map(|node| node.api.to_string()).collect();
    let measured = match Context::new(Globals { servers, ..globals }) {
        Ok(context) => tokio::select! {
            measured = measure(&args, &context) => measured,
            ended = cluster.unexpected_exit() => {
                ended.and_then(|what| Err(CliError::Failed(anyhow::anyhow!(what))))
            }
            _ = tokio::signal::ctrl_c() => Err(CliError::Shown),
        },
        Err(error) => Err(error),
    };
    let stopped = cluster.shut_down().await;
    measured.and(stopped)
}

async fn measure(args: &BenchArgs, context: &Context) -> Result<(), CliError> {
    let target = Target {
        clients: clients(args, context)?,
        namespace: context.namespace(),
        run: Uuid::new_v4().simple().to_string()[..8].to_owned(),
        batch: args.batch,
        named: Arc::default(),
    };
    target.check().await?;
    let mut rows: Vec<Row> = Vec::new();
    for round in 1..=args.rounds {
        for work in &args.work {
            for callers in &args.concurrency {
                let what = format!("round {round} of {}: {} by {callers}", args.rounds, work.name());
                let load = Load { callers: *callers, duration: args.duration, rate: args.rate };
                let found = work.run(&target, load, &what).await?;
                match rows.iter_mut().find(|row| row.is(work.name(), *callers)) {
                    Some(row) => row.add(found),
                    None => rows.push(Row::new(work.name(), *callers, found)),
                }
            }
        }
    }
    let summaries: Vec<_> = rows.iter().map(Row::summary).collect();
    show(&summaries, context.output)
}

fn show(rows: &[Summary], output: Output) -> Result<(), CliError> {
    if !output.is_table() {
        return output.value(&rows);
    }
    text(&table(rows))?;
    if rows.iter().any(|row| !row.errors.is_empty()) {
        note("Some requests were refused or failed: -o json says how many of which code.");
    }
    Ok(())
}

/// Enough connections for the largest concurrency. Each begins with another server.
fn clients(args: &BenchArgs, context: &Context) -> Result<Vec<Client>, CliError> {
    let most = args.concurrency.iter().copied().max().unwrap_or(1);
    let servers: Vec<String> = context.client.servers().map(str::to_owned).collect();
    let connections = connections(most, servers.len());
    let rotated = |by: usize| {
        let (mut servers, by) = (servers.clone(), by % servers.len().max(1));
        servers.rotate_left(by);
        context.client_of(servers)
    };
    (0..connections).map(rotated).collect()
}
