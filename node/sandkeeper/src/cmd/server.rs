//! `sandkeeper server`: a control node.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Error;
use clap::Args;
use sandkeeper_control::config::{self, Config, DEFAULT_API_PORT, DEFAULT_HTTP_PORT, DEFAULT_PEER_PORT};
use serde::Deserialize;

use super::service::{self, ServiceArgs};
use super::settings;
use crate::error::CliError;
use crate::parse;

/// Run a control node
///
/// Settings come from flags, then SANDKEEPER_* variables, then the settings file, then defaults. The file is TOML; its
/// keys are the long flags with _ for -, and retain_entries and retain_bytes in the table [history].
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    sandkeeper server --name node-1 --data-dir /var/lib/sandkeeper --bootstrap-expect 3 \\\n      \
    --join node-1:7601,node-2:7601,node-3:7601\n  \
    sandkeeper server --config /etc/sandkeeper/server.toml --log-format json\n\n\
    A new node needs a way into a cluster. With --bootstrap-expect it waits until that many nodes see each other, and \
    they form one; with only --join it joins the cluster of the nodes that it names, by itself; with neither it stops \
    and says so. A node that has data finds its cluster again without either.")]
pub struct ServerArgs {
    /// Settings file
    #[arg(long, env = "SANDKEEPER_CONFIG", value_name = "FILE", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Name of this node, unique in the cluster [default: the host's name]
    #[arg(long, env = "SANDKEEPER_NAME", hide_env_values = true)]
    name: Option<String>,
    /// Where log, snapshots and identity are kept
    #[arg(long, env = "SANDKEEPER_DATA_DIR", value_name = "DIR", hide_env_values = true)]
    data_dir: Option<PathBuf>,
    /// Where clients and agents are served [default: 127.0.0.1:7600]
    #[arg(long, env = "SANDKEEPER_LISTEN_API", value_name = "IP:PORT", hide_env_values = true)]
    listen_api: Option<SocketAddr>,
    /// Where other control nodes are served [default: 127.0.0.1:7601]
    #[arg(long, env = "SANDKEEPER_LISTEN_PEER", value_name = "IP:PORT", hide_env_values = true)]
    listen_peer: Option<SocketAddr>,
    /// Where /metrics, /healthz and /readyz are served [default: 127.0.0.1:7602]
    #[arg(long, env = "SANDKEEPER_LISTEN_HTTP", value_name = "IP:PORT", hide_env_values = true)]
    listen_http: Option<SocketAddr>,
    /// Where clients and agents reach this node [default: --listen-api, with the host's name for 0.0.0.0]
    #[arg(long, env = "SANDKEEPER_ADVERTISE_API", value_name = "HOST:PORT", hide_env_values = true)]
    advertise_api: Option<String>,
    /// Where other control nodes reach this node [default: --listen-peer, with the host's name for 0.0.0.0]
    #[arg(long, env = "SANDKEEPER_ADVERTISE_PEER", value_name = "HOST:PORT", hide_env_values = true)]
    advertise_peer: Option<String>,
    /// Peer addresses of control nodes, HOST:PORT,…: to form a cluster with them, or to join theirs
    #[arg(
        long,
        env = "SANDKEEPER_JOIN",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        hide_env_values = true
    )]
    join: Option<Vec<String>>,
    /// Start a new cluster as soon as this many nodes see each other
    #[arg(long, env = "SANDKEEPER_BOOTSTRAP_EXPECT", value_name = "N", hide_env_values = true)]
    bootstrap_expect: Option<usize>,
    /// Log entries kept behind the snapshot, as history [default: 1000000]
    #[arg(long, env = "SANDKEEPER_HISTORY_RETAIN_ENTRIES", value_name = "N", hide_env_values = true)]
    history_retain_entries: Option<u64>,
    /// Of these, as many as fit into this space on the disk, to the nearest 32 MiB [default: 4GiB]
    #[arg(long, env = "SANDKEEPER_HISTORY_RETAIN_BYTES", value_name = "BYTES", value_parser = parse::bytes, hide_env_values = true)]
    history_retain_bytes: Option<u64>,
    /// Of these, how many are kept for nodes that are behind; one that lacks more gets a snapshot [default: all]
    #[arg(long, env = "SANDKEEPER_CATCH_UP_ENTRIES", value_name = "N", hide_env_values = true)]
    catch_up_entries: Option<u64>,
    /// Make a snapshot after this much log [default: 64MiB]
    #[arg(long, env = "SANDKEEPER_SNAPSHOT_LOG_BYTES", value_name = "BYTES", value_parser = parse::bytes, hide_env_values = true)]
    snapshot_log_bytes: Option<u64>,
    /// Take no new work while less than this is free for the data; 0: always [default: 512MiB, at most a tenth of the disk]
    #[arg(long, env = "SANDKEEPER_DISK_LOW_WATER", value_name = "BYTES", value_parser = parse::bytes, hide_env_values = true)]
    disk_low_water: Option<u64>,
    /// An agent that was not heard of for this long is lost [default: 10s]
    #[arg(long, env = "SANDKEEPER_LOST_AFTER", value_name = "DURATION", value_parser = parse::duration, hide_env_values = true)]
    lost_after: Option<Duration>,
    /// What an agent runs and the state does not know is ended after this time [default: 1m]
    #[arg(long, env = "SANDKEEPER_ORPHAN_GRACE", value_name = "DURATION", value_parser = parse::duration, hide_env_values = true)]
    orphan_grace: Option<Duration>,
    /// How long request ids are remembered after their sandbox is gone [default: 10m]
    #[arg(long, env = "SANDKEEPER_REQUEST_RETENTION", value_name = "DURATION", value_parser = parse::duration, hide_env_values = true)]
    request_retention: Option<Duration>,
    /// The leader speaks this often [default: 50]
    #[arg(long, env = "SANDKEEPER_HEARTBEAT_MS", value_name = "MS", hide_env_values = true)]
    heartbeat_ms: Option<u64>,
    /// A follower that hears nothing for this long stands for election [default: 130-260]
    #[arg(long, env = "SANDKEEPER_ELECTION_MS", value_name = "LOW-HIGH", value_parser = parse::range_millis, hide_env_values = true)]
    election_ms: Option<(Duration, Duration)>,
    #[command(flatten)]
    service: ServiceArgs,
}

