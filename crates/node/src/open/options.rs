//! The numbers of a node, checked.

use crate::memory::MemoryLimits;
use std::collections::BTreeSet;
use std::time::Duration;
use stead_core::start::ServiceLimits;

/// When checkpoints are taken and how many are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// Time between two checkpoints' beginnings: 10 ms to 7 days, 10 s by default; `None`: only when asked for.
    pub interval: Option<Duration>,
    /// Checkpoints that are kept: 1 to 10,000, 3 by default.
    pub keep: usize,
    /// How long a checkpoint may take before it is given up: 100 ms to 1 day, 10 min by default.
    pub timeout: Duration,
    /// Most bytes each second that are written for checkpoints; 0 is no limit, and the default.
    pub bytes_per_second: u64,
    /// The services' checks run in the background over checkpoints of the interval of at most so many bytes, for they load
    /// all of it: 1 GiB by default, 0 is never. Those that are asked for are checked at any size.
    pub check_bytes_max: u64,
    /// Stable storage: `file:///directory` or `s3://bucket/prefix`, which newly completed checkpoints are copied to; none
    /// by default. S3 takes its region, endpoint and credentials from the usual variables `AWS_…`, and needs the cargo
    /// feature `s3`. A failed copy does not affect the node: [`Status::checkpoint_copies`](crate::Status::checkpoint_copies) reports it.
    pub copy_to: Option<String>,
    /// Time between two copies' beginnings: 10 ms to 7 days, 5 min by default.
    pub copy_interval: Duration,
    /// Checkpoints that are kept at `copy_to`: 1 to 10,000, 10 by default.
    pub copy_keep: usize,
}

/// Where checkpoints are copied to, how often, and how many stay there.
#[derive(Clone, Debug)]
pub struct CopyTarget {
    /// The address: `file:///directory` or `s3://bucket/prefix`.
    pub address: String,
    /// Time between two copies' beginnings.
    pub interval: Duration,
    /// Checkpoints that are kept there.
    pub keep: usize,
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

/// The numbers of a node, checked.
#[derive(Clone, Debug)]
pub struct Options {
    /// Worker threads, which own the shards: at least 1.
    pub threads: usize,
    /// Threads that run the steps of tasks: at least 1.
    pub task_threads: usize,
    /// How long a handler may run before the process ends, and a query before it is given up.
    pub handler_timeout: Duration,
    /// How long a step of a task may run before the process ends.
    pub task_step_timeout: Duration,
    /// How long a shutdown waits for running steps.
    pub shutdown_timeout: Duration,
    /// How long a wall clock that is far ahead must stay so before timers follow it.
    pub clock_confirm: Duration,
    /// The limits of the bytes that wait in memory.
    pub memory: MemoryLimits,
    /// Bytes of a log segment: a multiple of 4096.
    pub segment_bytes: u64,
    /// When checkpoints are taken, and how many are kept.
    pub checkpoints: CheckpointOptions,
    /// Where checkpoints are copied to, if anywhere.
    pub copies: Option<CopyTarget>,
    /// The services of the program.
    pub services: Vec<ServiceLimits>,
    /// Services and tasks that may wait in the data without code.
    pub without_code: BTreeSet<String>,
}
