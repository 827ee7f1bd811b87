//! A node of the cluster under test: registers and a bank, served as `stead start` serves.

use crate::account::Account;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use stead::kv::Kv;
use stead::{Node, ServiceOptions};
use stead_gateway::{Level, Serve, ServerError};

const SHARDS: u32 = 4;
/// Small segments are quick to create.
const SEGMENT_BYTES: u64 = 4 << 20;
/// Longer than any retry: without checkpoints the answers that are kept count in each snapshot.
const IDEMPOTENCY_TTL: Duration = Duration::from_secs(600);

/// The options of `stead start` that a local cluster gives.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    #[arg(long)]
    data: PathBuf,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    listen_native: SocketAddr,
    #[arg(long)]
    listen_cluster: SocketAddr,
    #[arg(long)]
    listen_peers: SocketAddr,
    #[arg(long)]
    advertise_cluster: SocketAddr,
    #[arg(long)]
    advertise_peers: SocketAddr,
    #[arg(long)]
    join: Vec<SocketAddr>,
    #[arg(long)]
    until_stdin_ends: bool,
}

/// Serves until standard input ends.
pub(crate) fn serve(args: &NodeArgs) -> Result<(), ServerError> {
    let options = || ServiceOptions::default().shards(SHARDS).idempotency_ttl(IDEMPOTENCY_TTL);
    let node = Node::builder(&args.data)
        .service::<Kv>(options())
        .service::<Account>(options())
        .segment_bytes(SEGMENT_BYTES)
        .listen_native(args.listen_native)
        .listen_cluster(args.listen_cluster)
        .listen_peers(args.listen_peers)
        .advertise(args.advertise_cluster, args.advertise_peers)
        .join(args.join.iter().copied());
    Serve::new(node)
        .listen(args.listen)
        .supervised(false)
        .until_stdin_ends(args.until_stdin_ends)
        .log_level(Level::INFO)
        .on_ready(|ready| print_line!("{}", serde_json::json!({ "event": "ready", "node": ready.node })))
        .run()
}