/// The settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ServerFile {
    name: Option<String>,
    data_dir: Option<PathBuf>,
    listen_api: Option<SocketAddr>,
    listen_peer: Option<SocketAddr>,
    listen_http: Option<SocketAddr>,
    advertise_api: Option<String>,
    advertise_peer: Option<String>,
    join: Option<Vec<String>>,
    bootstrap_expect: Option<usize>,
    history: HistoryFile,
    catch_up_entries: Option<u64>,
    #[serde(deserialize_with = "settings::bytes")]
    snapshot_log_bytes: Option<u64>,
    #[serde(deserialize_with = "settings::bytes")]
    disk_low_water: Option<u64>,
    #[serde(deserialize_with = "settings::duration")]
    lost_after: Option<Duration>,
    #[serde(deserialize_with = "settings::duration")]
    orphan_grace: Option<Duration>,
    #[serde(deserialize_with = "settings::duration")]
    request_retention: Option<Duration>,
    heartbeat_ms: Option<u64>,
    #[serde(deserialize_with = "settings::range_millis")]
    election_ms: Option<(Duration, Duration)>,
}

/// Its table `[history]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HistoryFile {
    retain_entries: Option<u64>,
    #[serde(deserialize_with = "settings::bytes")]
    retain_bytes: Option<u64>,
}

/// Runs a control node until a signal comes.
pub async fn run(args: ServerArgs) -> Result<(), CliError> {
    let service_args = args.service.clone();
    let config = resolve(args)?;
    let token = service::start(&service_args)?;
    sandkeeper_control::server::run(config, token).await.map_err(|error| CliError::Failed(Error::new(error)))
}

