//! `stead start`: a server with the built-in `kv` service.

use crate::failure::{Exit, Failure};
use crate::{allocator, output, stop};
use clap::Args;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead::config::{ClusterConfig, ConfigError};
use stead::kv::Kv;
use stead::stderr;
use stead::{AddressError, Config, Node, NodeBuilder, OpenError, RecoveryReport, ServiceOptions};
use stead_gateway::http::{self, Limits};
use stead_gateway::{Serve, ServerError};

/// Start a server: HTTP API, built-in `kv` service, a data directory
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stead start --data ./data\n\n\
    On any free port, with the address as JSON on standard output:\n  stead start --data ./data --listen 127.0.0.1:0 --json\n\n\
    Settings of the node (threads, task_threads, checkpoints, log, services) come from --config, and from variables over it:\n  \
    STEAD_CFG_CHECKPOINTS_INTERVAL=1s STEAD_CFG_TASK_THREADS=32 STEAD_CFG_SERVICES_KV_SHARDS=32 stead start")]
pub(crate) struct StartArgs {
    /// Data directory; it is created if it does not exist [default: the configuration's data_dir, or stead-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Loopback address to listen on; port 0 picks a free one
    #[arg(long, env = "STEAD_LISTEN", default_value = "127.0.0.1:7420", value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Loopback address for native clients (`Client::connect` of the Rust library); port 0 picks a free one [default: the
    /// configuration's native.listen, or none]
    #[arg(long, value_name = "IP:PORT")]
    listen_native: Option<SocketAddr>,
    /// Loopback address for the other nodes of a cluster; port 0 picks a free one. With an empty data directory the node founds a
    /// cluster, unless --join is given [default: the configuration's cluster.listen, or none]
    #[arg(long, value_name = "IP:PORT")]
    listen_cluster: Option<SocketAddr>,
    /// Address of a node of the cluster that a node with an empty data directory joins, and at which one with data looks for its
    /// cluster, too; may be repeated
    #[arg(long, value_name = "IP:PORT")]
    join: Vec<SocketAddr>,
    /// Loopback address for the messages of other nodes' shards [default: the configuration's cluster.listen_peers, or a free port
    /// at each start]
    #[arg(long, value_name = "IP:PORT")]
    listen_peers: Option<SocketAddr>,
    /// Address at which other nodes reach that of --listen-cluster, if it is another one, as behind a proxy [default: the
    /// configuration's cluster.advertise, or that of --listen-cluster]
    #[arg(long, value_name = "IP:PORT")]
    advertise_cluster: Option<SocketAddr>,
    /// Address at which other nodes reach that of --listen-peers, if it is another one [default: the configuration's
    /// cluster.advertise_peers, or that of --listen-peers]
    #[arg(long, value_name = "IP:PORT")]
    advertise_peers: Option<SocketAddr>,
    /// Configuration file (TOML)
    #[arg(long, env = "STEAD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Maximum bytes of a request's body
    #[arg(long, default_value_t = Limits::BODY_BYTES_MAX, value_name = "BYTES")]
    body_bytes_max: usize,
    /// Maximum number of open connections
    #[arg(long, default_value_t = Limits::CONNECTIONS_MAX, value_name = "N")]
    connections_max: usize,
    /// Maximum time of a request
    #[arg(long, default_value_t = Limits::REQUEST_TIMEOUT.as_millis() as u64, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    request_timeout_ms: u64,
    /// Maximum time that a shutdown waits for open requests and running steps of tasks, as in 10s; steps still running
    /// then are repeated after the next start [default: the configuration's shutdown_timeout, or 10s]
    #[arg(long, value_name = "TIME", value_parser = stead::config::parse_duration)]
    shutdown_timeout: Option<Duration>,
    /// Log level on standard error: error, warn, info, debug or trace
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log_level: stead_gateway::Level,
    /// Run the server as a child process, and restart it when it dies
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, action = clap::ArgAction::Set, value_name = "BOOL")]
    supervise: bool,
    /// Stop once standard input ends: for a program that runs the server as its child, and holds the other end of a pipe
    #[arg(long)]
    until_stdin_ends: bool,
}

/// The line that a started server prints on standard output.
#[derive(Serialize)]
struct Ready {
    event: &'static str,
    address: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    native: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<u32>,
    data: String,
    pid: u32,
    recovery: RecoveryReport,
}

pub(crate) fn run(args: &StartArgs, json: bool) -> Result<(), Failure> {
    serve(args, json, |builder| builder.service::<Kv>(ServiceOptions::default().shards_when_new(KV_SHARDS)))
}

/// Runs a server with some services.
pub(crate) fn serve(
    args: &StartArgs,
    json: bool,
    services: impl FnOnce(NodeBuilder) -> NodeBuilder + Send + 'static,
) -> Result<(), Failure> {
    let limits = Limits {
        body_bytes_max: args.body_bytes_max,
        connections_max: args.connections_max,
        request_timeout: Duration::from_millis(args.request_timeout_ms),
        ..Limits::default()
    };
    let (data, config, shutdown_timeout) = (args.data.clone(), args.config.clone(), args.shutdown_timeout);
    let network = Network {
        native: args.listen_native,
        cluster: ClusterConfig {
            listen: args.listen_cluster,
            join: args.join.clone(),
            listen_peers: args.listen_peers,
            advertise: args.advertise_cluster,
            advertise_peers: args.advertise_peers,
        },
    };
    let mut serve =
        Serve::with(move || Ok(services(builder(data, config.as_deref(), shutdown_timeout, network)?)))
            .listen(args.listen)
            .limits(limits)
            .supervised(args.supervise)
            .until_stdin_ends(args.until_stdin_ends)
            .log_level(args.log_level);
    for (name, value) in allocator::VARIABLES {
        serve = serve.variable(name, value);
    }
    if json {
        serve = serve.on_ready(print_ready);
    }
    serve.try_run().map_err(failure)
}

