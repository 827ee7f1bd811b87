//! `stead start`: a server with the built-in `kv` service.

use crate::failure::{Exit, Failure};
use crate::stop::{self, Signals};
use crate::{output, supervise};
use clap::Args;
use serde::Serialize;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use stead::http::{self, Limits};
use stead::kv::Kv;
use stead::{Config, Node, OpenError, RecoveryReport, ServiceOptions};
use stead::{descriptors, stderr};
use tokio::sync::oneshot;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Start a server: HTTP API, built-in `kv` service, a data directory
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stead start --data ./data\n\n\
    On any free port, with the address as JSON on standard output:\n  stead start --data ./data --listen 127.0.0.1:0 --json\n\n\
    Settings of the node (threads, checkpoints, log, services) come from --config, and from variables over it:\n  \
    STEAD_CFG_CHECKPOINTS_INTERVAL=1s STEAD_CFG_SERVICES_KV_SHARDS=32 stead start")]
pub(crate) struct StartArgs {
    /// Data directory; it is created if it does not exist [default: the configuration's data_dir, or stead-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Loopback address to listen on; port 0 picks a free one
    #[arg(long, env = "STEAD_LISTEN", default_value = "127.0.0.1:7420", value_name = "IP:PORT")]
    listen: SocketAddr,
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
    log_level: tracing::Level,
    /// Run the server as a child process, and restart it when it dies
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, action = clap::ArgAction::Set, value_name = "BOOL")]
    supervise: bool,
    /// This is the child; its standard input is the listening socket
    #[arg(long, hide = true, value_name = "PARENT")]
    supervised_child: Option<i32>,
}

/// What a started server tells on standard output.
#[derive(Serialize)]
struct Ready {
    event: &'static str,
    address: SocketAddr,
    data: String,
    pid: u32,
    recovery: RecoveryReport,
}

pub(crate) fn run(args: &StartArgs, json: bool) -> Result<(), Failure> {
    if let Some(parent) = args.supervised_child {
        die_with_parent(parent)?;
        return serve(args, inherited_listener()?, json);
    }
    let listener = http::listen(args.listen).map_err(|error| listen_failure(&error))?;
    if args.supervise { supervise::run(listener) } else { serve(args, listener, json) }
}

fn listen_failure(error: &http::ServeError) -> Failure {
    let exit = match error {
        http::ServeError::NotLoopback { .. } => Exit::Usage,
        http::ServeError::Listen { .. } | http::ServeError::Io { .. } => Exit::Failed,
    };
    Failure::new(exit, "the server cannot listen").cause(error)
}

fn inherited_listener() -> Result<TcpListener, Failure> {
    let socket = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| Failure::new(Exit::Failed, "cannot take over the parent's socket").cause(error))?;
    Ok(TcpListener::from(socket))
}

/// A server without its supervisor would go on unseen: it ends as if it had been told to.
fn die_with_parent(parent: i32) -> Result<(), Failure> {
    use rustix::process::{Pid, getppid};
    stop::end_with_parent()?;
    // It may have died before it was asked for.
    if getppid() == Pid::from_raw(parent) {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, "the supervisor died before the server started"))
    }
}