/// Flags and environment over the file over defaults.
fn resolve(args: ServerArgs) -> Result<Config, CliError> {
    let file: ServerFile = settings::read(args.config.as_deref())?;
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let listen_api = args.listen_api.or(file.listen_api).unwrap_or(local(DEFAULT_API_PORT));
    let listen_peer = args.listen_peer.or(file.listen_peer).unwrap_or(local(DEFAULT_PEER_PORT));
    let listen_http = args.listen_http.or(file.listen_http).unwrap_or(local(DEFAULT_HTTP_PORT));
    let name = match args.name.or(file.name) {
        Some(name) => name,
        None => host_name()?,
    };
    let data_dir = args.data_dir.or(settings::beside(args.config.as_deref(), file.data_dir));
    let election = args.election_ms.or(file.election_ms).unwrap_or(config::DEFAULT_ELECTION);
    let heartbeat = args.heartbeat_ms.or(file.heartbeat_ms).map(Duration::from_millis);
    let heartbeat = heartbeat.unwrap_or(config::DEFAULT_HEARTBEAT);
    if heartbeat.is_zero() || heartbeat >= election.0 {
        let message = "heartbeat_ms has to be above 0 and below the lower bound of election_ms";
        return Err(CliError::Usage(message.to_owned()));
    }
    let bootstrap_expect = args.bootstrap_expect.or(file.bootstrap_expect);
    if bootstrap_expect == Some(0) {
        return Err(CliError::Usage("bootstrap_expect has to be at least 1".to_owned()));
    }
    Ok(Config {
        name,
        data_dir: settings::required(data_dir, "data_dir")?,
        advertise_api: advertised(args.advertise_api.or(file.advertise_api), listen_api)?,
        advertise_peer: advertised(args.advertise_peer.or(file.advertise_peer), listen_peer)?,
        listen_api,
        listen_peer,
        listen_http,
        join: args.join.or(file.join).unwrap_or_default(),
        bootstrap_expect,
        history_retain_entries: args
            .history_retain_entries
            .or(file.history.retain_entries)
            .unwrap_or(config::DEFAULT_RETAIN_ENTRIES),
        history_retain_bytes: args
            .history_retain_bytes
            .or(file.history.retain_bytes)
            .unwrap_or(config::DEFAULT_RETAIN_BYTES),
        catch_up_entries: args
            .catch_up_entries
            .or(file.catch_up_entries)
            .unwrap_or(config::DEFAULT_CATCH_UP_ENTRIES),
        snapshot_log_bytes: args
            .snapshot_log_bytes
            .or(file.snapshot_log_bytes)
            .unwrap_or(config::DEFAULT_SNAPSHOT_LOG_BYTES),
        disk_low_water: args.disk_low_water.or(file.disk_low_water),
        heartbeat,
        election,
        lost_after: args.lost_after.or(file.lost_after).unwrap_or(config::DEFAULT_LOST_AFTER),
        orphan_grace: args.orphan_grace.or(file.orphan_grace).unwrap_or(config::DEFAULT_ORPHAN_GRACE),
        request_retention: args
            .request_retention
            .or(file.request_retention)
            .unwrap_or(config::DEFAULT_REQUEST_RETENTION),
        server_request_retention: config::DEFAULT_SERVER_REQUEST_RETENTION,
    })
}

/// What is advertised: what was said, or the address that is listened on, if that is one that others can dial.
fn advertised(said: Option<String>, listen: SocketAddr) -> Result<String, CliError> {
    match said {
        Some(address) => Ok(address),
        None if IpAddr::is_unspecified(&listen.ip()) => Ok(format!("{}:{}", host_name()?, listen.port())),
        None => Ok(listen.to_string()),
    }
}

