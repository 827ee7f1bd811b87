//! `stead cluster up`: a cluster of child processes, for development.

use crate::client::ServerArgs;
use crate::failure::{Exit, Failure};
use crate::output::{self, Table};
use crate::stop;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use stead_local::{LocalCluster, LocalError, Options};

/// Run a cluster on this machine, for development
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stead cluster up\n  stead cluster up --nodes 5 --data ./cluster")]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    action: ClusterAction,
}

#[derive(Debug, Subcommand)]
enum ClusterAction {
    /// Start a cluster of child processes, and end it with Ctrl-C
    ///
    /// Each node is a process of its own, as `stead start` runs it, with the built-in service `kv`. A node that ends is started
    /// again. All of them end with this command.
    #[command(
        after_help = "Example:\n  stead cluster up\n  stead cluster up --nodes 5 --data ./cluster\n\nThen, in another terminal:\n  stead status"
    )]
    Up(UpArgs),
}

#[derive(Debug, Args)]
struct UpArgs {
    /// Number of nodes: 1 to 9
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Directory of the nodes' data, which is kept [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Loopback address for HTTP of the first node; the others have the ports that follow. Port 0 picks free ones
    #[arg(long, default_value = "127.0.0.1:7420", value_name = "IP:PORT")]
    listen: SocketAddr,
}

/// Time in which the cluster has to be whole.
const WHOLE_MAX: Duration = Duration::from_secs(60);

/// Interval at which the cluster and the signals are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Time in which a node has to stop.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Replicas of `kv`, if there are as many nodes.
const REPLICAS: u64 = 3;

/// The line that a cluster prints once it is whole.
#[derive(Serialize)]
struct Ready<'a> {
    event: &'static str,
    data: &'a Path,
    nodes: Vec<NodeReady<'a>>,
}

#[derive(Serialize)]
struct NodeReady<'a> {
    node: usize,
    http: SocketAddr,
    native: SocketAddr,
    cluster: SocketAddr,
    pid: Option<u32>,
    data: &'a Path,
    log: &'a Path,
}

pub(crate) fn run(args: &ClusterArgs, json: bool) -> Result<(), Failure> {
    let ClusterAction::Up(args) = &args.action;
    let stop = stop::listen()?;
    let temporary = match &args.data {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("stead-cluster-").tempdir().map_err(|error| {
            Failure::new(Exit::Failed, "cannot create a temporary directory").cause(error)
        })?),
    };
    let data = args.data.as_deref().or(temporary.as_ref().map(tempfile::TempDir::path));
    let data = data.expect("one of the two is there");
    let options = Options { http: (args.listen.port() != 0).then_some(args.listen), ..Options::default() };
    let mut cluster = LocalCluster::start(stead_gateway::program::path().as_ref(), args.nodes, data, options)
        .map_err(failed)?;
    await_whole(&mut cluster, &stop)?;
    if !stop.load(Ordering::Relaxed) {
        print(&cluster, data, args, json)?;
    }
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK_EVERY);
        if let Err(ended) = cluster.check() {
            start_again(&mut cluster, ended)?;
        }
    }
    output::note("stead: the nodes stop");
    for node in 0..cluster.len() {
        cluster.stop(node, STOP_MAX).map_err(failed)?;
    }
    Ok(())
}

fn failed(error: LocalError) -> Failure {
    Failure::new(Exit::Failed, "the cluster cannot run").cause(error)
}

/// Starts a node again that has ended.
fn start_again(cluster: &mut LocalCluster, ended: LocalError) -> Result<(), Failure> {
    let LocalError::Ended { node, ref status, .. } = ended else { return Err(failed(ended)) };
    output::note(format_args!("stead: node {node} has ended ({status}), and is started again"));
    cluster.restart(usize::from(node) - 1).map_err(failed)
}

/// Gives `kv` its replicas, and waits until all nodes have them.
fn await_whole(cluster: &mut LocalCluster, stop: &AtomicBool) -> Result<(), Failure> {
    let server = ServerArgs { addr: cluster.addresses(0).http.to_string(), timeout_ms: 10_000 }.server();
    let until = Instant::now() + WHOLE_MAX;
    let all = cluster.len() as u64;
    while !stop.load(Ordering::Relaxed) {
        cluster.check().map_err(failed)?;
        let status = server.get("/v1/cluster")?.body;
        let nodes = status["nodes"].as_array().map_or(0, Vec::len) as u64;
        let replicas = status["services"][0]["replicas"].as_u64();
        if replicas == Some(1) && all > 1 && nodes >= all {
            let path = format!("/v1/cluster/services/kv/dial?replicas={}", all.min(REPLICAS));
            server.post(&path, "", &[])?;
        }
        let problems = status["problems"].as_array().map_or(0, Vec::len);
        if all == 1 || replicas.is_some_and(|replicas| replicas > 1) && problems == 0 {
            return Ok(());
        }
        if Instant::now() > until {
            let first = &status["problems"][0];
            let what = first["what"].as_str().unwrap_or("its shards have no replicas");
            return Err(Failure::new(Exit::Failed, "the cluster is not whole in time")
                .cause(what)
                .hint("look at the log of each node, beside its data"));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn print(cluster: &LocalCluster, data: &Path, args: &UpArgs, json: bool) -> Result<(), Failure> {
    let nodes = (0..cluster.len()).map(|node| {
        let addresses = cluster.addresses(node);
        NodeReady {
            node: node + 1,
            http: addresses.http,
            native: addresses.native,
            cluster: addresses.cluster,
            pid: cluster.pid(node),
            data: cluster.data(node),
            log: cluster.log(node),
        }
    });
    let nodes = Vec::from_iter(nodes);
    if json {
        return output::json(&Ready { event: "ready", data, nodes });
    }
    let mut table = Table::new(["node", "pid", "http", "native", "cluster"]);
    for node in &nodes {
        table.row([
            node.node.to_string(),
            node.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            node.http.to_string(),
            node.native.to_string(),
            node.cluster.to_string(),
        ]);
    }
    table.print()?;
    let kept = if args.data.is_some() { "kept" } else { "removed at the end; keep it with --data" };
    output::line(&format!(
        "\ndata and logs are in {} ({kept})",
        output::shell_word(&data.display().to_string())
    ))?;
    let (first, last) = (&nodes[0], &nodes[nodes.len() - 1]);
    let at = |node: &NodeReady<'_>| {
        let is_default = node.http == SocketAddr::from(([127, 0, 0, 1], 7420));
        if is_default { String::new() } else { format!(" --addr {}", node.http) }
    };
    output::line("\nTry, in another terminal:")?;
    output::line(&format!("  stead status{}", at(first)))?;
    output::line(&format!("  stead call kv greeting '{{\"put\": {{\"value\": \"hello\"}}}}'{}", at(first)))?;
    if let Some(pid) = first.pid.filter(|_| nodes.len() > 1) {
        output::line(&format!("  kill -9 {pid}; stead get kv greeting{}", at(last)))?;
        output::line(&format!("  stead failover{}", at(last)))?;
    }
    output::line("\nEnd it with Ctrl-C.")
}