fn serve(args: &StartArgs, listener: TcpListener, json: bool) -> Result<(), Failure> {
    stderr::take_panics();
    tracing_subscriber::fmt()
        .with_writer(stderr::stderr)
        .log_internal_errors(false)
        .with_max_level(args.log_level)
        .finish()
        .with(events(args.log_level))
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, "cannot start the server's threads").cause(error))?;
    // Signals are taken from here on, so that an early one ends the server in order.
    let _inside = runtime.enter();
    let told = told_to_end(&runtime, args.supervised_child.is_some())?;

    let config = configuration(args)?;
    let data =
        args.data.clone().or_else(|| config.data_dir.clone()).unwrap_or_else(|| PathBuf::from(DATA_DIR));
    let shutdown_timeout =
        args.shutdown_timeout.or(config.shutdown_timeout).unwrap_or(Config::SHUTDOWN_TIMEOUT);
    let node = open(&data, config)?;
    let limits = Limits {
        body_bytes_max: args.body_bytes_max,
        connections_max: descriptors::connections_max(args.connections_max),
        request_timeout: Duration::from_millis(args.request_timeout_ms),
        shutdown_timeout,
        ..Limits::default()
    };
    let server = http::serve(&node, listener, &data, limits).map_err(|error| listen_failure(&error))?;
    tell_ready(&data, &server, &node, json);

    let (failed, deadline) = runtime.block_on(async {
        let failed = tokio::select! {
            reason = node.failed() => Some(reason),
            _ = told => None,
        };
        let deadline = Instant::now() + shutdown_timeout;
        stop::exit_after(shutdown_timeout + LAST_RESORT);
        server.shutdown().await;
        (failed, deadline)
    });
    if let Some(reason) = failed {
        return Err(Failure::new(Exit::Fatal, "the node had a fatal error")
            .cause(reason)
            .hint("correct the cause and start again: answered requests are on disk"));
    }
    node.shutdown_within(deadline.saturating_duration_since(Instant::now()));
    stderr::line("stead: stopped");
    Ok(())
}

/// Comes with the first signal. With the second one the program ends, unless a supervisor sees to that: a terminal
/// sends its signal to both.
fn told_to_end(
    runtime: &tokio::runtime::Runtime,
    has_supervisor: bool,
) -> Result<oneshot::Receiver<()>, Failure> {
    let mut signals = Signals::take()?;
    let (tell, told) = oneshot::channel();
    runtime.spawn(async move {
        signals.next().await;
        let _ = tell.send(());
        if !has_supervisor {
            signals.next().await;
            stderr::line(
                "stead: shutdown was cut short; answered requests are on disk, and the next start recovers them",
            );
            stop::exit();
        }
    });
    Ok(told)
}

/// How much longer than its limit a stop may take, for the log's last write among others, before the program ends anyway.
const LAST_RESORT: Duration = Duration::from_secs(5);
/// Libraries report each repetition of a request: what comes of it is said once by the node. They are heard from `debug` on.
fn events(level: tracing::Level) -> Targets {
    let of_libraries = if level >= tracing::Level::DEBUG { level } else { tracing::Level::ERROR };
    let libraries = ["hyper", "hyper_util", "object_store", "reqwest", "rustls"];
    Targets::new().with_default(level).with_targets(libraries.map(|name| (name, of_libraries)))
}

/// The data directory if none is named.
const DATA_DIR: &str = "stead-data";
/// Shards of a new `kv` if the configuration names no number: some for each worker of a large machine.
const KV_SHARDS: u32 = 16;

fn configuration(args: &StartArgs) -> Result<Config, Failure> {
    Config::from_file_and_env(args.config.as_deref())
        .map_err(|error| Failure::new(Exit::Usage, "the configuration is invalid").cause(error))
}

fn open(data: &Path, config: Config) -> Result<Node, Failure> {
    Node::builder(data)
        .service::<Kv>(ServiceOptions::default().shards_when_new(KV_SHARDS))
        .config(config)
        .open()
        .map_err(|error| open_failure(data, &error))
}

/// What may pass is tried again by the supervisor.
fn open_failure(data: &Path, error: &OpenError) -> Failure {
    let exit = if error.may_pass() { Exit::Fatal } else { Exit::Data };
    Failure::new(exit, format!("cannot open the data directory {}", data.display())).cause(error)
}

fn tell_ready(data: &Path, server: &http::Server, node: &Node, json: bool) {
    let address = server.address();
    let recovery = node.recovery();
    stderr::line(format_args!(
        "stead: serving {} on http://{address}, {} entries replayed in {} ms",
        data.display(),
        recovery.entries_replayed,
        recovery.duration.as_millis()
    ));
    if !json {
        return;
    }
    let data = data.display().to_string();
    let ready = Ready { event: "ready", address, data, pid: std::process::id(), recovery: *recovery };
    // On a thread of its own: a server that nobody listens to serves all the same.
    let told = std::thread::Builder::new().spawn(move || {
        if let Err(failure) = output::json(&ready) {
            stderr::line(failure);
        }
    });
    if let Err(error) = told {
        stderr::line(format_args!("stead: cannot start a thread to write the ready line: {error}"));
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
