//! Starting with a large state and a cold cache, compared with the disk's read speed.

use super::block::{self, Block};
use super::checkpoint::{BODY, one};
use super::figures::{Goal, Report};
use super::http::child;
use super::room::Room;
use super::{BenchArgs, failed, machine};
use crate::failure::{Exit, Failure};
use crate::output;
use serde::{Deserialize, Serialize};
use std::path::Path;
use stead::{CheckpointOptions, Node, ServiceOptions};

const WORKLOAD: &str = "restart";
const SHARDS: u32 = 64;

/// Figures of a start.
#[derive(Debug, Serialize, Deserialize)]
struct Start {
    seconds: f64,
    state_bytes: u64,
    entries_replayed: u64,
}

fn open(path: &Path) -> Result<Node, Failure> {
    Node::builder(path)
        .service::<Block>(ServiceOptions::default().shards(SHARDS).outbox_bytes_max(1 << 30))
        .checkpoints(CheckpointOptions { interval: None, ..CheckpointOptions::default() })
        .open()
        .map_err(|error| failed("open a node")(&error))
}

pub(super) fn run_child(args: &BenchArgs) -> Result<(), Failure> {
    let path = args.data.as_ref().ok_or_else(|| Failure::new(Exit::Usage, "--data is missing"))?;
    let node = open(path)?;
    let recovery = *node.recovery();
    // Killed, so that the next start reads the same as this one.
    node.kill();
    output::json(&Start {
        seconds: recovery.duration.as_secs_f64(),
        state_bytes: recovery.state_bytes,
        entries_replayed: recovery.entries_replayed,
    })
}

pub(super) fn run(args: &BenchArgs, report: &mut Report) -> Result<(), Failure> {
    let room = Room::new(args)?;
    let data = room.path().join("node");
    let node = open(&data)?;
    block::populate(&node, args.processes, BODY)?;
    one(&node)?;
    node.shutdown();
    drop(node);
    let path = room.path().join("sequential");
    machine::write_speed(&path)?;

    let name = data.display().to_string();
    let (mut seconds, mut speeds, mut reads, mut shares) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut replayed = 0;
    for _ in 0..args.rounds {
        let read = machine::read_speed(&path)?;
        machine::drop_cache(&data)?;
        let start: Start = child(&["restart-child", "--data", &name])?;
        let speed = start.state_bytes as f64 / start.seconds / 1e6;
        seconds.push(start.seconds);
        speeds.push(speed);
        reads.push(read);
        shares.push(speed / read * 100.0);
        replayed = start.entries_replayed;
    }
    report.add(WORKLOAD, "time until all shards serve", "s", &seconds, None);
    report.add(WORKLOAD, "state recovered", "MB/s", &speeds, None);
    report.add(WORKLOAD, "disk's sequential read, cold, in between", "MB/s", &reads, None);
    report.add(WORKLOAD, "recovery, of the disk's speed", "%", &shares, Some(Goal::AtLeast(50.0)));
    report.add(WORKLOAD, "entries replayed", "", &[replayed as f64], None);
    Ok(())
}