/// The addresses of the command line, besides that for HTTP.
struct Network {
    native: Option<SocketAddr>,
    cluster: ClusterConfig,
}

/// Builds the node from the configuration, which the command line overrides.
fn builder(
    data: Option<PathBuf>,
    config: Option<&Path>,
    shutdown_timeout: Option<Duration>,
    Network { native, cluster }: Network,
) -> Result<NodeBuilder, ConfigError> {
    let mut config = Config::from_file_and_env(config)?;
    let data = data.or_else(|| config.data_dir.take()).unwrap_or_else(|| PathBuf::from(DATA_DIR));
    config.data_dir = Some(data.clone());
    config.shutdown_timeout = shutdown_timeout.or(config.shutdown_timeout);
    config.native.listen = native.or(config.native.listen);
    config.cluster = config.cluster.merged(&cluster);
    Ok(Node::builder(data).config(config))
}

fn failure(error: ServerError) -> Failure {
    match error {
        ServerError::Http(error) => listen_failure(&error),
        ServerError::Config(error) => Failure::new(Exit::Usage, "the configuration is invalid").cause(error),
        ServerError::Open { data_dir, source } => open_failure(&data_dir, &source),
        ServerError::Failed(reason) => Failure::new(Exit::Fatal, "the node had a fatal error")
            .cause(reason)
            .hint("correct the cause and start again: answered requests are on disk"),
        // The child has reported its reason on standard error: only its exit code is passed on.
        ServerError::Ended(status) => match status.code() {
            Some(code) => stop::exit_with(code),
            None => Failure::new(Exit::Fatal, format!("the server died: {status}")),
        },
        ServerError::Killed => {
            Failure::new(Exit::Stopped, "the server was killed before its shutdown was complete")
                .hint("answered requests are on disk, and the next start recovers them")
        }
        ServerError::System { what, source } => {
            Failure::new(Exit::Failed, format!("cannot {what}")).cause(source)
        }
        error @ (ServerError::Address { .. } | ServerError::Orphaned) => {
            Failure::new(Exit::Failed, error.to_string())
        }
    }
}

// The supervisor recognises failures that may be temporary by their exit code.
const _: () =
    assert!(Exit::Fatal as i32 == Serve::EXIT_MAY_PASS && Exit::Stopped as i32 == Serve::EXIT_STOPPED);

fn listen_failure(error: &http::ServeError) -> Failure {
    let exit = match error {
        http::ServeError::NotLoopback { .. } => Exit::Usage,
        http::ServeError::Listen { .. } | http::ServeError::Io { .. } => Exit::Failed,
    };
    Failure::new(exit, "the server cannot listen").cause(error)
}

/// The data directory if none is given.
const DATA_DIR: &str = "stead-data";
/// Shards of a new `kv` without a number in the configuration: several for each worker of a large machine.
const KV_SHARDS: u32 = 16;

/// Converts an error of opening; the supervisor tries again after those that may be temporary.
fn open_failure(data: &Path, error: &OpenError) -> Failure {
    let native = "the server cannot serve native clients".to_owned();
    let cluster = "the server cannot become part of its cluster".to_owned();
    let directory = || format!("cannot open the data directory {}", data.display());
    let (exit, what) = match error {
        OpenError::Address(AddressError::NotLoopback { .. } | AddressError::NoPort { .. }) => {
            (Exit::Usage, native)
        }
        OpenError::Address(AddressError::System { .. }) | OpenError::Native(_) => (Exit::Failed, native),
        OpenError::Config(_) => (Exit::Usage, "the configuration is invalid".to_owned()),
        OpenError::Cluster(AddressError::NotLoopback { .. } | AddressError::NoPort { .. }) => {
            (Exit::Usage, cluster)
        }
        OpenError::Enter(error) if error.may_pass() => (Exit::Fatal, cluster),
        OpenError::Cluster(AddressError::System { .. })
        | OpenError::ClusterSystem(_)
        | OpenError::Enter(_) => (Exit::Failed, cluster),
        error if error.may_pass() => (Exit::Fatal, directory()),
        _ => (Exit::Data, directory()),
    };
    Failure::new(exit, what).cause(error)
}

fn print_ready(ready: stead_gateway::Ready) {
    let stead_gateway::Ready { address, native, cluster, node, data_dir, recovery } = ready;
    let data = data_dir.display().to_string();
    let pid = std::process::id();
    let ready = Ready { event: "ready", address, native, cluster, node, data, pid, recovery };
    if let Err(failure) = output::json(&ready) {
        stderr::line(failure);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisor_tries_again_only_what_may_pass() {
        let exit = |error| open_failure(Path::new("data"), &error).exit;
        assert_eq!(exit(OpenError::Failed("no room".to_owned())), Exit::Fatal);
        assert_eq!(exit(OpenError::Thread(std::io::ErrorKind::WouldBlock.into())), Exit::Fatal);
        let source = std::io::ErrorKind::PermissionDenied.into();
        assert_eq!(exit(OpenError::Directory { path: "data".to_owned(), source }), Exit::Data);
    }
}
