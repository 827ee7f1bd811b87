//! Memory of many small processes.

use super::block::{self, Block};
use super::checkpoint::one;
use super::figures::{Goal, Report};
use super::http::child;
use super::room::Room;
use super::{BenchArgs, failed, usage};
use crate::failure::{Exit, Failure};
use crate::output;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use stead::{CheckpointOptions, Node, ServiceOptions};

const WORKLOAD: &str = "memory";
const SHARDS: u32 = 64;
const PROCESSES: u32 = 1_000_000;
/// Body of a process that stores 100 bytes, with its names, version and counter.
const BODY: u32 = 77;
/// Rest before the memory of the node is read: allocators return memory late.
const REST: Duration = Duration::from_secs(2);

/// Memory use of a process.
#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    /// Before the node was opened.
    base_bytes: u64,
    resident_bytes: u64,
    processes: u64,
}

pub(super) fn run_child(args: &BenchArgs) -> Result<(), Failure> {
    let path = args.data.as_ref().ok_or_else(|| Failure::new(Exit::Usage, "--data is missing"))?;
    let base_bytes = usage::resident_bytes();
    let node = Node::builder(path)
        .service::<Block>(ServiceOptions::default().shards(SHARDS).outbox_bytes_max(1 << 30))
        .checkpoints(CheckpointOptions { interval: None, ..CheckpointOptions::default() })
        .open()
        .map_err(|error| failed("open a node")(&error))?;
    if node.recovery().created {
        block::populate(&node, PROCESSES, BODY)?;
        one(&node)?;
    }
    std::thread::sleep(REST);
    let resident_bytes = usage::resident_bytes();
    node.shutdown();
    output::json(&Memory { base_bytes, resident_bytes, processes: u64::from(PROCESSES) })
}

pub(super) fn run(args: &BenchArgs, report: &mut Report) -> Result<(), Failure> {
    let room = Room::new(args)?;
    let (mut grown, mut loaded) = (Vec::new(), Vec::new());
    for round in 0..args.rounds.min(3) {
        let data = room.path().join(round.to_string()).display().to_string();
        let arguments = ["memory-child", "--data", &data];
        let each =
            |memory: &Memory| (memory.resident_bytes - memory.base_bytes) as f64 / memory.processes as f64;
        grown.push(each(&child::<Memory>(&arguments)?));
        loaded.push(each(&child::<Memory>(&arguments)?));
    }
    let goal = Some(Goal::AtMost(300.0));
    report.add(WORKLOAD, "resident bytes of a process of 100, as made", "B", &grown, goal);
    report.add(WORKLOAD, "resident bytes of a process of 100, as loaded", "B", &loaded, goal);
    Ok(())
}
