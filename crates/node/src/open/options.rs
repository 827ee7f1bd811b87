//! The validated settings of a node.

use crate::copies::CopyTarget;
use crate::memory::MemoryLimits;
use crate::sizes::Sizes;
use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use stead_core::checkpointing::merging::Policy;
use stead_core::ids::{ReplicaId, ShardId};
use stead_core::placement::Place;
use stead_core::start::ServiceLimits;
use stead_store::checkpoint::load::Loaders;

/// Interval and retention of checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// Time from one checkpoint's beginning to the next: 10 ms to 7 days, 10 s by default; `None`: only on request.
    pub interval: Option<Duration>,
    /// Number of checkpoints to keep: 1 to 10,000, 3 by default.
    pub keep: usize,
    /// Time after which a checkpoint is given up: 100 ms to 1 day, 10 min by default.
    pub timeout: Duration,
    /// Maximum number of bytes that are written for checkpoints each second; 0, the default, means no limit.
    pub bytes_per_second: u64,
    /// Maximum size in bytes of a checkpoint of the interval over which the services' checks run in the background,
    /// because they load all of it: 1 GiB by default, 0 for never. Requested checkpoints are checked at any size.
    pub check_bytes_max: u64,
    /// Stable storage: `file:///directory` or `s3://bucket/prefix`, which newly completed checkpoints are copied to; none
    /// by default. S3 takes its region, endpoint and credentials from the usual variables `AWS_…`, and needs the cargo
    /// feature `s3`. A failed copy does not affect the node: [`Status::checkpoint_copies`](crate::Status::checkpoint_copies) reports it.
    pub copy_to: Option<String>,
    /// Time from one copy's beginning to the next: 10 ms to 7 days, 5 min by default.
    pub copy_interval: Duration,
    /// Number of checkpoints to keep at `copy_to`: 1 to 10,000, 10 by default.
    pub copy_keep: usize,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        Self {
            interval: Some(Duration::from_secs(10)),
            keep: 3,
            timeout: Duration::from_secs(600),
            bytes_per_second: 0,
            check_bytes_max: 1 << 30,
            copy_to: None,
            copy_interval: Duration::from_secs(300),
            copy_keep: 10,
        }
    }
}

/// The service of clients by the native protocol.
#[derive(Clone, Debug)]
pub struct NativeOptions {
    /// The socket that listens.
    pub listener: Arc<TcpListener>,
    /// Maximum number of connections, of all workers together; each may have three.
    pub connections_max: usize,
}

/// The validated settings of a node.
#[derive(Clone, Debug)]
pub struct Options {
    /// Worker threads, which own the shards: at least 1.
    pub threads: usize,
    /// Threads that run the steps of tasks: at least 1.
    pub task_threads: usize,
    /// Time after which a running handler ends the process, and a running query is given up.
    pub handler_timeout: Duration,
    /// Time after which a running step of a task ends the process.
    pub task_step_timeout: Duration,
    /// Time that a shutdown waits for running steps.
    pub shutdown_timeout: Duration,
    /// Time for which a wall clock that is far ahead must stay so before timers follow it.
    pub clock_confirm: Duration,
    /// The limits of the bytes that wait in memory.
    pub memory: MemoryLimits,
    /// Bytes of a log segment: a multiple of 4096.
    pub segment_bytes: u64,
    /// Interval and retention of checkpoints.
    pub checkpoints: CheckpointOptions,
    /// Target of copies of checkpoints, if any.
    pub copies: Option<CopyTarget>,
    /// The services of the program.
    pub services: Vec<ServiceLimits>,
    /// Services and tasks that may remain in the data without code.
    pub without_code: BTreeSet<String>,
    /// Whether and how the node serves clients by the native protocol.
    pub native: Option<NativeOptions>,
    /// The socket at which the node listens for other nodes; `None` without a second node.
    pub listen_peers: Option<Arc<TcpListener>>,
    /// The places of the shards that are not on this node; none without a second node.
    pub not_here: BTreeMap<ShardId, Place>,
    /// The replicas of this node that are not the only ones of their shards: these follow until the control plane makes them lead.
    pub replicated: BTreeMap<ShardId, ReplicaId>,
    /// Whether the control plane of a cluster places replicas on the node while it runs: each shard then has a place for one, which is
    /// empty at first for those that are not in `replicated`. Otherwise these have no replica elsewhere, and lead at once.
    pub in_cluster: bool,
}

/// The time for which a bundle stays that no checkpoint needs: a reader that began with an older manifest can finish.
const GRACE: Duration = Duration::from_secs(60);

/// Values that production draws at random or never changes, and that a simulator draws from its seed.
#[derive(Clone, Copy, Debug)]
pub struct Drawn {
    /// The seed of the user code's random numbers.
    pub handlers: u64,
    /// The identity of this process, for other nodes and in the names of its bundles: no two draw the same.
    pub writer: u64,
    /// The time for which a bundle stays that no checkpoint needs.
    pub grace: Duration,
    /// When bundles are merged, and shards written anew.
    pub merging: Policy,
    /// The loaders of a checkpoint that is verified.
    pub readers: Loaders,
    /// The sizes at which parts divide and limit their work.
    pub sizes: Sizes,
}

impl Drawn {
    /// Draws as production does.
    pub(super) fn fresh() -> Self {
        let (handlers, writer) = (fastrand::u64(..), fastrand::u64(..));
        let readers = std::thread::available_parallelism().map_or(1, usize::from);
        let (readers, sizes) = (Loaders::Threads(readers), Sizes::default());
        Self { handlers, writer, grace: GRACE, merging: Policy::default(), readers, sizes }
    }
}