pub(super) fn host_name() -> Result<String, CliError> {
    let name = nix::unistd::gethostname().map_err(Error::from)?;
    name.into_string().map_err(|name| {
        CliError::Usage(format!("the host's name `{}` is not text: give --name", name.display()))
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn resolved(line: &[&str]) -> Result<Config, CliError> {
        let cli = Cli::try_parse_from([&["sandkeeper", "server"], line].concat()).unwrap();
        let Command::Server(args) = cli.command else { panic!("not a server") };
        resolve(args)
    }

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.toml");
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (folder, path)
    }

    fn message(error: &CliError) -> String {
        match error {
            CliError::Failed(error) => format!("{error:#}"),
            CliError::Usage(message) => message.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flag_is_before_the_file_and_the_file_before_the_default() {
        let (folder, path) = file(
            "name = 'from-file'\ndata_dir = 'data'\nlost_after = '3s'\nelection_ms = '500-900'\n\
             join = ['a:1', 'b:2']\nsnapshot_log_bytes = '1MiB'\ncatch_up_entries = 9\n\
             disk_low_water = '2GiB'\n[history]\nretain_entries = 7\nretain_bytes = '3GiB'\n",
        );
        let config = resolved(&["--config", &path, "--name", "from-flag"]).unwrap();
        assert_eq!(config.name, "from-flag");
        assert_eq!(config.data_dir, folder.path().join("data"), "relative to the file");
        assert_eq!(config.lost_after, Duration::from_secs(3));
        assert_eq!(config.election, (Duration::from_millis(500), Duration::from_millis(900)));
        assert_eq!(config.join, ["a:1", "b:2"]);
        assert_eq!((config.snapshot_log_bytes, config.history_retain_entries), (1 << 20, 7));
        assert_eq!(config.history_retain_bytes, 3 << 30);
        assert_eq!(config.catch_up_entries, 9);
        assert_eq!(config.disk_low_water, Some(2 << 30));
        let config = resolved(&["--config", &path, "--disk-low-water", "0"]).unwrap();
        assert_eq!(config.disk_low_water, Some(0));
        assert_eq!(config.orphan_grace, config::DEFAULT_ORPHAN_GRACE);
    }

    #[test]
    fn mistakes_in_the_file_name_the_file_the_key_and_what_was_expected() {
        let (_folder, path) = file("nam = 'x'\n");
        let error = message(&resolved(&["--config", &path]).unwrap_err());
        assert!(error.contains("server.toml: unknown key `nam`; expected one of: name, data_dir"), "{error}");
        let (_folder, path) = file("[history]\nretain = 1\n");
        let error = message(&resolved(&["--config", &path]).unwrap_err());
        assert!(
            error
                .contains("unknown key `retain` in [history]; expected one of: retain_entries, retain_bytes"),
            "{error}"
        );
        let (_folder, path) = file("lost_after = 'soon'\n");
        let error = message(&resolved(&["--config", &path]).unwrap_err());
        assert!(error.contains("key `lost_after`: `soon` is not a duration"), "{error}");
        let (_folder, path) = file("bootstrap_expect = 'three'\n");
        let error = message(&resolved(&["--config", &path]).unwrap_err());
        assert!(error.contains("key `bootstrap_expect`") && error.contains("three"), "{error}");
        let error = message(&resolved(&["--config", "/nowhere/server.toml"]).unwrap_err());
        assert!(error.contains("/nowhere/server.toml can't be read: No such file"), "{error}");
    }

    #[test]
    fn what_has_no_default_is_asked_for_and_nonsense_is_refused() {
        let error = message(&resolved(&[]).unwrap_err());
        assert!(error.contains("--data-dir") && error.contains("SANDKEEPER_DATA_DIR"), "{error}");
        assert!(
            resolved(&["--data-dir", "d", "--heartbeat-ms", "200"]).is_err(),
            "not below the election time"
        );
        assert!(resolved(&["--data-dir", "d", "--bootstrap-expect", "0"]).is_err());
    }

    #[test]
    fn what_is_advertised_can_be_dialled() {
        let config = resolved(&["--data-dir", "d", "--listen-api", "10.0.0.1:7"]).unwrap();
        assert_eq!(config.advertise_api, "10.0.0.1:7");
        let config = resolved(&["--data-dir", "d", "--listen-peer", "0.0.0.0:9"]).unwrap();
        assert_eq!(config.advertise_peer, format!("{}:9", host_name().unwrap()));
        let config = resolved(&["--data-dir", "d", "--advertise-peer", "node-1:9"]).unwrap();
        assert_eq!(config.advertise_peer, "node-1:9");
    }
}
