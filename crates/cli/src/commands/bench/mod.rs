//! `stead bench`: measures this machine, and Stead on it.
//!
//! Each workload runs rounds on one node, or three, in a directory of its own, which is removed at the end. Measurements that need
//! a fresh process (memory, a cold start, the loads over the network) run in a child of this program.

mod block;
mod callers;
mod checkpoint;
mod cluster;
mod figures;
mod hop;
mod http;
mod load;
mod machine;
mod memory;
mod messages;
mod native;
mod native_load;
mod requests;
mod restart;
mod room;
mod usage;

use crate::failure::{Exit, Failure};
use crate::{allocator, output, stop};
use clap::{Args, ValueEnum};
use figures::Report;
use native_load::Operation;
use room::Room;
use std::path::PathBuf;
use std::time::Duration;

/// Measure this machine, and Stead on it
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  stead bench messages\n  stead bench all --rounds 5 --json > figures.json\n\n\
    All workloads take about 20 minutes and 8 GB of disk. Run it on an idle machine, from a release build."
)]
pub(crate) struct BenchArgs {
    /// Workload to measure
    #[arg(value_enum, default_value_t = Workload::All)]
    workload: Workload,
    /// Rounds of each measurement: the report has the median, the least and the greatest
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each round
    #[arg(long, default_value_t = 5, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Directory for the data, on the disk to measure; created files are removed [default: the temporary directory]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Messages kept in flight by the workload `messages`
    #[arg(long, default_value_t = 8192, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    in_flight: u32,
    /// Callers of the workload `requests` beside the single one
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    callers: u32,
    /// Connections of the workload `http`
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Processes of 1 KB of state of the workloads `checkpoint` and `restart`
    #[arg(long, default_value_t = 1_000_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    processes: u32,
    /// Native addresses of a running cluster that the workload `cluster` loads, instead of three nodes of its own: it writes to
    /// `kv`, with the dial that this has
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT")]
    connect: Vec<String>,
    /// Nodes that the workload `cluster` kills
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    kills: u32,
    /// Worker threads of each node of the workload `cluster`, whose processes share this machine
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    node_threads: u32,
    /// Addresses that a child process loads
    #[arg(long, hide = true, value_delimiter = ',', value_name = "IP:PORT")]
    address: Vec<String>,
    /// Request with which a child process loads nodes
    #[arg(long, hide = true, value_enum, default_value_t)]
    operation: Operation,
    /// Bytes of the text that a child process puts over HTTP; 0 for a number
    #[arg(long, hide = true, default_value_t = 0)]
    value_bytes: usize,
}

/// The workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Everything
    All,
    /// This machine: syncs, disk, memory, loopback
    Machine,
    /// Messages from process to process
    Messages,
    /// Answered requests of callers in the same process
    Requests,
    /// Answered calls over HTTP
    Http,
    /// Answered requests of clients in another process, over the native protocol
    Native,
    /// Three nodes with replicas: writes, reads, the dial, failovers
    Cluster,
    /// Cost of checkpoints of 1 GB of state
    Checkpoint,
    /// Starting with 1 GB of state and a cold cache
    Restart,
    /// Memory of processes of 100 bytes of state
    Memory,
    /// The load on an HTTP server, in a child process
    #[value(hide = true)]
    HttpLoad,
    /// The load on a node by the native protocol, in a child process
    #[value(hide = true)]
    NativeLoad,
    /// One start of a node, in a child process
    #[value(hide = true)]
    RestartChild,
    /// One node with many processes, in a child process
    #[value(hide = true)]
    MemoryChild,
}

impl BenchArgs {
    fn round(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    fn parent(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(std::env::temp_dir)
    }
}

pub(crate) fn run(args: &BenchArgs, json: bool) -> Result<(), Failure> {
    stop::on_signal(|| Room::remove_all())?;
    measure(args, json).inspect_err(|_| Room::await_end())
}

fn measure(args: &BenchArgs, json: bool) -> Result<(), Failure> {
    let child = match args.workload {
        Workload::HttpLoad => Some(load::run_child as fn(&BenchArgs) -> Result<(), Failure>),
        Workload::NativeLoad => Some(native_load::run_child as _),
        Workload::RestartChild => Some(restart::run_child as _),
        Workload::MemoryChild => Some(memory::run_child as _),
        _ => None,
    };
    if let Some(run) = child {
        stop::end_with_parent()?;
        return run(args);
    }
    allocator::set()?;
    if cfg!(debug_assertions) {
        output::note(format_args!("stead: this is a debug build: its figures are meaningless"));
    }
    let mut report = Report::default();
    type Measure = fn(&BenchArgs, &mut Report) -> Result<(), Failure>;
    let all: [(Workload, Measure); 8] = [
        (Workload::Messages, messages::run),
        (Workload::Requests, requests::run),
        (Workload::Http, http::run),
        (Workload::Native, native::run),
        (Workload::Cluster, cluster::run),
        (Workload::Checkpoint, checkpoint::run),
        (Workload::Restart, restart::run),
        (Workload::Memory, memory::run),
    ];
    // The figures of the machine must be of the same run as all others.
    machine::run(args, &mut report)?;
    for (workload, run) in all {
        if args.workload == workload || args.workload == Workload::All {
            output::note(format_args!("stead: measuring {workload:?} ..."));
            run(args, &mut report)?;
        }
    }
    if json { output::json(&report) } else { report.print() }
}

/// Returns a function that makes a failed measurement out of its cause.
fn failed(what: &str) -> impl FnOnce(&dyn std::fmt::Display) -> Failure + use<'_> {
    move |cause| Failure::new(Exit::Failed, format!("the measurement failed: cannot {what}")).cause(cause)
}
